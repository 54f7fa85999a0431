"""Four small text tasks, a tiny RoBERTa and its experts, made on the spot to show `mergekit-tint` on.

    python -m fusion_tinting.mini.texts DEMO
    mergekit-tint learn DEMO/config.yml DEMO/run

No task can be told from a single word: *review*, are most of three opinions good (2 labels); *doer*, does a
person or an animal act (2); *topic*, what most words are about (5); *compare*, is the first number the
larger, the smaller or the same (3 labels, a pair of texts).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

from fusion_tinting.files import write_text

Row = tuple[str, str | None, int]
WIDTH, LAYERS, LENGTH = 64, 3, 32
BATCH = 64
PRETRAIN_STEPS, PRETRAIN_RATE = 500, 2e-3
EXPERT_STEPS, EXPERT_RATE, HEAD_RATE = 300, 5e-4, 2e-3  # near the base: Task Arithmetic wants experts there
TRAIN, UNLABELLED = 4000, 1600

THINGS = ["film", "book", "song", "play", "meal", "hotel", "phone", "game", "show", "trip"]
GOOD = ["good", "great", "fine", "lovely", "brilliant", "superb", "pleasant", "charming"]
BAD = ["bad", "awful", "poor", "dreadful", "boring", "terrible", "nasty", "clumsy"]
PEOPLE = ["child", "teacher", "pilot", "singer", "doctor", "friend", "sailor", "baker"]
ANIMALS = ["dog", "cat", "horse", "fox", "goat", "bear", "duck", "wolf"]
DID = ["chased", "followed", "saw", "heard", "met", "helped"]
STARTS = ["the", "yesterday the", "in the garden the", "they say that the"]
TOPICS = [
    ["goal", "team", "match", "coach", "race", "player", "stadium", "score"],
    ["bank", "loan", "market", "price", "trade", "tax", "profit", "budget"],
    ["rain", "storm", "cloud", "wind", "snow", "sun", "frost", "thunder"],
    ["bread", "soup", "cheese", "apple", "kitchen", "spice", "sauce", "cake"],
    ["train", "ticket", "airport", "road", "journey", "map", "luggage", "bridge"],
]
NAMES = ["anna", "ben", "clara", "david", "ella", "frank", "grace", "henry"]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ITEMS = ["coins", "stamps", "cards", "pens"]


def review(rng: np.random.Generator) -> Row:
    """`the film was good and the meal was poor but the trip was fine` -> good (1)."""
    label, usual = int(rng.integers(2)), int(rng.integers(2, 4))
    good = rng.permutation([label] * usual + [1 - label] * (3 - usual))
    things = rng.choice(THINGS, 3, replace=False)
    said = [
        f"the {thing} was {rng.choice(GOOD if g else BAD)}" for thing, g in zip(things, good, strict=True)
    ]
    return f"{said[0]} and {said[1]} but {said[2]}", None, label


def doer(rng: np.random.Generator) -> Row:
    """`yesterday the dog chased the pilot` -> an animal acts (1)."""
    label = int(rng.integers(2))
    acts, bears = (ANIMALS, PEOPLE) if label else (PEOPLE, ANIMALS)
    text = f"{rng.choice(STARTS)} {rng.choice(acts)} {rng.choice(DID)} the {rng.choice(bears)}"
    return text, None, label


def topic(rng: np.random.Generator) -> Row:
    """Eight words, of which six or seven are of one topic."""
    label, count = int(rng.integers(5)), int(rng.integers(6, 8))
    others = rng.permutation([other for other in range(5) if other != label] * 2)
    words = [rng.choice(TOPICS[t]) for t in [label] * count + list(others[: 8 - count])]
    return " ".join(rng.permutation(words)), None, label


def compare(rng: np.random.Generator) -> Row:
    """`anna has seven coins`, `ben has three coins` -> more (0), fewer (1), as many (2)."""
    label, (a, b) = int(rng.integers(3)), rng.choice(NAMES, 2, replace=False)
    small, large = sorted(rng.choice(9, 2, replace=False))
    first, second = ((large, small), (small, large), (small, small))[label]
    item = rng.choice(ITEMS)
    return f"{a} has {NUMBERS[first]} {item}", f"{b} has {NUMBERS[second]} {item}", label


TASKS: dict[str, tuple[Callable[[np.random.Generator], Row], int]] = {
    "review": (review, 2),
    "doer": (doer, 2),
    "topic": (topic, 5),
    "compare": (compare, 3),
}
"""Task -> what makes one of its rows, and its number of labels."""


def rows(task: str, count: int, seed: int) -> list[Row]:
    """Rows of a task; other seeds, other rows."""
    rng = np.random.default_rng([seed, *task.encode()])
    return [TASKS[task][0](rng) for _ in range(count)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, RoBERTa's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    texts = [text for task in TASKS for row in rows(task, 3000, 0) for text in row[:2] if text]
    words = sorted({word for text in texts for word in text.split()})
    ids = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *words])}
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


def make(folder: Path, seed: int = 0, progress: Callable[[str], None] = print) -> None:
    """Write base, experts, unlabelled data with labels to compare with, and a configuration.

    Args:
        folder: gets `base/`, `experts/<task>/`, `data/<task>.jsonl` and `config.yml`.
    """
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    try:
        tokenizer = make_tokenizer()
        progress("base: a masked language model")
        _save(_pretrained(tokenizer, seed), tokenizer, folder / "base")
        for task in TASKS:
            progress(f"expert: {task}")
            _save(_expert(folder / "base", tokenizer, task, seed), tokenizer, folder / "experts" / task)
            _write_data(folder / "data" / f"{task}.jsonl", rows(task, UNLABELLED, seed + 1))
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(generator)
    write_text(folder / "config.yml", CONFIG.format(folder=folder))


CONFIG = """\
# Written by `python -m fusion_tinting.mini.texts`; half a minute on a CPU.
base_model: {folder}/base
models:
  - {{model: {folder}/experts/review, task: review, data: {folder}/data/review.jsonl}}
  - {{model: {folder}/experts/doer, task: doer, data: {folder}/data/doer.jsonl}}
  - {{model: {folder}/experts/topic, task: topic, data: {folder}/data/topic.jsonl}}
  - model: {folder}/experts/compare
    task: compare
    data: {{path: {folder}/data/compare.jsonl, text_pair: second}}
adapt: {{layer: head, sampler: confidence_difference, steps: 200, batch_size: 32, lr: 1.0e-2, seed: 0}}
data: {{text: text, label: label}}   # labels are for the report alone
"""


def _pretrained(tokenizer: PreTrainedTokenizerFast, seed: int) -> RobertaForMaskedLM:
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
        intermediate_size=2 * WIDTH, max_position_embeddings=LENGTH + 2, type_vocab_size=1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = RobertaForMaskedLM(config).train()

    def loss(ids: Tensor, attention_mask: Tensor, _) -> Tensor:
        hidden = (torch.rand(ids.shape) < 0.2) & (ids > tokenizer.mask_token_id)
        masked, labels = ids.masked_fill(hidden, tokenizer.mask_token_id), ids.masked_fill(~hidden, -100)
        return model(masked, attention_mask=attention_mask, labels=labels).loss

    corpus = [row for task in TASKS for row in rows(task, TRAIN, seed + 2)]
    return _train(model, tokenizer, corpus, loss, PRETRAIN_STEPS, [PRETRAIN_RATE] * 2)


def _expert(base: Path, tokenizer, task: str, seed: int) -> RobertaForSequenceClassification:
    model = RobertaForSequenceClassification.from_pretrained(base, num_labels=TASKS[task][1]).train()

    def loss(ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(ids, attention_mask=attention_mask).logits, labels)

    return _train(
        model, tokenizer, rows(task, TRAIN, seed + 3), loss, EXPERT_STEPS, [EXPERT_RATE, HEAD_RATE]
    )


def _train(model, tokenizer, data: list[Row], loss, steps: int, rates: list[float]):
    """Train `model`; `rates`: the learning rates of its backbone and of the rest."""
    tokens = tokenizer([(a, b) if b else a for a, b, _ in data], padding=True, return_tensors="pt")
    labels = torch.tensor([label for *_, label in data])
    backbone = list(model.base_model.parameters())
    inside = {id(parameter) for parameter in backbone}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    adam = torch.optim.AdamW([{"params": backbone}, {"params": rest}], lr=rates[0])
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, rates, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(data), (BATCH,))
        mask = tokens["attention_mask"][chosen]
        length = int(mask.sum(1).max())
        loss(tokens["input_ids"][chosen, :length], mask[:, :length], labels[chosen]).backward()
        adam.step()
        adam.zero_grad()
        schedule.step()
    return model.eval()


def _save(model, tokenizer, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_data(path: Path, data: list[Row]) -> None:
    lines = []
    for text, second, label in data:
        row = {"text": text, "second": second, "label": label}
        lines.append(json.dumps({key: value for key, value in row.items() if value is not None}))
    write_text(path, "\n".join(lines) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve())
