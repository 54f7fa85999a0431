"""The FusionBench host: the algorithm, the task pool, and the repairs of `compat`."""
