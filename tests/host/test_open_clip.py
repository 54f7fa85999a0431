"""`method=model_tinting` on OpenCLIP's checkpoints: tiny ones, laid out as the released ones are."""

import json
from dataclasses import replace
from pathlib import Path

import datasets
import open_clip
import pytest
import released_open_clip as released
import torch
from click.testing import CliRunner
from command import composed, finished, program
from fusion_bench.models.open_clip import ClassificationHead, ImageEncoder
from fusion_bench.tasks.clip_classification import get_num_classes
from fusion_bench.utils import instantiate
from hub import TASKS as HUB_TASKS
from hub import make_hub, read_offline
from safetensors.torch import load_file

from fusion_tinting import convert, mini
from fusion_tinting.families.open_clip import ClassificationHead as OurHead
from fusion_tinting.families.open_clip import TintedOpenCLIP
from fusion_tinting.families.open_clip_files import load_encoder, load_head
from fusion_tinting.mini.pictures import open_clip as mini_open_clip

TASKS = list(HUB_TASKS)[:8]
ARCHITECTURES = {"b32": "ViT-B-32", "b16": "ViT-B-16", "l14": "ViT-L-14"}
SHORT = ("method=model_tinting", "method.steps=2", "method.batch_size=4", "method.num_workers=0")
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True, scope="module")
def tiny_architectures(tmp_path_factory):
    """The three names stand for tiny models, until the module's tests are over."""
    folder = tmp_path_factory.mktemp("architectures")
    for name in ARCHITECTURES.values():
        (folder / f"{name}.json").write_text(json.dumps({**released.TINY, "quick_gelu": True}))
    open_clip.add_model_config(folder)
    yield
    for file in folder.iterdir():
        file.unlink()
    open_clip.add_model_config(Path(open_clip.__file__).parent / "model_configs")
    assert open_clip.get_model_config("ViT-B-32")["embed_dim"] == 512


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The eight data sets in a cache of the hub client's, which this process reads."""
    folder = tmp_path_factory.mktemp("hub")
    make_hub(folder, architectures=(), tasks=TASKS)
    with read_offline(folder):
        yield folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Everything that the three configurations name, as released."""
    top = tmp_path_factory.mktemp("task_vectors_checkpoints")
    for short in ARCHITECTURES:
        pool = composed(f"modelpool=openclip-vit-{short}_TA8", f"modelpool.model_dir={top}/").modelpool
        pretrained = released.encoder()
        for seed, model in enumerate(pool.models.values()):
            path = Path(model if isinstance(model, str) else model.pickle_path)
            released.release(released.expert(pretrained, seed) if seed else pretrained, path)
        for task, path in pool.classification_heads.items():
            head = released.head(get_num_classes(task), normalize=task != "dtd")
            released.release(head, Path(path), by_torch=task != "mnist")
    return top


@pytest.fixture(scope="module")
def converted(checkpoints, tmp_path_factory):
    """The same in safetensors."""
    out = tmp_path_factory.mktemp("converted") / "out"
    result = CliRunner().invoke(convert.main, [str(checkpoints), str(out), "--trust-pickles"])
    assert result.exit_code == 0, result.output
    return out


def options(model_dir: Path, *overrides: str, pools: str = "openclip-vit-b32_TA8") -> tuple[str, ...]:
    """These overrides, with our OpenCLIP pools."""
    settings = [f"modelpool={pools}", f"taskpool={pools}", *overrides]
    if "_TA8" in pools:
        settings.append(f"modelpool.model_dir={model_dir}/")
    if "taskpool=dummy" not in overrides:
        settings.append("taskpool.dataloader_kwargs.num_workers=0")
    return tuple(settings)


@pytest.fixture
def fuse(hub, converted, tmp_path):
    """FusionBench's program with our OpenCLIP pools, in this process."""
    with program(tmp_path) as run:
        yield lambda *overrides, model_dir=converted, **pools: run(*options(model_dir, *overrides, **pools))


@pytest.fixture(scope="module")
def done(hub, converted, tmp_path_factory):
    """The run that most tests look at."""
    left = ("report_save_path='{log_dir}/report.json'", "merged_model_save_path='{log_dir}/saved'")
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32")  # the files tell what they are
        return finished(folder, *options(converted, *SHORT, "method.adapt_split=val", *left))


def only(*tasks: str) -> list[str]:
    """Overrides that leave these tasks alone in both pools."""
    others = [task for task in TASKS if task not in tasks]
    return [f"~{pool}.{task}" for task in others for pool in ("modelpool.models", "taskpool.test_datasets")]


def output(encoder) -> torch.Tensor:
    """Without gradients: attention takes another path with them, which rounds otherwise."""
    with torch.no_grad():
        return encoder(IMAGES)


def accuracies(report) -> list[float]:
    return [report[task]["accuracy"] for task in TASKS]


@pytest.mark.parametrize("short", ARCHITECTURES)
def test_every_released_file_of_every_pool_loads(short, checkpoints, converted):
    for folder, trust in ((checkpoints, "true"), (converted, "false")):
        dirs = (f"modelpool.model_dir={folder}/", f"modelpool.trust_pickles={trust}")
        pools = (f"modelpool=openclip-vit-{short}_TA8", f"taskpool=openclip-vit-{short}_TA8")
        config = composed(*pools, *dirs)
        pool, taskpool = instantiate(config.modelpool), instantiate(config.taskpool)
        assert pool.model_names == TASKS == taskpool.tasks
        models = [output(pool.load_model(name)) for name in ("_pretrained_", *TASKS)]
        torch.testing.assert_close(models[0], output(released.encoder()))
        assert not torch.allclose(models[1], models[0], atol=1e-3)
        for task in TASKS:
            head = pool.load_classification_head(task)
            assert (head.out_features, head.normalize) == (get_num_classes(task), task != "dtd")
        assert taskpool.trust_pickles is (trust == "true")
        assert list(config.taskpool.test_datasets) == list(config.modelpool.val_datasets) == TASKS
        assert config.taskpool.classification_heads == config.modelpool.classification_heads


def test_ours_compute_what_fusionbenchs_own_classes_do(checkpoints, converted, monkeypatch):
    monkeypatch.setattr("fusion_bench.models.open_clip.modeling.MODELS", ["ViT-B-32__init__"])
    theirs = ImageEncoder("ViT-B-32__init__").eval()
    ours = load_encoder(converted / "ViT-B-32" / "DTD" / "finetuned.pt", None)
    kept = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert kept.unexpected_keys == []
    torch.testing.assert_close(output(ours), output(theirs))
    for name, normalize in (("DTD", False), ("MNIST", True)):
        head = load_head(checkpoints / "ViT-B-32" / f"head_{name}.pt", trust_pickles=True)
        stock = ClassificationHead(normalize, head.weight, head.bias)
        assert torch.equal(head(output(ours)), stock(output(ours)))


def test_the_program_adapts_evaluates_and_saves(done):
    tail = done.shown[done.shown.index("Accuracy %") :]
    for word in ("pre-trained", "Arithmetic", "expert", "tinted", *TASKS, "average", "inductive"):
        assert word in tail
    report = json.loads((done.folder / "report.json").read_text())
    assert set(report) == {"model_info", *TASKS, "average", "baselines"}
    saved = done.folder / "saved"
    assert load_encoder(saved / "model.safetensors", None)(IMAGES).shape == (4, 8)
    coefficients = load_file(saved / "coefficients.safetensors")
    assert coefficients.keys() == load_file(saved / "model.safetensors").keys()
    assert load_file(saved / "tints" / "dtd.safetensors").keys() == {"head.weight", "head.bias"}


def test_pickles_are_refused_unless_trusted_and_then_give_the_same(fuse, done, checkpoints):
    with pytest.raises(ValueError, match=r"can run any code.*fusion_tinting\.convert.*trust_pickles=true"):
        fuse(*SHORT, model_dir=checkpoints)
    trust = ("modelpool.trust_pickles=true", "method.adapt_split=val")
    assert fuse(*SHORT, *trust, model_dir=checkpoints)["report"] == done.report


def test_with_lambda_zero_and_no_step_it_is_the_pretrained_model(fuse):
    few = only("mnist", "dtd")
    tinted = fuse(*SHORT, *few, "method.steps=0", "method.init=0")["report"]
    plain = fuse("method=dummy", *few)["report"]
    for task in ("mnist", "dtd"):
        assert tinted[task]["accuracy"] == plain[task]["accuracy"]
        assert tinted[task]["loss"] == pytest.approx(plain[task]["loss"], abs=1e-4)


def test_the_experts_row_is_each_expert_on_its_own_task(fuse, done, converted):
    experts = done.report["baselines"]["expert"]
    for task, folder in (("mnist", "MNIST"), ("dtd", "DTD")):
        own = f"modelpool.models._pretrained_.pickle_path={converted}/ViT-B-32/{folder}/finetuned.pt"
        assert experts[task] == fuse("method=dummy", own, *only(task))["report"][task]["accuracy"]


def test_task_arithmetic_in_the_table_is_fusionbenchs(fuse, done, tmp_path):
    ours = done.report["baselines"]["task_arithmetic"]
    theirs = fuse(
        "method=task_arithmetic", "method.scaling_factor=0.3", f"merged_model_save_path={tmp_path}/ta"
    )
    assert [ours[task] for task in TASKS] == accuracies(theirs["report"])
    merged = load_encoder(tmp_path / "ta" / "model.safetensors", None)
    assert torch.equal(output(merged), output(theirs["merged_model"]))


def require_same(again: dict, report: dict, model) -> None:
    """An artifact applied gives the report and the answers of its run."""
    assert isinstance(again["merged_model"], TintedOpenCLIP)
    for task in model.tasks:
        assert again["report"][task]["accuracy"] == report[task]["accuracy"]
        assert torch.equal(model(IMAGES, task), again["merged_model"](IMAGES, task))


def test_experts_are_read_from_their_files_and_teach_the_same(fuse, checkpoints):
    given = (*SHORT, *only("mnist", "dtd"), "method.task_vectors.gradients=arriving")
    kept, streamed = (
        fuse(*given, f"method.task_vectors.storage={storage}")["merged_model"]
        for storage in ("memory", "stream")
    )
    torch.testing.assert_close(kept.history.loss, streamed.history.loss, rtol=0, atol=1e-4)
    for name, row in kept.coefficients.items():
        torch.testing.assert_close(row, streamed.coefficients[name], rtol=0, atol=1e-4)
    with pytest.raises(
        ValueError, match=r"stream` reads .* is missing: `python -m fusion_tinting.convert`"
    ):
        released_files = ("modelpool.trust_pickles=true", "method.task_vectors.storage=stream")
        fuse(*given, *released_files, model_dir=checkpoints)


def test_an_artifact_applied_gives_the_runs_own_report(fuse, done):
    again = fuse("method=model_tinting", f"method.artifact={done.folder}/tinting", "method.num_workers=0")
    assert again["report"]["baselines"] == done.report["baselines"]
    require_same(again, done.report, done.model)


@pytest.mark.parametrize("layer", ["block:0", "ln_post"])
def test_an_artifact_of_another_layer_gives_the_runs_own_report(fuse, layer):
    few = (*only("mnist", "dtd"), "++taskpool.baselines=false")
    first = fuse(*SHORT, *few, f"method.layer={layer}", "method.run_dir=run")
    again = fuse("method=model_tinting", *few, "method.artifact=run")
    require_same(again, first["report"], first["merged_model"])


def test_the_head_tint_is_the_tasks_weight_and_bias(done, converted):
    for task, name in (("dtd", "DTD"), ("eurosat", "EuroSAT")):
        head = load_head(converted / "ViT-B-32" / f"head_{name}.safetensors")
        tint = done.model.tints[task]
        assert tint.normalize is head.normalize
        assert not torch.equal(tint.weight, head.weight)
        assert not torch.equal(tint.bias, head.bias)


def test_adaptation_needs_no_labels_but_the_scores_do(fuse, monkeypatch):
    load = datasets.load_dataset
    unlabeled = lambda *args, **options: load(*args, **options).remove_columns("label")  # noqa: E731
    monkeypatch.setattr(datasets, "load_dataset", unlabeled)
    few = [f"~modelpool.models.{task}" for task in TASKS if task not in ("mnist", "dtd")]
    assert len(fuse(*SHORT, "taskpool=dummy", *few)["merged_model"].history) == 2
    with pytest.raises(ValueError, match=r"test set of `sun397` lacks \['label'\]"):
        fuse(*SHORT)


STOCK_POOL = "modelpool._target_=fusion_bench.modelpool.OpenCLIPVisionModelPool"
REFUSED_EARLY = [
    ([STOCK_POOL, "~modelpool.trust_pickles", "~modelpool.model_name"],
     "runs the code in the pickles.*modelpool=openclip-vit-b32_TA8"),
    (["taskpool._target_=fusion_bench.taskpool.OpenCLIPVisionModelTaskPool"],
     "wrong scores for the tinted model.*taskpool=openclip-vit-b32_TA8"),
    (["~modelpool.classification_heads.dtd"], r"no `classification_heads` for \['dtd'\]"),
    (["modelpool.models.dtd.pickle_path=nowhere.pt", "modelpool.models.svhn.pickle_path=no.pt"],
     r"2 checkpoint\(s\) of the model pool are missing: \['no.pt', 'nowhere.pt'\].*model_dir"),
    (["+modelpool.models.odd={_target_: torch.nn.Identity}", "+modelpool.classification_heads.odd=x"],
     "model `odd` must be a path"),
    (["~taskpool.classification_heads.dtd"], r"task pool has no `classification_heads` for \['dtd'\]"),
    (["~modelpool.models.dtd"], r"evaluates \['dtd'\], for which.*no expert"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED_EARLY)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(fuse, monkeypatch, overrides, message):
    monkeypatch.setattr("fusion_tinting.fusionbench.pools.open_clip.OpenClipPool.load", None)
    with pytest.raises(ValueError, match=message):
        fuse(*SHORT, *overrides)


def test_files_that_do_not_fit_each_other_are_refused_before_adaptation(fuse, monkeypatch, tmp_path):
    monkeypatch.setattr("fusion_tinting.tinting.train", None)
    wide = saved_head(tmp_path / "wide.safetensors", classes=47, width=9)
    with pytest.raises(ValueError, match=r"head of `dtd`, `.*wide.*`, takes embeddings of width 9.*8 wide"):
        fuse(*SHORT, f"modelpool.classification_heads.dtd={wide}")
    tower = {n: t for n, t in released.encoder().state_dict().items() if ".resblocks.1." not in n}
    torch.save(tower, tmp_path / "finetuned.pt")
    other = f"modelpool.models.dtd.pickle_path={tmp_path}/finetuned.pt"
    with pytest.raises(ValueError, match=r"finetuned.pt` holds no image encoder.*`ViT-B-32`: missing"):
        fuse(*SHORT, other)


def test_a_head_of_fewer_classes_than_the_test_set_is_refused(fuse, monkeypatch, tmp_path):
    load, label = datasets.load_dataset, datasets.ClassLabel(num_classes=47)

    def named(*args, **options):
        found = load(*args, **options)
        return found.cast_column("label", label) if options.get("path") == "tanganke/dtd" else found

    monkeypatch.setattr(datasets, "load_dataset", named)
    few = saved_head(tmp_path / "few.safetensors", classes=46, width=8)
    with pytest.raises(ValueError, match="test set of `dtd` has 47 classes; its head tells only 46"):
        fuse(*SHORT, f"taskpool.classification_heads.dtd={few}")


def saved_head(path: Path, classes: int, width: int) -> Path:
    weight = torch.zeros(classes, width)
    OurHead(weight, None, normalize=True).save(path)
    return path


def test_an_expert_of_another_pretraining_is_refused_unless_asked_for(fuse, tmp_path):
    torch.save(released.encoder(seed=5).state_dict(), tmp_path / "other.pt")
    other = f"modelpool.models.dtd.pickle_path={tmp_path}/other.pt"
    with pytest.raises(ValueError, match=r"expert `dtd` was not fine-tuned.*pretraining=different"):
        fuse(*SHORT, other)
    different = "method.task_vectors.pretraining=different"
    result = fuse(*SHORT, *only("mnist", "dtd"), other, different)
    base = f"modelpool.models._pretrained_.pickle_path={tmp_path}/other.pt"
    own = fuse("method=dummy", *only("dtd"), base)
    assert result["report"]["baselines"]["expert"]["dtd"] == own["report"]["dtd"]["accuracy"]


class TestMini:
    """`openclip-mini_3` as it is but for its size."""

    @pytest.fixture
    def small(self, monkeypatch, tmp_path):
        sizes = {"train": 64, "val": 40, "test": 40, "width": 32, "layers": 2, "web_images": 40}
        steps = {"pretrain_steps": 6, "expert_steps": 4, "workers": 0}
        recipe = replace(mini_open_clip.RECIPES["openclip-mini_3"], **sizes, **steps)
        monkeypatch.setitem(mini_open_clip.RECIPES, "openclip-mini_3", recipe)
        monkeypatch.setenv("FUSION_TINTING_CACHE", str(tmp_path / "cache"))
        return recipe

    def test_it_is_built_once_and_leaves_the_callers_random_state(self, small):
        state = torch.get_rng_state()
        first = mini.build(1, recipe="openclip-mini_3")
        assert torch.equal(torch.get_rng_state(), state)
        written = {path: path.stat().st_mtime_ns for path in first.rglob("*.safetensors")}
        assert len(written) == 1 + 2 * len(small.tasks)
        assert mini.build(1, recipe=small) == first != mini.build(2, recipe=small)
        assert written == {path: path.stat().st_mtime_ns for path in first.rglob("*.safetensors")}

    def test_it_runs_with_another_seed_which_the_task_pool_follows(self, small, fuse):
        options = ("modelpool.zoo_seed=3", "method.adapt_split=val")
        report = fuse(*SHORT, *options, pools="openclip-mini_3")["report"]
        assert set(report) == {"model_info", *small.tasks, "average", "baselines"}
        assert [path.name[-5:] for path in mini.build(3, recipe=small).parent.glob("*seed?")] == ["seed3"]
