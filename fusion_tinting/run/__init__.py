"""What a run needs around the method: inputs, expert predictions, training, files, processes."""
