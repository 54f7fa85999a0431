"""What the families of text models share: tokenizers, tokens, configurations."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedConfig

from fusion_tinting.families import tokenizers
from fusion_tinting.families.family import Family
from fusion_tinting.families.labels import Outputs, names_of, unlike
from fusion_tinting.families.loading import configurations, require_one_architecture
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.run.tinted_model import TintedModel
from fusion_tinting.run.unlabeled import Unlabeled

UNLIMITED = 1 << 20
"""Tokens of a text, where neither tokenizer nor model knows a limit."""

COUNTED_FROM_PADDING = (
    "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Architectures whose first position is the one behind the padding token's number."""


class TintedText(TintedModel):
    """A tinted model whose encoder wraps one model of transformers, as in every family of texts."""

    @property
    def merged(self) -> nn.Module:
        """The shared model θ(λ), of transformers' own class."""
        (model,) = self.as_given.children()
        return model

    def save_pretrained(self, path: str | Path, **kwargs: Any) -> None:
        """Save the shared model as its class's `from_pretrained` reads it, and the artifact beside it.

        Args:
            path: a folder.
            **kwargs: as the model's own `save_pretrained`.
        """
        self.merged.save_pretrained(path, **kwargs)
        self.save(path)


class TextFamily(Family):
    """Models that read tokens."""

    model_class: ClassVar[type[TintedModel]] = TintedText

    @cached_property
    def tokenizer(self) -> Any:
        """The host's tokenizer, or the one that all experts share; what lacks a padding token gets one.

        It pads on the right: what a text gives must not depend on the others in its batch.
        """
        tokenizer = self.models.reader
        if tokenizer is None:
            tokenizer = tokenizers.shared(self.models.experts)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        return tokenizer

    @cached_property
    def configs(self) -> Mapping[str, PreTrainedConfig]:
        """Task, or `_pretrained_` -> its checkpoint's configuration."""
        return configurations(self.models)

    def check(self) -> None:
        """Refuse models of several architectures, or that read texts differently.

        Raises:
            ValueError: naming the model.
            FileNotFoundError: a model that cannot be reached, or an expert without tokenizer where the host
                gives none.
        """
        base, experts = self.configs[PRETRAINED], {task: self.configs[task] for task in self.models.tasks}
        require_one_architecture(base, experts)
        given = self.models.reader is not None  # else the experts have been compared
        tokenizers.require_alike(
            self.tokenizer, self.models.paths if given else {PRETRAINED: self.models.base}
        )


def tokenized(
    tokenizer: Any, columns: Sequence[Sequence[str]], max_length: int, where: str = "the texts"
) -> Unlabeled:
    """Return the tokens of texts, or of pairs of texts; batches are padded to their longest.

    Args:
        tokenizer: of transformers; on which side it pads is its own.
        columns: the texts, and the second ones where there are pairs.
        max_length: tokens; longer texts are cut.
        where: what an error calls them.

    Raises:
        ValueError: a text without any token, such as an empty one where none marks its start or end.
    """
    tokens = tokenizer(*columns, truncation=True, max_length=max_length)
    items = [dict(zip(tokens, row, strict=True)) for row in zip(*tokens.values(), strict=True)]
    for place, item in enumerate(items):
        if not item["input_ids"]:
            raise ValueError(
                f"Row {place} of {where} has no token in its text {columns[0][place]!r}. Take it out."
            )
    return Unlabeled(
        items, lambda batch: dict(tokenizer.pad(batch, return_tensors="pt")), version=digest(items)
    )


def digest(items: list) -> str:
    """Return the hash of tokenized inputs."""
    return hashlib.sha256(json.dumps(items).encode()).hexdigest()


def class_order(names: Sequence[str], config: PreTrainedConfig, where: str) -> list[int]:
    """Return the head's output for each class of the data, which may have them in another order.

    Args:
        names: of the data's classes, in order.
        config: of the classifier, whose `label2id` names its outputs; where they are `LABEL_0`,
            `LABEL_1`..., which transformers writes where nothing was said, the orders are taken to be the
            same.
        where: what an error calls the data.

    Raises:
        ValueError: another number of classes, or names that do not tell which is which.
    """
    if config.num_labels != len(names):
        raise ValueError(
            f"The head of `{config.name_or_path}` has {config.num_labels} output(s); {where} has the "
            f"{len(names)} classes {list(names)}. The expert was fine-tuned on another task."
        )
    called = names_of(config)
    order = Outputs(config.num_labels, called).order(names)
    if order is None:
        raise unlike(f"`{config.name_or_path}`", called, where, names)
    return order


def require_fitting(tokenizer: Any, config: PreTrainedConfig) -> None:
    """Refuse a tokenizer that a model cannot read.

    Args:
        tokenizer: of transformers.
        config: of the model.

    Raises:
        ValueError: more tokens than the model has embeddings, or texts longer than it has positions.
    """
    require_known_tokens(tokenizer, config)
    positions = getattr(config, "max_position_embeddings", None)
    if _positions(config) < UNLIMITED > tokenizer.model_max_length > positions:
        raise ValueError(
            f"The tokenizer `{tokenizer.name_or_path}` cuts texts at {tokenizer.model_max_length:.3g} "
            f"tokens, the model `{config.name_or_path}` has {positions} positions. Give the tokenizer a "
            "`model_max_length`."
        )


def readable(config: PreTrainedConfig, max_length: int) -> int:
    """Return how many tokens of a text are read: those asked for, or a model's positions if they are fewer.

    Args:
        config: of the model.
        max_length: that is asked for; transformers writes 1e30 where nobody has said it.
    """
    return min(int(max_length), _positions(config))


def _positions(config: PreTrainedConfig) -> int:
    positions = getattr(config, "max_position_embeddings", None) or UNLIMITED
    if positions < 0 or not getattr(config, "position_biased_input", True):  # XLNet, DeBERTa: relative ones
        return UNLIMITED
    return positions - config.pad_token_id - 1 if config.model_type in COUNTED_FROM_PADDING else positions


def require_known_tokens(tokenizer: Any, config: PreTrainedConfig) -> None:
    """Refuse a tokenizer with more tokens than a model has embeddings.

    Args:
        tokenizer: of transformers.
        config: of the model.

    Raises:
        ValueError: naming both.
    """
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer `{tokenizer.name_or_path}` has {len(tokenizer)} tokens, the model "
            f"`{config.name_or_path}` embeddings for {config.vocab_size}: they do not belong together."
        )


def is_text(feature: Any) -> bool:
    """Return whether a column of a `datasets.Dataset`, by its feature, holds strings."""
    return getattr(feature, "dtype", None) in ("string", "large_string")
