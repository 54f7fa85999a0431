"""What can be seen to fail before a model is loaded, whatever the kind of models."""

from pathlib import Path

from fusion_tinting.fusionbench.pools import SPLITS, PoolFamily
from fusion_tinting.fusionbench.taskpools import TintedEvaluation
from fusion_tinting.run.files import require_no_file


def modelpool(pool) -> None:
    """Refuse a pool that lacks `_pretrained_` or experts."""
    if not pool.model_names or not pool.has_pretrained:
        raise ValueError(
            "The model pool must have `_pretrained_` and at least one expert. Found models: "
            f"{pool.all_model_names}."
        )


def split(pool, name: str) -> None:
    """Refuse a split that the pool does not have for every task, naming those that it has."""
    available = {choice: getattr(pool, f"{choice}_dataset_names") for choice in SPLITS}
    missing = [task for task in pool.model_names if task not in available[name]]
    if missing:
        usable = [choice for choice in SPLITS if set(pool.model_names) <= set(available[choice])]
        raise ValueError(
            f"The model pool has no `{name}_datasets` for {missing}. "
            f"`method.adapt_split` can be one of {usable} with this pool."
        )


def save_path(program) -> None:
    """Refuse a `merged_model_save_path` that is a file: a tinted model is saved as a folder."""
    if path := getattr(program, "merged_model_save_path", None):
        require_no_file(Path(path))


def taskpool(pool, family: PoolFamily) -> None:
    """Refuse a task pool that would report a tinted model's wrong scores, or has other tasks."""
    family.check_taskpool(pool)
    if not isinstance(pool, TintedEvaluation):
        return
    strange = [task for task in pool.tasks if task not in family.tasks]
    if strange:
        raise ValueError(
            f"The task pool evaluates {strange}, for which the model pool has no expert and a tinted "
            f"model no tint. Its tasks must be among {family.tasks}."
        )
