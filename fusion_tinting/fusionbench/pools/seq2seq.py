"""Sequence-to-sequence models: FusionBench's `Seq2SeqLMPool`, of Flan-T5 on GLUE."""

from collections.abc import Mapping
from functools import cached_property

from datasets import Dataset
from fusion_bench.compat.taskpool.flan_t5_glue_text_generation import FlanT5GLUETextGenerationTaskPool
from fusion_bench.modelpool import Seq2SeqLMPool
from fusion_bench.tasks.flan_t5_text_generation.glue_prompt_templates import glue_prompt_templates
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from fusion_tinting.errors import unknown
from fusion_tinting.families import causal_lm, texts
from fusion_tinting.families import seq2seq as family
from fusion_tinting.fusionbench.pools.causal_lm import CausalLMFamily
from fusion_tinting.fusionbench.pools.text_classification import TextClassifierPool
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.method.tints import HEAD
from fusion_tinting.run.unlabeled import Unlabeled

TEXT_LENGTH = 512
"""Tokens of a prompt, as FusionBench cuts them, or the tokenizer's `model_max_length` if that is less."""


class Seq2SeqModelPool(Seq2SeqLMPool):
    """FusionBench's pool, saving a model as `from_pretrained` reads it, a tinted one with its artefact."""

    def save_model(self, model: nn.Module, path: str, *args, **kwargs) -> None:
        """Save a merged or a tinted model: a folder."""
        model.save_pretrained(path, **kwargs)


class Seq2SeqFamily(CausalLMFamily, TextClassifierPool):
    """A language model, merged whole, that answers as a text classifier: GLUE in FusionBench's prompts.

    What teaches is the expert's distribution of its answer's first token. Tasks have the names of
    FusionBench's templates (`cola`, or `glue-cola`); data sets are GLUE's own, not tokenised. An expert is
    a checkpoint, or a LoRA adapter that FusionBench's `load_lora_model` merges into its base.
    """

    @property
    def layers(self) -> Mapping[str, str]:
        """`head` is the LM head, `block:<i>` a block of the decoder."""
        model = self.pretrained.model
        blocks = family.decoder_blocks(model)
        named = {f"block:{place}": blocks[place] for place in range(-len(blocks), len(blocks))}
        return {HEAD: causal_lm.head_name(model), **named}

    @cached_property
    def configs(self) -> Mapping[str, PreTrainedConfig]:
        """Model name -> its checkpoint's configuration; of an expert with a label for each class of its
        task, or one for a rating, as a classifier's."""
        experts = {
            task: AutoConfig.from_pretrained(self.path(task), num_labels=self._outputs(task))
            for task in self.tasks
        }
        return {PRETRAINED: AutoConfig.from_pretrained(self.path(PRETRAINED)), **experts}

    def path(self, name: str) -> str:
        """Folder or hub id of a model; of a LoRA adapter the base's.

        Raises:
            ValueError: a model that the pool does not name so.
        """
        return str(self._named(name)["base_model_path"]) if self._is_lora(name) else super().path(name)

    def check_taskpool(self, taskpool) -> None:
        """Refuse the stock task pool; ours checks its labels and metrics.

        Raises:
            ValueError: naming the task.
        """
        if isinstance(taskpool, FlanT5GLUETextGenerationTaskPool):
            raise ValueError(
                f"The task pool {type(taskpool).__name__} would report the shared model alone. Use "
                "`taskpool=flan-t5-base_glue`."
            )
        super().check_taskpool(taskpool)

    def template(self, task: str) -> Mapping:
        """FusionBench's prompt and answers of a task.

        Raises:
            ValueError: a task for which it has none.
        """
        name = task.removeprefix("glue-")
        if name not in glue_prompt_templates:
            raise unknown("task, for which FusionBench has no prompt,", task, glue_prompt_templates)
        return glue_prompt_templates[name]

    unlabeled = TextClassifierPool.unlabeled

    def asked(self, task: str, dataset: Dataset, where: str) -> Unlabeled:
        """The tokens of the prompts of a data set's rows.

        Raises:
            ValueError: see `family.prompts`.
        """
        prompts = family.prompts(self.template(task), dataset, where)
        length = min(self.tokenizer.model_max_length, TEXT_LENGTH)
        return texts.tokenised(self.tokenizer, [prompts], length)

    def _outputs(self, task: str) -> int:
        written = self.template(task)["target_text"]
        return 1 if isinstance(written, str) else len(written)

    def _is_lora(self, name: str) -> bool:
        return "peft_model_path" in self._named(name)

    def _model(self, name: str) -> family.AnsweringModel:
        lora = self._is_lora(name)
        return family.AnsweringModel(
            self.pool.load_model(name).float().eval() if lora else family.load(self.path(name))
        )
