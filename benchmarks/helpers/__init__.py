"""What the commands of this folder share; none of it is a command."""
