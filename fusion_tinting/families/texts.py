"""What the families of text models share, whatever the host: tokens, labels, checks of models."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from fusion_tinting.method.tinted_model import TintedModel
from fusion_tinting.run.unlabeled import Unlabeled


class TintedText(TintedModel):
    """A tinted model whose encoder wraps one model of transformers, as in every family of texts."""

    @property
    def merged(self) -> nn.Module:
        """The shared model θ(λ), of transformers' own class."""
        (model,) = self.encoder.children()
        return model

    def save_pretrained(self, path: str | Path, **kwargs) -> None:
        """Save the shared model as its class's `from_pretrained` reads it, and, in the same folder, the
        artefact: coefficients and tints."""
        self.merged.save_pretrained(path, **kwargs)
        self.save(path)


def tokenised(tokenizer, columns: Sequence[Sequence[str]], max_length: int) -> Unlabeled:
    """The tokens of texts, or of pairs of texts; batches are padded to their longest, on the right.

    Args:
        columns: the texts, and the second ones where there are pairs.
        max_length: tokens; longer texts are cut.
    """
    tokens = tokenizer(*columns, truncation=True, max_length=max_length)
    items = [dict(zip(tokens, row, strict=True)) for row in zip(*tokens.values(), strict=True)]
    return padded(tokenizer, items)


def padded(tokenizer, items: list[dict]) -> Unlabeled:
    """Tokens of samples; batches are padded to their longest."""
    return Unlabeled(
        items, lambda batch: dict(tokenizer.pad(batch, return_tensors="pt")), version=digest(items)
    )


def digest(items: list) -> str:
    """Hash of tokenised inputs."""
    return hashlib.sha256(json.dumps(items).encode()).hexdigest()


def labels_of(values: Sequence, outputs: int, names: Mapping[str, int], where: str, column: str) -> Tensor:
    """The labels, (N,): class indices; of a head with a single output float32 values.

    Args:
        values: one label for each sample; of classes, their indices or names.
        outputs: how many the expert's head has.
        names: class name -> index.
        where, column: what an error calls the data and the labels' column.

    Raises:
        ValueError: a value that is no label of this head, and where it is.
    """
    wanted = "a number" if outputs == 1 else f"a class from 0 to {outputs - 1} or one of {list(names)}"
    found = [names.get(value, value) if isinstance(value, str) else value for value in values]
    for place, value in enumerate(found):
        number = isinstance(value, Real) and value == value
        if not number or (outputs > 1 and value not in range(outputs)):
            raise ValueError(
                f"Row {place} of {where} has the label {values[place]!r} in its column `{column}`; its "
                f"expert's head has {outputs} output(s): expected {wanted}."
            )
    return torch.tensor(found, dtype=torch.float32 if outputs == 1 else torch.long)


def class_order(names: Sequence[str], config: PreTrainedConfig, where: str) -> list[int]:
    """The head's output for each class of the data. A checkpoint may have its classes in another order.

    Args:
        names: of the data's classes, in order.
        config: of the classifier, whose `label2id` tells; the names `LABEL_0`, `LABEL_1`... that
            transformers makes up tell nothing, and then the orders are taken to be the same.
        where: what an error calls the data.

    Raises:
        ValueError: another number of classes, or names that do not tell which is which.
    """
    if config.num_labels != len(names):
        raise ValueError(
            f"The head of `{config.name_or_path}` has {config.num_labels} output(s); {where} has the "
            f"{len(names)} classes {list(names)}. The expert was fine-tuned on another task."
        )
    known = {str(name).casefold(): int(place) for name, place in config.label2id.items()}
    if known == {f"label_{place}": place for place in range(len(names))}:
        return list(range(len(names)))
    order = [known.get(name.casefold(), -1) for name in names]
    if sorted(order) != list(range(len(names))):
        theirs = sorted(config.label2id, key=config.label2id.get)
        raise ValueError(
            f"`{config.name_or_path}` calls its classes {theirs}; {where} calls them "
            f"{list(names)}: which is which? Say it with `label2id`, data set's name -> the model's "
            "output, beside the model's path."
        )
    return order


def same_architecture(base: PreTrainedConfig, experts: Mapping[str, PreTrainedConfig]) -> None:
    """Refuse experts of another architecture than the base's.

    Raises:
        ValueError: naming the expert and both architectures.
    """
    for task, expert in experts.items():
        if expert.model_type != base.model_type:
            raise ValueError(
                f"The expert of `{task}`, `{expert.name_or_path}`, is of the architecture "
                f"{expert.model_type}; the base `{base.name_or_path}` of {base.model_type}. "
                "Only fine-tuned copies of one base can be merged."
            )


def require_fitting(tokenizer, config: PreTrainedConfig) -> None:
    """Refuse a tokenizer that a model cannot read.

    Raises:
        ValueError: more tokens than the model has embeddings, or texts longer than it has positions.
    """
    require_known_tokens(tokenizer, config)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and tokenizer.model_max_length > positions:
        raise ValueError(
            f"The tokenizer `{tokenizer.name_or_path}` cuts texts at {tokenizer.model_max_length:.3g} "
            f"tokens, the model `{config.name_or_path}` has {positions} positions. Give the tokenizer a "
            "`model_max_length`."
        )


def require_known_tokens(tokenizer, config: PreTrainedConfig) -> None:
    """Refuse a tokenizer with more tokens than a model has embeddings.

    Raises:
        ValueError: naming both.
    """
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer `{tokenizer.name_or_path}` has {len(tokenizer)} tokens, the model "
            f"`{config.name_or_path}` embeddings for {config.vocab_size}: they do not belong together."
        )


def is_text(feature) -> bool:
    """Whether a column of a `datasets.Dataset`, by its feature, holds strings."""
    return getattr(feature, "dtype", None) in ("string", "large_string")
