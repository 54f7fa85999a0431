"""Token classifiers of transformers (BERT, RoBERTa, DistilBERT, DeBERTa): a class for each word of a text.

Such experts are trained and read at the first token of each word alone, and so are they here: what they say
at special tokens, further tokens of a word and padding is `PADDING`, which neither teaches nor counts.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForTokenClassification, PreTrainedModel

from fusion_tinting.families import sequence_classification as sequences
from fusion_tinting.families.labels import names_of
from fusion_tinting.families.rows import NO_LABEL, Rows
from fusion_tinting.families.sequence_classification import Features, TextEncoder, TextHead
from fusion_tinting.families.texts import digest, readable
from fusion_tinting.method.objectives import PADDING
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.run.unlabeled import Unlabeled

NO_WORD = -1


class TokenEncoder(TextEncoder):
    """Tokens, and `words` (B, T): each word's number at its first token, else `NO_WORD` -> `Features`."""

    def forward(self, words: Tensor, **tokens: Tensor) -> Features:
        """Run the backbone on as many positions as the batch's longest text has."""
        length = int(tokens["attention_mask"].sum(1).max())
        tokens = {name: tensor[:, :length] for name, tensor in tokens.items()}
        return Features(self.backbone(**tokens), {**tokens, "words": words})


class TokenHead(TextHead):
    """`Features` -> logits (B, classes, T), `PADDING` where no word begins."""

    def forward(self, features: Features) -> Tensor:
        """Run the rest of the model on what its backbone has computed."""
        tokens = dict(features.inputs)
        words = tokens.pop("words")
        logits = super().forward(Features(features.output, tokens)).float().transpose(1, 2)
        logits = F.pad(logits, (0, words.shape[1] - logits.shape[2]))
        return logits.masked_fill((words == NO_WORD).unsqueeze(1), PADDING)


class TokenClassification(sequences.SequenceClassification):
    """Backbones are merged; a task's head is its expert's. A text is a string, or a list of words.

    Labels are lists of tags, one for each word of a list.
    """

    keys: ClassVar[tuple[str, ...]] = ("text", "max_length", "label")
    defaults: ClassVar[Mapping[str, Any]] = {"sampler": "all"}
    classes: ClassVar[bool] = False
    auto: ClassVar[type] = AutoModelForTokenClassification

    @staticmethod
    def split(model: PreTrainedModel, pooled: bool = True) -> tuple[TextEncoder, TextHead]:
        """Split a model into its backbone and the rest."""
        encoder, head = sequences.split(model, pooled)
        return TokenEncoder(encoder.backbone), TokenHead(head.rest, head.pooler)

    @property
    def objectives(self) -> Mapping[str, str]:
        """None: transformers trains classifiers of words by their classes, whatever `problem_type` says."""
        return {}

    def inputs(self, task: str, rows: Rows) -> Unlabeled:
        """Return the tokens of texts, all of them padded to the task's longest."""
        items = self._items(rows)
        length = {"padding": "max_length", "max_length": len(items[0]["words"])}
        pad = self.tokenizer.pad
        return Unlabeled(
            items, lambda batch: dict(pad(batch, return_tensors="pt", **length)), version=digest(items)
        )

    def labels(self, task: str, rows: Rows) -> Tensor | None:
        """Return class indices (N, T), `NO_LABEL` where no word begins."""
        tags = rows.tags(self.configs[task].num_labels, names_of(self.configs[task]))
        if tags is None:
            return None
        pairs = zip(self._items(rows), tags, strict=True)
        return torch.tensor(
            [[NO_LABEL if word == NO_WORD else row[word] for word in item["words"]] for item, row in pairs]
        )

    def _items(self, rows: Rows) -> list[dict[str, list[int]]]:
        """Return the tokens of each text; and `words`, each word's number at its first token, T of them."""
        texts, length = rows.words(), readable(self.configs[PRETRAINED], rows.max_length)
        split = isinstance(texts[0], list)
        tokens = self.tokenizer(texts, truncation=True, max_length=length, is_split_into_words=split)
        items = [dict(zip(tokens, row, strict=True)) for row in zip(*tokens.values(), strict=True)]
        longest = max(len(item["input_ids"]) for item in items)
        for place, item in enumerate(items):
            ids = [NO_WORD if word is None else word for word in tokens.word_ids(place)]
            words = [NO_WORD if word == last else word for last, word in pairwise([NO_WORD, *ids])]
            if set(words) == {NO_WORD}:
                raise ValueError(f"Row {place} of {rows.where} has no word in its text: {texts[place]!r}.")
            item["words"] = words + [NO_WORD] * (longest - len(words))
        return items
