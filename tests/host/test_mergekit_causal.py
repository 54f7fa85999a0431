"""`mergekit-tint learn` on causal language models, and what `yaml` and `variants` make of its run."""

import json
import random
import re
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

import forked
import pytest
import torch
import yaml
from checkpoints import LENGTH, SPECIAL, WORDS, expert, llama, make_tokenizer, save, tensors
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from fusion_tinting.families.causal_lm import CausalLM, LanguageModel, blocks_of, load
from fusion_tinting.mergekit import report
from fusion_tinting.mergekit.cli import main
from fusion_tinting.mergekit.config import read
from fusion_tinting.mergekit.learn import family_of, learn
from fusion_tinting.mergekit.reading import read as read_recipe
from fusion_tinting.method.objectives import divergence
from fusion_tinting.method.tints import resolve_layer
from fusion_tinting.run.artifact import tint_path
from fusion_tinting.run.files import read_json
from fusion_tinting.run.tinted_model import TintedModel

RECIPES = Path(__file__).parents[2] / "configs" / "recipes"
TASKS = ("news", "tales")
INPUTS = torch.arange(24).view(2, 12)


@dataclass
class World:
    """A base, two experts of it and texts, in a folder."""

    folder: Path
    base: Path
    experts: dict[str, Path]

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def config(self, **adapt) -> Path:
        """The configuration, with these settings of `adapt`."""
        models = [
            {"model": str(path), "task": task, "data": str(self.folder / f"{task}.txt")}
            for task, path in self.experts.items()
        ]
        whole = {
            "base_model": str(self.base),
            "models": models,
            "adapt": {"steps": 2, **adapt},
            "data": {"max_length": 12},
        }
        (self.folder / "config.yml").write_text(yaml.safe_dump(whole))
        return self.folder / "config.yml"

    def learn(self, **adapt) -> TintedModel:
        model, _ = learn(read(self.config(**adapt)), self.run, progress=False)
        return model


def command(*arguments, fails: bool = False) -> str:
    """Run `mergekit-tint` in this process; what it wrote."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert (result.exit_code != 0) == fails, result.output
    return result.output


def _llama(folder: Path) -> Path:
    return llama(folder)


def _llama_tied(folder: Path) -> Path:
    return llama(folder, tied=True)


def _gpt2(folder: Path) -> Path:
    tokenizer = make_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=LENGTH,
        bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return save(GPT2LMHeadModel(config), tokenizer, folder)


def _qwen2(folder: Path) -> Path:
    tokenizer = make_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=LENGTH,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return save(Qwen2ForCausalLM(config), tokenizer, folder)


MODELS = {"llama": _llama, "llama, tied": _llama_tied, "gpt2": _gpt2, "qwen2": _qwen2}


@pytest.fixture
def make(tmp_path):
    """A world around one of `MODELS`."""

    def make(kind: str) -> World:
        base = MODELS[kind](tmp_path / "base")
        rng = random.Random(0)
        for task in TASKS:
            lines = [" ".join(rng.choices(WORDS, k=7)) for _ in range(40)]
            (tmp_path / f"{task}.txt").write_text("\n".join(lines))
        experts = {task: expert(tmp_path / task, base, seed) for seed, task in enumerate(TASKS)}
        return World(tmp_path, base, experts)

    return make


@torch.no_grad()
def logits(folder: Path) -> Tensor:
    """What a checkpoint says of `INPUTS`; none of its tensors may be missing or left over."""
    model, told = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(told.values()), told
    return model.eval()(INPUTS).logits


@torch.no_grad()
def tinted(model: TintedModel, task: str) -> Tensor:
    return model(INPUTS, task=task).transpose(1, 2)


def assert_reproduced(model: TintedModel, folders: dict[str, Path]) -> None:
    for task, folder in folders.items():
        torch.testing.assert_close(logits(folder), tinted(model, task), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"layer": "block:-1", "update": "joint", "gradient_checkpointing": True}),
        ("llama, tied", {"layer": "model.norm", "task_vectors": {"storage": "stream"}}),
    ],
)
def test_processes_that_share_a_model_learn_and_report_what_one_does(make, kind, settings):
    """As `torchrun --nproc-per-node 2` starts them."""
    world = make(kind)
    settings = {"batch_size": 4, "lr": 1e-3, **settings}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    arguments = ("learn", world.config(**settings), world.folder / "two", "--report", "3")
    started = [
        forked.start(
            forked.mergekit_tint, *arguments, folder=world.folder,
            environment={"RANK": rank, "LOCAL_RANK": rank, **group},
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    first, second = (forked.end(*process, seconds=300) for process in started)
    assert "Next:" in first
    assert not second.strip()
    command("learn", world.config(**settings), world.run, "--report", "3")
    for path in (Path("coefficients.safetensors"), *(tint_path(Path(), task) for task in TASKS)):
        one, two = load_file(world.run / path), load_file(world.folder / "two" / path)
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-5)
    one, two = (read_json(folder / report.REPORT)["tasks"] for folder in (world.run, world.folder / "two"))
    for task in TASKS:
        for way, found in one[task]["ways"].items():
            assert two[task]["ways"][way] == pytest.approx(found, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "layer"),
    [*((kind, "head") for kind in MODELS), ("llama", "block:0"), ("gpt2", "block:0"), ("gpt2", "norm"),
     ("llama, tied", "norm")],
)  # fmt: skip
def test_variants_reproduce_the_tinted_model(make, kind, layer):
    world = make(kind)
    if layer == "norm":  # its name on disk
        layer = "transformer.ln_f" if kind == "gpt2" else "model.norm"
    model = world.learn(layer=layer)
    assert all(
        (row != 0.3).any() for name, row in model.coefficients.items() if name not in model.tinted_tensors
    )
    command("variants", world.run, world.folder / "out")
    assert_reproduced(model, {task: world.folder / "out" / task for task in TASKS})
    for task, path in world.experts.items():
        kept, tint = tensors(world.folder / "out" / task), load_file(tint_path(world.run, task))
        assert kept.keys() == tensors(path).keys() | tint.keys()
        assert all(torch.equal(kept[name], tensor) for name, tensor in tint.items())
        config = json.loads((world.folder / "out" / task / "config.json").read_text())
        assert config["tie_word_embeddings"] is (kind != "llama" and layer != "head")


@pytest.mark.parametrize("layer", ["head", "block:1"])
@pytest.mark.parametrize("kind", ["llama", "llama, tied"])
def test_recipes_reproduce_the_shared_and_the_tinted_model(make, kind, layer):
    world = make(kind)
    model = world.learn(layer=layer)
    command("yaml", world.run / "recipe.yml", world.folder / "shared")
    with torch.no_grad():
        expected = model.merged(INPUTS).transpose(1, 2)
    torch.testing.assert_close(logits(world.folder / "shared"), expected, rtol=0, atol=1e-5)
    for task in TASKS:
        recipe = yaml.safe_load((world.run / "recipe.yml").read_text())
        recipe["parameters"]["tint"] = str(tint_path(world.run, task))
        (world.folder / f"{task}.yml").write_text(yaml.safe_dump(recipe))
        untied = (kind, layer) == ("llama, tied", "head")  # a tensor that no checkpoint has
        said = command("yaml", world.folder / f"{task}.yml", world.folder / f"out-{task}", fails=untied)
        assert not untied or ("lm_head.weight" in said and "mergekit-tint variants" in said)
    if not untied:
        assert_reproduced(model, {task: world.folder / f"out-{task}" for task in TASKS})


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        ("lm_head", "model.lm_head"),
        ("model.norm", "model.model.norm"),
        ("norm", "model.model.norm"),
        ("model.layers.1", "model.model.layers.1"),
        ("block:-1", "model.model.layers.1"),
    ],
)
def test_a_layer_is_called_as_on_disk(make, layer, found):
    assert resolve_layer(LanguageModel(load(make("llama").base)), layer).name == found


def test_an_untinted_run_has_one_model_for_all(make):
    world = make("llama")
    model = world.learn(layer=None)
    command("variants", world.run, world.folder / "out")
    assert_reproduced(model, {task: world.folder / "out" / task for task in TASKS})


def test_a_base_without_the_prefix_of_its_experts(make):
    """gpt2 on the hub says `h.0.…`, what is fine-tuned from it `transformer.h.0.…`."""
    world = make("gpt2")
    model = GPT2LMHeadModel.from_pretrained(world.base)
    shutil.rmtree(world.base)
    save(model.transformer, make_tokenizer(), world.base)
    assert "h.0.ln_1.weight" in tensors(world.base)
    learned = world.learn(layer="h.1")
    command("variants", world.run, world.folder / "out")
    assert_reproduced(learned, {task: world.folder / "out" / task for task in TASKS})


@pytest.mark.parametrize(
    ("adapt", "words"),
    [
        ({"sampler": "confidence_difference"}, ["sampler: confidence_difference", "sampler: all"]),
        ({"layer": "model.embed_tokens"}, ["model.embed_tokens", "shares a tensor with the LM head"]),
        ({"layer": "model.nrom"}, ["model.nrom", "model.norm"]),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(make, adapt, words):
    world = make("llama, tied")
    said = command("learn", world.config(**adapt), world.run, fails=True)
    assert all(word in said for word in words)
    assert not world.run.exists()


def _labels(world, config):
    config["models"][0]["labels"] = "label"
    return "`data.label` (task `news`) has no effect"


def _too_little_text(world, config):
    (world.folder / "news.txt").write_text("the cat\n")
    return "news.txt` (task `news`): The texts hold 4 tokens. Two blocks of 12 are the least"


def _another_vocabulary(world, config):
    make_tokenizer((*WORDS, "zebra")).save_pretrained(world.experts["tales"])
    return "The vocabulary of the expert `tales` differs"


def _tokens_that_the_model_does_not_know(world, config):
    for path in (world.base, *world.experts.values()):
        make_tokenizer(("zebra", *WORDS)).save_pretrained(path)
    (world.folder / "news.txt").write_text("on on on\n" * 40)
    return "has a token 25; the base knows 25"


def _another_size(world, config):
    shutil.rmtree(world.experts["tales"])
    llama(world.experts["tales"], words=(*WORDS, "zebra"))
    make_tokenizer().save_pretrained(world.experts["tales"])
    return "embed_tokens.weight` of the expert `tales` is (26, 16)"


def _no_language_model(world, config):
    (world.base / "config.json").unlink()
    return "config.json"


@pytest.mark.parametrize(
    "harm",
    [
        _labels,
        _too_little_text,
        _another_vocabulary,
        _tokens_that_the_model_does_not_know,
        _another_size,
        _no_language_model,
    ],
)
def test_models_and_texts_that_cannot_work_are_refused(make, harm):
    world = make("llama")
    config = yaml.safe_load(world.config().read_text())
    words = harm(world, config)
    (world.folder / "config.yml").write_text(yaml.safe_dump(config))
    assert words in command("learn", world.folder / "config.yml", world.run, fails=True)
    assert not (world.run / "tinting.json").exists()


def test_texts_are_cut_into_blocks_without_padding():
    blocks = blocks_of([[5, 6, 7], [], [8, 9], [4, 2]], 4, separator=2)
    assert torch.stack(blocks).tolist() == [[5, 6, 7, 2], [2, 8, 9, 2]]
    assert torch.stack(blocks_of([[1, 2, 3], [4]], 2, None)).tolist() == [[1, 2], [3, 4]]


STYLES = ("news", "tales", "verse")


class Styles:
    """Texts in which each word leads to the next by a table of the style's own."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)
        tables = 3 * torch.randn(len(STYLES), len(WORDS), len(WORDS), generator=self.generator)
        self.follows = dict(zip(STYLES, tables.softmax(2), strict=True))

    def words(self, style: str, count: int, length: int = 16) -> Tensor:
        """Word numbers, (count, length)."""
        found = [torch.randint(len(WORDS), (count,), generator=self.generator)]
        while len(found) < length:
            following = self.follows[style][found[-1]]
            found.append(torch.multinomial(following, 1, generator=self.generator)[:, 0])
        return torch.stack(found, 1)

    def train(self, model: PreTrainedModel, styles: tuple[str, ...], steps: int, lr: float) -> None:
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=lr)
        for _ in range(steps):
            tokens = len(SPECIAL) + torch.cat([self.words(style, 32 // len(styles)) for style in styles])
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> World:
    """A language model trained on all styles, an expert for each, and texts of each."""
    folder, tokenizer, styles = tmp_path_factory.mktemp("zoo"), make_tokenizer(), Styles()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=2,
        pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    base = LlamaForCausalLM(config)
    styles.train(base, STYLES, steps=80, lr=1e-2)
    save(base, tokenizer, folder / "base")
    for style in STYLES:
        model = LlamaForCausalLM.from_pretrained(folder / "base")
        styles.train(model, (style,), steps=60, lr=3e-3)
        save(model, tokenizer, folder / style)
        lines = [" ".join(WORDS[i] for i in row) for row in styles.words(style, 200, 15).tolist()]
        (folder / f"{style}.txt").write_text("\n".join(lines))
    return World(folder, folder / "base", {style: folder / style for style in STYLES})


@pytest.mark.parametrize("layer", ["head", "block:-1"])
def test_the_divergence_from_the_experts_is_halved_at_least(zoo, tmp_path, layer):
    """KL(expert ‖ merged) on texts that did not teach, against Task Arithmetic."""
    config = read(zoo.config(layer=layer, steps=40, batch_size=16))
    model, aside = learn(config, tmp_path / "run", progress=False)
    arithmetic = model.remerged(model.info.settings["init"])

    @torch.no_grad()
    def apart(merged: TintedModel) -> float:
        found = []
        for task, (unlabeled, _) in aside.items():
            (inputs,) = unlabeled.batches([range(len(unlabeled))])
            found.append(
                divergence(merged(inputs, task=task), model.remerged(task)(inputs, task=task)).mean()
            )
        return torch.stack(found).mean().item()

    assert apart(arithmetic) > 0.1  # there is something to gain
    assert apart(model) < 0.5 * apart(arithmetic)


def test_trained_experts_teach_in_bfloat16_what_they_teach_in_float32(zoo, tmp_path):
    """The same values, 60 steps: λ within 0.01 on average, the divergence on other texts within 3 %."""
    models, apart, styles = {}, {}, STYLES[:2]
    for dtype in (torch.bfloat16, torch.float32):
        folder = tmp_path / str(dtype)
        rounded = World(folder, folder / "base", {style: folder / style for style in styles})
        for path in (rounded.base, *rounded.experts.values()):
            shutil.copytree(zoo.folder / path.name, path)
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
            model.to(dtype).save_pretrained(path)
        for style in styles:
            shutil.copy(zoo.folder / f"{style}.txt", folder)
        options = {"layer": "block:-1", "lr_tints": 1e-3, "batch_size": 6, "steps": 60}
        models[dtype], aside = learn(read(rounded.config(**options)), folder / "run", progress=False)
        told = report.compare(models[dtype], aside)
        apart[dtype] = [each.ways["tinted"].divergence for each in told.values()]
    half, full = (torch.stack(list(model.coefficients.values())) for model in models.values())
    assert (half - full).abs().mean() < 0.01
    assert (full - 0.3).abs().mean() > 0.05
    assert sum(apart[torch.bfloat16]) == pytest.approx(sum(apart[torch.float32]), rel=0.03)


def test_the_command_tells_the_divergence(zoo, tmp_path):
    said = command("learn", zoo.config(steps=3), tmp_path / "run", "--quiet")
    assert "KL(expert ‖ merged)" in said and "verse" in said


def test_the_recipes_can_be_copied(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = read(RECIPES / "llama-3.2-3b.yml")
    assert family_of(config) is CausalLM
    assert list(config.by_task) == ["instruction", "math", "coding"]
    assert {expert.data.max_length for expert in config.experts} == {256}
    assert config.adapt["lr_tints"] < config.adapt["lr"]
    merge, _ = read_recipe(RECIPES / "llama-3.2-3b_merge.yml")
    assert str(merge.base_model.model.path) == config.base_model
    assert [m.model.model.path for m in merge.models] == [expert.model for expert in config.experts]


@pytest.fixture
def half(make):
    """A world of checkpoints in bfloat16."""
    world = make("llama, tied")
    for path in (world.base, *world.experts.values()):
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).save_pretrained(path)
    return world


def test_checkpoints_of_bfloat16_stay_so_kept_or_read_from_their_files(half):
    learned = {}
    for storage in ("memory", "stream"):
        shutil.rmtree(half.run, ignore_errors=True)
        learned[storage] = half.learn(layer="block:0", lr=1e-2, task_vectors={"storage": storage})
    one, other = (torch.stack(list(model.coefficients.values())) for model in learned.values())
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    for task in TASKS:
        torch.testing.assert_close(*(tinted(model, task) for model in learned.values()), rtol=0, atol=1e-2)
    command("variants", half.run, half.folder / "out")
    for task in TASKS:
        assert {t.dtype for t in tensors(half.folder / "out" / task).values()} == {torch.bfloat16}
        given = AutoModelForCausalLM.from_pretrained(half.folder / "out" / task)(INPUTS).logits
        torch.testing.assert_close(given, tinted(learned["stream"], task), rtol=0, atol=1e-2)


def test_a_dry_run_says_what_is_needed_and_loads_no_expert(half, monkeypatch):
    monkeypatch.setattr(CausalLM, "experts", None, raising=False)
    said = command("learn", half.config(layer="block:0"), half.run, "--dry-run", "--quiet")
    assert re.search(r"To be held: .*model .*experts .*tints .*activations .*free on `cpu`", said)
    assert not half.run.exists()


def test_what_cannot_be_streamed_is_refused_by_a_dry_run_too(half):
    expert = half.experts["tales"]
    (file,) = expert.glob("*.safetensors")
    torch.save(tensors(expert), expert / "pytorch_model.bin")
    file.unlink()
    config = half.config(layer="block:0", task_vectors={"storage": "stream"})
    for more in ((), ("--dry-run",)):
        said = command("learn", config, half.run, "--quiet", *more, fails=True)
        assert f"reads `{expert}` tensor by tensor from safetensors" in said
    assert not half.run.exists()


def test_the_report_is_kept_and_taken_up(half, monkeypatch):
    arguments = ("learn", half.config(layer="block:0"), half.run, "--quiet", "--report", "3")
    said = command(*arguments)
    assert "on 3 inputs kept aside" in said
    kept = json.loads((half.run / "report.json").read_text())
    assert {told["inputs"] for told in kept["tasks"].values()} == {3}
    monkeypatch.setattr(report, "_of_task", None)  # nothing is asked again
    again = command(*arguments)
    assert said[: said.index("In ")] == again[: again.index("In ")]
    (half.run / "report.json").write_text("{")  # damaged: made anew
    monkeypatch.undo()
    assert said[: said.index("In ")] == (again := command(*arguments))[: again.index("In ")]
    kept = read_json(half.run / "report.json")
    kept["tasks"].pop(TASKS[1])
    (half.run / "report.json").write_text(json.dumps(kept))
    asked = []
    monkeypatch.setattr(report, "_of_task", lambda model, task, *rest: asked.append(task) or told_of(kept))
    command(*arguments)
    assert asked == [TASKS[1]]
    assert "inputs kept aside" not in command(*arguments[:-1], "0")


def test_a_report_that_was_changed_is_made_anew(half):
    arguments = ("learn", half.config(layer="block:0"), half.run, "--quiet", "--report", "3")
    command(*arguments)
    path = half.run / "report.json"
    written = path.read_text()
    whole = json.loads(written)
    news = whole["tasks"]["news"]
    changes = [
        {"ways": {**news["ways"], "tinted": {**news["ways"]["tinted"], "agreement": 1.0}}},
        {"ways": {way: told for way, told in news["ways"].items() if way != "tinted"}},
        {"surprise": 1},
    ]
    for change in changes:
        path.write_text(json.dumps({**whole, "tasks": {**whole["tasks"], "news": {**news, **change}}}))
        command(*arguments)
        assert path.read_text() == written


def told_of(kept: dict) -> report.TaskReport:
    told = kept["tasks"][TASKS[0]]
    ways = {way: report.Measured(**each) for way, each in told["ways"].items()}
    return report.TaskReport(**{**told, "ways": ways})


def test_a_checkpoint_that_is_cut_short_is_named(half):
    (file,) = half.experts["tales"].glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    assert str(file) in command("learn", half.config(), half.run, fails=True)
    assert not half.run.exists()
