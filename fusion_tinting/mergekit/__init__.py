"""Model Tinting in mergekit: the merge method `model_tinting` and the command `mergekit-tint`."""
