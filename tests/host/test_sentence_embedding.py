"""Sentence encoders through both hosts: each expert's vector is taught, pooled in its own way."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from checkpoints import WORDS, make_tokenizer, save
from safetensors.torch import load_file
from test_mergekit_learn import MASKED, invoke, keys, refused, write_config, write_rows
from test_token_classification import overrides
from transformers import AutoModel, AutoModelForMaskedLM, MPNetConfig

from fusion_tinting import Reads
from fusion_tinting.mergekit import config, report
from fusion_tinting.mergekit.learn import learn

POOLINGS = {
    "mean": {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True},
    "unit": {"pooling_mode": "mean", "embedding_dimension": 16},
    "first": {"pooling_mode_cls_token": True, "pooling_mode_mean_sqrt_len_tokens": False},
    "plain": None,
}
"""Task -> what sentence-transformers writes of its pooling. `unit` is normalized; `plain` has no file."""
MPNET = MPNetConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=42,
)
BASES = [*((name, AutoModelForMaskedLM) for name in (*MASKED, "mpnet")), ("bert", AutoModel)]


def make_world(
    folder: Path, name: str = "bert", kind: type = AutoModel, tasks=tuple(POOLINGS), **adapt
) -> Path:
    """A base, experts with noise on every tensor, as sentence-transformers saves them, texts."""
    tokenizer, architecture = make_tokenizer(), {**MASKED, "mpnet": MPNET}[name]
    special = {"vocab_size": len(tokenizer), "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    architecture.update(special)
    torch.manual_seed(0)
    base = save(kind.from_config(architecture), tokenizer, folder / "base")
    models = []
    for task in tasks:
        pooling = POOLINGS[task]
        expert = AutoModel.from_pretrained(base)
        for parameter in expert.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        save(expert, tokenizer, folder / task)
        if pooling is not None:
            write_modules(folder / task, pooling, *(["Normalize"] if task == "unit" else []))
        write_rows(folder / f"{task}.jsonl", [{"text": " ".join(text)} for text in make_texts()])
        models.append({"model": str(folder / task), "task": task, "data": str(folder / f"{task}.jsonl")})
    settings = {"steps": 2, "batch_size": 4, **adapt}
    return write_config(
        folder / "config.yml", {"base_model": str(base), "models": models, "adapt": settings}
    )


def make_texts() -> list[list[str]]:
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randint(20, (3 + place % 9,), generator=generator) for place in range(20)]
    return [[WORDS[i] for i in draw] for draw in draws]


def write_modules(folder: Path, pooling: dict, *more: str) -> None:
    """`modules.json` and the pooling's configuration, as sentence-transformers writes them."""
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), *((kind, f"2_{kind}") for kind in more)]
    modules = [
        {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for idx, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling/config.json").write_text(json.dumps({"include_prompt": True, **pooling}))


@torch.no_grad()
def vectors(path: Path, task: str, batch: dict) -> torch.Tensor:
    """What transformers' own model gives, pooled text by text as the task's expert does."""
    model, pooled = AutoModel.from_pretrained(path).eval(), []
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        tokens = model(input_ids=ids[None, : mask.sum()]).last_hidden_state[0]
        vector = tokens[0] if task == "first" else tokens.mean(0)
        pooled.append(vector / vector.norm() if task == "unit" else vector)
    return torch.stack(pooled)


def whole(inputs) -> dict:
    """All of a task's inputs as one batch, of texts of unlike lengths."""
    (batch,) = inputs.unlabeled.batches([range(len(inputs.unlabeled))])
    assert batch["attention_mask"].sum(1).unique().numel() > 1
    return batch


@pytest.mark.parametrize(("name", "kind"), BASES, ids=lambda value: getattr(value, "__name__", value))
def test_an_expert_by_one_hot_coefficients_and_a_variant_are_transformers_own(tmp_path, name, kind):
    tasks = ("mean", "unit", "first", "plain") if kind is AutoModel else ("first", "plain")
    path = make_world(tmp_path, name, kind, tasks)
    model, aside = learn(config.read(path), tmp_path / "run", progress=False)
    assert model.layer.endswith(".1") and len(model.history) == 2  # the last of two blocks
    assert not [key for key in keys(tmp_path / "run/coefficients.safetensors") if "pooler" in key]
    invoke("variants", tmp_path / "run", tmp_path / "out")
    for task in tasks:
        batch = whole(aside[task])
        ours, wanted = model.remerged(task)(batch, task), vectors(tmp_path / task, task, batch)
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)
        wanted = vectors(tmp_path / "out" / task, task, batch)
        torch.testing.assert_close(model(batch, task), wanted, rtol=0, atol=1e-5)
        for file in ("modules.json", "1_Pooling/config.json"):
            assert (tmp_path / "out" / task / file).exists() == (task != "plain")


def test_the_tint_turns_each_vector_to_its_experts_and_the_report_is_by_cosine(tmp_path):
    path = make_world(tmp_path, steps=30, lr=1e-2)
    model, aside = learn(config.read(path), tmp_path / "run", progress=False)
    assert all(model.reads(task) is Reads.DIRECTION for task in POOLINGS)
    assert model.history.loss[-10:].mean() < model.history.loss[:10].mean()
    compared = report.compare(model, aside)
    (table,) = report.tables(compared)  # no KL, no accuracy
    assert "Cosine similarity" in table.title
    for task in POOLINGS:
        batch = whole(aside[task])
        expected = torch.cosine_similarity(model(batch, task), vectors(tmp_path / task, task, batch))
        ways = compared[task].ways
        assert ways["tinted"].agreement == pytest.approx(expected.mean().item(), abs=1e-5)
        assert ways["tinted"].agreement > ways["base"].agreement


def test_a_recipe_reproduces_the_shared_model(tmp_path):
    """Of a bare base, whose files name their tensors as the experts' do."""
    model, _ = learn(config.read(make_world(tmp_path)), tmp_path / "run", progress=False)
    invoke("pytorch", tmp_path / "run/recipe.yml", tmp_path / "out", "--tensor-intersection", "--quiet")
    merged = load_file(tmp_path / "out/model.safetensors")
    assert merged.keys() == set(keys(tmp_path / "run/coefficients.safetensors"))
    tinted = model.layer.removeprefix("backbone.")
    for name, tensor in merged.items():
        if not name.startswith(f"{tinted}."):  # there no coefficient is learned
            shared = model.encoder.get_parameter(f"backbone.{name}")
            torch.testing.assert_close(tensor, shared, rtol=0, atol=1e-6)


REFUSED = {
    "the head": ({"layer": "head"}, None, r"`layer=head`: embeddings have no head to tint.*block:-1"),
    "a sampler by confidence": ({"sampler": "confidence_difference"}, None, "have not.*sampler: all"),
    "an unknown pooling": ({}, {"pooling_mode_max_tokens": True}, "pools by .*max_tokens.*'mean', 'cls'"),
    "two poolings": (
        {}, {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, "pools by .*max.*mean"
    ),
    "a newer pooling": ({}, {"pooling_mode": "lasttoken"}, "pools by lasttoken"),
    "a dense layer": ({}, "Dense", r"mean` has the modules \['Dense'\]; expected Transformer, Pooling"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, case):
    adapt, pooling, message = REFUSED[case]
    path = make_world(tmp_path, tasks=("mean", "first"), **adapt)
    if pooling == "Dense":
        write_modules(tmp_path / "mean", POOLINGS["mean"], "Dense")
    elif pooling is not None:
        write_modules(tmp_path / "mean", pooling)
    output = " ".join(refused("learn", path, tmp_path / "run").split())
    assert re.search(message, output), output
    assert not (tmp_path / "run").exists()


def test_a_key_that_would_do_nothing_is_refused(tmp_path):
    path = make_world(tmp_path, tasks=("mean", "first"))
    content = {**yaml.safe_load(path.read_text()), "data": {"label": "label"}}
    assert "`data.label`" in refused("learn", write_config(path, content), tmp_path / "run")


def test_fusionbench_adapts_reports_cosines_and_applies_the_artifact(fuse, tmp_path, capfd):
    make_world(tmp_path, tasks=("unit", "first"))
    pool = overrides(tmp_path, "mpnet-base_embeddings", ("unit", "first"))
    short = ("method=model_tinting", "method.steps=20", "method.batch_size=4", "method.lr_tints=1e-3")
    with pytest.raises(ValueError, match="no head to tint"):
        fuse(*short, *pool)
    saved = "merged_model_save_path='{log_dir}/saved'"
    layer = ("method.layer=block:-1", "method.run_dir=run")
    model = fuse(*short, *pool, *layer, saved)["merged_model"]
    assert model.history.loss[-5:].mean() < model.history.loss[:5].mean()
    assert "Cosine similarity to the experts" in capfd.readouterr().out
    again = fuse("method=model_tinting", *pool, "method.artifact=run")["merged_model"]
    tokenizer = make_tokenizer()
    batch = dict(tokenizer(["the old dog sleeps", "a cat"], padding=True, return_tensors="pt"))
    for task in ("unit", "first"):
        assert torch.equal(again(batch, task), model(batch, task))
        wanted = vectors(tmp_path / task, task, batch)
        torch.testing.assert_close(model.remerged(task)(batch, task), wanted, rtol=0, atol=1e-5)
    AutoModel.from_pretrained(tmp_path / "saved")
    write_rows(tmp_path / "unit.jsonl", [{"text": "the dog", "more": "a cat"}] * 5)
    with pytest.raises(ValueError, match=r"Expected 1 column\(s\) of texts.*\['text', 'more'\]"):
        fuse(*short, *pool, *layer)
