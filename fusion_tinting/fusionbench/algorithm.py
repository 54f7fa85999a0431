"""`method=model_tinting`: Model Tinting over the model pools of FusionBench."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fusion_bench import BaseAlgorithm, BaseModelPool, BaseTaskPool
from fusion_bench.mixins import LightningFabricMixin
from fusion_bench.utils.hydra_utils import get_hydra_output_dir
from torch import nn

from fusion_tinting.errors import unknown
from fusion_tinting.fusionbench import checks
from fusion_tinting.fusionbench.pools import SPLITS, PoolFamily, family_of, model_id, offline_pools
from fusion_tinting.fusionbench.processes import FabricProcesses
from fusion_tinting.fusionbench.taskpools import TintedEvaluation
from fusion_tinting.method.settings import Settings
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.reporting import plots, tables
from fusion_tinting.run.files import path_of
from fusion_tinting.run.history import History
from fusion_tinting.run.identity import TRUE_HALF
from fusion_tinting.run.info import RunInfo
from fusion_tinting.run.lock import require_free
from fusion_tinting.run.manifest import Manifest
from fusion_tinting.run.tinted_model import Reordered, TintedModel
from fusion_tinting.run.unlabeled import Unlabeled, split_aside
from fusion_tinting.tinting import tint

log = logging.getLogger(__name__)

KEPT_ASIDE = 0.1
"""Share of each task's samples that do not teach when no task pool will evaluate the result."""


class ModelTinting(LightningFabricMixin, BaseAlgorithm):
    """Learns λ and the tints on a model pool's unlabeled inputs; returns a `TintedModel`.

    Args:
        adapt_split: the split whose inputs teach: `test` (transductive, as the papers and
            FusionBench's AdaMerging), `val` or `train`. Labels are never used.
        num_workers: loader processes per task (default: one per CPU core, at most 4).
        run_dir: where checkpoints and the artifact go (default: `tinting` in the log folder). A run
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
        **settings: Any,
    ):
        if adapt_split not in SPLITS:
            raise unknown("adapt_split", adapt_split, SPLITS)
        self.settings = {**settings, "seed": seed or 0}
        Settings.from_options(self.settings)
        if num_workers is not None and (not isinstance(num_workers, int) or num_workers < 0):
            raise ValueError(f"`num_workers` must be a whole number, at least 0. Found {num_workers!r}.")
        self.adapt_split = adapt_split
        self.num_workers = min(4, os.cpu_count() or 1) if num_workers is None else num_workers
        self.run_dir, self.artifact = run_dir, artifact
        super().__init__()

    def run(self, modelpool: BaseModelPool) -> TintedModel:
        """Adapt, or apply `artifact`, and return the tinted model.

        Raises:
            ValueError: a pool of an unknown kind; a task without head, data or class names; a task
                pool that cannot evaluate the result; models that do not fit each other.
        """
        family = self._checked(modelpool)
        family.load()
        if self.artifact is not None:
            return self._apply(family, path_of("artifact", self.artifact))
        return self._adapt(family)

    @property
    def _taskpool(self) -> BaseTaskPool | None:
        return getattr(self._program, "taskpool", None)

    @offline_pools()
    def _checked(self, modelpool: BaseModelPool) -> PoolFamily:
        """Return the pool's family, once all that can be seen to fail before loading has been checked."""
        family = family_of(modelpool, self.num_workers)
        checks.modelpool(modelpool)
        checks.save_path(self._program)
        family.check()
        checks.taskpool(self._taskpool, family)
        processes = FabricProcesses(self.fabric)
        if self.artifact is None:
            checks.split(modelpool, self.adapt_split)
            require_free(self._run_dir("tinting"), processes)
        else:
            Manifest.read(path_of("artifact", self.artifact))
        if self.log_dir is not None:
            self.log_hyperparams()
        return family

    def _apply(self, family: PoolFamily, artifact: Path) -> TintedModel:
        log.info(f"Applying {artifact}: its own settings count, the method's are not used.")
        learned_in_half = Manifest.read(artifact).precision == TRUE_HALF
        kinds: list[Any] = [{PRETRAINED: family.pretrained}, family.experts, family.heads]
        if learned_in_half:
            kinds = list(map(FabricProcesses(self.fabric).fit, kinds))
        base, experts, heads = kinds
        return family.model_class.load(
            artifact,
            pretrained=base[PRETRAINED],
            experts=experts,
            heads=heads,
            tensor_names=family.tensor_names,
        )

    def _adapt(self, family: PoolFamily) -> TintedModel:
        unlabeled, aside = self._unlabeled(family), {}
        if not isinstance(self._taskpool, TintedEvaluation):
            unlabeled, aside = keep_aside(unlabeled, self.settings["seed"])
        run_dir = self._run_dir("tinting")
        model = self._tint(family, unlabeled, run_dir, on_step=self._log_step)
        processes = FabricProcesses(self.fabric)
        if processes.rank == 0:
            log.info(f"Coefficients, tints and curves are in {run_dir}.")
        if aside:
            self._show_agreement(model, family, {"inputs used": unlabeled, "kept aside": aside}, processes)
        self.fabric.barrier()
        return model

    def _unlabeled(self, family: PoolFamily) -> dict[str, Unlabeled]:
        return {task: family.unlabeled(task, self.adapt_split) for task in family.tasks}

    def _tint(
        self,
        family: PoolFamily,
        unlabeled: Mapping[str, Unlabeled],
        run_dir: Path,
        *,
        base: nn.Module | None = None,
        on_step: Callable[[int, History], None] | None = None,
        **changes: Any,
    ) -> TintedModel:
        """Adapt the experts whose inputs are given.

        Args:
            family: the model pool's.
            unlabeled: task -> what teaches it.
            run_dir: of this adaptation.
            base: another encoder than θ₀ to merge onto.
            on_step: called with (step, history) after every iteration.
            **changes: of the settings.
        """
        tasks, pool = list(unlabeled), family.pool
        debug = {"steps": 1} if self.is_debug_mode else {}
        processes = FabricProcesses(self.fabric)
        start = family.pretrained if base is None else base
        models: dict[str, Any] = {
            "pretrained": processes.fit({PRETRAINED: start})[PRETRAINED],
            "experts": processes.fit(Reordered(family.experts, tasks)),
            "heads": processes.fit({task: family.heads[task] for task in tasks}),
        }
        model = tint(
            **models,
            unlabeled=unlabeled,
            run_dir=run_dir,
            processes=processes,
            on_step=on_step,
            info=RunInfo(
                split=self.adapt_split,
                ids={n: model_id(pool, n) for n in (*tasks, *([PRETRAINED] if base is None else []))},
                tensor_names=family.tensor_names or {},
            ),
            model_class=family.model_class,
            **family.family.settings({**self.settings, **changes, **debug}, tasks),
        )
        if processes.rank == 0:
            plots.write_pictures(model, run_dir)
        if processes.shards:  # whole again, for task pools run it as often as they like
            self.fabric.barrier()
            model = family.model_class.load(run_dir, **models, tensor_names=family.tensor_names)
            model = model.to(processes.device)
        return model

    def _show_agreement(
        self,
        model: TintedModel,
        family: PoolFamily,
        columns: Mapping[str, Mapping[str, Unlabeled]],
        processes: FabricProcesses,
    ) -> None:
        table = tables.agreement_table(
            model, family.experts, family.heads, columns, self.adapt_split, processes
        )
        if processes.rank == 0:
            tables.show(table)

    @property
    def _log_folder(self) -> Path:
        return Path(self.log_dir or get_hydra_output_dir() or ".")

    def _run_dir(self, name: str) -> Path:
        return path_of("run_dir", self.fabric.broadcast(str(self.run_dir or self._log_folder / name)))

    def _log_step(self, step: int, history: History) -> None:
        loss, agreed, kept, _ = history.values[step].mean(0).tolist()
        metrics = {"train/loss": loss, "train/agreement": agreed, "train/kept": kept}
        for task, value in zip(history.tasks, history.agreement[step].tolist(), strict=True):
            metrics[f"train/agreement/{task}"] = value
        self.log_dict(metrics, step=step)


def keep_aside(unlabeled: Mapping[str, Unlabeled], seed: int) -> tuple[dict, dict]:
    """Split each task's samples into those that teach and a tenth (at least one) kept aside."""
    used, aside = {}, {}
    for task, inputs in unlabeled.items():
        rows = split_aside(task, len(inputs), round(KEPT_ASIDE * len(inputs)), seed)
        used[task], aside[task] = (inputs.subset(part.tolist()) for part in rows)
    return used, aside
