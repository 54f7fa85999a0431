"""`mergekit-tint learn` and `show` on text classifiers: every architecture, the bars on the mini texts."""

import json
import re
from dataclasses import replace
from pathlib import Path

import forked
import pytest
import torch
import yaml
from checkpoints import WORDS, make_tokenizer, save
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    RobertaConfig,
)

from fusion_tinting.mergekit import cli, config, report
from fusion_tinting.mergekit.learn import learn
from fusion_tinting.mini import texts
from fusion_tinting.reporting.tables import Table

FEW = {"two": 2, "number": 1}
LABELS = {"two": 2, "three": 3, "five": 5, "number": 1}
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
MASKED = {
    "bert": BertConfig(**SIZE, max_position_embeddings=40),
    "roberta": RobertaConfig(**SIZE, max_position_embeddings=42, type_vocab_size=1),
    "distilbert": DistilBertConfig(
        dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=40
    ),
    "deberta": DebertaV2Config(
        **SIZE, max_position_embeddings=40, pooler_hidden_size=16, type_vocab_size=0
    ),
}
CAUSAL = {
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=40),
    "llama": LlamaConfig(**SIZE, num_key_value_heads=1, max_position_embeddings=40),
}
BASES = [
    *((name, AutoModelForMaskedLM) for name in MASKED),
    *((name, AutoModelForCausalLM) for name in CAUSAL),
    ("bert", AutoModel),
    ("gpt2", AutoModel),
]


def invoke(*arguments) -> str:
    result = CliRunner().invoke(cli.main, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments) -> str:
    """The one line of an error, and that it is one."""
    result = CliRunner().invoke(cli.main, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 1
    return result.output[result.output.index("Error: ") :]


def make_world(folder: Path, name: str, kind: type, labels=FEW) -> Path:
    """A base, experts with noise on every tensor, texts of unlike lengths; the path of a configuration."""
    tokenizer, architecture = make_tokenizer(), {**MASKED, **CAUSAL}[name]
    architecture.update(
        {"vocab_size": len(tokenizer), "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    )
    torch.manual_seed(0)
    base = save(kind.from_config(architecture), tokenizer, folder / "base")
    generator = torch.Generator().manual_seed(0)
    models = []
    for task, count in labels.items():
        expert = AutoModelForSequenceClassification.from_pretrained(base, num_labels=count)
        for parameter in expert.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        save(expert, tokenizer, folder / task)
        rows = [
            {"text": " ".join(WORDS[i] for i in torch.randint(20, (3 + place % 9,), generator=generator))}
            for place in range(20)
        ]
        write_rows(folder / f"{task}.jsonl", rows)
        models.append({"model": str(folder / task), "task": task, "data": str(folder / f"{task}.jsonl")})
    return write_config(
        folder / "config.yml",
        {"base_model": str(base), "models": models, "adapt": {"steps": 2, "batch_size": 4, "lr": 1e-2}},
    )


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_config(path: Path, content: object) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(("name", "kind"), BASES, ids=lambda value: getattr(value, "__name__", value))
def test_an_expert_by_one_hot_coefficients_is_transformers_own(tmp_path, name, kind):
    options = config.read(make_world(tmp_path, name, kind))
    model, aside = learn(options, tmp_path / "run", progress=False)
    assert model.layer == "head"
    assert len(model.history) == 2
    for task, count in FEW.items():
        theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / task).eval()
        every = range(len(aside[task].unlabeled))
        (batch,) = aside[task].unlabeled.batches([every])  # texts of unlike lengths, padded
        assert batch["attention_mask"].sum(1).unique().numel() > 1
        with torch.no_grad():
            ours, wanted = model.remerged(task)(batch, task), theirs(**batch).logits
            alone = torch.cat(
                [
                    model.remerged(task)(one, task)
                    for one in aside[task].unlabeled.batches([[i] for i in every])
                ]
            )
        assert wanted.shape == (len(every), count)
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(alone, wanted, rtol=0, atol=1e-5)


def test_a_finished_run_is_known_when_it_is_started_again(tmp_path):
    options = config.read(make_world(tmp_path, "roberta", AutoModelForMaskedLM))
    first, _ = learn(options, tmp_path / "run", progress=False)
    before = (tmp_path / "run" / "tinting.json").read_bytes()
    again, _ = learn(options, tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "tinting.json").read_bytes() == before
    assert all(torch.equal(first.coefficients[name], row) for name, row in again.coefficients.items())


@pytest.mark.parametrize(
    ("name", "labels"), [(name, LABELS if name == "roberta" else FEW) for name in MASKED], ids=MASKED
)
def test_recipes_reproduce_the_tinted_model(tmp_path, name, labels):
    """Heads of 2, 3, 5 labels and of one number, over a masked language model: merged as files."""
    options = config.read(make_world(tmp_path, name, AutoModelForMaskedLM, labels))
    model, aside = learn(options, tmp_path / "run", progress=False)
    for recipe in ("recipe.yml", "recipe-task-arithmetic.yml"):
        invoke("pytorch", tmp_path / "run" / recipe, tmp_path / recipe, "--tensor-intersection", "--quiet")
        merged = load_file(tmp_path / recipe / "model.safetensors")
        assert merged.keys() == load_file(tmp_path / "run" / "coefficients.safetensors").keys()
        for task in labels:
            expert = AutoModelForSequenceClassification.from_pretrained(tmp_path / task).eval()
            tint = load_file(tmp_path / "run" / "tints" / f"{task}.safetensors")
            expert.load_state_dict({**expert.state_dict(), **merged, **tint})
            (batch,) = aside[task].unlabeled.batches([range(len(aside[task].unlabeled))])
            with torch.no_grad():
                torch.testing.assert_close(expert(**batch).logits, model(batch, task), rtol=0, atol=1e-5)


def test_a_checkpoint_in_several_files_gets_no_recipe(tmp_path):
    options = config.read(make_world(tmp_path, "bert", AutoModelForMaskedLM))
    expert = AutoModelForSequenceClassification.from_pretrained(tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").unlink()
    expert.save_pretrained(tmp_path / "two", max_shard_size="10KB")
    learn(options, tmp_path / "run", progress=False)
    assert not list((tmp_path / "run").glob("recipe*"))


def test_a_pooler_that_the_base_lacks_is_a_part_of_the_head(tmp_path):
    lacks, has = (make_world(tmp_path / k.__name__, "bert", k) for k in (AutoModelForMaskedLM, AutoModel))
    invoke("learn", lacks, tmp_path / "lacks", "--quiet")
    invoke("learn", has, tmp_path / "has", "--quiet")
    pooler = "bert.pooler.dense.weight"
    assert pooler in keys(tmp_path / "lacks/tints/two.safetensors")
    assert pooler not in keys(tmp_path / "lacks/coefficients.safetensors")
    assert pooler not in keys(tmp_path / "has/tints/two.safetensors")
    assert pooler in keys(tmp_path / "has/coefficients.safetensors")


def keys(path: Path) -> list[str]:
    return list(load_file(path))


def test_the_mini_texts_from_nothing_to_the_tinted_model(tmp_path, monkeypatch):
    """The bars: average < Task Arithmetic < tinted, which keeps 97 % of what the experts know."""
    monkeypatch.setattr(texts, "RECIPE", replace(texts.RECIPE, workers=0))  # another would import all anew
    texts.make(tmp_path / "demo", progress=False)
    half = (tmp_path / "demo/config.yml").read_text().replace("steps: 80", "steps: 40")
    (tmp_path / "demo/config.yml").write_text(half)
    options = config.read(tmp_path / "demo/config.yml")
    model, aside = learn(options, tmp_path / "run", progress=False)
    agreed, _, right = (averages(table) for table in report.tables(report.compare(model, aside)))
    for _, average, arithmetic, tinted in (agreed, right[:4]):
        assert average < arithmetic < tinted
        assert arithmetic < 0.9 * tinted
    assert right[3] >= 0.97 * right[4]
    assert agreed[3] >= 95
    assert [head.rest.config.num_labels for head in model.heads] == [2, 2, 5, 3]


def averages(table: Table) -> list[float]:
    return table.summary[1:]


def test_the_command_itself(tmp_path):
    """In a process of its own; `test_mergekit_recipes.py` starts the program as a shell does."""
    path = make_world(tmp_path, "roberta", AutoModelForMaskedLM)
    arguments = ("learn", path, tmp_path / "run")
    process = forked.start(forked.mergekit_tint, *arguments, folder=tmp_path, environment={})
    found = forked.end(*process, seconds=600)
    assert "Agreement with the experts" in found
    assert f"mergekit-tint variants {tmp_path / 'run'} OUT" in found
    assert "Accuracy" not in found
    recipe = tmp_path / "run" / "recipe.yml"
    assert f"mergekit-tint pytorch {recipe} OUT --tensor-intersection" in found
    assert re.search(r"Tinting: 100%.*agreement=.*kept=.*loss=", found)
    assert "LOAD REPORT" not in found


def test_a_regression_among_classifications(tmp_path):
    path = make_world(tmp_path, "roberta", AutoModelForMaskedLM)
    content = yaml.safe_load(path.read_text())
    rows = [{"text": "the dog runs", "label": 0.5 * place} for place in range(6)]
    write_rows(tmp_path / "number.jsonl", rows)
    content["models"][1]["labels"] = "label"
    output = invoke("learn", write_config(path, content), tmp_path / "run", "--quiet")
    assert "number (correlation)" in output
    losses = (tmp_path / "run/curves.csv").read_text()
    head = losses.splitlines()[0].split(",")
    values = [dict(zip(head, line.split(","), strict=True)) for line in losses.splitlines()[1:]]
    assert all(float(row["loss"]) > 0 for row in values if row["task"] == "number")


def test_hidden_labels_cost_the_report_alone(tmp_path):
    """As in GLUE's test splits; where some are there, those are scored."""
    path = make_world(tmp_path, "bert", AutoModel, {"two": 2, "three": 3})
    content = yaml.safe_load(path.read_text())
    for model, labels in zip(content["models"], ([-1], [-1, "label_2"]), strict=True):
        rows = [{"text": "the dog runs", "label": labels[place % len(labels)]} for place in range(40)]
        write_rows(Path(model["data"]), rows if model["task"] == "two" else [
            {**row, "label": None if row["label"] == -1 else row["label"]} for row in rows])  # fmt: skip
        model["labels"] = "label"
    output = invoke("learn", write_config(path, content), tmp_path / "run", "--quiet")
    scores = output.partition("Accuracy")[2]
    assert re.search(r"three \(\d+/20 labeled\)", scores) and not re.search(r"\btwo\b", scores)


def test_several_labels_and_several_values_among_classifications(tmp_path):
    """By the experts' own `problem_type`, as they were trained: `sigmoid` and `l1`."""
    path = make_world(tmp_path, "roberta", AutoModelForMaskedLM, LABELS)
    content = yaml.safe_load(path.read_text())
    kinds = {"three": "multi_label_classification", "five": "regression"}
    for task, kind in kinds.items():
        file = tmp_path / task / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "problem_type": kind}))
    write_rows(tmp_path / "three.jsonl", [{"text": WORDS[0], "label": [1, 0, n % 2]} for n in range(6)])
    write_rows(tmp_path / "five.jsonl", [{"text": WORDS[1], "label": [n, 2, n, 1, 0]} for n in range(6)])
    for place in (1, 2):
        content["models"][place]["labels"] = "label"
    content["adapt"] |= {"sampler": "confidence_difference"}
    output = invoke("learn", write_config(path, content), tmp_path / "run", "--quiet")
    assert "three (each label)" in output and "five (correlation)" in output
    objectives = json.loads((tmp_path / "run/tinting.json").read_text())["settings"]["objective"]
    assert (objectives["three"], objectives["five"]) == ("sigmoid", "l1")
    assert objectives["two"] == objectives["number"]


def test_data_of_every_kind_and_keys_of_a_single_model(tmp_path):
    from datasets import Dataset

    path = make_world(tmp_path, "roberta", AutoModelForMaskedLM, LABELS)
    said = ["the dog runs", "a cat sleeps", "the film was good", "a book"]
    table = Dataset.from_dict({"a": said, "b": said[::-1], "label": [0, 1, 2, 0]})
    table.to_csv(tmp_path / "two.csv")
    table.to_parquet(tmp_path / "three.parquet")
    (tmp_path / "number.txt").write_text("\n".join(said) + "\n")
    table.to_parquet(tmp_path / "hub/pair/validation.parquet")
    (tmp_path / "hub/README.md").write_text(
        "---\nconfigs:\n- config_name: pair\n  data_files:\n"
        "  - {split: validation, path: pair/validation.parquet}\n---\n"
    )
    content = yaml.safe_load(path.read_text())
    two, three, five, number = content["models"]
    two["data"] = {"path": str(tmp_path / "two.csv"), "split": 0.25}
    three |= {"data": {"path": str(tmp_path / "three.parquet"), "text_pair": "b"}, "labels": "label"}
    five["data"] = {"path": str(tmp_path / "hub"), "name": "pair", "split": "validation", "label": "label"}
    number["data"] = {"path": str(tmp_path / "number.txt"), "text": "text"}
    content["data"] = {"text": "a", "max_length": 6, "split": 0.5}
    _, aside = learn(config.read(write_config(path, content)), tmp_path / "run", progress=False)
    assert [len(aside[task].unlabeled) for task in LABELS] == [1, 2, 2, 2]
    assert aside["two"].labels is None and aside["three"].labels is not None
    (batch,) = aside["three"].unlabeled.batches([[0, 1]])
    assert batch["input_ids"].shape[1] <= 6
    assert (batch["input_ids"] == 2).sum(1).min() >= 2  # </s> between two texts


def test_show(tmp_path):
    path = make_world(tmp_path, "roberta", AutoModelForMaskedLM)
    content = yaml.safe_load(path.read_text())
    content["adapt"] |= {"layer": "block:-1", "steps": 1}
    invoke("learn", write_config(path, content), tmp_path / "run", "--quiet")
    heat_map = tmp_path / "run/coefficients.png"
    heat_map.unlink()
    output = invoke("show", tmp_path / "run")
    assert f"base        {tmp_path / 'base'}" in output
    assert "layer=block:-1" in output and "objective=hard" in output
    assert "roberta.encoder.layer.0 " in output
    assert "roberta.encoder.layer.1 (tinted)" in output.replace("\n", " ")
    assert heat_map.read_bytes().startswith(b"\x89PNG") and str(heat_map) in output.replace("\n", "")
    assert len(output.splitlines()) < 30 < len(invoke("show", tmp_path / "run", "--tensors").splitlines())


def test_the_glue_recipe_says_what_each_task_reads():
    found = config.read(Path(__file__).parents[2] / "configs" / "recipes" / "roberta-base_glue.yml")
    columns = {task: (e.data.name, e.data.text, e.data.text_pair) for task, e in found.by_task.items()}
    assert columns["qqp"] == ("qqp", "question1", "question2")
    assert columns["mnli"] == ("mnli", "premise", "hypothesis")
    assert len(columns) == 8
    for expert in found.experts:
        assert expert.model.endswith(expert.task) and expert.data.path == "nyu-mll/glue"
        assert (expert.data.label, expert.data.aside) == ("label", 0.5)
        assert expert.data.split.startswith("validation")


def test_the_data_block_and_what_a_model_changes_in_it(tmp_path):
    content = {
        "base_model": "b",
        "models": [
            {"model": "m", "task": "t", "data": "d.jsonl", "labels": "truth"},
            {"model": "n", "task": "u", "data": {"path": "id", "split": "test", "text": "s"}},
        ],
        "data": {"split": 0.2, "label": "label"},
    }
    first, second = config.read(write_config(tmp_path / "config.yml", content)).experts
    assert (first.data.label, first.data.split, first.data.aside) == ("truth", "train", 0.2)
    assert (second.data.label, second.data.split, second.data.aside) == ("label", "test", 0.2)
    assert (first.data.text, second.data.text) == ("text", "s")
