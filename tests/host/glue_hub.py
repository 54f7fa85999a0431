"""Tiny stand-ins for the hub's GLUE and its experts, in a cache folder laid out as the hub client's."""

import json
from copy import deepcopy
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from command import Finished
from datasets.arrow_writer import ArrowWriter
from hub import COMMIT, snapshot
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2Model,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

# Task -> columns of texts, classes as the hub's data set names them (of STS-B none).
TASKS = {
    "cola": (["sentence"], ["unacceptable", "acceptable"]),
    "sst2": (["sentence"], ["negative", "positive"]),
    "mrpc": (["sentence1", "sentence2"], ["not_equivalent", "equivalent"]),
    "stsb": (["sentence1", "sentence2"], None),
    "qqp": (["question1", "question2"], ["not_duplicate", "duplicate"]),
    "mnli": (["premise", "hypothesis"], ["entailment", "neutral", "contradiction"]),
    "qnli": (["question", "sentence"], ["entailment", "not_entailment"]),
    "rte": (["sentence1", "sentence2"], ["entailment", "not_entailment"]),
}
SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
           "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}  # fmt: skip
WORDS = ["film", "dog", "was", "not", "good", "runs", "very", "old", "and", "slowly"]
ROWS = {"train": 8, "validation": 8, "test": 12}  # a twentieth of which is read of some, at least one


SCORED = ("method.adapt_split=val", "report_save_path='{log_dir}/report.json'")
"""Options of a run for `require_scored`."""


def require_scored(run: Finished, keys, headlines, *shown: str) -> None:
    """FusionBench's program adapted and scored the hub's checkpoints offline, each task by its own metrics.

    Args:
        run: of all tasks, with the options `SCORED`.
        keys: task -> the metrics in its report, where they are not the accuracy alone.
        headlines: report -> task -> the score that counts.
        shown: what the closing table must have.
    """
    report = run.report
    assert report == json.loads((run.folder / "report.json").read_text())
    assert set(report) == {"model_info", *TASKS, "average", "baselines"}
    assert {task: set(report[task]) for task in TASKS} == {t: keys.get(t, {"accuracy"}) for t in TASKS}
    assert report["average"]["score"] == pytest.approx(sum(headlines(report).values()) / len(TASKS))
    tail = run.shown[run.shown.index("tinted /") :]
    for row in shown:
        assert row in tail


def of(*tasks: str, taskpool: bool = True) -> list[str]:
    """Overrides that leave these tasks alone in both pools; for what does not hang on the tasks."""
    others = [task for task in TASKS if task not in tasks]
    models = [f"~modelpool.models.{task}" for task in others]
    return models + [f"~taskpool.test_datasets.{task}" for task in others if taskpool]


def make_hub(folder: Path) -> dict[str, str]:
    """Fill `folder` and return the environment variables under which the hub client finds it."""
    make_models(folder / "hub")
    make_gpt2(folder / "hub")
    for task in TASKS:
        make_dataset(folder / "datasets", task)
    return {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"}


def make_models(hub: Path) -> None:
    """RoBERTa with its masked-language-model head and unused pooler; experts with names for their labels,
    with none (`rte`), and with the names in another order and case than the data set's (`sst2`)."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(vocabulary()), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=514, type_vocab_size=1,
        initializer_range=0.5,  # texts tell something
    )  # fmt: skip
    base = RobertaForMaskedLM(config)
    folder = snapshot(hub, "models--FacebookAI--roberta-base")
    base.save_pretrained(folder)
    add_pooler(folder / "model.safetensors")
    write_tokenizer(folder)
    for task, (_, names) in TASKS.items():
        expert = RobertaForSequenceClassification(labelled(config, task, names))
        expert.roberta.load_state_dict(base.roberta.state_dict())
        for parameter in expert.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        center(expert)
        folder = snapshot(hub, f"models--JeremiahZ--roberta-base-{task}")
        expert.save_pretrained(folder)
        write_tokenizer(folder)


def make_gpt2(hub: Path) -> None:
    """GPT-2, whose checkpoint has no prefix, and the experts that FusionBench names; STS-B has none."""
    torch.manual_seed(0)
    size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 1024, "initializer_range": 0.5}
    config = GPT2Config(vocab_size=len(gpt2_vocabulary()), bos_token_id=256, eos_token_id=256, **size)
    base = GPT2Model(config)
    folder = snapshot(hub, "models--openai-community--gpt2")
    base.save_pretrained(folder)
    write_gpt2_tokenizer(folder)
    for task in (task for task in TASKS if task != "stsb"):
        labels = len(TASKS[task][1])
        expert = GPT2ForSequenceClassification(GPT2Config(**{**config.to_dict(), "num_labels": labels}))
        expert.transformer.load_state_dict(base.state_dict())
        for parameter in expert.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        expert.save_pretrained(snapshot(hub, f"models--tanganke--gpt2_{task}"))


def gpt2_vocabulary() -> dict[str, int]:
    """GPT-2's byte-level vocabulary before any merge."""
    return {token: place for place, token in enumerate([*sorted(ByteLevel.alphabet()), "<|endoftext|>"])}


def write_gpt2_tokenizer(folder: Path) -> None:
    """As `write_tokenizer`."""
    (folder / "vocab.json").write_text(json.dumps(gpt2_vocabulary()))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def labelled(config: RobertaConfig, task: str, names: list[str] | None) -> RobertaConfig:
    """The configuration of an expert."""
    config = deepcopy(config)
    if names is None or task == "rte":
        config.num_labels = 1 if names is None else len(names)
        return config
    if task == "sst2":
        names = [name.upper() for name in reversed(names)]
    config.id2label = dict(enumerate(names))
    config.label2id = {name: place for place, name in enumerate(names)}
    return config


@torch.no_grad()
def center(expert: RobertaForSequenceClassification) -> None:
    """Have its head tell no class of every text."""
    letters = [vocabulary()[letter] for letter in "abcdefghijklmnopqrstuvwxyz"]
    texts = torch.tensor(letters)[torch.randint(26, (64, 20))]
    texts[:, 0] = 0
    expert.classifier.out_proj.bias -= expert.eval()(texts).logits.mean(0)


def add_pooler(file: Path) -> None:
    """The real checkpoint holds one, which nothing uses."""
    tensors = load_file(file) | {
        "roberta.pooler.dense.weight": torch.randn(16, 16), "roberta.pooler.dense.bias": torch.randn(16),
    }  # fmt: skip
    save_file(tensors, file, metadata={"format": "pt"})


def vocabulary() -> dict[str, int]:
    """RoBERTa's byte-level vocabulary before any merge."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "<mask>"]
    return {token: place for place, token in enumerate(tokens)}


def write_tokenizer(folder: Path) -> None:
    """The tokenizer's files under the names on the hub."""
    (folder / "vocab.json").write_text(json.dumps(vocabulary()))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "RobertaTokenizer", "model_max_length": 512, **SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def make_dataset(cache: Path, task: str) -> None:
    """A built data set as `datasets` keeps it; the labels of the test splits are -1."""
    columns, names = TASKS[task]
    folder = cache / "nyu-mll___glue" / task / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    label = datasets.Value("float32") if names is None else datasets.ClassLabel(names=names)
    features = datasets.Features(
        {column: datasets.Value("string") for column in columns}
        | {"label": label, "idx": datasets.Value("int32")}
    )
    rng = np.random.default_rng(0)
    splits = datasets.SplitDict(dataset_name="glue")
    endings = ("_matched", "_mismatched") if task == "mnli" else ("",)
    for split in ("train", *(f"{kind}{end}" for kind in ("validation", "test") for end in endings)):
        with ArrowWriter(features=features, path=str(folder / f"glue-{split}.arrow")) as writer:
            for row in range(ROWS[split.partition("_")[0]]):
                texts = {c: " ".join(rng.choice(WORDS, rng.integers(2, 7))) for c in columns}
                value = 5 * rng.random() if names is None else int(rng.integers(len(names)))
                hidden = split.startswith("test")
                writer.write({**texts, "label": -1 if hidden else value, "idx": row})
            examples, size = writer.finalize()
        splits.add(datasets.SplitInfo(split, size, examples, dataset_name="glue"))
    datasets.DatasetInfo(
        features=features, splits=splits, dataset_name="glue", config_name=task, version="0.0.0"
    ).write_to_directory(str(folder))
