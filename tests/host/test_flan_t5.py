"""Flan-T5 on GLUE through FusionBench, on tiny checkpoints laid out as the hub's."""

import json
import random
import string
from copy import deepcopy

import datasets
import pytest
import torch
from command import finished
from fusion_bench.tasks.flan_t5_text_generation.glue_preprocessors import glue_processors
from fusion_bench.tasks.flan_t5_text_generation.glue_prompt_templates import glue_prompt_templates
from glue_hub import SCORED, TASKS, make_dataset, of, require_scored
from glue_hub import WORDS as GLUE_WORDS
from hub import read_offline, snapshot
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from fusion_tinting.families.seq2seq import AnsweringModel, answers, with_answers
from fusion_tinting.families.texts import tokenized
from fusion_tinting.fusionbench.taskpools.text_classification import SCORES as METRICS

POOLS = ("modelpool=flan-t5-base_glue", "taskpool=flan-t5-base_glue")
TINTING = (*POOLS, "method=model_tinting", "method.num_workers=0")
SHORT = (*TINTING, "method.steps=2", "method.batch_size=4")
FEW = ("cola", "stsb", "mnli", "rte")  # enough where it is not the tasks that are tested
LESS = of(*FEW)
CLASSES = of("cola", "mnli", "rte")  # of `stsb` all of 51 answers are weighed, which takes long
SCORES = {"stsb": "spearman"}
KEYS = {
    "cola": {"accuracy", "matthews"}, "mrpc": {"accuracy", "f1"}, "qqp": {"accuracy", "f1"},
    "stsb": {"spearman", "pearson"},
}  # fmt: skip
WORDS = ["yes", "no", "positive", "negative", "acceptable", "unacceptable", "neutral", "contradiction"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The folder of the hub client's files, which this process reads too."""
    folder = tmp_path_factory.mktemp("hub")
    make_models(folder / "hub")
    for task in TASKS:
        make_dataset(folder / "datasets", task)
    with read_offline(folder):
        yield folder


@pytest.fixture(scope="module")
def done(hub, tmp_path_factory):
    """The run of all tasks that most tests look at."""
    saved = "merged_model_save_path='{log_dir}/saved'"
    return finished(tmp_path_factory.mktemp("run"), *SHORT, *SCORED, saved)


def make_models(hub):
    """Flan-T5, whose LM head is no copy of the embeddings, and the experts that FusionBench names."""
    torch.manual_seed(0)
    base = T5ForConditionalGeneration(config()).eval()
    base.lm_head.weight = torch.nn.Parameter(0.5 * torch.randn_like(base.lm_head.weight))
    folder = snapshot(hub, "models--google--flan-t5-base")
    save(base, folder)
    tokenizer().save_pretrained(folder)
    for task in TASKS:
        save(undecided(changed(base), task), snapshot(hub, f"models--tanganke--flan-t5-base_glue-{task}"))


def config() -> T5Config:
    size = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    return T5Config(vocab_size=200, feed_forward_proj="gated-gelu", decoder_start_token_id=0,
                    tie_word_embeddings=False, **size)  # fmt: skip


def changed(base):
    expert = deepcopy(base)
    for parameter in expert.parameters():
        parameter.data += 0.3 * parameter.data.std() * torch.randn_like(parameter)
    return expert


@torch.no_grad()
def undecided(expert, task: str):
    """Make its answers about equally likely over many texts, or it would give one to all."""
    template, rng, read = glue_prompt_templates[task], random.Random(0), tokenizer()
    texts = [{name: " ".join(rng.choices(GLUE_WORDS, k=5)) for name in TASKS[task][0]} for _ in range(24)]
    asked = tokenized(read, [[template["input_text"].format(**text) for text in texts]], 512)
    (inputs,) = with_answers(asked, read, list(answers(template))).batches([range(24)])
    tokens, model = {name: inputs[name] for name in ("input_ids", "attention_mask")}, AnsweringModel(expert)
    head, expert.lm_head = expert.lm_head, torch.nn.Identity()
    first_step, expert.lm_head = model(**tokens).mean(0), head
    for _ in range(4):
        likely = model(**inputs)
        ahead = (likely - likely[:, :1]).median(0).values
        head.weight[inputs["answers"][:, 0]] -= torch.outer(ahead, first_step) / first_step.dot(first_step)
    return expert


def save(model, folder) -> None:
    """As transformers 4 did, which `tie_word_embeddings` told whether to scale what the decoder says."""
    model.save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text())
    said["tie_word_embeddings"] = said.pop("scale_decoder_outputs")
    (folder / "config.json").write_text(json.dumps(said))


def tokenizer(more: int = 0) -> T5Tokenizer:
    """Letters, and answers as words; `entailment` is in pieces, as in T5's own vocabulary."""
    words = [f"▁{word}" for word in (*WORDS, *answers(glue_prompt_templates["stsb"]))]
    pieces = [*string.ascii_letters, *string.digits, *string.punctuation, *words]
    scored = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((p, -3.0) for p in pieces)]
    extra = 20 + more
    scored += [(f"<extra_id_{place}>", 0.0) for place in reversed(range(extra))]
    return T5Tokenizer(vocab=scored, extra_ids=extra, model_max_length=512)


def headlines(report) -> dict[str, float]:
    return {task: report[task][SCORES.get(task, "accuracy")] for task in TASKS if task in report}


def test_the_program_adapts_and_scores_the_hubs_checkpoints_offline(done):
    shown = ("cola, Accuracy %", "stsb, Spearman %", "average", "inductive")
    require_scored(done, KEYS, headlines, *shown)


def answers_of(model, task: str, data) -> list[str]:
    """What transformers finds likeliest, prompt by prompt, each made by FusionBench's own preprocessor."""
    template, told = glue_prompt_templates[task], []
    read = AutoTokenizer.from_pretrained("google/flan-t5-base")
    ask = glue_processors[task](read, template=template).preprocess
    written = template["target_text"]
    choices = list(written.values()) if task != "stsb" else [f"{tenths / 10:.1f}" for tenths in range(51)]
    labels = read(choices, padding=True, return_tensors="pt").input_ids
    for row in data:
        prompt, _ = ask(**{name: value for name, value in row.items() if name != "idx"})
        inputs = read([prompt] * len(choices), return_tensors="pt")
        with torch.no_grad():
            said = model(**inputs, labels=labels).logits.log_softmax(-1)
        likely = (said.gather(2, labels[..., None])[..., 0] * (labels != read.pad_token_id)).sum(1)
        told.append(choices[likely.argmax()])
    return told


def test_an_experts_score_is_that_of_transformers_own_model(done, fuse):
    """Of each expert, prompt by prompt, as FusionBench writes them; Task Arithmetic is FusionBench's."""
    ours = done.report["baselines"]
    theirs = fuse(*POOLS, "method=task_arithmetic", "method.scaling_factor=0.3")["report"]
    assert headlines(theirs) == pytest.approx(ours["task_arithmetic"], abs=1e-5)
    several = 0
    for task in TASKS:
        model = AutoModelForSeq2SeqLM.from_pretrained(f"tanganke/flan-t5-base_glue-{task}").eval()
        split = "validation_matched" if task == "mnli" else "validation"
        data = datasets.load_dataset("nyu-mll/glue", task, split=split)
        told, written = answers_of(model, task, data), glue_prompt_templates[task]["target_text"]
        several += len(set(told)) > 1
        if task == "stsb":
            ratings = torch.tensor(list(map(float, told)))
            expected = METRICS["spearman"].of(torch.tensor(data["label"]), ratings)
        else:
            wanted = [written[str(label)] for label in data["label"]]
            expected = sum(map(str.__eq__, told, wanted)) / len(wanted)
        assert ours["expert"][task] == pytest.approx(expected, abs=1e-5), task
    assert several > 2  # or it would be one answer that is compared


def test_without_a_step_the_pre_trained_scores_come_out(hub, fuse, tmp_path):
    report = fuse(*TINTING, *CLASSES, "method.steps=0", "method.init=0", "method.layer=null")["report"]
    assert headlines(report) == report["baselines"]["pretrained"]
    plain = fuse(*POOLS, *CLASSES, "method=dummy", "merged_model_save_path='{log_dir}/plain'")
    assert headlines(plain["report"]) == pytest.approx(headlines(report), abs=1e-6)
    same_model(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "plain"), plain["merged_model"])


def same_model(saved, model) -> None:
    ids = torch.tensor([[7, 9, 11, 1]])
    with torch.no_grad():
        theirs, ours = (m.eval()(input_ids=ids, labels=ids).logits for m in (saved, model))
    assert torch.equal(theirs, ours)
    assert not torch.equal(saved.lm_head.weight, saved.shared.weight)


def padding_changes_nothing(model) -> None:
    ids = torch.tensor([[30, 40, 50, 60, 1, 0, 0, 0]])
    short = {"input_ids": ids[:, :5], "attention_mask": torch.ones(1, 5, dtype=int)}
    long = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    for more in ({}, {"answers": torch.tensor([[9, 1], [8, 1]])}):
        given = model({**short, **more}, "rte"), model({**long, **more}, "rte")
        torch.testing.assert_close(*given, rtol=0, atol=1e-5)


def test_one_hot_coefficients_are_transformers_own_expert_and_the_saved_model_loads(done):
    """The logits are those of the first token that generation would choose."""
    model = done.model
    padding_changes_nothing(model)
    inputs = {"input_ids": torch.tensor([[30, 7, 9, 1]]), "attention_mask": torch.ones(1, 4, dtype=int)}
    for task in FEW:
        expert = AutoModelForSeq2SeqLM.from_pretrained(f"tanganke/flan-t5-base_glue-{task}").eval()
        said = expert.generate(**inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
        torch.testing.assert_close(model.remerged(task)(inputs, task), said.logits[0], rtol=0, atol=1e-5)
    same_model(AutoModelForSeq2SeqLM.from_pretrained(done.folder / "saved"), model.merged)


def require_tensors(hub, run_dir, part: str) -> None:
    """λ has every tensor of the checkpoints, and a tint those of its layer."""
    stored = next((hub / "hub" / "models--tanganke--flan-t5-base_glue-mnli").rglob("model.safetensors"))
    names = load_file(stored).keys()
    assert load_file(run_dir / "coefficients.safetensors").keys() == names
    tint = load_file(run_dir / "tints" / "mnli.safetensors").keys()
    assert tint <= names and tint and all(name.startswith(part) for name in tint)


def test_an_artifact_applied_gives_the_runs_own_report(hub, done, fuse):
    again = fuse(*TINTING, f"method.artifact={done.folder}/tinting", "taskpool.baselines=false")
    assert headlines(again["report"]) == headlines(done.report)
    require_tensors(hub, done.folder / "tinting", "lm_head.")


@pytest.mark.parametrize(
    ("layer", "part"), [("block:-1", "decoder.block.1."), ("encoder.block.0", "encoder.block.0.")]
)
def test_an_artifact_of_another_layer_gives_the_runs_own_report(hub, fuse, tmp_path, layer, part):
    few = (*of("mnli", "rte"), "taskpool.baselines=false")
    first = fuse(*SHORT, *few, f"method.layer={layer}", "method.run_dir=run")
    again = fuse(*TINTING, *few, "method.artifact=run")
    assert headlines(again["report"]) == headlines(first["report"])
    require_tensors(hub, tmp_path / "run", part)


def test_adaptation_brings_each_task_nearer_to_its_expert(hub, fuse):
    options = ("method.steps=16", "method.batch_size=8", "method.objective=soft")
    few = of("cola", "mnli", taskpool=False)
    history = fuse(*TINTING, *few, "~taskpool", *options)["merged_model"].history
    assert history.loss[-5:].mean() < history.loss[:5].mean()


def test_lora_experts_are_merged_into_their_base(hub, fuse):
    torch.manual_seed(1)
    few = ("cola", "rte")
    for task in few:
        base = AutoModelForSeq2SeqLM.from_pretrained("google/flan-t5-base")
        adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q", "v"], init_lora_weights=False))
        folder = snapshot(hub / "hub", f"models--tanganke--flan-t5-base_glue-{task}_lora-16")
        adapted.save_pretrained(folder)
    pool = ("modelpool=flan-t5-base_glue_lora16", *of(*few, taskpool=False))
    model = fuse(*SHORT, *pool, "~taskpool")["merged_model"]
    assert model.info.ids["rte"] == "tanganke/flan-t5-base_glue-rte_lora-16"
    inputs = {"input_ids": torch.tensor([[30, 7, 9, 1]]), "attention_mask": torch.ones(1, 4, dtype=int)}
    with torch.no_grad():
        start = torch.zeros(1, 1, dtype=int)
        wanted = adapted.eval()(**inputs, decoder_input_ids=start).logits[:, 0]
    torch.testing.assert_close(model.remerged("rte")(inputs, "rte"), wanted, rtol=0, atol=1e-5)


def bart(folder, seed: int = 0) -> None:
    size = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 200}
    torch.manual_seed(0)
    model = BartForConditionalGeneration(BartConfig(pad_token_id=0, decoder_start_token_id=1, **size))
    torch.manual_seed(seed)
    for tensor in (*model.parameters(), model.final_logits_bias):
        tensor.data += 0.05 * torch.randn_like(tensor)
    model.save_pretrained(folder)


def test_bart_is_taken_too(hub, fuse, tmp_path):
    """Its experts are merged with the bias of their logits, which is a buffer."""
    base, few = "pretrained_model_name_or_path", ("cola", "mnli")
    bart(tmp_path / "base")
    paths = [f"modelpool.models._pretrained_.{base}={tmp_path}/base"]
    for seed, task in enumerate(few, start=1):
        bart(tmp_path / task, seed)
        paths.append(f"modelpool.models.{task}.{base}={tmp_path}/{task}")
    result = fuse(*SHORT, *of(*few), *paths, "method.layer=block:-1")
    model, report = result["merged_model"], result["report"]
    assert headlines(report).keys() == set(few)
    inputs = {"input_ids": torch.tensor([[30, 7, 9, 1]]), "attention_mask": torch.ones(1, 4, dtype=int)}
    for task in few:
        expert = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / task).eval()
        with torch.no_grad():
            wanted = expert(**inputs, decoder_input_ids=torch.tensor([[1]])).logits[:, 0]
        torch.testing.assert_close(model.remerged(task)(inputs, task), wanted, rtol=0, atol=1e-5)
        assert expert.final_logits_bias.any()


@pytest.fixture(scope="module")
def unfit(hub, tmp_path_factory):
    """A model and tokenizers that do not belong to the others."""
    folder = tmp_path_factory.mktemp("unfit")
    bart(folder / "bart")
    tokenizer(more=100).save_pretrained(folder / "large")
    T5Tokenizer(extra_ids=20, model_max_length=512).save_pretrained(folder / "blind")
    return folder


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["modelpool.models.cola.pretrained_model_name_or_path={tmp}/bart"],
         "expert of `cola`.*architecture bart.*of t5"),
        (["modelpool.tokenizer.pretrained_model_name_or_path={tmp}/large"],
         "embeddings for 200.*do not belong"),
        (["modelpool.tokenizer.pretrained_model_name_or_path={tmp}/blind"],
         "read text differently cannot be merged"),
        (["~taskpool.metrics.rte"], "`rte` has no metric.*taskpool.metrics.rte"),
        (["taskpool.metrics.stsb=[accuracy]"], r"`stsb` has a head with 1 output.*\['accuracy'\]"),
        (["taskpool.metrics.mnli=[f1]"], r"`mnli` has a head with 3 output.*\['f1'\]"),
        (["taskpool.test_datasets.cola.split=test"], r"test data of `cola` are hidden \(-1\)"),
        (["taskpool.test_datasets.rte.name=cola"], "test data of `rte` `sentence1`"),
        (["taskpool.test_datasets.rte.name=stsb"], "Row 0 of the test data of `rte`"),
        (["~modelpool.models.cola"], r"evaluates \['cola'\]|evaluates `cola`"),
        (["+modelpool.models.wnli=${modelpool.models.rte}"], "FusionBench has no prompt, `wnli`"),
        (["modelpool.train_datasets.cola.name=rte", "method.adapt_split=train"],
         "the train split of `cola` `sentence`"),
        (["~modelpool.models.cola.pretrained_model_name_or_path"], "models.cola.*must have a"),
        (["method.layer=auto"], "layer=auto` is not for language models"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_adaptation(unfit, fuse, monkeypatch, overrides, message):
    monkeypatch.setattr("fusion_tinting.fusionbench.algorithm.tint", None)
    overrides = [override.replace("{tmp}", str(unfit)) for override in overrides]
    with pytest.raises(Exception, match=message) as caught:
        fuse(*SHORT, *LESS, *overrides)
    assert isinstance(caught.value, ValueError) or isinstance(caught.value.__cause__, ValueError)


def test_the_stock_task_pool_is_refused(hub, fuse):
    with pytest.raises(ValueError, match=r"FlanT5GLUETextGenerationTaskPool.*taskpool=flan-t5-base_glue"):
        fuse(*SHORT, "taskpool=flan-t5_glue_text_generation")


def test_fast_dev_run(hub, fuse, monkeypatch):
    from fusion_bench import RuntimeConstants

    monkeypatch.setattr(RuntimeConstants, "debug", False)
    result = fuse(*TINTING, *of("cola", "rte"), "fast_dev_run=true")
    assert len(result["merged_model"].history) == 1
