"""Four small text tasks, a tiny RoBERTa and its experts, made on the spot to show `mergekit-tint` on.

    python -m fusion_tinting.mini.texts DEMO
    mergekit-tint learn DEMO/config.yml DEMO/run

Every task needs more than one word: *review*, is an opinion good, under negation (2 labels); *grammar*,
does the verb agree with its subject (2); *topic*, what most words are about (5); *follows*, does the second
sentence follow from the first, contradict it, or neither (3 labels, a pair of texts).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

from fusion_tinting.files import write_text

Row = tuple[str, str | None, int]
WIDTH, LAYERS, LENGTH = 96, 4, 32
PRETRAIN_STEPS, EXPERT_STEPS, BATCH = 900, 250, 64
TRAIN, UNLABELLED = 4000, 1000

THINGS = ["film", "book", "song", "play", "meal", "hotel", "phone", "game", "show", "trip"]
GOOD = ["good", "great", "fine", "lovely", "brilliant", "superb", "pleasant", "charming"]
BAD = ["bad", "awful", "poor", "dreadful", "boring", "terrible", "nasty", "clumsy"]
WHO = ["child", "teacher", "dog", "pilot", "singer", "doctor", "friend", "sailor"]
VERBS = ["sleep", "run", "sing", "wait", "read", "laugh", "work", "walk"]
PLACES = ["house", "garden", "city", "school", "park", "river", "market", "station"]
TOPICS = {
    "sport": ["goal", "team", "match", "coach", "race", "player", "stadium", "score"],
    "money": ["bank", "loan", "market", "price", "trade", "tax", "profit", "budget"],
    "weather": ["rain", "storm", "cloud", "wind", "snow", "sun", "frost", "thunder"],
    "food": ["bread", "soup", "cheese", "apple", "kitchen", "spice", "sauce", "cake"],
    "travel": ["train", "ticket", "airport", "road", "journey", "map", "luggage", "bridge"],
}
NAMES = ["anna", "ben", "clara", "david", "ella", "frank", "grace", "henry"]


def review(rng: np.random.Generator) -> Row:
    """`the film was not really bad but it was long` -> good."""
    good, negated = rng.random(2) < 0.5
    word = rng.choice(GOOD if good else BAD)
    middle = rng.choice(["not", "never", "hardly"] if negated else ["very", "really", "quite", "always"])
    start = rng.choice(["the", "this", "that", "our"])
    end = rng.choice(["", "and i said so", "they told us", "but it was long", "as i remember"])
    return f"{start} {rng.choice(THINGS)} was {middle} {word} {end}".strip(), None, int(good != negated)


def grammar(rng: np.random.Generator) -> Row:
    """`the dogs near the house sleeps` -> wrong; a noun of the other number may stand between."""
    plural, right = rng.random(2) < 0.5
    subject = str(rng.choice(WHO)) + "s" * bool(plural)
    between = ""
    if rng.random() < 0.6:
        between = f" near the {rng.choice(PLACES)}" + "s" * int(rng.random() < 0.5)
    verb = str(rng.choice(VERBS)) + "s" * bool(plural != right)
    return f"the {subject}{between} {verb} in the {rng.choice(PLACES)}", None, int(right)


def topic(rng: np.random.Generator) -> Row:
    """Eight words, of which three or four are of one topic and fewer of each other one."""
    label = int(rng.integers(len(TOPICS)))
    names = list(TOPICS)
    words = list(rng.choice(TOPICS[names[label]], int(rng.integers(3, 5))))
    while len(words) < 8:
        other = rng.choice([n for n in names if n != names[label]])
        if sum(word in TOPICS[other] for word in words) < 2:
            words.append(rng.choice(TOPICS[other]))
    rng.shuffle(words)
    return " ".join(map(str, words)), None, label


def follows(rng: np.random.Generator) -> Row:
    """`anna is older than ben`, `ben is younger than anna` -> follows (0); contradicts (1); neither (2)."""
    a, b, c = rng.choice(NAMES, 3, replace=False)
    older, label = rng.random() < 0.5, int(rng.integers(3))
    words = ("older", "younger") if older else ("younger", "older")
    same = rng.random() < 0.5
    if label == 2:
        a2, b2 = (a, c) if same else (c, b)
        second = f"{a2} is {rng.choice(words)} than {b2}"
    else:
        word = words[int(same != (label == 0))]
        second = f"{a} is {word} than {b}" if same else f"{b} is {word} than {a}"
    return f"{a} is {words[0]} than {b}", second, label


TASKS: dict[str, tuple[Callable[[np.random.Generator], Row], int]] = {
    "review": (review, 2),
    "grammar": (grammar, 2),
    "topic": (topic, 5),
    "follows": (follows, 3),
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
    models = [
        {
            "model": str(folder / "experts" / task),
            "task": task,
            "data": str(folder / "data" / f"{task}.jsonl"),
        }
        for task in TASKS
    ]
    models[-1]["data"] = {"path": models[-1]["data"], "text_pair": "second"}
    content = {
        "base_model": str(folder / "base"), "models": models,
        "adapt": {"steps": 150, "lr": 1e-2, "seed": 0}, "data": {"text": "text", "label": "label"},
    }  # fmt: skip
    write_text(folder / "config.yml", yaml.safe_dump(content, sort_keys=False))


def _pretrained(tokenizer: PreTrainedTokenizerFast, seed: int) -> RobertaForMaskedLM:
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
        intermediate_size=2 * WIDTH, max_position_embeddings=LENGTH + 2, type_vocab_size=1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = RobertaForMaskedLM(config).train()
    corpus = [row for task in TASKS for row in rows(task, TRAIN, seed + 2)]

    def loss(batch: dict, _) -> torch.Tensor:
        ids = batch["input_ids"]
        hidden = (torch.rand(ids.shape) < 0.2) & (ids > 4)
        masked = ids.masked_fill(hidden, tokenizer.mask_token_id)
        labels = ids.masked_fill(~hidden, -100)
        return model(masked, attention_mask=batch["attention_mask"], labels=labels).loss

    return _train(model, tokenizer, corpus, loss, PRETRAIN_STEPS, 2e-3)


def _expert(base: Path, tokenizer, task: str, seed: int) -> RobertaForSequenceClassification:
    model = RobertaForSequenceClassification.from_pretrained(base, num_labels=TASKS[task][1]).train()

    def loss(batch: dict, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(**batch).logits, labels)

    return _train(model, tokenizer, rows(task, TRAIN, seed + 3), loss, EXPERT_STEPS, 1e-3)


def _train(model, tokenizer, data: list[Row], loss, steps: int, rate: float):
    adam = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, rate, total_steps=steps)
    for _ in range(steps):
        chosen = [data[i] for i in torch.randint(len(data), (BATCH,))]
        texts = [(a, b) if b else a for a, b, _ in chosen]
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        loss(dict(batch), torch.tensor([label for *_, label in chosen])).backward()
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
