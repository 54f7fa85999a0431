"""Sequence-to-sequence models (T5, Flan-T5): the whole model is merged; an answer's first token is taught.

A task of FusionBench's is a template: `input_text`, the prompt with a field for each column of texts, and
`target_text`, the answer of each class (by its index, a string), or how a rating is written.
"""

import string
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from fusion_tinting.errors import unknown
from fusion_tinting.families.causal_lm import WholeModels
from fusion_tinting.families.loading import load_whole
from fusion_tinting.families.rows import Rows
from fusion_tinting.families.texts import tokenized
from fusion_tinting.run.unlabeled import Unlabeled

RATINGS = [tenths / 10 for tenths in range(51)]
"""Every rating of STS-B, as its template writes them."""

NO_TOKEN = -100
"""Fills up the shorter answers; transformers' own mark of what is no label."""


class AnsweringModel(nn.Module):
    """Tokens (keyword arguments) -> logits (B, V) of the first decoder step.

    FusionBench's AdaMerging asks for the same logits, but starts the decoder with token 1, T5's end of
    text; here it starts with the model's own `decoder_start_token_id`, as in training and generation.

    With `answers` (A, T), token ids filled up with `NO_TOKEN`: the log-likelihood of each, (B, A), nats.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, answers: Tensor | None = None) -> Tensor:
        """Return the logits of the first step, or the likelihood of answers."""
        if answers is not None:
            return self._likelihoods(input_ids, attention_mask, answers)
        start = input_ids.new_full((len(input_ids), 1), self.model.config.decoder_start_token_id)
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": start}
        return self.model(**tokens, use_cache=False).logits[:, 0]

    def _likelihoods(self, input_ids: Tensor, attention_mask: Tensor, answers: Tensor) -> Tensor:
        read = self.model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)
        given = {"encoder_outputs": read, "attention_mask": attention_mask, "use_cache": False}
        likelihoods = []
        for answer in answers:
            labels = answer[answer != NO_TOKEN].repeat(len(input_ids), 1)
            log_probs = self.model(**given, labels=labels).logits.log_softmax(-1)
            likelihoods.append(log_probs.gather(2, labels[..., None]).sum((1, 2)))
        return torch.stack(likelihoods, 1)


class Seq2Seq(WholeModels):
    """Models that answer a text: what teaches is the expert's distribution of its answer's first token."""

    auto, encoder = AutoModelForSeq2SeqLM, AnsweringModel
    keys: ClassVar[tuple[str, ...]] = ("text", "max_length")

    @cached_property
    def layers(self) -> Mapping[str, str]:
        """`head` is the LM head, `block:<i>` a block of the decoder."""
        blocks = decoder_blocks(self.pretrained.model)
        named = {f"block:{place}": blocks[place] for place in range(-len(blocks), len(blocks))}
        return {**super().layers, **named}

    def inputs(self, task: str, rows: Rows) -> Unlabeled:
        """Return the tokens of the texts that are answered."""
        return tokenized(self.tokenizer, [rows.texts("text")], rows.max_length)


def load(path: str) -> PreTrainedModel:
    """Load a sequence-to-sequence model in float32, with dropout off.

    Args:
        path: folder or hub id.

    Raises:
        FileNotFoundError: a model that cannot be reached.
        ValueError: tensors that the checkpoint lacks, named.
    """
    return load_whole(AutoModelForSeq2SeqLM, path)


def decoder_blocks(model: PreTrainedModel) -> list[str]:
    """Return the names, in `AnsweringModel`, of the decoder's blocks.

    T5's first block holds the position biases of all, so that the core finds no list of equal blocks.
    """
    lists = (part for part in model.get_decoder().children() if isinstance(part, nn.ModuleList))
    blocks = {id(block) for block in next(lists, ())}
    return [f"model.{name}" for name, module in model.named_modules() if id(module) in blocks]


def prompts(template: Mapping, dataset: Dataset, where: str) -> list[str]:
    """Return what the model is asked of every row.

    Args:
        template: with `input_text`.
        dataset: with the columns that it names.
        where: what an error calls the data.

    Raises:
        ValueError: a column that the template asks for and the data set lacks.
    """
    fields = [field for _, field, _, _ in string.Formatter().parse(template["input_text"]) if field]
    for field in fields:
        if field not in dataset.column_names:
            raise unknown(f"column, for the task's prompt, of {where}", field, dataset.column_names)
    return [template["input_text"].format(**row) for row in dataset.select_columns(fields)]


def answers(template: Mapping) -> dict[str, int | float]:
    """Return answer -> what it means: a class, or a rating.

    Args:
        template: with `target_text`.
    """
    written = template["target_text"]
    if isinstance(written, str):
        return {written.format(rating): rating for rating in RATINGS}
    return {answer: int(label) for label, answer in written.items()}


def with_answers(inputs: Unlabeled, tokenizer: Any, among: Sequence[str]) -> Unlabeled:
    """Return inputs whose batches also hold the tokens of the answers that are compared.

    Args:
        inputs: tokens of prompts.
        tokenizer: of the models.
        among: the answers.

    Raises:
        ValueError: answers that are the same to the tokenizer.
    """
    tokens = tokenizer(list(among))["input_ids"]
    if len({tuple(answer) for answer in tokens}) < len(tokens):
        raise ValueError(
            f"The tokenizer `{tokenizer.name_or_path}` cannot tell the answers {list(among)} apart: it "
            "does not belong to the models."
        )
    filled = pad_sequence([torch.tensor(t) for t in tokens], batch_first=True, padding_value=NO_TOKEN)
    return Unlabeled(inputs.dataset, lambda batch: {**inputs.collate(batch), "answers": filled})
