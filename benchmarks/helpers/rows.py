"""The leaderboard's rows: methods of FusionBench with the overrides that choose them; data, no logic."""

from dataclasses import dataclass

TRAINING_FREE = "training-free"
TEST_TIME = "test-time"
PER_TASK = "keeps parameters per task"
FAMILIES = (TRAINING_FREE, TEST_TIME, PER_TASK)

UNLABELED, TRAIN, NONE = "unlabeled", "train", "none"
GRID = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
AROUND_ONE = (0.6, 0.8, 1.0, 1.3, 1.6)
LEARNED = "learned without labels, from 0.3"
STEPS = ("method.max_steps=500", "method.num_workers=0")
"""As many iterations as Model Tinting; every method's own batch size and learning rate."""
TINT = ("method.run_dir=run", "method.num_workers=0", "++taskpool.baselines=false")


@dataclass(frozen=True)
class Row:
    """One method."""

    title: str
    overrides: tuple[str, ...]
    family: str = TRAINING_FREE
    data: str = NONE
    """Read besides the models: `none`; `train`, the experts' own data; `unlabeled`, of either split."""
    lam: str = "its default"
    """How λ, or whatever scales the task vectors, was chosen."""
    tuned: str | None = None
    """The override whose value is chosen by `val` labels."""
    grid: tuple[float, ...] = GRID
    seeded: bool = False
    """Whether a seed changes anything."""
    task_identity: bool = False
    """Whether inference must know the task."""
    part: str | None = None
    """Which of several evaluated models of the report it is."""
    quick: tuple[str, ...] | None = None
    """Further overrides that make it a matter of seconds; None: not among the quick rows."""
    notes: str = ""

    @property
    def ours(self) -> bool:
        """Whether the method is one of this package."""
        return self.overrides[0].startswith("method=model_tinting")


def clip(method: str, name: str, *overrides: str) -> tuple[str, ...]:
    """Return the overrides of a method in the style of FusionBench 0.1, chosen by file and by name."""
    return (f"method={method}", f"method.name=clip_{name}", *STEPS, *overrides)


def tinting(title: str, method: str, quick: tuple[str, ...] | None = None, notes: str = "") -> Row:
    """Return the row of a method of ours."""
    return Row(
        title, (f"method={method}", *TINT), PER_TASK, UNLABELED, LEARNED,
        seeded=True, task_identity=True, quick=quick, notes=notes,
    )  # fmt: skip


ROWS = {
    "simple_average": Row("simple average", ("method=simple_average",), lam="1/K", quick=()),
    "task_arithmetic": Row(
        "Task Arithmetic", ("method=task_arithmetic",), tuned="method.scaling_factor", quick=()
    ),
    "ties": Row(
        "Ties-Merging", ("method=ties_merging",), tuned="method.scaling_factor",
        grid=(0.1, 0.2, 0.3, 0.5, 0.8), notes="keeps the largest 20 %, sums (FusionBench's defaults)",
    ),
    "dare": Row(
        "DARE Task Arithmetic", ("method=dare/task_arithmetic",), tuned="method.scaling_factor",
        seeded=True, notes="drops half, rescales (FusionBench's defaults); λ chosen with the first seed",
    ),
    "tsv_m": Row(
        "TSV-M", ("method=task_singular_vector/TaskSingularVectorMerging",), tuned="method.alpha",
        grid=AROUND_ONE,
    ),
    "iso_c": Row(
        "ISO-C", ("method=isotropic_merging/iso_c",), tuned="method.scaling_factor", grid=AROUND_ONE
    ),
    "iso_cts": Row(
        "ISO-CTS", ("method=isotropic_merging/iso_cts",), tuned="method.scaling_factor", grid=AROUND_ONE
    ),
    "wudi": Row("WUDI", ("method=wudi/wudi",), lam="none: solved for, 400 iterations without data"),
    "doge": Row(
        "DOGE", ("method=doge_ta/doge_ta",), notes="adaptive projective gradient descent, without data"
    ),
    "regmean": Row(
        "RegMean", ("method=regmean/clip_regmean",), data=TRAIN, lam="none: solved for", seeded=True
    ),
    "fisher": Row(
        "Fisher", ("method=fisher_merging/clip_fisher_merging",), data=TRAIN, lam="none", seeded=True
    ),
    "concrete_ta": Row(
        "Concrete Task Arithmetic",
        clip("concrete_subspace/clip_concrete_task_arithmetic", "concrete_task_arithmetic"),
        TEST_TIME, UNLABELED, "0.3, its default; the mask is learned", seeded=True,
        notes="500 of its default 2000 iterations",
    ),
    "adamerging_task": Row(
        "AdaMerging, task-wise", clip("adamerging/clip", "task_wise_adamerging"),
        TEST_TIME, UNLABELED, LEARNED, seeded=True, notes="500 of its default 1000 iterations",
    ),
    "adamerging": Row(
        "AdaMerging, layer-wise", clip("adamerging/clip", "layer_wise_adamerging"),
        TEST_TIME, UNLABELED, LEARNED, seeded=True, quick=("method.max_steps=5",),
        notes="500 of its default 1000 iterations",
    ),
    "surgery": Row(
        "Surgery on AdaMerging",
        clip(
            "surgery/adamerging_surgery", "layer_wise_adamerging_surgery",
            "method.surgery_steps=500", "method.eval_iterations=1000000",
        ),
        PER_TASK, UNLABELED, LEARNED, seeded=True, task_identity=True, part="surgery",
        notes="500 iterations of AdaMerging, then 500 of Surgery (defaults: 1000 each)",
    ),
    "wemoe": Row(
        "WEMoE", clip("wemoe/weight_ensembling_moe", "weight_ensembling_moe"),
        PER_TASK, UNLABELED, "0.3 outside the MLPs; inside, a router of the input", seeded=True,
        notes="500 of its default 1000 iterations; routes whole evaluation batches, each of a single task",
    ),
    "emr": Row(
        "EMR-Merging", ("method=emr_merging/emr_merging",), PER_TASK, lam="none: masks and rescalers",
        task_identity=True, notes="its masks are counted as numbers; each is one bit",
    ),
    "model_tinting": tinting("Model Tinting", "model_tinting", ("method.steps=5",), "the paper's recipe"),
    "model_tinting_pp": tinting("Model Tinting++", "model_tinting_pp"),
    "recommended": tinting("ours, recommended", "model_tinting_recommended"),
    "fast": tinting("ours, fast", "model_tinting_fast", ("method.steps=5",)),
}  # fmt: skip
"""Name on the command line -> row, in the table's order."""

PUBLISHED = {
    "ViT-B/32, eight tasks, OpenCLIP experts (arXiv 2412.19098)": {
        "experts": "90.5", "Task Arithmetic": "69.1", "Ties-Merging": "72.9", "Consensus TA": "74.9",
        "TSV-M": "84.0", "ISO-Merging": "84.2", "AdaMerging": "80.1", "Surgery on AdaMerging": "87.5",
        "EMR-Merging": "88.7", "WEMoE": "89.4", "Model Tinting": "90.1 ± 0.1",
    },
    "the same, 14 tasks": {
        "experts": "89.5", "Task Arithmetic": "65.4", "Ties-Merging": "65.2", "Consensus TA": "70.3",
        "TSV-M": "80.1", "ISO-Merging": "80.6", "AdaMerging": "76.7", "Surgery on AdaMerging": "84.6",
        "EMR-Merging": "86.1", "WEMoE": "83.0", "Model Tinting": "88.7 ± 0.1",
    },
    "the same, 20 tasks": {
        "experts": "90.4", "Task Arithmetic": "60.8", "Ties-Merging": "63.1", "Consensus TA": "65.0",
        "TSV-M": "76.6", "ISO-Merging": "76.9", "AdaMerging": "69.6", "Surgery on AdaMerging": "84.5",
        "EMR-Merging": "86.6", "WEMoE": "78.9", "Model Tinting": "88.6 ± 0.4",
    },
    "ViT-B/32, eight tasks, FusionBench's own experts and tables": {
        "experts": "90.3", "Task Arithmetic": "68.0", "Ties-Merging": "72.2", "AdaMerging": "82.6",
        "RegMean++": "84.4", "WUDI": "84.5", "ISO-C": "82.8", "WEMoE": "89.2",
    },
}  # fmt: skip
"""Accuracy %, figures that others report: transductive where a method adapts."""
