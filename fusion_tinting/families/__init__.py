"""How a model family gives features, heads and unlabelled batches; one module each."""
