"""Token classifiers through both hosts, on tiny checkpoints of every architecture."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from checkpoints import WORDS, make_tokenizer, save
from safetensors.torch import load_file
from test_mergekit_learn import MASKED, invoke, refused, write_config, write_rows
from transformers import AutoModelForMaskedLM, AutoModelForTokenClassification

from fusion_tinting import agreement
from fusion_tinting.families.rows import NO_LABEL
from fusion_tinting.mergekit import config, report
from fusion_tinting.mergekit.learn import learn
from fusion_tinting.method.objectives import OBJECTIVES, PADDING, divergence

CLASSES = {"ner": ["O", "PER", "LOC"], "pos": ["NOUN", "VERB"]}
SEVERAL = "film,dog"  # a word of three tokens


def make_world(folder: Path, name: str = "bert", **adapt) -> Path:
    """A masked language model, two experts with noise on every tensor, words with tags."""
    tokenizer, architecture = make_tokenizer(), MASKED[name]
    architecture.update(
        {"vocab_size": len(tokenizer), "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    )
    torch.manual_seed(0)
    base = save(AutoModelForMaskedLM.from_config(architecture), tokenizer, folder / "base")
    models = []
    for task, classes in CLASSES.items():
        expert = AutoModelForTokenClassification.from_pretrained(base, num_labels=len(classes))
        expert.config.id2label = dict(enumerate(classes))
        expert.config.label2id = {name: place for place, name in enumerate(classes)}
        for parameter in expert.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        save(expert, tokenizer, folder / task)
        write_rows(folder / f"{task}.jsonl", make_rows(classes))
        data = {"path": str(folder / f"{task}.jsonl"), "text": "tokens", "label": "tags"}
        models.append({"model": str(folder / task), "task": task, "data": data})
    settings = {"steps": 2, "batch_size": 4, "lr": 1e-2, **adapt}
    return write_config(
        folder / "config.yml", {"base_model": str(base), "models": models, "adapt": settings}
    )


def make_rows(classes: list[str]) -> list[dict]:
    """Texts of 3 to 11 words, the first one of several tokens."""
    generator, rows = torch.Generator().manual_seed(0), []
    for place in range(20):
        drawn = torch.randint(20, (2 + place % 9,), generator=generator).tolist()
        words = [SEVERAL, *(WORDS[i] for i in drawn)]
        rows.append({"tokens": words, "tags": [classes[len(word) % len(classes)] for word in words]})
    return rows


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The folder, the tinted model and the inputs kept aside of a run on BERT."""
    folder = tmp_path_factory.mktemp("bert")
    return folder, *learn(config.read(make_world(folder)), folder / "run", progress=False)


def whole(inputs) -> dict:
    """All of a task's inputs as one batch."""
    (batch,) = inputs.unlabeled.batches([range(len(inputs.unlabeled))])
    return batch


def tokens_of(batch: dict) -> dict:
    """What transformers' own model takes."""
    return {name: tensor for name, tensor in batch.items() if name != "words"}


@torch.no_grad()
def assert_same(ours: torch.Tensor, model, batch: dict) -> None:
    """Where a word begins the logits are those of transformers' own model; elsewhere there are none."""
    wanted, begins = model.eval()(**tokens_of(batch)).logits, batch["words"] >= 0
    ours = ours.transpose(1, 2)
    torch.testing.assert_close(ours[begins], wanted[begins], rtol=0, atol=1e-5)
    assert (ours[~begins] == PADDING).all()


@pytest.mark.parametrize("name", MASKED)
def test_an_expert_by_one_hot_coefficients_and_a_variant_are_transformers_own(tmp_path, name):
    path = make_world(tmp_path, name)
    model, aside = learn(config.read(path), tmp_path / "run", progress=False)
    assert model.layer == "head" and len(model.history) == 2
    invoke("variants", tmp_path / "run", tmp_path / "out")
    for task, classes in CLASSES.items():
        batch = whole(aside[task])
        assert batch["attention_mask"].sum(1).unique().numel() > 1
        expert = AutoModelForTokenClassification.from_pretrained(tmp_path / task)
        ours = model.remerged(task)(batch, task)
        assert ours.shape == (10, len(classes), batch["input_ids"].shape[1])
        assert_same(ours, expert, batch)
        variant, missing = AutoModelForTokenClassification.from_pretrained(
            tmp_path / "out" / task, output_loading_info=True
        )
        assert not any(missing.values())
        assert_same(model(batch, task), variant, batch)


def test_a_recipe_reproduces_the_tinted_model(tmp_path):
    model, aside = learn(config.read(make_world(tmp_path, "roberta")), tmp_path / "run", progress=False)
    invoke("pytorch", tmp_path / "run/recipe.yml", tmp_path / "out", "--tensor-intersection", "--quiet")
    merged = load_file(tmp_path / "out/model.safetensors")
    assert merged.keys() == load_file(tmp_path / "run/coefficients.safetensors").keys()
    for task in CLASSES:
        expert = AutoModelForTokenClassification.from_pretrained(tmp_path / task)
        tint = load_file(tmp_path / f"run/tints/{task}.safetensors")
        expert.load_state_dict({**expert.state_dict(), **merged, **tint})
        assert_same(model(whole(aside[task]), task), expert, whole(aside[task]))


def test_what_a_text_gives_does_not_depend_on_its_padding(learned):
    """Logits, losses and agreement of each text alone, without padding, and among longer ones."""
    _, model, aside = learned
    batch, expert = whole(aside["ner"]), model.remerged("ner")
    together = [merge(batch, "ner") for merge in (model, expert)]
    measures = {name: OBJECTIVES[name] for name in ("hard", "soft", "entropy")}
    measures |= {"agreement": agreement, "divergence": divergence}
    shares = set()
    for place, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        one = {name: tensor[place : place + 1, :length] for name, tensor in batch.items()}
        alone = [merge(one, "ner") for merge in (model, expert)]
        torch.testing.assert_close(alone[0], together[0][place : place + 1, :, :length])
        begins = one["words"][0] >= 0
        ours, theirs = (logits[0][:, begins].T for logits in alone)  # words alone, one sample each
        for name, measure in measures.items():
            expected = measure(ours, theirs).mean()
            torch.testing.assert_close(measure(*alone)[0], expected, msg=name)
            torch.testing.assert_close(measure(*together)[place], expected, msg=name)
        shares.add(round(float(agreement(*alone)), 4))
    assert len(shares) > 1


def test_tags_count_at_the_first_token_of_a_word_by_their_names_or_numbers(learned, tmp_path):
    folder, model, aside = learned
    for task, classes in CLASSES.items():
        labels, batch = aside[task].labels, whole(aside[task])
        assert ((labels == NO_LABEL) == (batch["words"] < 0)).all()
        assert (labels[:, 1] == len(SEVERAL) % len(classes)).all()  # after the special token
        assert (labels[:, 2:4] == NO_LABEL).all()
        counted = labels != NO_LABEL
        right = (model(batch, task).argmax(1) == labels)[counted].float().mean()
        compared = report.compare(model, {task: aside[task]})
        assert compared[task].ways["tinted"].score == right
    titles = [table.title for table in report.tables(report.compare(model, aside))]
    assert [title.partition(" ")[0] for title in titles] == ["Agreement", "KL(expert", "Accuracy,"]
    content = yaml.safe_load((folder / "config.yml").read_text())
    for model, (task, classes) in zip(content["models"], CLASSES.items(), strict=True):
        rows = make_rows(classes)
        numbers = [{**row, "tags": [classes.index(tag) for tag in row["tags"]]} for row in rows]
        model["data"]["path"] = str(tmp_path / f"{task}.jsonl")
        write_rows(tmp_path / f"{task}.jsonl", numbers)
    options = config.read(write_config(tmp_path / "config.yml", content))
    _, again = learn(options, tmp_path / "run", progress=False)
    assert all(torch.equal(again[task].labels, aside[task].labels) for task in CLASSES)


ROWS = {
    "a row without text": ({"tokens": [], "tags": []}, r"Row 1 of .* has no word in its text"),
    "a row of another kind": ({"tokens": "the dog", "tags": ["O"]}, r"Row 1 of .*list of words, in every"),
    "too few tags": ({"tokens": ["the", "dog"], "tags": ["O"]}, r"Row 1 of .*one for each of the words"),
    "an unknown tag": (
        {"tokens": ["dog"], "tags": ["ORG"]},
        r"Row 1 of .*'ORG'.*from 0 to 2 or one of .*'PER'",
    ),
}
ADAPT = {
    "a sampler by confidence": ({"sampler": "confidence_difference"}, "TokenClassification have not.*all"),
    "an unknown layer": ({"layer": "block:7"}, "index from -2 to 1"),
}


@pytest.mark.parametrize("case", [*ROWS, *ADAPT, "an expert of another kind"])
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, case):
    path = make_world(tmp_path, **ADAPT.get(case, ({},))[0])
    content = yaml.safe_load(path.read_text())
    message = {**ROWS, **ADAPT}.get(case, (None, r"no complete BertForTokenClassification.*classifier"))[1]
    if case in ROWS:
        rows = make_rows(CLASSES["ner"])
        write_rows(tmp_path / "ner.jsonl", [rows[0], ROWS[case][0], *rows[2:]])
    if case == "an expert of another kind":
        content["models"][1]["model"] = content["base_model"]
    output = " ".join(refused("learn", write_config(path, content), tmp_path / "run").split())
    assert re.search(message, output), output
    assert not (tmp_path / "run").exists()


def overrides(folder: Path, pool: str, tasks) -> list[str]:
    """Overrides of FusionBench's command: tiny checkpoints and files in the place of the hub's."""

    def mapping(values: dict) -> str:
        return f"{{{','.join(f'{key}:{value}' for key, value in values.items())}}}"

    def load(task: str) -> str:
        file = {"path": "json", "split": "train", "data_files": folder / f"{task}.jsonl"}
        return mapping({"_target_": "datasets.load_dataset", **file})

    paths = {"_pretrained_": folder / "base", **{task: folder / task for task in tasks}}
    models = {name: mapping({"pretrained_model_name_or_path": path}) for name, path in paths.items()}
    tokenizer = {"pretrained_model_name_or_path": paths[next(iter(tasks))], "model_max_length": 40}
    return [
        *("~taskpool", f"modelpool={pool}", "~modelpool.models", f"+modelpool.models={mapping(models)}"),
        *(f"modelpool.tokenizer.{key}={value}" for key, value in tokenizer.items()),
        *("~modelpool.test_datasets", f"+modelpool.test_datasets={mapping({t: load(t) for t in tasks})}"),
    ]


@pytest.fixture
def pool(tmp_path) -> list[str]:
    make_world(tmp_path)
    return overrides(tmp_path, "bert-base_tokens", CLASSES)


def test_fusionbench_adapts_reports_agreement_and_applies_the_artifact(fuse, pool, tmp_path, capfd):
    tinting = ("method=model_tinting", *pool)
    saved = "merged_model_save_path='{log_dir}/saved'"
    model = fuse(*tinting, "method.steps=30", "method.batch_size=4", "method.run_dir=run", saved)[
        "merged_model"
    ]
    assert model.history.loss[-5:].mean() < model.history.loss[:5].mean()
    assert "kept aside" in capfd.readouterr().out
    again = fuse(*tinting, "method.artifact=run")["merged_model"]
    tokens = make_tokenizer()(["the", SEVERAL], is_split_into_words=True, return_tensors="pt")
    batch = {**tokens, "words": torch.tensor([[-1, 0, 1, -1, -1, -1]])}
    for task in CLASSES:
        assert torch.equal(again(batch, task), model(batch, task))
        expert = AutoModelForTokenClassification.from_pretrained(tmp_path / task)
        assert_same(model.remerged(task)(batch, task), expert, batch)
    kept = AutoModelForTokenClassification.from_pretrained(tmp_path / "saved")
    assert kept.config.model_type == "bert"
    with pytest.raises(ValueError, match=r"TokenClassification have not.*sampler: all"):
        fuse(*tinting, "method.sampler=confidence_difference")


def test_fusionbench_reads_plain_texts_too(fuse, pool, tmp_path):
    for task in CLASSES:
        rows = [{"text": " ".join(row["tokens"])} for row in make_rows(CLASSES[task])]
        (tmp_path / f"{task}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    short = ("method=model_tinting", "method.steps=2", "method.batch_size=4")
    assert len(fuse(*short, *pool)["merged_model"].history) == 2
