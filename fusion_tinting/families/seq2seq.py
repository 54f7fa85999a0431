"""Sequence-to-sequence models (T5, Flan-T5, BART): merged whole, and taught the next token.

The expert's distribution of the next token teaches: at every position of a target text where there is one,
else of the first token of the answer. Targets are no labels: they say what the decoder has read so far.

A task of FusionBench's is a template: `input_text`, the prompt with a field for each column of texts, and
`target_text`, the answer of each class (by its index, a string), or how a rating is written.
"""

import string
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from fusion_tinting.errors import unknown
from fusion_tinting.families.causal_lm import WholeModels, names_on_disk
from fusion_tinting.families.family import BY_FILE
from fusion_tinting.families.loading import load_whole
from fusion_tinting.families.rows import Rows
from fusion_tinting.families.texts import digest, readable, require_known_tokens, tokenized
from fusion_tinting.method.objectives import PADDING
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.method.tints import HEAD
from fusion_tinting.run.unlabeled import Unlabeled

RATINGS = [tenths / 10 for tenths in range(51)]
"""Every rating of STS-B, as its template writes them."""

NO_TOKEN = -100
"""Fills up the shorter answers; transformers' own mark of what is no label."""


NO_POSITION = -1
"""Fills up the positions of shorter targets."""

BIAS = "final_logits_bias"
"""What BART and its kin add to the logits: a buffer."""


class AnsweringModel(nn.Module):
    """Tokens (keyword arguments) -> logits (B, V) of the first token of the answer.

    FusionBench's AdaMerging asks for the same logits, but starts the decoder with token 1, T5's end of
    text; here it starts as in generation: with the model's own `decoder_start_token_id`, and the
    `forced_bos_token_id` of models that have one.

    With `decoder_input_ids` (B, T') and `positions` (B, T): the logits at these positions, (B, V, T), and
    `PADDING` where a position is `NO_POSITION`.

    With `answers` (A, T), token ids filled up with `NO_TOKEN`: the log-likelihood of each, (B, A), nats.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        answers: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Return the logits of the first token or of positions, or the likelihood of answers."""
        if answers is not None:
            return self._likelihoods(input_ids, attention_mask, answers)
        if decoder_input_ids is None:
            decoder_input_ids = input_ids.new_tensor(opening(self.model)).repeat(len(input_ids), 1)
        tokens = {"attention_mask": attention_mask, "decoder_input_ids": decoder_input_ids}
        logits = self.model(input_ids=input_ids, **tokens, use_cache=False).logits
        if positions is None:
            return logits[:, -1]
        places = positions[..., None]
        logits = logits.float().take_along_dim(places.clamp(min=0), 1)
        return logits.masked_fill(places == NO_POSITION, PADDING).transpose(1, 2)

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
    """Models that answer a text: what teaches is the expert's distribution of the answer's next token."""

    auto, encoder = AutoModelForSeq2SeqLM, AnsweringModel
    keys: ClassVar[tuple[str, ...]] = ("text", "target", "max_length")
    recipes = BY_FILE

    _biased = False

    def check(self) -> None:
        """Refuse models of several architectures, and a tokenizer that is not theirs."""
        require_known_tokens(self.tokenizer, self.configs[PRETRAINED])
        super().check()

    def load(self) -> None:
        """Load the pre-trained model; a bias of the logits is merged where any model has one."""
        super().load()
        models = chain([self.pretrained], self.experts.values())
        if hasattr(self.pretrained.model, BIAS) and any(getattr(m.model, BIAS).any() for m in models):
            self._biased = True
            self.pretrained = _with_merged_bias(self.pretrained)
            self.experts = self._loaded()
            self.names = names_on_disk(self.pretrained.model)

    @cached_property
    def layers(self) -> Mapping[str, str]:
        """`head` is the LM head, `block:<i>` a block of the decoder."""
        blocks = decoder_blocks(self.pretrained.model)
        named = {f"block:{place}": blocks[place] for place in range(-len(blocks), len(blocks))}
        return {**super().layers, **named}

    @property
    def head_names(self) -> Mapping[str, str]:
        """The LM head's weight, which the merged tensors lack where it is the embedding's."""
        name = f"{self.layers[HEAD]}.weight"
        return {name: name.removeprefix("model.")}

    def inputs(self, task: str, rows: Rows) -> Unlabeled:
        """Return the tokens of the texts that are answered, and of the targets where there are any."""
        config = self.configs[PRETRAINED]
        length = readable(config, rows.max_length)
        asked = tokenized(self.tokenizer, [rows.texts("text")], length, rows.where)
        texts = rows.texts("target")
        if texts is None:
            return asked
        self.classes = False  # but several distributions a sample
        targets = self.tokenizer(text_target=texts, truncation=True, max_length=length)["input_ids"]
        return with_targets(asked, config.decoder_start_token_id, targets)

    def _encoder(self, name: str) -> nn.Module:
        encoder = super()._encoder(name)
        _fix_unsaved(encoder.model)
        return _with_merged_bias(encoder) if self._biased else encoder


def _fix_unsaved(model: PreTrainedModel) -> None:
    """Make buffers of parameters that no checkpoint holds (Marian's computed positions), in place."""
    for name in model._keys_to_ignore_on_save or ():
        path, _, last = name.rpartition(".")
        owner = model.get_submodule(path)
        if last in owner._parameters:
            owner.register_buffer(last, owner._parameters.pop(last).data)


def _with_merged_bias(encoder: AnsweringModel) -> AnsweringModel:
    """Make the bias of the logits a parameter, in place: of buffers only the base's would stay."""
    bias = encoder.model._buffers.pop(BIAS)
    encoder.model.register_parameter(BIAS, nn.Parameter(bias, requires_grad=False))
    return encoder


def opening(model: PreTrainedModel) -> list[int]:
    """Return the tokens that the decoder is given before it writes one of its own choice.

    Args:
        model: of transformers.
    """
    forced = model.generation_config.forced_bos_token_id
    return [model.config.decoder_start_token_id, *([] if forced is None else [forced])]


def with_targets(asked: Unlabeled, start: int, targets: Sequence[Sequence[int]]) -> Unlabeled:
    """Return inputs whose batches also hold what the decoder reads, and at which positions it is taught.

    Args:
        asked: tokens of texts, from `tokenized`.
        start: the token that the decoder starts with.
        targets: token ids of each text's target.
    """
    longest = max(map(len, targets))
    items = [
        {
            **item,
            "decoder": [start, *ids[:-1]],
            "positions": [*range(len(ids)), *[NO_POSITION] * (longest - len(ids))],
        }
        for item, ids in zip(asked.dataset, targets, strict=True)
    ]

    def collate(batch: list[dict]) -> dict[str, Tensor]:
        read = [torch.tensor(item["decoder"]) for item in batch]
        texts = [{k: v for k, v in item.items() if k not in ("decoder", "positions")} for item in batch]
        return {
            **asked.collate(texts),
            # The decoder is causal: what fills up a target changes nothing before it.
            "decoder_input_ids": pad_sequence(read, batch_first=True, padding_value=start),
            "positions": torch.tensor([item["positions"] for item in batch]),
        }

    return Unlabeled(items, collate, version=digest(items))


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

    The core's `block:<index>` are the encoder's, or the longer one's.
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
        ValueError: a column that the template asks for and the data set lacks; a row with nothing in it.
    """
    fields = [field for _, field, _, _ in string.Formatter().parse(template["input_text"]) if field]
    for field in fields:
        if field not in dataset.column_names:
            raise unknown(f"column, for the task's prompt, of {where}", field, dataset.column_names)
    rows = list(dataset.select_columns(fields))
    for place, row in enumerate(rows):
        for field in fields:
            if row[field] is None:
                raise ValueError(f"Row {place} of {where} has nothing in its column `{field}`.")
    return [template["input_text"].format(**row) for row in rows]


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
