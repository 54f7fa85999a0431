"""RoBERTa on GLUE through FusionBench, on tiny checkpoints laid out as the hub's, and the mini of texts."""

import datasets
import pytest
import torch
from command import assert_streams_the_same, finished
from glue_hub import SCORED, TASKS, make_hub, of, require_scored
from hub import read_offline
from safetensors.torch import load_file, save_file
from torchmetrics.functional import classification, regression
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, RobertaModel

from fusion_tinting.fusionbench.taskpools.text_classification import LABEL_SCORES, fitting
from fusion_tinting.fusionbench.taskpools.text_classification import SCORES as METRICS

POOLS = ("modelpool=roberta-base_glue", "taskpool=roberta-base_glue")
TINTING = (*POOLS, "method=model_tinting", "method.num_workers=0")
SHORT = (*TINTING, "method.steps=3")
SCORES = {"cola": "matthews", "stsb": "pearson"}
KEYS = {
    "cola": {"matthews"}, "mrpc": {"accuracy", "f1"}, "qqp": {"accuracy", "f1"},
    "stsb": {"pearson", "spearman"},
}  # fmt: skip


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The folder of the hub client's files, which this process reads too."""
    folder = tmp_path_factory.mktemp("hub")
    make_hub(folder)
    with read_offline(folder):
        yield folder


@pytest.fixture(scope="module")
def done(hub, tmp_path_factory):
    """The run of all tasks that most tests look at."""
    saved = "merged_model_save_path='{log_dir}/saved'"
    return finished(tmp_path_factory.mktemp("run"), *SHORT, *SCORED, saved)


def headline(report, task) -> float:
    return report[task][SCORES.get(task, "accuracy")]


def headlines(report) -> dict[str, float]:
    return {task: headline(report, task) for task in TASKS if task in report}


def test_the_program_adapts_and_scores_the_hubs_checkpoints_offline(done):
    shown = ("cola, Matthews %", "stsb, Pearson %", "qqp, Accuracy %", "average", "inductive")
    require_scored(done, KEYS, headlines, *shown)


def test_an_experts_score_is_that_of_transformers_own_model(done):
    """Of each expert, run text by text; sst2's labels are in another order."""
    experts = done.report["baselines"]["expert"]
    for task in TASKS:
        path = f"JeremiahZ/roberta-base-{task}"
        model, tokenizer = AutoModelForSequenceClassification.from_pretrained(path).eval(), AutoTokenizer
        tokenizer = tokenizer.from_pretrained(path)
        split = "validation_matched" if task == "mnli" else "validation"
        data, said = datasets.load_dataset("nyu-mll/glue", task, split=split), []
        for row in data:
            with torch.no_grad():
                inputs = tokenizer(*(row[column] for column in TASKS[task][0]), return_tensors="pt")
                said.append(model(**inputs).logits[0])
        output, truth = torch.stack(said), torch.tensor(data["label"])
        told = output[:, 0] if task == "stsb" else output.argmax(1)
        told = 1 - told if task == "sst2" else told
        assert len(told.unique()) > 1, task
        expected = METRICS[SCORES.get(task, "accuracy")].of(truth, told)
        assert experts[task] == pytest.approx(expected, abs=1e-5), task


def test_scores_agree_with_torchmetrics_and_of_one_answer_alone_nothing_is_told():
    torch.manual_seed(0)
    told, labels = torch.randint(2, (60,)), torch.randint(2, (60,))
    values, numbers = torch.randn(60), torch.randn(60).round(decimals=1)
    expected = {
        "accuracy": classification.binary_accuracy(told, labels),
        "f1": classification.binary_f1_score(told, labels),
        "matthews": classification.binary_matthews_corrcoef(told, labels),
        "pearson": regression.pearson_corrcoef(values, numbers),
        "spearman": regression.spearman_corrcoef(values, numbers),
    }
    assert METRICS.keys() == expected.keys()
    for name, value in expected.items():
        given = (labels, told) if METRICS[name].outputs(2) else (numbers, values)
        assert METRICS[name].of(*given) == pytest.approx(float(value), abs=1e-5), name
    assert METRICS["matthews"].of(labels, torch.zeros(60)) == 0
    assert (
        METRICS["pearson"].of(numbers, torch.ones(60))
        == METRICS["spearman"].of(numbers, torch.ones(60))
        == 0
    )


def test_scores_of_several_labels_agree_with_torchmetrics():
    torch.manual_seed(0)
    told, labels = torch.randint(2, (2, 60, 3))
    right = classification.multilabel_accuracy(told, labels, num_labels=3, average="micro")
    f1 = classification.multilabel_f1_score(told, labels, num_labels=3, average="micro")
    assert LABEL_SCORES["label_accuracy"].of(labels, told) == pytest.approx(float(right), abs=1e-5)
    assert LABEL_SCORES["label_f1"].of(labels, told) == pytest.approx(float(f1), abs=1e-5)
    assert fitting(3, "sigmoid") == list(LABEL_SCORES)
    assert fitting(3, "l1") == fitting(1, None) == ["pearson", "spearman"]
    assert fitting(3, None) == ["accuracy", "matthews"]


def test_without_a_step_the_pre_trained_and_the_experts_scores_come_out(hub, fuse):
    few = of("sst2", "stsb", "mnli")
    report = fuse(*TINTING, *few, "method.steps=0", "method.init=0")["report"]
    assert headlines(report) == report["baselines"]["pretrained"]
    plain = fuse(*POOLS, *few, "method=dummy")["report"]
    assert headlines(plain) == pytest.approx(headlines(report), abs=1e-6)


def test_fusionbenchs_own_methods_merge_the_backbones(done, fuse):
    """Heads of one, two and three outputs, each its expert's; Task Arithmetic is the table's."""
    ours = done.report["baselines"]["task_arithmetic"]
    theirs = fuse(*POOLS, "method=task_arithmetic", "method.scaling_factor=0.3")
    assert headlines(theirs["report"]) == pytest.approx(ours, abs=1e-5)
    assert set(theirs["report"]) == {"model_info", *TASKS, "average"}
    assert isinstance(theirs["merged_model"], RobertaModel)
    fuse(*POOLS, *of("sst2", "stsb"), "method=simple_average")


def test_experts_are_read_from_their_files_and_teach_the_same(hub, fuse):
    given = (*SHORT, *of("sst2", "stsb"), "taskpool.baselines=false")
    assert_streams_the_same(fuse, *given)


def test_an_artifact_applied_gives_the_runs_own_report(done, fuse):
    again = fuse(*TINTING, f"method.artifact={done.folder}/tinting", "taskpool.baselines=false")
    assert headlines(again["report"]) == headlines(done.report)


@pytest.mark.parametrize("layer", ["block:-1", "embeddings.word_embeddings"])
def test_an_artifact_of_another_layer_gives_the_runs_own_report(hub, fuse, layer):
    few = (*of("stsb", "mnli"), "taskpool.baselines=false")
    first = fuse(*SHORT, *few, f"method.layer={layer}", "method.run_dir=run")
    again = fuse(*TINTING, *few, "method.artifact=run")
    assert len(headlines(again["report"])) == 2
    assert headlines(again["report"]) == headlines(first["report"])


def test_tensor_names_are_the_checkpoints_and_the_saved_model_loads(hub, done):
    (stored,) = (hub / "hub" / "models--JeremiahZ--roberta-base-mnli").rglob("model.safetensors")
    expert = load_file(stored)
    coefficients = load_file(done.folder / "tinting" / "coefficients.safetensors")
    assert coefficients.keys() == {name for name in expert if name.startswith("roberta.")}
    tint = load_file(done.folder / "tinting" / "tints" / "mnli.safetensors")
    assert tint.keys() == {name for name in expert if name.startswith("classifier.")}
    loaded = RobertaModel.from_pretrained(done.folder / "saved", add_pooling_layer=False)
    for (name, ours), (_, theirs) in zip(
        done.model.merged.named_parameters(), loaded.named_parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_the_regression_is_taught_by_its_value_and_no_dropout_is_on(done):
    model = done.model
    assert not any(module.training for module in model.modules())
    inputs = {"input_ids": torch.tensor([[0, 40, 50, 2]]), "attention_mask": torch.ones(1, 4, dtype=int)}
    assert model(inputs, "stsb").shape == (1, 1)
    assert model(inputs, "mnli").shape == (1, 3)
    assert torch.equal(model(inputs, "mnli"), model(inputs, "mnli"))


def test_padding_changes_nothing(done):
    model = done.model
    ids = torch.tensor([[0, 40, 50, 60, 2, 1, 1, 1]])
    short = model({"input_ids": ids[:, :5], "attention_mask": torch.ones(1, 5, dtype=int)}, "sst2")
    long = model({"input_ids": ids, "attention_mask": (ids != 1).long()}, "sst2")
    torch.testing.assert_close(short, long, rtol=0, atol=1e-5)


def other_architecture(folder):
    config = BertConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def unfit(hub, tmp_path_factory):
    """A model and a tokenizer that do not belong to the others."""
    folder = tmp_path_factory.mktemp("unfit")
    other_architecture(folder / "bert")
    larger_tokenizer(folder / "large")
    return folder


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["modelpool.models.cola.pretrained_model_name_or_path={tmp}/bert"],
         "expert of `cola`.*architecture bert.*of roberta"),
        (["modelpool.models.rte.pretrained_model_name_or_path=JeremiahZ/roberta-base-mnli"],
         r"has 3 output\(s\).*test data of `rte`.*2 classes"),
        (["modelpool.models.stsb.pretrained_model_name_or_path=JeremiahZ/roberta-base-rte"],
         r"`stsb`.*label.*head has 2 output\(s\)"),
        (["modelpool.models.mrpc.pretrained_model_name_or_path=JeremiahZ/roberta-base-sst2"],
         r"calls its classes \['POSITIVE', 'NEGATIVE'\].*which is which.*label2id"),
        (["modelpool.tokenizer.pretrained_model_name_or_path={tmp}/large"],
         "has 300 tokens.*embeddings for 261.*do not belong"),
        (["modelpool.tokenizer.model_max_length=1000"], "cuts texts at 1e.03 tokens.*514 positions"),
        (["~taskpool.metrics.cola"], "`cola` has no metric.*taskpool.metrics.cola"),
        (["taskpool.metrics.cola=[mathews]"], "Did you mean `matthews`"),
        (["taskpool.metrics.stsb=[accuracy]"], r"`stsb` has a head with 1 output.*\['accuracy'\]"),
        (["taskpool.metrics.mnli=[f1]"], r"`mnli` has a head with 3 output.*\['f1'\]"),
        (["taskpool.test_datasets.cola.split=test"], r"test data of `cola` are hidden \(-1\)"),
        (["~modelpool.models.cola"], r"evaluates \['cola'\]|evaluates `cola`"),
        (["~modelpool.models.cola.pretrained_model_name_or_path"], "models.cola.*must have a"),
        (["~modelpool.test_datasets.rte"], r"no `test_datasets` for \['rte'\]"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_adaptation(unfit, fuse, monkeypatch, overrides, message):
    monkeypatch.setattr("fusion_tinting.fusionbench.algorithm.tint", None)
    overrides = [override.replace("{tmp}", str(unfit)) for override in overrides]
    with pytest.raises(Exception, match=message) as caught:
        fuse(*SHORT, *of("cola", "mrpc", "stsb", "mnli", "rte"), *overrides)
    assert isinstance(caught.value, ValueError) or isinstance(caught.value.__cause__, ValueError)


def larger_tokenizer(folder):
    tokenizer = AutoTokenizer.from_pretrained("FacebookAI/roberta-base")
    tokenizer.add_tokens([f"word{place}" for place in range(300 - len(tokenizer))])
    tokenizer.save_pretrained(folder)


def test_the_names_of_classes_can_be_said(hub, fuse):
    other = "modelpool.models.mrpc.pretrained_model_name_or_path=JeremiahZ/roberta-base-sst2"
    said = "+modelpool.models.mrpc.label2id={not_equivalent: 1, equivalent: 0}"
    report = fuse(*TINTING, *of("mrpc", "cola"), "method.steps=0", other, said)["report"]
    assert 0 <= report["mrpc"]["f1"] <= 1


def test_a_checkpoint_that_lacks_its_head_is_named(hub, fuse, tmp_path):
    (stored,) = (hub / "hub" / "models--JeremiahZ--roberta-base-rte").rglob("model.safetensors")
    folder = tmp_path / "headless"
    folder.mkdir()
    (folder / "config.json").write_text((stored.parent / "config.json").read_text())
    tensors = {name: value for name, value in load_file(stored).items() if "classifier" not in name}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"headless.*lacks 4 tensor"):
        fuse(*SHORT, *of("rte", "sst2"), f"modelpool.models.rte.pretrained_model_name_or_path={folder}")


def test_fast_dev_run(hub, fuse, monkeypatch):
    from fusion_bench import RuntimeConstants

    monkeypatch.setattr(RuntimeConstants, "debug", False)
    result = fuse(*TINTING, *of("sst2", "cola"), "fast_dev_run=true", "method.adapt_split=train")
    assert len(result["merged_model"].history) == 1


class TestGpt2:
    """FusionBench's other pool of text classifiers: `load_model` gives backbones, padding counts."""

    POOLS = ("modelpool=gpt2_glue", "taskpool=gpt2_glue")
    TINTING = (*POOLS, "method=model_tinting", "method.num_workers=0", "method.steps=3")
    TASKS = tuple(task for task in TASKS if task != "stsb")

    @pytest.fixture(scope="class")
    def done(self, hub, tmp_path_factory):
        saved = "merged_model_save_path='{log_dir}/saved'"
        return finished(tmp_path_factory.mktemp("run"), *self.TINTING, "method.adapt_split=val", saved)

    def test_it_adapts_and_an_artifact_applied_gives_the_same(self, done, fuse):
        artifact = (f"method.artifact={done.folder}/tinting", "method.num_workers=0")
        again = fuse(*self.POOLS, "method=model_tinting", *artifact, "taskpool.baselines=false")
        for task in self.TASKS:
            assert again["report"][task] == done.report[task]
        assert set(done.report) == {"model_info", *self.TASKS, "average", "baselines"}
        assert (done.folder / "saved").exists()
        tint = load_file(done.folder / "tinting" / "tints" / "mnli.safetensors")
        assert {name: tensor.shape for name, tensor in tint.items()} == {"score.weight": (3, 16)}

    def test_task_arithmetic_is_fusionbenchs_and_each_expert_scores_as_transformers_runs_it(
        self, done, fuse
    ):
        ours = done.report["baselines"]
        theirs = fuse(*self.POOLS, "method=task_arithmetic", "method.scaling_factor=0.3")["report"]
        tokenizer = AutoTokenizer.from_pretrained("openai-community/gpt2")
        for task in self.TASKS:
            assert headline(theirs, task) == pytest.approx(ours["task_arithmetic"][task], abs=1e-6)
            model = AutoModelForSequenceClassification.from_pretrained(f"tanganke/gpt2_{task}").eval()
            split, told = "validation_matched" if task == "mnli" else "validation", []
            data = datasets.load_dataset("nyu-mll/glue", task, split=split)
            for row in data:
                inputs = tokenizer(*(row[column] for column in TASKS[task][0]), return_tensors="pt")
                told.append(int(model(**inputs).logits.argmax()))
            expected = METRICS[SCORES.get(task, "accuracy")].of(
                torch.tensor(data["label"]), torch.tensor(told)
            )
            assert ours["expert"][task] == pytest.approx(expected, abs=1e-5), task

    def test_the_stock_task_pool_is_refused(self, hub, fuse):
        with pytest.raises(ValueError, match=r"GPT2TextClassificationTaskPool.*taskpool=gpt2_glue"):
            fuse(*self.TINTING, "taskpool=gpt-2_glue")
