"""`mergekit-tint variants`: a checkpoint for every task that loads by itself, around one model on disk."""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from checkpoints import LENGTH, NOISE, WORDS, classifier, make_tokenizer, masked_lm, save, tensors
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from fusion_tinting.mergekit import variants
from fusion_tinting.mergekit.checkpoints import INDEX
from fusion_tinting.mergekit.cli import main
from fusion_tinting.mergekit.config import read
from fusion_tinting.mergekit.learn import learn
from fusion_tinting.run import lock
from fusion_tinting.run.artifact import tint_path
from fusion_tinting.run.tinted_model import TintedModel

LABELS = {"sst2": 2, "mnli": 3, "stars": 5}
INPUTS = {
    "input_ids": torch.tensor([[0, 5, 6, 7, 8, 2], [0, 9, 24, 2, 1, 1]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]),
}


@dataclass
class Run:
    """What `learn` left, and the tinted model in memory."""

    folder: Path
    model: TintedModel
    experts: dict[str, Path]

    def variants(self, out: Path, *options: str, fails: bool = False) -> str:
        """Run the command in this process; what it wrote."""
        result = CliRunner().invoke(main, ["variants", str(self.folder), str(out), *options])
        assert (result.exit_code != 0) == fails, result.output
        return result.output if fails else result.stdout

    def copy(self, folder: Path) -> "Run":
        """The same in folders that may be changed."""
        experts = {task: shutil.copytree(path, folder / task) for task, path in self.experts.items()}
        run = shutil.copytree(self.folder, folder / "run")
        manifest = json.loads((run / "tinting.json").read_text())
        for task, path in experts.items():
            manifest["experts"][task]["id"] = str(path)
        (run / "tinting.json").write_text(json.dumps(manifest))
        return Run(run, self.model, experts)

    @torch.no_grad()
    def assert_reproduced(self, out: Path, *tasks: str) -> None:
        """The variants give the tinted model's logits; none of their tensors is missing or left over."""
        for task in tasks or self.model.tasks:
            model, told = AutoModelForSequenceClassification.from_pretrained(
                out / variants.folder_of(task), dtype=torch.float32, output_loading_info=True
            )
            assert not any(told.values()), told
            expected = self.model(dict(INPUTS), task=task)
            torch.testing.assert_close(model.eval()(**INPUTS).logits, expected, rtol=0, atol=1e-5)


def make_run(folder: Path, base: Path, experts: dict[str, Path], **adapt) -> Run:
    texts = [{"text": " ".join(WORDS[i : i + 5])} for i in range(12)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, texts)))
    data = str(folder / "data.jsonl")
    models = [{"model": str(path), "task": task, "data": data} for task, path in experts.items()]
    settings = {"steps": 2, "batch_size": 4, "sampler": "all", **adapt}
    whole = {"base_model": str(base), "models": models, "adapt": settings, "data": {"max_length": 8}}
    (folder / "config.yml").write_text(yaml.safe_dump(whole))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSION_TINTING_CACHE", str(folder / "cache"))
        model, _ = learn(read(folder / "config.yml"), folder / "run", progress=False)
    return Run(folder / "run", model, experts)


def make_roberta(folder: Path, tasks: dict[str, int], **adapt) -> Run:
    base = masked_lm(folder / "base")
    numbered = enumerate(tasks.items())
    experts = {task: classifier(folder / f"expert{i}", base, labels, i) for i, (task, labels) in numbered}
    return make_run(folder, base, experts, **adapt)


@pytest.fixture(scope="module")
def heads(tmp_path_factory) -> Run:
    """Heads of 2, 3 and 5 labels over a masked language model, tinted."""
    return make_roberta(tmp_path_factory.mktemp("heads"), LABELS, layer="head")


@pytest.fixture(scope="module")
def blocks(tmp_path_factory) -> Run:
    """The same, where a block is tinted and the heads are the experts'."""
    return make_roberta(tmp_path_factory.mktemp("blocks"), LABELS, layer="block:-1")


def held(folder: Path) -> int:
    """Bytes of the tensors in a folder's own files; what is linked to is elsewhere."""
    files = [path for path in folder.rglob("*.safetensors") if not path.is_symlink()]
    return sum(size(load_file(path)) for path in files)


def size(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def loadable(out: Path) -> list[str]:
    """The folders that `from_pretrained` would find a model in."""
    return sorted(path.parent.name for path in out.glob(f"*/{INDEX}"))


def test_the_command_reproduces_the_tinted_model(heads, tmp_path):
    said = heads.variants(tmp_path / "out")
    assert said.split() == [str(tmp_path / "out" / task) for task in LABELS]
    heads.assert_reproduced(tmp_path / "out")


def test_a_tinted_block_is_reproduced(blocks, tmp_path):
    blocks.variants(tmp_path / "out")
    blocks.assert_reproduced(tmp_path / "out")


@pytest.mark.parametrize("which", ["heads", "blocks"])
def test_they_cost_one_model_and_a_tint_each(which, tmp_path, request):
    run = request.getfixturevalue(which)
    run.variants(tmp_path)
    tinted = "classifier." if which == "heads" else "roberta.encoder.layer.1."
    sizes = {}
    for task, path in run.experts.items():
        expert, own = tensors(path), load_file(tmp_path / task / variants.OWN)
        assert tensors(tmp_path / task).keys() == expert.keys()
        assert own.keys() == {name for name in expert if name.startswith((tinted, "classifier."))}
        tint = load_file(tint_path(run.folder, task))
        assert tint.keys() == {name for name in own if name.startswith(tinted)}
        assert all(torch.equal(own[name], tensor) for name, tensor in tint.items())
        sizes[task] = size(own)
    one_model = size(tensors(run.experts["sst2"]))
    assert held(tmp_path) == one_model + sizes["mnli"] + sizes["stars"]


def test_the_folder_can_be_moved(heads, tmp_path):
    heads.variants(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    links = [path for path in (tmp_path / "there").rglob("*.safetensors") if path.is_symlink()]
    assert links and not any(os.path.isabs(os.readlink(path)) for path in links)
    heads.assert_reproduced(tmp_path / "there")


def test_copies_stand_where_links_are_not_possible(heads, tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.symlink", no_links)
    heads.variants(tmp_path)
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    heads.assert_reproduced(tmp_path)


def test_any_task_name_has_a_folder_within_out(tmp_path):
    names = ["glue/sst2", "..", "shared", "größer als (5 %)"]
    run = make_roberta(tmp_path, dict.fromkeys(names, 2), layer="head", steps=1)
    run.variants(tmp_path / "out")
    assert loadable(tmp_path / "out") == sorted(["shared", *map(variants.folder_of, names)])
    assert len(set(map(variants.folder_of, names)) - {"shared", "..", "."}) == len(names)
    run.assert_reproduced(tmp_path / "out")


def test_one_task_and_later_another(heads, tmp_path):
    heads.variants(tmp_path, "--task", "mnli")
    assert loadable(tmp_path) == ["mnli", "shared"]
    shared = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").iterdir()}
    heads.variants(tmp_path, "--task", "stars", "--task", "stars", "--force")
    assert loadable(tmp_path) == ["mnli", "shared", "stars"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").iterdir()} == shared
    heads.assert_reproduced(tmp_path, "mnli", "stars")


def test_an_unknown_task_is_refused(heads, tmp_path):
    said = heads.variants(tmp_path / "out", "--task", "mlni", fails=True)
    assert "mlni" in said and "Did you mean `mnli`" in said
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone_unless_forced(heads, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    said = heads.variants(tmp_path, fails=True)
    assert "not empty" in said and "--force" in said
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    heads.variants(tmp_path, "--force")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    heads.assert_reproduced(tmp_path)


def test_a_folder_that_another_command_writes_into_is_left_alone(heads, tmp_path):
    (tmp_path / "out").mkdir()
    with lock.held(tmp_path / "out"):
        said = (
            ThreadPoolExecutor(1).submit(heads.variants, tmp_path / "out", "--force", fails=True).result()
        )
    assert f"in use by another run: process {os.getpid()} on" in said
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_of_the_run_is_not_written_over(heads, tmp_path):
    (tmp_path / "sst2").symlink_to(heads.experts["sst2"])
    before = sorted(heads.experts["sst2"].iterdir())
    said = heads.variants(tmp_path, "--force", fails=True)
    assert "is itself one of the models, which would be lost" in said
    assert sorted(heads.experts["sst2"].iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["sst2"]


def test_another_run_replaces_what_was_there(heads, blocks, tmp_path):
    heads.variants(tmp_path)
    shutil.copy(heads.experts["sst2"] / "model.safetensors", tmp_path / "sst2")  # would be loaded first
    blocks.variants(tmp_path, "--task", "sst2", "--force")
    assert loadable(tmp_path) == ["shared", "sst2"]  # the others' shared model is no more
    blocks.assert_reproduced(tmp_path, "sst2")


class Stopped(Exception):
    """The process was killed."""


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Stopped()])
@pytest.mark.parametrize(("files", "whole"), [(0, []), (1, ["shared"]), (2, ["shared", "sst2"])])
def test_what_was_cut_short_does_not_look_complete(heads, tmp_path, monkeypatch, error, files, whole):
    written = []

    def save_some(tensors, path, metadata):
        if len(written) == files:
            raise error
        written.append(path)
        save_file(tensors, path, metadata)

    monkeypatch.setattr(variants, "save_file", save_some)
    result = CliRunner().invoke(main, ["variants", str(heads.folder), str(tmp_path)])
    assert result.exit_code != 0
    assert isinstance(result.exception, Stopped) or "No space left" in result.output
    assert loadable(tmp_path) == whole
    assert not list(tmp_path.rglob(".*"))
    for task in LABELS.keys() - {*whole}:
        with pytest.raises((OSError, ValueError)):
            AutoModelForSequenceClassification.from_pretrained(tmp_path / task, local_files_only=True)
    monkeypatch.undo()
    heads.variants(tmp_path, "--force")
    heads.assert_reproduced(tmp_path)


def test_the_shared_model_is_written_shard_by_shard(heads, tmp_path, monkeypatch):
    most = 4000
    monkeypatch.setattr(variants, "SHARD_BYTES", most)
    heads.variants(tmp_path)
    shards = [load_file(path) for path in (tmp_path / "shared").glob("*.safetensors")]
    assert len(shards) > 3
    for shard in shards:
        assert len(shard) == 1 or sum(tensor.nbytes for tensor in shard.values()) <= most
    heads.assert_reproduced(tmp_path)


def test_the_experts_data_type_is_kept(tmp_path):
    base = masked_lm(tmp_path / "base")
    experts = {task: classifier(tmp_path / task, base, labels, 0) for task, labels in LABELS.items()}
    for path in experts.values():
        model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.bfloat16)
        model.save_pretrained(path)
    run = make_run(tmp_path, base, experts, layer="head")
    run.variants(tmp_path / "out")
    for task in LABELS:
        assert {t.dtype for t in tensors(tmp_path / "out" / task).values()} == {torch.bfloat16}
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / task)
        assert model.dtype == torch.bfloat16
        expected = load_file(tint_path(run.folder, task))
        for name, tensor in load_file(tmp_path / "out" / task / variants.OWN).items():
            assert torch.equal(tensor, expected[name].bfloat16())


def test_everything_of_an_expert_but_its_weights_is_there(heads, tmp_path):
    run, out = heads.copy(tmp_path), tmp_path / "out"
    mine = {
        "generation_config.json": "{}", "modeling_mine.py": "x = 1", "vocab.bpe": "a b",
        "spiece.model": "…", "additional_chat_templates/tool.jinja": "{{ tool }}",
    }  # fmt: skip
    theirs = ("README.md", "optimizer.pt", "training_args.bin", ".hidden", "checkpoint-5/config.json")
    for name in (*mine, *theirs):
        path = run.experts["sst2"] / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(mine.get(name, "not to be copied"))
        path.chmod(0o444)  # as in the cache of the hub
    run.variants(out)
    run.variants(out, "--force")
    assert {name: (out / "sst2" / name).read_text() for name in mine} == mine
    assert not any((out / "sst2" / name).exists() for name in theirs)
    for task, path in run.experts.items():
        found, expected = AutoTokenizer.from_pretrained(out / task), AutoTokenizer.from_pretrained(path)
        assert found(" ".join(WORDS)) == expected(" ".join(WORDS))
        assert found.special_tokens_map == expected.special_tokens_map
        assert (out / task / "config.json").read_text() == (path / "config.json").read_text()


def _change(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    found = load_file(path)
    change(found)
    save_file(found, path, {"format": "pt"})


def _expert_gone(run):
    shutil.rmtree(run.experts["mnli"])
    return [str(run.experts["mnli"])]


def _expert_lacks(run):
    name = "roberta.encoder.layer.0.attention.self.query.weight"
    _change(run.experts["mnli"] / "model.safetensors", lambda found: found.pop(name))
    return ["The expert `mnli`", "missing", name]


def _expert_of_another_shape(run):
    name = "roberta.embeddings.word_embeddings.weight"
    _change(run.experts["stars"] / "model.safetensors", lambda f: f.update({name: torch.zeros(30, 16)}))
    return ["The expert `stars`", name, "(30, 16)"]


def _expert_trained_on(run):
    name = "roberta.encoder.layer.0.attention.self.query.bias"
    _change(run.experts["stars"] / "model.safetensors", lambda found: found[name].add_(1e-3))
    return ["The expert `stars`", str(run.experts["stars"]), "has changed since"]


def _coefficients_of_another_model(run):
    path = run.folder / "coefficients.safetensors"
    name = "roberta.embeddings.word_embeddings.weight"
    found = load_file(path)
    del found[name]
    save_file(found, path, {"tasks": json.dumps(list(LABELS))})
    return ["no row for 1 tensor(s)", name]


def _coefficients_not_finite(run):
    path = run.folder / "coefficients.safetensors"
    found = load_file(path)
    next(iter(found.values()))[1] = torch.nan
    save_file(found, path, {"tasks": json.dumps(list(LABELS))})
    return ["coefficients.safetensors", "nan"]


def _tint_not_finite(run):
    _change(tint_path(run.folder, "mnli"), lambda found: next(iter(found.values())).fill_(torch.inf))
    return ["mnli.safetensors", "NaN or infinite"]


def _tint_of_another_task(run):
    shutil.copy(tint_path(run.folder, "stars"), tint_path(run.folder, "mnli"))
    return ["mnli.safetensors", "classifier.out_proj.weight (5, 16), not (3, 16)"]


def _tint_cut_short(run):
    path = tint_path(run.folder, "mnli")
    path.write_bytes(path.read_bytes()[:-10])
    return ["mnli.safetensors", "cut short"]


def _tint_changed(run):
    _change(tint_path(run.folder, "mnli"), lambda found: next(iter(found.values())).add_(1e-3))
    return ["mnli.safetensors", "has changed since the run was finished"]


def _tint_gone(run):
    tint_path(run.folder, "mnli").unlink()
    return ["mnli.safetensors", "missing"]


def _unfinished(run):
    (run.folder / "tinting.json").unlink()
    return ["tinting.json", "no finished run"]


def _configured_otherwise(run):
    path = run.experts["mnli"] / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "problem_type": "regression"}))
    return ["['config.json'] of the expert `mnli`", "changed since the run was learned", "sources.json"]


def _reads_otherwise(run):
    (run.experts["stars"] / "tokenizer_config.json").unlink()
    return ["['tokenizer_config.json'] of the expert `stars`", "Restore them"]


def _nothing_said_of_experts(run):
    (run.folder / "sources.json").write_text('{"experts": [1]}')
    return ["sources.json` does not say what the expert `sst2` was"]


def _made_in_python(run):
    manifest = json.loads((run.folder / "tinting.json").read_text())
    manifest["base"]["id"] = None
    (run.folder / "tinting.json").write_text(json.dumps(manifest))
    return ["does not say where its models are"]


@pytest.mark.parametrize(
    "harm",
    [
        _expert_gone,
        _expert_lacks,
        _expert_of_another_shape,
        _expert_trained_on,
        _coefficients_of_another_model,
        _coefficients_not_finite,
        _tint_not_finite,
        _tint_of_another_task,
        _tint_cut_short,
        _tint_changed,
        _tint_gone,
        _unfinished,
        _configured_otherwise,
        _reads_otherwise,
        _nothing_said_of_experts,
        _made_in_python,
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_written(heads, tmp_path, harm):
    run = heads.copy(tmp_path)
    words = harm(run)
    said = run.variants(tmp_path / "out", fails=True)
    assert all(word in said for word in words), said
    assert not (tmp_path / "out").exists()


def test_labels_may_be_named_anew(heads, tmp_path):
    run = heads.copy(tmp_path)
    path = run.experts["sst2"] / "config.json"
    names = {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **names}))
    run.variants(tmp_path / "out", "--task", "sst2")
    assert json.loads((tmp_path / "out" / "sst2" / "config.json").read_text())["id2label"]["1"] == "good"


def _bert() -> PreTrainedModel:
    return BertForMaskedLM(BertConfig(**_SMALL, intermediate_size=24, max_position_embeddings=LENGTH))


def _distilbert() -> PreTrainedModel:
    config = DistilBertConfig(
        vocab_size=25, dim=16, n_layers=2, n_heads=4, hidden_dim=24, max_position_embeddings=LENGTH
    )
    return DistilBertForMaskedLM(config)


def _deberta() -> PreTrainedModel:
    config = DebertaV2Config(
        **_SMALL, intermediate_size=24, max_position_embeddings=LENGTH, pooler_hidden_size=16
    )
    return DebertaV2ForMaskedLM(config)


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=25, n_embd=16, n_layer=2, n_head=4, n_positions=LENGTH))


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(**_SMALL, intermediate_size=24, num_key_value_heads=2, max_position_embeddings=LENGTH)
    )


_SMALL = {
    "vocab_size": 25, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "pad_token_id": 1,
}  # fmt: skip


@pytest.mark.parametrize("architecture", [_bert, _distilbert, _deberta, _gpt2, _llama])
def test_classifiers_of_every_architecture(architecture, tmp_path):
    torch.manual_seed(0)
    language_model, tokenizer = architecture(), make_tokenizer()
    language_model.config.pad_token_id = 1
    save(language_model, tokenizer, tmp_path / "base")
    experts = {}
    for task, labels in {"sst2": 2, "mnli": 3}.items():
        expert = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=labels)
        for parameter in expert.parameters():
            parameter.data += NOISE * torch.randn_like(parameter)
        experts[task] = save(expert, tokenizer, tmp_path / task)
    run = make_run(tmp_path, tmp_path / "base", experts, layer="head")
    run.variants(tmp_path / "out")
    run.assert_reproduced(tmp_path / "out")
