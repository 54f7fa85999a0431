"""`method=model_tinting` through FusionBench: what it returns, leaves behind, and refuses."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch
from command import FUSION_BENCH, Finished, assert_streams_the_same, finished
from fusion_bench.taskpool import CLIPVisionModelTaskPool
from safetensors.torch import load_file
from shell import run
from transformers import CLIPVisionModel

from fusion_tinting.families.clip import TintedCLIP
from fusion_tinting.run.history import History
from fusion_tinting.run.lock import held

TASKS = ["mini-digits", "mini-textures", "mini-signs"]
SHORT = ("method=model_tinting", "method.steps=3")
BRIEF = "++taskpool.baselines=false"


def accuracies(report) -> list[float]:
    return [report[task]["accuracy"] for task in TASKS]


@pytest.fixture(scope="module")
def tinted(tmp_path_factory):
    """Return the run that tints a layer, made once."""

    @cache
    def made(layer: str) -> Finished:
        more = ("seed=4", "merged_model_save_path='{log_dir}/saved'")
        quick = (BRIEF, f"method.layer={layer}")
        return finished(tmp_path_factory.mktemp("run"), *SHORT, *(more if layer == "head" else quick))

    return made


@pytest.fixture
def done(tinted):
    """The run that most tests look at."""
    return tinted("head")


def test_a_run_reports_in_the_stock_layout_and_leaves_the_artifact(done):
    report = done.report
    assert report["average"]["accuracy"] == pytest.approx(sum(accuracies(report)) / 3)
    assert report["model_info"]["adapt_split"] == "test"
    assert report["baselines"].keys() == {"pretrained", "expert", "task_arithmetic"}
    for name in ("program_report.json", "report.json"):
        assert json.loads((done.folder / name).read_text()) == report
    run_dir = done.folder / "tinting"
    names = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}
    assert names == {
        "tinting.json", "coefficients.safetensors", "curves.csv", "curves.png", "coefficients.png",
        "checkpoint/state.safetensors", *(f"tints/{task}.safetensors" for task in TASKS),
    }  # fmt: skip
    manifest = json.loads((run_dir / "tinting.json").read_text())
    assert manifest["settings"]["seed"] == 4
    assert manifest["settings"]["sampler"] == "all"
    assert manifest["split"] == "test"
    assert manifest["base"]["id"].endswith("pretrained")


def test_a_finished_run_without_its_pictures_gets_them(done, fuse, tmp_path):
    shutil.copytree(done.folder / "tinting", tmp_path / "run", ignore=shutil.ignore_patterns("*.png"))
    assert not list((tmp_path / "run").glob("*.png"))
    fuse(*SHORT, "seed=4", "method.run_dir=run", BRIEF)
    assert {path.name for path in (tmp_path / "run").glob("*.png")} == {"curves.png", "coefficients.png"}


def test_a_folder_that_another_run_works_in_is_refused_before_a_model_is_loaded(
    fuse, tmp_path, monkeypatch
):
    monkeypatch.setattr("fusion_tinting.families.clip.Clip.load", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    with ThreadPoolExecutor(1) as other:
        lock = held(tmp_path / "run")
        other.submit(lock.__enter__).result()
        with pytest.raises(BlockingIOError, match=f"run` is in use by another run: process {os.getpid()}"):
            fuse(*SHORT, "method.run_dir='~/run'")
        other.submit(lock.__exit__, None, None, None).result()


def test_tensor_names_in_the_artifact_are_the_checkpoints(tinted):
    run = tinted("block:-1")
    pretrained = load_file(run.model.info.ids["_pretrained_"] + "/model.safetensors")
    coefficients = load_file(run.folder / "tinting" / "coefficients.safetensors")
    towers = {
        name for name in pretrained if name.startswith("vision_model.") and "position_ids" not in name
    }
    assert coefficients.keys() == towers
    tint = load_file(run.folder / "tinting" / "tints" / "mini-signs.safetensors")
    assert tint.keys() == {name for name in towers if ".layers.1." in name}


@pytest.mark.parametrize("layer", ["head", "visual_projection", "block:-1"])
def test_an_artifact_applied_gives_the_runs_own_report(tinted, fuse, layer):
    first = tinted(layer)
    baselines = f"++taskpool.baselines={'baselines' in first.report}"
    again = fuse("method=model_tinting", f"method.artifact={first.folder}/tinting", baselines)
    assert accuracies(again["report"]) == accuracies(first.report)
    assert again["report"].get("baselines") == first.report.get("baselines")
    x = torch.randn(4, 3, 32, 32)
    for task in TASKS:
        assert torch.equal(first.model(x, task), again["merged_model"](x, task))


def test_plus_plus_differs_in_the_sampler_alone(done, fuse):
    plus = fuse("method=model_tinting_pp", "method.steps=3", "seed=4", "~taskpool")["merged_model"]
    assert plus.info.settings["sampler"] == "confidence_difference"
    assert {**plus.info.settings, "sampler": "all"} == done.model.info.settings


def test_before_any_step_the_folded_head_is_the_zero_shot_head(fuse):
    """With λ = 0 and no step, every figure is the stock pool's for the pre-trained model."""
    tinted = fuse("method=model_tinting", "method.steps=0", "method.init=0")["report"]
    plain = fuse("method=dummy")["report"]
    assert accuracies(tinted) == accuracies(plain)
    for task in TASKS:
        assert tinted[task]["loss"] == pytest.approx(plain[task]["loss"], abs=1e-4)
    assert [tinted["baselines"]["pretrained"][task] for task in TASKS] == accuracies(plain)


def test_the_experts_row_is_each_expert_on_its_own_task(done, fuse):
    experts = done.report["baselines"]["expert"]
    for task in TASKS:
        alone = [f"~taskpool.test_datasets.{other}" for other in TASKS if other != task]
        own = fuse("method=dummy", f"modelpool.models={{_pretrained_: {task}}}", *alone)["report"]
        assert experts[task] == own[task]["accuracy"]


def test_task_arithmetic_in_the_table_is_fusionbenchs(done, fuse):
    ours = done.report["baselines"]["task_arithmetic"]
    theirs = fuse("method=task_arithmetic", "method.scaling_factor=0.3")["report"]
    assert [ours[task] for task in TASKS] == accuracies(theirs)


def test_a_plain_model_scores_as_in_the_stock_pool(fuse, monkeypatch):
    ours = fuse("method=simple_average")["report"]
    from fusion_tinting.fusionbench.taskpools.clip import TintedCLIPVisionModelTaskPool as Ours

    for name in ("evaluate", "_evaluate", "setup"):
        monkeypatch.setattr(Ours, name, getattr(CLIPVisionModelTaskPool, name))
    assert fuse("method=simple_average")["report"] == ours


def test_the_saved_model_loads_in_transformers_and_in_fusionbench(done, fuse):
    saved = done.folder / "saved"
    loaded = CLIPVisionModel.from_pretrained(saved)
    for (name, ours), (_, theirs) in zip(
        done.model.merged.named_parameters(), loaded.named_parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    fuse("method=dummy", f"modelpool.models={{_pretrained_: {saved}}}", "~taskpool")


def test_where_a_model_cannot_be_saved_is_known_before_any_work(fuse, tmp_path, monkeypatch):
    monkeypatch.setattr("fusion_tinting.fusionbench.algorithm.tint", None)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file` is a file; expected a folder"):
        fuse(*SHORT, f"merged_model_save_path={tmp_path / 'file'}")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_number_of_workers_that_is_none(fuse):
    with pytest.raises(Exception, match=r"`num_workers` must be a whole number, at least 0. Found -1"):
        fuse(*SHORT, "method.num_workers=-1")


def test_the_split_is_the_one_asked_for(fuse):
    samples = {
        split: fuse(
            *("method=model_tinting", "method.steps=2", BRIEF, "method.batch_size=99"),
            *(f"method.adapt_split={split}", f"method.run_dir={split}"),
        )["merged_model"].info.samples["mini-digits"]
        for split in ("train", "val")
    }
    assert samples == {"train": 120, "val": 60}


def test_fast_dev_run_makes_one_step(fuse, monkeypatch):
    from fusion_bench import RuntimeConstants

    monkeypatch.setattr(RuntimeConstants, "debug", False)
    result = fuse("method=model_tinting", "fast_dev_run=true")
    assert len(result["merged_model"].history) == 1


@pytest.mark.parametrize("taskpool", ["taskpool=dummy", "~taskpool"])
def test_without_a_task_pool_it_ends_with_agreement(fuse, taskpool, capsys):
    fuse("method=model_tinting", "method.steps=1", taskpool)
    out = capsys.readouterr().out
    assert "Agreement with the experts" in out
    assert "kept aside" in out
    assert "taskpool=" in out


def test_scalars_reach_the_logger(fuse, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "lightning.fabric.loggers.TensorBoardLogger.log_metrics",
        lambda self, metrics, step=None: seen.update({(k, step): v for k, v in metrics.items()}),
    )
    report = fuse(*SHORT)["report"]
    assert ("train/loss", 2) in seen
    assert ("train/agreement/mini-signs", 0) in seen
    assert seen[("test/average/accuracy", None)] == report["average"]["accuracy"]
    assert seen[("test/mini-signs/expert", None)] == report["baselines"]["expert"]["mini-signs"]


def nothing_is_loaded(monkeypatch):
    monkeypatch.setattr("fusion_bench.modelpool.CLIPVisionModelPool.load_model", None)
    monkeypatch.setattr("fusion_bench.modelpool.CLIPVisionModelPool.load_clip_model", None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["taskpool._target_=fusion_bench.taskpool.CLIPVisionModelTaskPool"],
         "would evaluate the shared encoder.*taskpool=clip-"),
        (["method.adapt_split=tests"], "Did you mean `test`"),
        (["method.sampler=some"], "Unknown sampler `some`"),
        (["method.lr=-1"], "`lr` must be a number"),
        (["+method.layers=head"], "Unknown setting `layers`. Did you mean `layer`"),
        (["modelpool.val_datasets=null", "method.adapt_split=val"],
         r"no `val_datasets`.*\['test', 'train'\]"),
        (["~modelpool.test_datasets.mini-signs"], r"no `test_datasets` for \['mini-signs'\]"),
        (["+modelpool.models.unheard-of=mini-signs"],
         "No class names are known for the task `unheard-of`"),
        ([f"~modelpool.models.{task}" for task in TASKS], "at least one expert"),
        (["~modelpool.models._pretrained_"], "must have `_pretrained_`"),
        (["~modelpool.models.mini-signs"], r"evaluates \['mini-signs'\], for which.*no expert"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_a_model_is_loaded(fuse, monkeypatch, overrides, message):
    nothing_is_loaded(monkeypatch)
    with pytest.raises(Exception, match=message) as caught:
        fuse("method=model_tinting", *overrides)
    assert isinstance(caught.value, ValueError) or isinstance(caught.value.__cause__, ValueError)


def test_an_empty_split_is_named(fuse, monkeypatch):
    empty = "fusion_bench.modelpool.CLIPVisionModelPool.load_test_dataset"
    monkeypatch.setattr(empty, lambda self, task: [])
    with pytest.raises(ValueError, match="test split of `mini-digits` is empty"):
        fuse(*SHORT)


def test_precision_that_would_not_train_in_float32_is_refused(fuse):
    with pytest.raises(ValueError, match=r"fabric.precision=16-true` is not supported.*bf16-mixed"):
        fuse(*SHORT, "fabric.precision=16-true")


@pytest.mark.parametrize(
    ("precision", "kept", "told"),
    [("bf16-mixed", "float32", "bfloat16"), ("bf16-true", "bfloat16", "bfloat16-true")],
)
def test_bf16_encoders_adapt(fuse, precision, kept, told):
    given = (*SHORT, "~taskpool", f"fabric.precision={precision}")
    model = fuse(*given, "method.run_dir=low")["merged_model"]
    applied = fuse(*given, "method.artifact=low")["merged_model"]
    x = torch.rand(2, 3, 32, 32)
    assert all(torch.equal(model(x, task), applied(x, task)) for task in model.tasks)
    assert torch.isfinite(model.history.values).all()
    assert {str(p.dtype) for p in model.merged.parameters()} == {f"torch.{kept}"}
    assert {p.dtype for p in model.tint_modules.parameters()} == {torch.float32}
    assert model.info.precision == told


def test_experts_are_read_from_their_files_and_teach_the_same(fuse):
    given = (*SHORT, BRIEF, "fabric.precision=bf16-true")
    assert_streams_the_same(fuse, *given)


def test_the_returned_model_is_a_tinted_clip(done):
    assert isinstance(done.model, TintedCLIP)
    assert isinstance(done.model.merged, CLIPVisionModel)


def test_the_command_in_two_processes_ends_with_the_table_and_the_one_process_result(fuse, tmp_path):
    """`fusion_bench` as it was installed; `tests/unit/test_sharded.py` has other settings."""
    settings = ("method=model_tinting_pp", "method.steps=4", "method.update=joint")
    alone = ("method.num_workers=0", "method.run_dir=run2")
    two_processes = ("fabric=fsdp2", "fabric.devices=2", "fabric.accelerator=cpu", *alone)
    result = run(
        *(FUSION_BENCH, "modelpool=clip-micro_3", "taskpool=clip-micro_3", *settings, *two_processes),
        cwd=tmp_path,
    )
    tail = result.stdout[result.stdout.index("Accuracy %") :]
    for word in ("pre-trained", "Arithmetic", "expert", "tinted", *TASKS, "average", "transductive"):
        assert word in tail
    fuse(*settings, "method.run_dir=run1", "method.num_workers=2", BRIEF)
    for name in ("coefficients", *(f"tints/{task}" for task in TASKS)):
        one, two = (load_file(tmp_path / f"run{d}" / f"{name}.safetensors") for d in (1, 2))
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=0, atol=1e-5)
    curves = [History.from_csv((tmp_path / f"run{d}" / "curves.csv").read_text(), TASKS) for d in (1, 2)]
    torch.testing.assert_close(curves[1].values, curves[0].values, rtol=1e-3, atol=1e-4)
