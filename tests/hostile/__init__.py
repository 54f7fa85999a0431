"""What a hostile or careless user does to a run, counted: see README.md."""
