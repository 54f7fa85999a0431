"""A RoBERTa of a few small blocks: its tokenizer, a base, experts; seconds of training each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

from fusion_tinting.mini.fitting import fit

Row = tuple[str, str | None, float]
"""A text, a second one or None, and a label: a class, or a number to be told."""

LENGTH, BATCH = 32, 64
HEAD_RATE = 2e-3  # a head starts from nothing
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


class Sizes(NamedTuple):
    """How large the models are, and for how long and how fast they learn.

    Attributes:
        spread: standard deviation of the weights that learning starts from. RoBERTa's own suits wide
            layers; with a larger one narrow layers learn in far fewer steps.
    """

    width: int = 64
    layers: int = 3
    spread: float = 0.02
    pretrain_steps: int = 400
    pretrain_rate: float = 2e-3
    expert_steps: int = 150
    expert_rate: float = 1e-3


SIZES = Sizes()


def make_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """One token a word, RoBERTa's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {word: place for place, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
        pad_token="<pad>", unk_token="<unk>", mask_token="<mask>", model_max_length=LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def pretrained(
    tokenizer, corpus: list[Row], captions: list[str], sizes: Sizes = SIZES
) -> RobertaForMaskedLM:
    """A masked language model that tells, at <s>, a caption of the text as well.

    Without captions it would know nothing of any task, as a tiny model of few texts does, and experts would
    have to go so far that no merge of them makes sense. It is left before it knows much.

    Args:
        corpus: rows whose label is a place in `captions`.
    """
    model = RobertaForMaskedLM(_config(tokenizer, sizes)).train()
    words = torch.tensor(tokenizer.convert_tokens_to_ids(captions))

    def loss(ids: Tensor, attention_mask: Tensor, captions: Tensor) -> Tensor:
        hidden = (torch.rand(ids.shape) < 0.2) & (ids >= len(SPECIAL))
        masked, labels = ids.masked_fill(hidden, tokenizer.mask_token_id), ids.masked_fill(~hidden, -100)
        labels[:, 0] = words[captions]
        return model(masked, attention_mask=attention_mask, labels=labels).loss

    rates = [(sizes.pretrain_rate, list(model.parameters()))]
    return _train(model, tokenizer, corpus, loss, sizes.pretrain_steps, rates)


def expert(
    base: Path, tokenizer, rows: list[Row], names: list[str] | None, sizes: Sizes = SIZES
) -> RobertaForSequenceClassification:
    """The base with a head, trained on `rows`.

    Args:
        names: of its labels; None for a regression, whose head has a single output.
    """
    model = _with_head(base, names).train()

    def loss(ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        logits = model(ids, attention_mask=attention_mask).logits
        if names is None:
            return nn.functional.mse_loss(logits[:, 0], labels)
        return nn.functional.cross_entropy(logits, labels)

    rates = [
        (sizes.expert_rate, list(model.roberta.parameters())),
        (HEAD_RATE, list(model.classifier.parameters())),
    ]
    return _train(model, tokenizer, rows, loss, sizes.expert_steps, rates)


def _with_head(base: Path, names: list[str] | None) -> RobertaForSequenceClassification:
    if names is None:
        return RobertaForSequenceClassification.from_pretrained(base, num_labels=1)
    places = {name: place for place, name in enumerate(names)}
    return RobertaForSequenceClassification.from_pretrained(
        base, id2label=dict(enumerate(names)), label2id=places
    )


def _config(tokenizer, sizes: Sizes) -> RobertaConfig:
    return RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=sizes.width, num_hidden_layers=sizes.layers,
        num_attention_heads=4, intermediate_size=2 * sizes.width, max_position_embeddings=LENGTH + 2,
        type_vocab_size=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=sizes.spread,
    )  # fmt: skip


def _train(
    model: PreTrainedModel,
    tokenizer,
    data: list[Row],
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    steps: int,
    rates: list[tuple[float, list[nn.Parameter]]],
) -> PreTrainedModel:
    """Adam on `loss(ids, mask, labels)` of batches; `rates`: learning rates, and what learns at each."""
    tokens = tokenizer([(a, b) if b else a for a, b, _ in data], padding=True, return_tensors="pt")
    labels = torch.tensor([label for *_, label in data])
    adam = torch.optim.AdamW([{"params": parameters} for _, parameters in rates])
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, [rate for rate, _ in rates], total_steps=steps)

    def of_a_batch() -> Tensor:
        chosen = torch.randint(len(data), (BATCH,))
        mask = tokens["attention_mask"][chosen]
        length = int(mask.sum(1).max())
        return loss(tokens["input_ids"][chosen, :length], mask[:, :length], labels[chosen])

    fit(of_a_batch, adam, schedule, steps)
    return model.eval()
