"""A task pool for models that answer in words: GLUE's metrics of Flan-T5, tinted and plain."""

from typing import ClassVar

import torch
from torch import nn

from fusion_tinting.families import seq2seq as family
from fusion_tinting.fusionbench.pools.seq2seq import Seq2SeqFamily
from fusion_tinting.fusionbench.processes import FabricProcesses
from fusion_tinting.fusionbench.taskpools.text_classification import TextClassificationTaskPool
from fusion_tinting.run.experts import predict
from fusion_tinting.run.tinted_model import OneTask, TintedModel


class AnswerTaskPool(TextClassificationTaskPool):
    """Scores every task of a tinted model with its tint, and of a plain sequence-to-sequence model.

    What a model says is the likeliest of its task's answers, each taken whole, by its log-likelihood; of
    STS-B one of the ratings `0.0` to `5.0`. FusionBench's own task pool generates up to ten tokens and
    counts as right the text that is exactly the answer, and as 0 a rating that is no number. The two differ
    where a model would say something else, and has to choose here.

    Report and arguments as `TextClassificationTaskPool`. FusionBench counts the accuracy in all classes and
    Spearman's correlation of STS-B: they come first in our configuration, beside GLUE's own metrics.
    """

    scored: ClassVar[str] = "seq2seq"

    def _load(self, task: str, models: Seq2SeqFamily) -> None:
        """Read inputs and labels of a task, and what each answer means: a class or a rating."""
        super()._load(task, models)
        inputs, answers = self._inputs[task], family.answers(models.template(task))
        asked = family.with_answers(inputs.unlabeled, models.family.tokenizer, list(answers))
        self._inputs[task] = inputs._replace(unlabeled=asked)
        self._meanings[task] = torch.tensor(list(answers.values()))

    def score(self, model: nn.Module, task: str) -> dict:
        """Metric -> value of one task."""
        answering = OneTask(model, task) if isinstance(model, TintedModel) else family.AnsweringModel(model)
        processes = FabricProcesses(self.fabric)
        unlabeled = self._inputs[task].unlabeled
        return self._scores(task, predict(answering, nn.Identity(), unlabeled, processes=processes))
