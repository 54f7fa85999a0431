"""Zoos of texts: a RoBERTa of a few small blocks, and an expert for each task."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

from fusion_tinting.mini.recipe import Build, Part, Recipe
from fusion_tinting.mini.text.rows import Row, Tasks, captioned, captions, rows, words
from fusion_tinting.mini.tokenizer import make_tokenizer
from fusion_tinting.mini.training import Advance, Training, fit

LENGTH, BATCH = 32, 64
HEAD_LR = 2e-3  # a head starts from nothing
SPECIAL = {
    "cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>",
    "mask_token": "<mask>",
}  # fmt: skip
TEMPLATES = {"single": "<s> $A </s>", "pair": "<s> $A </s> </s> $B </s>"}
RANDOM_STATE = "random_state.npy"
"""torch's at the end of a part's training: the next part continues from it."""


@dataclass(frozen=True, kw_only=True)
class TextRecipe(Recipe):
    """A masked language model, and classifiers that are fine-tuned from it.

    Args:
        width: Channels of the model.
        layers: Its blocks.
        spread: Standard deviation of the weights that training starts from. RoBERTa's own suits wide
            layers; with a larger one narrow layers learn in far fewer steps.
    """

    train: int = 4000
    val: int = 1600
    test: int = 1000
    width: int = 64
    layers: int = 2
    spread: float = 0.1
    pretrain_steps: int = 400
    pretrain_lr: float = 2e-3
    expert_steps: int = 150
    expert_lr: float = 1e-3
    minutes: str = "about a minute"
    workers: int = 1
    version: ClassVar[int] = 2

    table: ClassVar[Tasks]
    """The tasks."""
    corpus: ClassVar[Tasks]
    """What the base learns from: the tasks' texts with labels of their own."""
    split: ClassVar[str | None]
    """Whose texts the models learn from; None: any."""

    def stages(self) -> list[list[Part]]:
        """Return the parts; an expert needs the one before it, whose random numbers it continues."""
        return [[self.base(), *self.data()], *([expert] for expert in self.experts())]

    def pretrain(self, build: Build, folder: Path, advance: Advance) -> None:
        """Train a masked language model that predicts, at <s>, a caption of the text as well.

        Without captions it would know nothing of any task, as a tiny model of few texts does, and experts
        would have to go so far that no merge of them makes sense. Training ends before it knows much.
        """
        torch.manual_seed(100 * build.seed)
        vocabulary = [*SPECIAL.values(), *sorted({*words(self.table), *words(self.corpus)})]
        tokenizer = make_tokenizer(
            vocabulary, LENGTH, TEMPLATES, **SPECIAL, bos_token="<s>", eos_token="</s>"
        )
        corpus = captioned(self.corpus, self.train, 100 * build.seed + 2, self.split)
        model = RobertaForMaskedLM(self._config(tokenizer)).train()
        caption_ids = torch.tensor(tokenizer.convert_tokens_to_ids(captions(self.corpus)))

        def loss(ids: Tensor, attention_mask: Tensor, captions: Tensor) -> Tensor:
            hidden = (torch.rand(ids.shape) < 0.2) & (ids >= len(SPECIAL))
            masked = ids.masked_fill(hidden, tokenizer.mask_token_id)
            labels = ids.masked_fill(~hidden, -100)
            labels[:, 0] = caption_ids[captions]
            return model(masked, attention_mask=attention_mask, labels=labels).loss

        batch_loss = _batches(tokenizer, corpus, loss)
        fit(batch_loss, model.parameters(), Training(self.pretrain_steps, self.pretrain_lr), advance)
        _save(model, folder)
        tokenizer.save_pretrained(folder)

    def finetune(self, task: str, build: Build, folder: Path, advance: Advance) -> None:
        """Train the base with a head of the task's on its rows; the head of a regression has one output."""
        previous = ("pretrained", *self.tasks)[self.tasks.index(task)]
        torch.set_rng_state(torch.from_numpy(np.load(build.zoo / previous / RANDOM_STATE)))
        tokenizer = PreTrainedTokenizerFast.from_pretrained(build.zoo / "pretrained")
        data = rows(self.table, task, self.train, 100 * build.seed + 3, self.split)
        regression = self.table[task].regression
        model = _load_with_head(build.zoo / "pretrained", None if regression else self.table[task].names)

        def loss(ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
            logits = model(ids, attention_mask=attention_mask).logits
            if regression:
                return nn.functional.mse_loss(logits[:, 0], labels)
            return nn.functional.cross_entropy(logits, labels)

        groups = [
            {"params": list(model.roberta.parameters()), "lr": self.expert_lr},
            {"params": list(model.classifier.parameters()), "lr": HEAD_LR},
        ]
        training = Training(self.expert_steps, self.expert_lr)
        fit(_batches(tokenizer, data, loss), groups, training, advance)
        _save(model, folder)
        for file in (build.zoo / "pretrained").glob("tokenizer*"):
            shutil.copy(file, folder)

    def _config(self, tokenizer: PreTrainedTokenizerFast) -> RobertaConfig:
        return RobertaConfig(
            vocab_size=len(tokenizer), hidden_size=self.width, num_hidden_layers=self.layers,
            num_attention_heads=4, intermediate_size=2 * self.width, max_position_embeddings=LENGTH + 2,
            type_vocab_size=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            initializer_range=self.spread,
        )  # fmt: skip


def _load_with_head(base: Path, names: list[str] | None) -> RobertaForSequenceClassification:
    """Return the base with a new head, of one output where there are no names."""
    if names is None:
        return RobertaForSequenceClassification.from_pretrained(base, num_labels=1).train()
    places = {name: place for place, name in enumerate(names)}
    return RobertaForSequenceClassification.from_pretrained(
        base, id2label=dict(enumerate(names)), label2id=places
    ).train()


def _batches(
    tokenizer: PreTrainedTokenizerFast, data: list[Row], loss: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Callable[[], Tensor]:
    """Return a function that draws a batch and returns `loss(ids, mask, labels)` of it."""
    tokens = tokenizer([(a, b) if b else a for a, b, _ in data], padding=True, return_tensors="pt")
    labels = torch.tensor([label for *_, label in data])

    def of_a_batch() -> Tensor:
        chosen = torch.randint(len(data), (BATCH,))
        mask = tokens["attention_mask"][chosen]
        length = int(mask.sum(1).max())
        return loss(tokens["input_ids"][chosen, :length], mask[:, :length], labels[chosen])

    return of_a_batch


def _save(model: PreTrainedModel, folder: Path) -> None:
    np.save(folder / RANDOM_STATE, torch.get_rng_state().numpy())
    model.eval().save_pretrained(folder)
