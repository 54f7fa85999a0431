"""What can be seen to fail before a model is loaded, whatever the kind of models."""

import os
from pathlib import Path
from typing import Any

from fusion_bench import BaseModelPool, BaseTaskPool

from fusion_tinting.fusionbench.pools import SPLITS, PoolFamily
from fusion_tinting.fusionbench.taskpools import TintedEvaluation
from fusion_tinting.run.files import require_no_file, require_no_folder

OURS = {
    "clip": ("clip.TintedCLIPVisionModelTaskPool", "clip-vit-b32_TA8"),
    "open_clip": ("open_clip.TintedOpenCLIPVisionModelTaskPool", "openclip-vit-b32_TA8"),
    "image_classification": ("image_classification.TintedImageClassificationTaskPool", "resnet50_8-tasks"),
    "sequence_classification": (
        "text_classification.TextClassificationTaskPool",
        "roberta-base_glue` or `taskpool=gpt2_glue",
    ),
    "seq2seq": ("seq2seq.AnswerTaskPool", "flan-t5-base_glue"),
    "dense": ("nyuv2.TintedNYUv2TaskPool", "nyuv2_resnet50"),
}  # fmt: skip
"""Family -> our task pool in `taskpools`, and examples; the others have none."""

SWITCHED = "image_classification"
HARMLESS = ("BaseTaskPool", "DummyTaskPool", "TaskPool")
"""FusionBench's task pools that score nothing."""

REPORTED = ("model_info", "average", "baselines")


def modelpool(pool: BaseModelPool) -> None:
    """Refuse a pool that lacks `_pretrained_` or experts."""
    if not pool.model_names or not pool.has_pretrained:
        raise ValueError(
            "The model pool must have `_pretrained_` and at least one expert. Found models: "
            f"{pool.all_model_names}."
        )


def split(pool: BaseModelPool, name: str) -> None:
    """Refuse a split that the pool does not have for every task, naming those that it has."""
    available = {choice: getattr(pool, f"{choice}_dataset_names") for choice in SPLITS}
    missing = [task for task in pool.model_names if task not in available[name]]
    if missing:
        usable = [choice for choice in SPLITS if set(pool.model_names) <= set(available[choice])]
        raise ValueError(
            f"The model pool has no `{name}_datasets` for {missing}. "
            f"`method.adapt_split` can be one of {usable} with this pool."
        )


def save_path(program: Any) -> None:
    """Refuse paths that what is saved in the end cannot have: a tinted model is a folder, a report a file.

    FusionBench 0.2.33 cannot write a report whose path names no folder; such a path gets one.
    """
    if path := getattr(program, "merged_model_save_path", None):
        require_no_file(Path(path))
    if path := getattr(program, "report_save_path", None):
        require_no_folder(Path(path))
        program.report_save_path = str(path) if os.path.dirname(path) else f"./{path}"


def taskpool(pool: BaseTaskPool | None, models: PoolFamily) -> None:
    """Refuse a task pool that would report a tinted model's wrong scores, has other tasks, or cannot score.

    Args:
        pool: the program's task pool, or None.
        models: the model pool's.

    Raises:
        ValueError: naming the task pool to use, or the task.
        FileNotFoundError: a model or test set that cannot be reached.
    """
    if not isinstance(pool, TintedEvaluation):
        # FusionBench's own pool of image classifiers switches a tinted classifier's heads itself.
        works = (*HARMLESS, "ImageClassificationTaskPool") if models.name == SWITCHED else HARMLESS
        if any(_is_stock(ancestor) and ancestor.__name__ not in works for ancestor in type(pool).__mro__):
            raise ValueError(
                f"The task pool {type(pool).__name__} would evaluate the shared encoder alone, without "
                f"tints, and report wrong scores for the tinted model. {_fitting(models.name)}"
            )
        return
    if models.name != pool.scored:
        raise ValueError(
            f"The task pool {type(pool).__name__} scores models of the family {pool.scored}; the "
            f"model pool's are of {models.name}. {_fitting(models.name)}"
        )
    if not pool.tasks:
        raise ValueError(f"The task pool has no `test_datasets`. Its tasks must be among {models.tasks}.")
    if taken := [task for task in pool.tasks if task in REPORTED]:
        raise ValueError(f"Tasks cannot be called {taken}: a report's own entries are.")
    unknown = [task for task in pool.tasks if task not in models.tasks]
    if unknown:
        raise ValueError(
            f"The task pool evaluates {unknown}, for which the model pool has no expert and a tinted "
            f"model no tint. Its tasks must be among {models.tasks}."
        )
    pool.check(models)


def _is_stock(ancestor: type) -> bool:
    return ancestor.__module__.startswith("fusion_bench.") and "taskpool" in ancestor.__module__


def _fitting(family: str) -> str:
    if family not in OURS:
        return (
            "There is no task pool for such models: with `~taskpool` a run ends with the agreement with "
            "the experts on inputs kept aside."
        )
    ours, example = OURS[family]
    return (
        f"Use a task pool of fusion_tinting, such as `taskpool={example}`, or add "
        f"`taskpool._target_=fusion_tinting.fusionbench.taskpools.{ours}`."
    )
