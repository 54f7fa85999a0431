"""A task pool for text classifiers, which FusionBench lacks: GLUE's metrics, tinted and plain models."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import torch
from fusion_bench import RuntimeConstants, instantiate
from scipy import stats
from sklearn import metrics
from torch import Tensor, nn

from fusion_tinting.errors import unknown
from fusion_tinting.families import sequence_classification as family
from fusion_tinting.families.labels import is_labeled
from fusion_tinting.families.rows import Inputs
from fusion_tinting.fusionbench.pools import PoolFamily, family_of, read_data
from fusion_tinting.fusionbench.processes import FabricProcesses
from fusion_tinting.fusionbench.taskpools import TintedEvaluation
from fusion_tinting.fusionbench.taskpools.scored import ScoredTaskPool
from fusion_tinting.method.objectives import l1, sigmoid
from fusion_tinting.reporting.tables import ACCURACY, Metric
from fusion_tinting.run.experts import predict
from fusion_tinting.run.tinted_model import OneTask, TintedModel


class Score(NamedTuple):
    """A metric and how it is computed.

    Attributes:
        of: (labels, predictions) -> the score: (N,) a class, or of a single output its value; of several
            labels or values at once (N, C).
        outputs: whether it can be had of a head with so many outputs.
    """

    metric: Metric
    of: Callable[[Tensor, Tensor], float]
    outputs: Callable[[int], bool]


def _correlation(kind: Callable) -> Callable[[Tensor, Tensor], float]:
    """Return a correlation, the mean over several values; 0 where predictions are all the same."""

    def of(labels: Tensor, values: Tensor) -> float:
        pairs = list(zip(labels.reshape(len(labels), -1).T, values.reshape(len(values), -1).T, strict=True))
        found = [0.0 if len(v.unique()) == 1 else float(kind(k, v).statistic) for k, v in pairs]
        return sum(found) / len(found)

    return of


SCORES = {
    "accuracy": Score(ACCURACY, metrics.accuracy_score, lambda outputs: outputs > 1),
    "f1": Score(Metric("f1", "F1 %"), metrics.f1_score, lambda outputs: outputs == 2),
    "matthews": Score(
        Metric("matthews", "Matthews %"), metrics.matthews_corrcoef, lambda outputs: outputs > 1
    ),
    "pearson": Score(
        Metric("pearson", "Pearson %"), _correlation(stats.pearsonr), lambda outputs: outputs == 1
    ),
    "spearman": Score(
        Metric("spearman", "Spearman %"), _correlation(stats.spearmanr), lambda outputs: outputs == 1
    ),
}
"""Name -> score; computed by the functions of scikit-learn and SciPy that GLUE's own script uses."""

LABEL_SCORES = {
    "label_accuracy": Score(
        Metric("label_accuracy", "labels right %"),
        lambda labels, told: 1 - metrics.hamming_loss(labels, told),
        lambda _: True,
    ),
    "label_f1": Score(
        Metric("label_f1", "micro F1 %"), partial(metrics.f1_score, average="micro"), lambda _: True
    ),
}
"""The same of several labels at once."""
ALL_SCORES = {**SCORES, **LABEL_SCORES}


def fitting(outputs: int, objective: str | None) -> list[str]:
    """Return the names of the scores that a task can have.

    Args:
        outputs: of its head.
        objective: by which its expert teaches, where that is not the run's.
    """
    if objective == sigmoid.name:
        return list(LABEL_SCORES)
    counted = 1 if objective == l1.name else outputs
    return [name for name, score in SCORES.items() if score.outputs(counted)]


class _TextTaskPool(ScoredTaskPool):
    """The test data, and whether a task can be scored."""

    _config_mapping = ScoredTaskPool._config_mapping | {"metrics": "metrics"}

    def __init__(self, test_datasets: Mapping, metrics: Mapping[str, Sequence[str]], **kwargs: Any):
        super().__init__(test_datasets, **kwargs)
        self.metrics = {task: [one] if isinstance(one, str) else one for task, one in metrics.items()}
        self._inputs: dict[str, Inputs] = {}
        self._meanings: dict[str, Tensor] = {}

    def prepare(self, models: PoolFamily) -> None:
        """Read the test data, once every task is known to be one that can be scored.

        Args:
            models: the model pool's.

        Raises:
            ValueError: a task without metric, labels, or an expert whose head can tell them.
        """
        for task in self._test_datasets:
            named = self.metrics.get(task)
            if not named:
                raise ValueError(
                    f"The task `{task}` has no metric. Name them, the one that counts first, in "
                    f"`taskpool.metrics.{task}`: a list of {list(ALL_SCORES)}."
                )
            for name in named:
                if name not in ALL_SCORES:
                    raise unknown(f"metric of `{task}`", name, ALL_SCORES)
            if task not in models.tasks:
                raise ValueError(
                    f"The task pool evaluates `{task}`, for which the model pool has no expert, and so no "
                    f"head. Its tasks must be among {models.tasks}."
                )
            outputs = models.family.configs[task].num_labels
            self._load(task, models)
            fit = fitting(outputs, models.family.objectives.get(task))
            if unfit := [name for name in named if name not in fit]:
                raise ValueError(
                    f"`{task}` has a head with {outputs} output(s), which {unfit} do not measure. {fit} do."
                )

    def evaluate(self, model: nn.Module, *args: Any, **kwargs: Any) -> dict:
        """Return the report of a model."""
        if not self._inputs:
            self.prepare(self._models)
        return super().evaluate(model, *args, **kwargs)

    def summary(self, scores: Mapping[str, Mapping[str, float]]) -> dict:
        """Return the mean of the tasks' first metrics, as GLUE's own table has it."""
        values = [scores[task][self.metrics[task][0]] for task in scores]
        return {"average": {"score": sum(values) / len(values)}}

    @cached_property
    def _models(self) -> PoolFamily:
        return family_of(self._program.modelpool)

    def _load(self, task: str, models: PoolFamily) -> None:
        """Read inputs and labels of a task, and what each output means: a class."""
        where = f"the test data of `{task}`"
        dataset = read_data(instantiate, self._test_datasets[task], where)
        labels, order = models.labels(task, dataset)
        unlabeled = models.family.inputs(task, models.rows(task, dataset, where))
        kept = is_labeled(labels).reshape(len(labels), -1).all(1).nonzero().flatten()
        if len(kept) < len(labels):
            unlabeled, labels = unlabeled.subset(kept.tolist()), labels[kept]
        if RuntimeConstants.debug:  # fast_dev_run: one batch
            unlabeled, labels = unlabeled.subset(range(min(32, len(labels)))), labels[:32]
        self._inputs[task], self._meanings[task] = Inputs(unlabeled, labels), torch.tensor(order).argsort()

    def _scores(self, task: str, output: Tensor) -> dict[str, float]:
        """Return metric -> value, of outputs of which the largest is taken, or of values or labels."""
        labels, objective = self._inputs[task].labels, self._models.family.objectives.get(task)
        if objective is None:
            predicted = output[:, 0] if output.shape[1] == 1 else self._meanings[task][output.argmax(1)]
        else:
            predicted = (output > 0).float() if objective == sigmoid.name else output
        return {name: float(ALL_SCORES[name].of(labels, predicted)) for name in self.metrics[task]}


class TextClassificationTaskPool(TintedEvaluation, _TextTaskPool):
    """Scores every task of a tinted model with its tint, and of a plain model with the expert's head.

    A plain model is a merged backbone, or a classifier, of which the backbone counts.

    The report is laid out as FusionBench's: `model_info`, task -> metric -> value, and under `average` the
    mean of the tasks' first metrics as `score`, as GLUE's own table has it.

    Args:
        test_datasets: task -> data set.
        metrics: task -> names of its metrics, of `ALL_SCORES`; the first one counts.
        baselines: as `TintedEvaluation`.
    """

    scored: ClassVar[str] = "sequence_classification"

    def check(self, models: PoolFamily) -> None:
        """Refuse a task without metric, labels, or an expert whose head can tell them."""
        self.prepare(models)

    def score(self, model: nn.Module, task: str) -> dict:
        """Metric -> value of one task."""
        inputs = self._inputs[task]
        if isinstance(model, TintedModel):
            encoder, head = OneTask(model, task), nn.Identity()
        else:
            classifier = self._models.family.classifier(task)
            encoder = family.TextEncoder(getattr(model, classifier.base_model_prefix, model))
            _, head = family.split(classifier, family.has_pooler(classifier))
        output = predict(encoder, head, inputs.unlabeled, processes=FabricProcesses(self.fabric))
        return self._scores(task, output)

    def metric(self, task: str) -> Metric:
        """Return the first of a task's metrics."""
        return ALL_SCORES[self.metrics[task][0]].metric
