"""`mergekit-tint learn`, `variants` and `pytorch` on sequence-to-sequence models of transformers."""

import functools
import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from checkpoints import LENGTH, WORDS, expert, make_tokenizer, save, tensors
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MT5Config,
    MT5ForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from fusion_tinting.families import family_of_architecture
from fusion_tinting.families.family import Models
from fusion_tinting.families.seq2seq import NO_POSITION, Seq2Seq
from fusion_tinting.mergekit.cli import main
from fusion_tinting.mergekit.config import read
from fusion_tinting.mergekit.learn import learn
from fusion_tinting.mergekit.rows import rows_of
from fusion_tinting.method.objectives import PADDING
from fusion_tinting.run.artifact import tint_path
from fusion_tinting.run.tinted_model import TintedModel

TASKS = ("answers", "titles")
SPECIALS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 1}
BART = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_start_token_id": 2,
    "max_position_embeddings": LENGTH, "init_std": 0.3,
}  # fmt: skip


def _t5(size: dict) -> PreTrainedModel:
    return T5ForConditionalGeneration(T5Config(**T5, **size))


def _flan_t5(size: dict) -> PreTrainedModel:
    """With an LM head of its own, and no scale, as T5 1.1 and Flan-T5."""
    gated = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    model = T5ForConditionalGeneration(T5Config(**T5, **gated, **size))
    model.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn_like(model.lm_head.weight))
    return model


def _bart(size: dict) -> PreTrainedModel:
    model = BartForConditionalGeneration(BartConfig(**BART, **size))
    model.generation_config.forced_bos_token_id = 0
    return model


KINDS = {"t5": _t5, "flan-t5": _flan_t5, "bart": _bart}
BLOCK = {
    "t5": "decoder.block.1.",
    "flan-t5": "decoder.block.1.",
    "bart": "model.decoder.layers.1.",
}
MORE_KINDS = {
    "mt5": lambda size: MT5ForConditionalGeneration(MT5Config(**T5, **size)),
    "marian": lambda size: MarianMTModel(MarianConfig(**BART, **size)),
    "pegasus": lambda size: PegasusForConditionalGeneration(PegasusConfig(**BART, **size)),
    "m2m100": lambda size: M2M100ForConditionalGeneration(M2M100Config(**BART, **size)),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSION_TINTING_CACHE", str(tmp_path / "cache"))


@dataclass
class World:
    """A base, two experts of it, and questions with answers, in a folder."""

    folder: Path
    base: Path
    experts: dict[str, Path]

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def variants(self) -> dict[str, Path]:
        return {task: self.folder / "out" / task for task in TASKS}

    def config(self, target: str | None = "answer", **adapt) -> Path:
        models = [
            {"model": str(path), "task": task, "data": str(self.folder / f"{task}.jsonl")}
            for task, path in self.experts.items()
        ]
        data = {"text": "question", "max_length": 16, **({"target": target} if target else {})}
        adapt = {"steps": 3, "lr": 0.05, **adapt}
        path = self.folder / "config.yml"
        path.write_text(
            yaml.safe_dump({"base_model": str(self.base), "models": models, "adapt": adapt, "data": data})
        )
        return path

    def learn(self, target: str | None = "answer", **adapt) -> TintedModel:
        model, _ = learn(read(self.config(target, **adapt)), self.run, progress=False)
        return model


def make_world(folder: Path, kind: str) -> World:
    """A world around a base; every tensor of its experts has noise, the bias of BART's logits too."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = {**KINDS, **MORE_KINDS}[kind]({"vocab_size": len(tokenizer), **SPECIALS})
    base = save(model, tokenizer, folder / "base")
    rng = random.Random(0)
    for task in TASKS:
        rows = [{"question": words(rng, 7), "answer": words(rng, 9)} for _ in range(12)]
        write_rows(folder / f"{task}.jsonl", rows)
    experts = {task: expert(folder / task, base, seed) for seed, task in enumerate(TASKS)}
    return World(folder, base, experts)


@pytest.fixture
def make(tmp_path):
    """Make a world in the test's own folder."""
    return lambda kind: make_world(tmp_path, kind)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Make a world and a run in it, or find the one that another test has made."""

    @functools.cache
    def find(kind: str, layer: str) -> tuple[World, TintedModel]:
        world = make_world(tmp_path_factory.mktemp(kind), kind)
        return world, world.learn(layer=layer)

    return find


def words(rng: random.Random, most: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(*arguments, fails: bool = False) -> str:
    """Run `mergekit-tint` in this process; what it wrote."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert (result.exit_code != 0) == fails, result.output
    return " ".join(result.output.split())


QUESTION = torch.tensor([[0, 7, 8, 9, 2]])
ANSWER = torch.tensor([[0, 12, 11, 10, 2]])


@torch.no_grad()
def logits(folder: Path) -> Tensor:
    """What a checkpoint says at every position of `ANSWER`, (T, V); no tensor is missing."""
    model, info = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    read = torch.cat([torch.tensor([[model.config.decoder_start_token_id]]), ANSWER[:, :-1]], 1)
    given = {"input_ids": QUESTION, "attention_mask": torch.ones_like(QUESTION)}
    return model.eval()(**given, decoder_input_ids=read).logits[0]


@torch.no_grad()
def said(model: TintedModel, task: str, padding: int = 0) -> Tensor:
    """The same of a tinted model; with more tokens of padding in the question and in the answer."""
    start = model.encoder.model.config.decoder_start_token_id
    read = torch.tensor([[start, *ANSWER[0, :-1].tolist(), *[1] * padding]])
    inputs = {
        "input_ids": torch.nn.functional.pad(QUESTION, (0, padding), value=1),
        "attention_mask": torch.nn.functional.pad(torch.ones_like(QUESTION), (0, padding)),
        "decoder_input_ids": read,
        "positions": torch.arange(ANSWER.shape[1])[None],
    }
    return model(inputs, task)[0].T


def assert_near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("layer", ["head", "block:-1"])
@pytest.mark.parametrize("kind", KINDS)
def test_variants_give_the_logits_of_the_tinted_model(learned, kind, layer):
    world, model = learned(kind, layer)
    assert_near(said(model.remerged(0.0), TASKS[0]), logits(world.base))
    command("variants", world.run, world.folder / "out")
    for task, folder in world.variants.items():
        assert_near(said(model.remerged(task), task), logits(world.experts[task]))
        assert_near(logits(folder), said(model, task))
        assert_near(said(model, task, padding=3), said(model, task))
        assert (said(model, task) - said(model.remerged(task), task)).abs().max() > 1e-2
        tint = load_file(tint_path(world.run, task))
        part = "lm_head." if layer == "head" else BLOCK[kind]
        assert tint and all(name.startswith(part) for name in tint)
        kept = tensors(folder)
        assert kept.keys() == tensors(world.experts[task]).keys() | tint.keys()
        assert all(torch.equal(kept[name], tensor) for name, tensor in tint.items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_recipe_makes_the_shared_model(learned, kind):
    world, model = learned(kind, "block:-1")
    merge = command("learn", world.config(layer="block:-1"), world.run, "--quiet")  # which is finished
    assert "mergekit-tint pytorch" in merge and "KL(expert" in merge
    merged = world.folder / "merged"
    command("pytorch", world.run / "recipe.yml", merged, "--tensor-intersection", "--quiet")
    for path in world.base.iterdir():
        if path.suffix == ".json":
            (merged / path.name).write_bytes(path.read_bytes())
    assert_near(logits(merged), said(model.remerged(lam_of(model)), TASKS[0]))


def lam_of(model: TintedModel) -> Tensor:
    """λ of every tensor, (L, K)."""
    return torch.stack([model.coefficients[name] for name in model.vectors.names])


def test_learning_brings_the_model_nearer_to_its_experts(make):
    loss = make("t5").learn(steps=16, layer="block:-1").history.loss
    assert loss[-5:].mean() < loss[:5].mean()


def test_without_a_target_the_first_free_token_is_taught(make):
    """Of BART the first token is forced: its distribution would teach nothing."""
    world = make("bart")
    model = world.learn(target=None)
    model_of_transformers = AutoModelForSeq2SeqLM.from_pretrained(world.experts[TASKS[0]]).eval()
    inputs = {"input_ids": QUESTION, "attention_mask": torch.ones_like(QUESTION)}
    with torch.no_grad():
        given = model(inputs, TASKS[0]), model.remerged(TASKS[0])(inputs, TASKS[0])
        read = torch.tensor([[2, 0]])
        wanted = model_of_transformers(**inputs, decoder_input_ids=read).logits[:, -1]
    assert given[0].shape == (1, len(make_tokenizer()))
    assert_near(given[1], wanted)


def test_every_position_of_a_target_is_taught_and_none_is_padding(make):
    world = make("t5")
    rows = [
        {"question": "the cat", "answer": text} for text in ("a", "a dog runs", "a dog runs in the old")
    ]
    write_rows(world.folder / "answers.jsonl", rows)
    config = read(world.config())
    family = Seq2Seq(Models(str(world.base), {t: str(p) for t, p in world.experts.items()}))
    family.load()
    inputs = family.inputs("answers", rows_of(config.by_task["answers"]))
    (batch,) = inputs.batches([[0, 1, 2]])
    assert batch["positions"].tolist() == [
        [0, 1, 2, *[NO_POSITION] * 5],
        [0, 1, 2, 3, 4, *[NO_POSITION] * 3],
        [0, 1, 2, 3, 4, 5, 6, 7],
    ]
    together = family.pretrained(**batch)
    assert together.shape == (3, len(make_tokenizer()), 8)
    assert (together[0, :, 3:] == PADDING).all() and (together[0, :, :3] != PADDING).all()
    for place, row in enumerate(together):
        (alone,) = inputs.batches([[place]])
        assert_near(family.pretrained(**alone)[0], row)


@pytest.mark.parametrize("kind", MORE_KINDS)
def test_their_kin_of_transformers_works_too(make, kind):
    world = make(kind)
    model = world.learn(layer="head")
    command("variants", world.run, world.folder / "out")
    for task, folder in world.variants.items():
        assert_near(said(model.remerged(task), task), logits(world.experts[task]))
        assert_near(logits(folder), said(model, task))


@pytest.mark.parametrize(
    "architecture",
    ["LlavaForConditionalGeneration", "Qwen2VLForConditionalGeneration", "BlipForConditionalGeneration"],
)
def test_models_that_see_are_no_such_models(architecture):
    assert family_of_architecture(architecture) is None


def test_a_base_without_the_bias_that_all_have_at_zero(make):
    """As BART's own checkpoints on the hub, which are bare and in whose experts it was never trained."""
    world = make("bart")
    for folder in (world.base, *world.experts.values()):
        kept = tensors(folder)
        kept["final_logits_bias"] = torch.zeros_like(kept["final_logits_bias"])
        if folder == world.base:
            del kept["final_logits_bias"]
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
    model = world.learn(layer="head")
    command("variants", world.run, world.folder / "out")
    for task, folder in world.variants.items():
        assert_near(logits(folder), said(model, task))


def _a_target_without_text(world: World) -> str:
    write_rows(world.folder / "answers.jsonl", [{"question": "the cat", "answer": 3}] * 4)
    return "Row 0 of"


def _no_such_column(world: World) -> str:
    write_rows(world.folder / "answers.jsonl", [{"question": "the cat"}] * 4)
    return "target column of"


def _a_larger_vocabulary(world: World) -> str:
    for path in world.experts.values():
        make_tokenizer((*WORDS, "zebra")).save_pretrained(path)
    return "embeddings for 25"


@pytest.mark.parametrize("harm", [_a_target_without_text, _no_such_column, _a_larger_vocabulary])
def test_models_and_data_that_cannot_work_are_refused(make, harm):
    world = make("t5")
    words_of_error = harm(world)
    assert words_of_error in command("learn", world.config(), world.run, "--quiet", fails=True)
    assert not world.run.exists()


@pytest.mark.parametrize(
    ("kind", "adapt", "named"),
    [
        ("t5", {"layer": "model.shared"}, "shares a tensor with the LM head"),
        ("bart", {"layer": "model.model.encoder.embed_tokens"}, "shares a tensor with the LM head"),
        ("flan-t5", {"layer": "model.shared"}, "shares a tensor with `model.encoder.embed_tokens.weight`"),
        ("t5", {"layer": "auto"}, "layer=auto"),
        ("t5", {"sampler": "confidence_difference"}, "sampler: confidence_difference"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, kind, adapt, named):
    world = make(kind)
    assert named in command("learn", world.config(**adapt), world.run, "--quiet", fails=True)
    assert not world.run.exists()
