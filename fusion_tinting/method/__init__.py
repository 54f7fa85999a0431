"""The paper: Model Tinting, one idea a file."""
