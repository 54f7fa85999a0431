"""Batch-norm statistics on disk: log σ² is stored as a variance; `method.batch_norm` merges them.

Accuracy %, mean of the tasks, `python benchmarks/batch_norm.py` (resnet-mini_3, one zoo, 200 iterations):

| statistics | Task Arithmetic, λ = 0.3 | Task Arithmetic, λ = 0.4 | tinted |
|---|---|---|---|
| the pre-trained model's | 24.7 | 27.0 | 85.9 |
| the experts' average | 47.4 | 47.2 | 90.2 |
| recomputed at λ = 0.3 | 73.3 | 66.5 | 91.6 |
| the same, and again after adaptation | 73.3 | 66.5 | 91.2 |
| merged, σ² itself | 51.0 | 20.0 | 90.5 |
| merged, log σ² (ours) | 55.8 | 45.6 | 91.0 |

Averaged and recomputed statistics are within a point of ours, once there is a tint, and recomputed ones
better for Task Arithmetic. But they are right at a single λ, so that a one-hot λ is not the expert, and
recomputing needs a pass over the inputs of all tasks. Merging σ² itself breaks down where the sum of λ
passes one.
"""

from fusion_tinting.method.batch_norm import Form
from fusion_tinting.method.batch_norm import MergedBatchNorm as MergedBatchNorm
from fusion_tinting.method.batch_norm import log_variance as log_variance
from fusion_tinting.method.batch_norm import merge_statistics as merge_statistics
from fusion_tinting.method.batch_norm import restore_statistics as restore_statistics

AS_IT_IS = Form(lambda tensor: tensor, lambda tensor: tensor)


def is_variance(name: str) -> bool:
    """Return whether a tensor is the variance of a batch norm, by its name on disk."""
    return name.rpartition(".")[2] == "running_var"


def name_on_disk(name: str) -> str:
    """Return the buffer that a parameter of `merge_statistics` stands for; other names as they are."""
    prefix, matched, rest = name.rpartition("log_variance")
    return f"{prefix}running_var" if matched and not rest else name


def name_of_parameter(name: str) -> str:
    """Return the reverse of `name_on_disk`."""
    return name.removesuffix("running_var") + "log_variance" if is_variance(name) else name
