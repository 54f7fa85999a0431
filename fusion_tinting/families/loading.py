"""What the families share in loading a model of transformers."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from fusion_tinting.families.family import Models
from fusion_tinting.method.objectives import l1, sigmoid
from fusion_tinting.run.stored import dtypes_in

FLOATING = ("F16", "BF16", "F32", "F64")
"""Precisions, as safetensors calls them."""


class Unreachable(FileNotFoundError):
    """A model or data set that is neither here nor on a hub that answers."""


def reachable(load: Callable[[Any], Any], name: Any, called: str | None = None) -> Any:
    """Return `load(name)`, whose failure names what was asked for, and the cause, in one line.

    Args:
        load: reads a model or data set.
        name: folder or hub id.
        called: what the error calls it, where its name alone would not tell.

    Raises:
        Unreachable: it is neither here nor on a hub that answers; a `FileNotFoundError`.
    """
    try:
        return load(name)
    except Unreachable:
        raise
    except OSError as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        called = f"`{name}`" if called is None else called
        raise Unreachable(f"{called} is neither here nor can it be reached: {cause}") from error


def own_file(path: str, name: str) -> str | None:
    """Return the file of a model; None where it has none, or none that can be reached.

    Args:
        path: folder or hub id.
        name: of the file.
    """
    kinds = ("missing_entries", "connection_errors", "gated_repo")
    try:
        return cached_file(path, name, **{f"_raise_exceptions_for_{kind}": False for kind in kinds})
    except OSError:
        return None


def configurations(models: Models) -> dict[str, PreTrainedConfig]:
    """Return the configuration of every checkpoint, by task or `_pretrained_`.

    Args:
        models: with folders or hub ids of transformers.

    Raises:
        FileNotFoundError: a model that cannot be reached.
    """
    return {
        name: reachable(partial(AutoConfig.from_pretrained, **models.config.get(name, {})), path)
        for name, path in models.paths.items()
    }


COMPUTING = re.compile(
    "^(?!.*(dropout|init)).*(^|_)(act|activation|heads?|eps|epsilon|theta|window|rope|patch|scale|scaling)(_|$)"
    "|^(image_size|position_embedding_type)$"
)
"""Keys of a configuration that change what a model computes from the same tensors."""


def objective_of(config: object) -> str | None:
    """Return the objective of a classifier whose outputs are no class distribution; None of one's that are.

    A single output is a number to every objective.

    Args:
        config: of a classifier of transformers; `problem_type` says how it was trained.
    """
    problem = getattr(config, "problem_type", None)
    if problem == "regression" and getattr(config, "num_labels", 1) > 1:
        return l1.name
    return sigmoid.name if problem == "multi_label_classification" else None


def objectives_of(configs: Mapping[str, object]) -> dict[str, str]:
    """Return task -> `objective_of`, where there is one.

    Args:
        configs: task -> configuration of its expert.
    """
    named = {task: objective_of(config) for task, config in configs.items()}
    return {task: name for task, name in named.items() if name is not None}


def require_one_architecture(base: PreTrainedConfig, experts: Mapping[str, PreTrainedConfig]) -> None:
    """Refuse experts of another architecture than the base's, or that compute otherwise with its tensors.

    Args:
        base: configuration of the pre-trained model.
        experts: task -> configuration of its expert.

    Raises:
        ValueError: naming the expert, and both architectures or what is configured otherwise.
    """
    ours = base.to_dict()
    for task, expert in experts.items():
        if expert.model_type != base.model_type:
            raise ValueError(
                f"The expert of `{task}`, `{expert.name_or_path}`, is of the architecture "
                f"{expert.model_type}; the base `{base.name_or_path}` of {base.model_type}. "
                "Only fine-tuned copies of one base can be merged."
            )
        theirs = expert.to_dict()
        unlike = [k for k in ours if COMPUTING.search(k) and k in theirs and theirs[k] != ours[k]]
        if unlike:
            found = ", ".join(f"`{key}` {theirs[key]!r}, not {ours[key]!r}" for key in unlike[:3])
            raise ValueError(
                f"The expert of `{task}`, `{expert.name_or_path}`, is configured otherwise than the base "
                f"`{base.name_or_path}`: {found}. With the base's it would not be what it is."
            )


def load_whole(auto: type, path: str) -> PreTrainedModel:
    """Load a model as an auto class of transformers makes it: complete, with dropout off.

    Args:
        auto: class with `from_pretrained`.
        path: folder or hub id.

    Raises:
        FileNotFoundError: a model that cannot be reached.
        ValueError: tensors that the checkpoint lacks, named.
    """
    model, missing = load_partly(auto, path)
    require_complete(path, model, missing)
    return model


def load_partly(
    auto: type, path: str, safetensors: bool | None = None
) -> tuple[PreTrainedModel, list[str]]:
    """Return a model with dropout off, in its own precision, and the tensors that its checkpoint lacks.

    Args:
        auto: class with `from_pretrained`.
        path: folder or hub id.
        safetensors: True for such files alone, None for PyTorch's too.

    Raises:
        FileNotFoundError: a model that cannot be reached.
        ValueError: tensors of other shapes than the checkpoint's own configuration has, named.
    """
    load = partial(
        auto.from_pretrained,
        dtype=own_precision(path),
        use_safetensors=safetensors,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    model, info = reachable(load, path)
    if wrong := sorted(info["mismatched_keys"]):
        name, found, wanted = wrong[0]
        raise ValueError(
            f"`{path}` holds {len(wrong)} tensor(s) of other shapes than its own configuration has: "
            f"`{name}` is {tuple(found)}, not {tuple(wanted)}."
        )
    return model.eval(), sorted(info["missing_keys"])


def own_precision(path: str) -> torch.dtype:
    """Return bfloat16 for a checkpoint all of whose numbers are of it, else float32.

    Args:
        path: folder or hub id.
    """
    kinds = {dtype for file in files_of(path) for dtype in dtypes_in(file) if dtype in FLOATING}
    return torch.bfloat16 if kinds == {"BF16"} else torch.float32


def files_of(path: str) -> list[Path]:
    """Return the safetensors files of a checkpoint; none where it has others.

    Args:
        path: folder or hub id.
    """
    if whole := own_file(path, SAFE_WEIGHTS_NAME):
        return [Path(whole)]
    index = own_file(path, SAFE_WEIGHTS_INDEX_NAME)
    names = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values() if index else ()
    shards = [own_file(path, name) for name in sorted(set(names))]
    return [Path(shard) for shard in shards if shard]


def require_complete(path: str, model: nn.Module, missing: Iterable[str]) -> None:
    """Refuse a model in which transformers initialized tensors randomly that its checkpoint lacks.

    Args:
        path: folder or hub id, for the error.
        model: as loaded.
        missing: names of those tensors.

    Raises:
        ValueError: naming the checkpoint and the first of the tensors.
    """
    if lacking := sorted(missing):
        raise ValueError(
            f"`{path}` is no complete {type(model).__name__}: it lacks {len(lacking)} tensor(s), "
            f"{lacking[:3]}."
        )
