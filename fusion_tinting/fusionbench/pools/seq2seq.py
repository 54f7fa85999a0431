"""Sequence-to-sequence models: FusionBench's `Seq2SeqLMPool`, of Flan-T5 on GLUE."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from datasets import Dataset
from fusion_bench.modelpool import Seq2SeqLMPool
from fusion_bench.tasks.flan_t5_text_generation.glue_prompt_templates import glue_prompt_templates
from torch import nn

from fusion_tinting.errors import unknown
from fusion_tinting.families import seq2seq
from fusion_tinting.families.family import Models
from fusion_tinting.families.rows import Rows
from fusion_tinting.fusionbench.pools.text_classification import TextClassifierPool
from fusion_tinting.method.task_vectors import PRETRAINED

TEXT_LENGTH = 512
"""Tokens of a prompt, as FusionBench cuts them, or the tokenizer's `model_max_length` if that is less."""


class Seq2SeqModelPool(Seq2SeqLMPool):
    """FusionBench's pool, saving a model as `from_pretrained` reads it, a tinted one with its artifact."""

    def save_model(self, model: nn.Module, path: str, *args: Any, **kwargs: Any) -> None:
        """Save a merged or a tinted model: a folder."""
        model.save_pretrained(path, **kwargs)


class Seq2SeqFamily(TextClassifierPool):
    """Language models that answer as text classifiers: GLUE in FusionBench's prompts.

    Tasks have the names of FusionBench's templates (`cola`, or `glue-cola`); data sets are GLUE's own, not
    tokenized. An expert is a checkpoint, or a LoRA adapter that FusionBench's `load_lora_model` merges into
    its base.
    """

    name: ClassVar[str] = "seq2seq"

    def models(self) -> Models:
        """Return folders or hub ids, of which the pool loads LoRA adapters itself."""
        return replace(super().models(), load=self._load_lora)

    def path(self, name: str) -> str:
        """Return the folder or hub id of a model; of a LoRA adapter the base's."""
        return str(self.named(name)["base_model_path"]) if self._is_lora(name) else super().path(name)

    def changes(self, name: str) -> Mapping[str, Any]:
        """Return as many labels as a task has classes, or one for a rating, as of a classifier."""
        if name == PRETRAINED:
            return {}
        written = self.template(name)["target_text"]
        return {"num_labels": 1 if isinstance(written, str) else len(written)}

    def check(self) -> None:
        """Refuse what the family does; texts with more tokens than it has positions are cut."""
        self.family.check()

    def template(self, task: str) -> Mapping:
        """Return FusionBench's prompt and answers of a task.

        Args:
            task: the expert's name.

        Raises:
            ValueError: a task for which it has none.
        """
        name = task.removeprefix("glue-")
        if name not in glue_prompt_templates:
            raise unknown("task, for which FusionBench has no prompt,", task, glue_prompt_templates)
        return glue_prompt_templates[name]

    def rows(self, task: str, dataset: Dataset, where: str) -> Rows:
        """Return the prompts of a data set's rows."""
        prompts = seq2seq.prompts(self.template(task), dataset, where)
        length = min(self.family.tokenizer.model_max_length, TEXT_LENGTH)
        return Rows(Dataset.from_dict({"prompt": prompts}), where, {"text": "prompt"}, length)

    def _is_lora(self, name: str) -> bool:
        return "peft_model_path" in self.named(name)

    def _load_lora(self, name: str) -> nn.Module | None:
        return self.opened(name).float().eval() if self._is_lora(name) else None
