"""`method=model_tinting`: Model Tinting over any CLIP model pool of FusionBench."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from fusion_bench import BaseAlgorithm
from fusion_bench.dataset.image_dataset import ImageClassificationDataset
from fusion_bench.mixins import LightningFabricMixin
from fusion_bench.modelpool import CLIPVisionModelPool
from fusion_bench.tasks.clip_classification import get_classnames_and_templates
from fusion_bench.utils.hydra_utils import get_hydra_output_dir
from torch import nn

from fusion_tinting.artifact import read_manifest
from fusion_tinting.errors import unknown
from fusion_tinting.experts import LoadedExperts
from fusion_tinting.families import clip
from fusion_tinting.fusionbench import checks
from fusion_tinting.fusionbench.processes import FabricProcesses
from fusion_tinting.fusionbench.taskpool import TintedCLIPVisionModelTaskPool
from fusion_tinting.history import History
from fusion_tinting.reporting import tables
from fusion_tinting.settings import Settings
from fusion_tinting.task_vectors import PRETRAINED
from fusion_tinting.tinted_model import TintedModel
from fusion_tinting.tinting import tint
from fusion_tinting.unlabeled import Unlabeled, batch_schedule

log = logging.getLogger(__name__)

KEPT_ASIDE = 0.1
"""Share of each task's samples that do not teach when no task pool will evaluate the result."""


class ModelTinting(LightningFabricMixin, BaseAlgorithm):
    """Learns λ and the tints on a model pool's unlabelled images; returns a `TintedCLIP`.

    Args:
        adapt_split: the split whose images teach: `test` (transductive, as the papers and
            FusionBench's AdaMerging), `val` or `train`. Labels are never used.
        num_workers: loader processes per task (default: one per CPU core, at most 4).
        run_dir: where checkpoints and the artefact go (default: `tinting` in the log folder). A run
            found there continues.
        artifact: an earlier run's folder to apply, without adaptation.
        **settings: see `fusion_tinting.Settings`; the top-level `seed` is one of them.

    Raises:
        ValueError: bad settings, before anything is loaded.
    """

    _config_mapping = BaseAlgorithm._config_mapping | {
        name: name for name in ("adapt_split", "num_workers", "run_dir", "artifact", "settings")
    }

    def __init__(
        self,
        *,
        adapt_split: str = "test",
        num_workers: int | None = None,
        run_dir: str | None = None,
        artifact: str | None = None,
        seed: int | None = None,
        **settings,
    ):
        if adapt_split not in checks.SPLITS:
            raise unknown("adapt_split", adapt_split, checks.SPLITS)
        self.settings = {**settings, "seed": seed or 0}
        Settings.from_options(self.settings)
        self.adapt_split = adapt_split
        self.num_workers = min(4, os.cpu_count() or 1) if num_workers is None else num_workers
        self.run_dir, self.artifact = run_dir, artifact
        super().__init__()

    def run(self, modelpool: CLIPVisionModelPool) -> TintedModel:
        """Adapt, or apply `artifact`, and return the tinted model.

        Raises:
            ValueError: a pool of another kind; a task without head, data or class names; a task
                pool that cannot evaluate the result; models that do not fit each other.
        """
        checks.modelpool(modelpool)
        checks.taskpool(getattr(self._program, "taskpool", None), modelpool.model_names)
        processes = FabricProcesses(self.fabric)
        if self.artifact is None:
            checks.split(modelpool, self.adapt_split)
        else:
            read_manifest(Path(self.artifact))
        if self.log_dir is not None:
            self.log_hyperparams()
        tasks = modelpool.model_names
        processor = modelpool.load_processor()
        clip_model = modelpool.load_clip_model(PRETRAINED).eval()
        pretrained = clip.CLIPImageEncoder(modelpool.load_model(PRETRAINED), clip_model.visual_projection)
        projection = clip_model.visual_projection
        experts = LoadedExperts(tasks, lambda t: clip.CLIPImageEncoder(modelpool.load_model(t), projection))
        heads = {task: zero_shot_head(clip_model, processor, task) for task in tasks}
        models = {"pretrained": pretrained, "experts": experts, "heads": heads}
        names = clip.names_on_disk(pretrained)
        if self.artifact is not None:
            return clip.TintedCLIP.load(self.artifact, **models, tensor_names=names)
        unlabeled = {task: self._unlabeled(modelpool, processor, task) for task in tasks}
        return self._adapt(modelpool, models, unlabeled, names, processes)

    def _adapt(self, modelpool, models: dict, unlabeled: dict, names: Mapping, processes) -> TintedModel:
        aside = {}
        if not self._will_be_evaluated:
            unlabeled, aside = keep_aside(unlabeled, self.settings["seed"])
        run_dir = self._run_dir()
        settings = {**self.settings, "steps": 1} if self.is_debug_mode else self.settings
        model = tint(
            models["pretrained"],
            experts=models["experts"],
            heads=models["heads"],
            unlabeled=unlabeled,
            run_dir=run_dir,
            processes=processes,
            on_step=self._log_step,
            info={
                "split": self.adapt_split,
                "ids": {name: model_id(modelpool, name) for name in modelpool.all_model_names},
                "tensor_names": names,
            },
            model_class=clip.TintedCLIP,
            **settings,
        )
        if processes.rank == 0:
            log.info(f"Coefficients, tints and curves are in {run_dir}.")
        if aside:
            self._show_agreement(model, models, unlabeled, aside, processes)
        self.fabric.barrier()
        return model

    def _show_agreement(self, model, models, unlabeled, aside, processes) -> None:
        columns = {"inputs used": unlabeled, "kept aside": aside}
        table = tables.agreement_table(
            model, models["experts"], models["heads"], columns, self.adapt_split, processes
        )
        if processes.rank == 0:
            tables.show(table)

    @property
    def _will_be_evaluated(self) -> bool:
        return isinstance(getattr(self._program, "taskpool", None), TintedCLIPVisionModelTaskPool)

    def _unlabeled(self, modelpool, processor, task: str) -> Unlabeled:
        dataset = getattr(modelpool, f"load_{self.adapt_split}_dataset")(task)
        if len(dataset) == 0:
            raise ValueError(f"The {self.adapt_split} split of `{task}` is empty.")
        images = ImageClassificationDataset(dataset, processor)
        version = clip.content_version(dataset, processor)
        return Unlabeled(images, num_workers=self.num_workers, version=version)

    def _run_dir(self) -> Path:
        folder = self.run_dir or Path(self.log_dir or get_hydra_output_dir() or ".") / "tinting"
        return Path(self.fabric.broadcast(str(folder)))

    def _log_step(self, step: int, history: History) -> None:
        loss, agreed, kept, _ = history.values[step].mean(0).tolist()
        metrics = {"train/loss": loss, "train/agreement": agreed, "train/kept": kept}
        for task, value in zip(history.tasks, history.agreement[step].tolist(), strict=True):
            metrics[f"train/agreement/{task}"] = value
        self.log_dict(metrics, step=step)


def zero_shot_head(clip_model, processor, task: str) -> nn.Linear:
    """The folded head from FusionBench's class names and templates of a task."""
    names, templates = get_classnames_and_templates(task)
    weights = clip.zero_shot_weights(clip_model, processor, names, templates)
    return clip.folded_head(weights, clip_model.logit_scale.detach().exp())


def keep_aside(unlabeled: Mapping[str, Unlabeled], seed: int) -> tuple[dict, dict]:
    """Split each task's samples into those that teach and a tenth (at least one) kept aside."""
    used, aside = {}, {}
    for task, inputs in unlabeled.items():
        order = batch_schedule(len(inputs), len(inputs), 1, seed, f"aside {task}")[0].tolist()
        count = max(1, round(KEPT_ASIDE * len(inputs)))
        if count == len(inputs):
            raise ValueError(f"Task `{task}` has a single sample; at least two are needed.")
        used[task], aside[task] = inputs.subset(order[count:]), inputs.subset(order[:count])
    return used, aside


def model_id(modelpool: CLIPVisionModelPool, name: str) -> str:
    """The hub id or path of a pool's model, as its configuration says."""
    config = modelpool.get_model_config(name)
    if isinstance(config, str):
        return config
    return str(config.get("pretrained_model_name_or_path", name)) if hasattr(config, "get") else name
