"""Everything that can be seen to fail before a model is loaded."""

from fusion_bench.modelpool import CLIPVisionModelPool
from fusion_bench.taskpool import CLIPVisionModelTaskPool
from fusion_bench.tasks.clip_classification import get_classnames_and_templates

from fusion_tinting.fusionbench.taskpool import TintedCLIPVisionModelTaskPool as TintedTaskPool

SPLITS = ("test", "val", "train")


def modelpool(pool) -> None:
    """Refuse a pool of another kind, or one that lacks `_pretrained_`, experts or class names."""
    if not isinstance(pool, CLIPVisionModelPool):
        raise ValueError(
            f"`method=model_tinting` needs a CLIPVisionModelPool. Found {type(pool).__name__}."
        )
    if not pool.model_names or not pool.has_pretrained:
        raise ValueError(
            "The model pool must have `_pretrained_` and at least one expert. Found models: "
            f"{pool.all_model_names}."
        )
    for task in pool.model_names:
        try:
            get_classnames_and_templates(task)
        except ValueError as error:
            raise ValueError(
                f"No class names are known for the task `{task}`, so it has no zero-shot head. "
                "Register them in `CLIPTemplateFactory._dataset_mapping`."
            ) from error


def split(pool: CLIPVisionModelPool, name: str) -> None:
    """Refuse a split that the pool does not have for every task, naming those that it has."""
    available = {choice: getattr(pool, f"{choice}_dataset_names") for choice in SPLITS}
    missing = [task for task in pool.model_names if task not in available[name]]
    if missing:
        usable = [choice for choice in SPLITS if set(pool.model_names) <= set(available[choice])]
        raise ValueError(
            f"The model pool has no `{name}_datasets` for {missing}. "
            f"`method.adapt_split` can be one of {usable} with this pool."
        )


def taskpool(pool, tasks: list[str]) -> None:
    """Refuse a task pool that would report a tinted model's wrong accuracy, or has other tasks."""
    if not isinstance(pool, CLIPVisionModelTaskPool):
        return
    if not isinstance(pool, TintedTaskPool):
        raise ValueError(
            f"The task pool {type(pool).__name__} would evaluate the shared encoder with zero-shot "
            "heads and report a wrong accuracy for the tinted model. Use a task pool of fusion_tinting, "
            "such as `taskpool=clip-vit-b32_TA8`, or add "
            f"`taskpool._target_={TintedTaskPool.__module__}.{TintedTaskPool.__name__}`."
        )
    strange = [task for task in pool._test_datasets if task not in tasks]
    if strange:
        raise ValueError(
            f"The task pool evaluates {strange}, for which the model pool has no expert and a tinted "
            f"model no tint. Its tasks must be among {tasks}."
        )
