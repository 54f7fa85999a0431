"""A CLIP task pool that evaluates a tinted model task by task, and any other model as before."""

import atexit
from pathlib import Path

import torch
from fusion_bench.taskpool import CLIPVisionModelTaskPool
from fusion_bench.tasks.clip_classification import get_num_classes
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from torch import Tensor, nn

from fusion_tinting.families.clip import TintedCLIP
from fusion_tinting.files import write_json
from fusion_tinting.reporting.tables import accuracy_table, show
from fusion_tinting.unlabeled import InMemory


class TintedCLIPVisionModelTaskPool(CLIPVisionModelTaskPool):
    """FusionBench's `CLIPVisionModelTaskPool` for tinted and for plain models.

    A plain model is evaluated by the stock class, to the same figures. A tinted model is evaluated with
    each task's own tint and head; its report keeps the stock layout, and one more key, `baselines`,
    holds the accuracies of the pre-trained model, of each expert on its own task and of Task
    Arithmetic at the initial λ, which the closing table shows beside it.

    Args:
        baselines: whether to evaluate those too (three more passes over the test sets).
        in_memory: whether to keep preprocessed inputs in memory between passes; for small pools
            with `dataloader_kwargs.num_workers=0`.
        **kwargs: as the stock class.
    """

    def __init__(self, *args, baselines: bool = True, in_memory: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.baselines, self.in_memory = baselines, in_memory

    def setup(self) -> None:
        """As the stock class; called on first use."""
        super().setup()
        if self.in_memory:
            for name, dataset in self.test_datasets.items():
                loader = torch.utils.data.DataLoader(InMemory(dataset), **self._dataloader_kwargs)
                self.test_dataloaders[name] = self.fabric.setup_dataloaders(loader)

    def evaluate(self, model: nn.Module, name: str | None = None, **kwargs) -> dict:
        """The stock report of `model`; for a tinted model with `baselines`, and a closing table."""
        report = super().evaluate(model, name=name, **kwargs)
        if isinstance(model, TintedCLIP):
            report["model_info"]["adapt_split"] = model.info.get("split")
            if self.baselines:
                report["baselines"] = self._baselines(model)
            if self.fabric.is_global_zero:
                self._write(report)
                self._show(report, model)
        return report

    def _evaluate(self, classifier, test_loader, num_classes, task_name=None) -> dict:
        model = classifier.clip_model.vision_model
        if isinstance(model, TintedCLIP):
            classifier = _TaskClassifier(model, task_name)
        return super()._evaluate(classifier, test_loader, num_classes, task_name=task_name)

    def _baselines(self, model: TintedCLIP) -> dict:
        """Name -> {task: accuracy}; all are merges of the same task vectors, with the original heads."""
        init = model.info["settings"]["init"]
        shared = {"pretrained": model.remerged(0.0), "task_arithmetic": model.remerged(init)}
        found = {
            name: {task: self._accuracy(baseline, task) for task in self.test_dataloaders}
            for name, baseline in shared.items()
        }
        experts = {t: self._accuracy(model.remerged(t), t) for t in self.test_dataloaders}
        return {**found, "expert": experts}

    def _accuracy(self, model: TintedCLIP, task: str) -> float:
        classifier = _TaskClassifier(self.fabric.to_device(model), task)
        loader = self.test_dataloaders[task]
        result = super()._evaluate(classifier, loader, get_num_classes(task), task_name=task)
        return result["accuracy"]

    def _write(self, report: dict) -> None:
        """Complete the file that the stock class has just written."""
        if self.log_dir is not None:
            written = Path(self.log_dir).glob("report*.json")
            write_json(max(written, key=lambda path: path.stat().st_mtime_ns), report)

    def _show(self, report: dict, model: TintedCLIP) -> None:
        """Log the accuracies and show the closing table."""
        scores = {t: report[t]["accuracy"] for t in [*model.tasks, "average"] if t in report}
        self.log_dict({f"test/{task}/accuracy": value for task, value in scores.items()})
        for name, values in report.get("baselines", {}).items():
            self.log_dict({f"test/{task}/{name}": value for task, value in values.items()})
        table = accuracy_table(report, model)
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.RUN:
            atexit.register(show, table)  # after the report that the command prints, as the last word
        else:
            show(table)


class _TaskClassifier(nn.Module):
    """One task of a tinted model, called as FusionBench calls its `HFCLIPClassifier`."""

    def __init__(self, model: TintedCLIP, task: str):
        super().__init__()
        self.model, self.task = model, task

    def forward(self, images: Tensor, **_) -> dict[str, Tensor]:
        return {"logits": self.model(images, self.task)}
