"""The FusionBench host: the algorithm, the task pool, and the repairs of `compat`."""

from fusion_tinting.fusionbench import compat

compat.apply()
