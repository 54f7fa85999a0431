"""What can be seen to fail before a model is loaded, whatever the kind of models."""

from pathlib import Path
from typing import Any

from fusion_bench import BaseModelPool, BaseTaskPool

from fusion_tinting.fusionbench.pools import SPLITS, PoolFamily
from fusion_tinting.fusionbench.taskpools import TintedEvaluation
from fusion_tinting.run.files import require_no_file

STOCK = {
    "CLIPVisionModelTaskPool": ("clip.TintedCLIPVisionModelTaskPool", "clip-vit-b32_TA8"),
    "OpenCLIPVisionModelTaskPool": ("open_clip.TintedOpenCLIPVisionModelTaskPool", "openclip-vit-b32_TA8"),
    "GPT2TextClassificationTaskPool": ("text_classification.TextClassificationTaskPool", "gpt2_glue"),
    "FlanT5GLUETextGenerationTaskPool": ("seq2seq.AnswerTaskPool", "flan-t5-base_glue"),
    "NYUv2TaskPool": ("nyuv2.TintedNYUv2TaskPool", "nyuv2_resnet50"),
}
"""FusionBench's task pool that cannot evaluate a tinted model -> ours in `taskpools`, and an example."""


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
    """Refuse a `merged_model_save_path` that is a file: a tinted model is saved as a folder."""
    if path := getattr(program, "merged_model_save_path", None):
        require_no_file(Path(path))


def taskpool(pool: BaseTaskPool | None, models: PoolFamily) -> None:
    """Refuse a task pool that would report a tinted model's wrong scores, has other tasks, or cannot score.

    Args:
        pool: the program's task pool, or None.
        models: the model pool's.

    Raises:
        ValueError: naming the task pool to use, or the task.
    """
    if not isinstance(pool, TintedEvaluation):
        for ancestor in type(pool).__mro__:
            if ancestor.__name__ in STOCK:
                raise _stock(type(pool).__name__, *STOCK[ancestor.__name__])
        return
    pool.check(models)
    unknown = [task for task in pool.tasks if task not in models.tasks]
    if unknown:
        raise ValueError(
            f"The task pool evaluates {unknown}, for which the model pool has no expert and a tinted "
            f"model no tint. Its tasks must be among {models.tasks}."
        )


def _stock(name: str, ours: str, example: str) -> ValueError:
    return ValueError(
        f"The task pool {name} would evaluate the shared encoder alone, without tints, and report wrong "
        "scores for the tinted model. Use a task pool of fusion_tinting, such as "
        f"`taskpool={example}`, or add `taskpool._target_=fusion_tinting.fusionbench.taskpools.{ours}`."
    )
