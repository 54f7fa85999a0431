"""Text classifiers of transformers (BERT, RoBERTa, DistilBERT, DeBERTa, GPT-2, Llama...): features, heads.

Such a model is a backbone and the rest, which pools and classifies in each architecture's own way. The rest
is run as it is, with a stand-in that gives back what the backbone has computed: none needs code here.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from fusion_tinting.families.family import BY_FILE
from fusion_tinting.families.labels import names_of
from fusion_tinting.families.loading import load_partly, objectives_of, require_complete
from fusion_tinting.families.rows import Rows
from fusion_tinting.families.stored import in_files
from fusion_tinting.families.texts import TextFamily, readable, tokenized
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.method.tints import view
from fusion_tinting.run.experts import LoadedExperts
from fusion_tinting.run.unlabeled import Unlabeled


class Features(NamedTuple):
    """What a head reads: the backbone's output and the tokens it came from."""

    output: Any
    inputs: Mapping[str, Tensor]


class TextEncoder(nn.Module):
    """Tokens (keyword arguments) -> `Features`."""

    def __init__(self, backbone: PreTrainedModel):
        super().__init__()
        self.backbone = backbone

    def forward(self, **inputs: Tensor) -> Features:
        """Run the backbone."""
        return Features(self.backbone(**inputs), inputs)


class TextHead(nn.Module):
    """`Features` -> logits (B, labels): the whole model but its backbone.

    Args:
        rest: the model, with a stand-in in its backbone's place.
        pooler: the backbone's, where it belongs to the head; see `split`.
    """

    def __init__(self, rest: PreTrainedModel, pooler: nn.Module | None = None):
        super().__init__()
        self.rest, self.pooler = rest, pooler

    def forward(self, features: Features) -> Tensor:
        """Run the rest of the model on what its backbone has computed."""
        output = features.output
        if self.pooler is not None:
            output = type(output)(**{**output, "pooler_output": self.pooler(output.last_hidden_state)})
        with view(self.rest, self.rest.base_model_prefix, _StandIn(output)) as rest:
            logits: Tensor = rest(**features.inputs).logits
        return logits


class _StandIn(nn.Module):
    """Gives what it was made with; within a head, nothing."""

    def __init__(self, output: Any = None):
        super().__init__()
        self.output = output

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.output


class Backbones(TextFamily):
    """Text models whose backbones are merged, as files."""

    keys: ClassVar[tuple[str, ...]] = ("text", "text_pair", "max_length", "label")
    recipes = BY_FILE

    def inputs(self, task: str, rows: Rows) -> Unlabeled:
        """Return the tokens of texts, or of pairs; batches are padded to their longest."""
        columns = [rows.texts("text"), rows.texts("text_pair")]
        given = [column for column in columns if column is not None]
        length = readable(self.configs[PRETRAINED], rows.max_length)
        return tokenized(self.tokenizer, given, length, rows.where)

    @staticmethod
    def parameter_of(name: str, prefix: str) -> str:
        """Return what `TextEncoder` calls a tensor."""
        return f"backbone.{name.removeprefix(prefix)}"


class SequenceClassification(Backbones):
    """A task's head is its expert's, whatever its width. A single output is a number.

    The base may also be a bare backbone or a masked language model.

    Class attributes:
        auto: of transformers, which loads such a model.
    """

    auto: ClassVar[type] = AutoModelForSequenceClassification

    def load(self) -> None:
        """Load the pre-trained backbone and every expert once, for its head."""
        base, self.heads, self.names = load(self.models.base, self.auto, base_of=True), {}, {}
        pooled = has_pooler(base)
        for task in self.models.tasks:
            model = self.classifier(task)
            self.names |= names_on_disk(model, pooled)
            _, self.heads[task] = self.split(model, pooled)
        self.experts = LoadedExperts(
            self.models.tasks,
            lambda task: self.split(self.classifier(task), pooled)[0],
            in_files(self, self.auto.from_config),
        )
        self.pretrained, _ = self.split(base)

    @staticmethod
    def split(model: PreTrainedModel, pooled: bool = True) -> tuple[TextEncoder, TextHead]:
        """Split a model into its backbone and the rest; see the function."""
        return split(model, pooled)

    def classifier(self, task: str) -> PreTrainedModel:
        """Load a task's expert, whole."""
        return load(self.models.experts[task], self.auto, pad_token_id=self.tokenizer.pad_token_id)

    @property
    def objectives(self) -> Mapping[str, str]:
        """Of several labels or values, by the expert's `problem_type`."""
        return objectives_of({task: self.configs[task] for task in self.models.tasks})

    def labels(self, task: str, rows: Rows) -> Tensor | None:
        """Return class indices, or values of a head with one output; of several labels or values (N, C)."""
        config = self.configs[task]
        read = rows.several if task in self.objectives else rows.labels
        return read(config.num_labels, names_of(config))


def load(
    path: str, auto: type, *, base_of: bool = False, pad_token_id: int | None = None
) -> PreTrainedModel:
    """Load a classifier in float32, with dropout off.

    Args:
        path: folder or hub id.
        auto: of transformers, which loads such a classifier.
        base_of: whether only its backbone is wanted, so that a bare or a masked language model will do; a
            pooler that such a model lacks is then None.
        pad_token_id: the tokenizer's, for a model that does not know which text of a batch ends where.

    Raises:
        FileNotFoundError: a model that cannot be reached.
        ValueError: tensors that the checkpoint lacks, named.
    """
    model, missing = load_partly(auto, path, safetensors=None)
    prefix = f"{model.base_model_prefix}."
    missing = [name for name in missing if name.startswith(prefix) or not base_of]
    if base_of and missing and all(name.startswith(f"{prefix}pooler.") for name in missing):
        getattr(model, model.base_model_prefix).pooler, missing = None, []
    require_complete(path, model, missing)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = pad_token_id
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # of keys and values, which only generation needs
    return model


def has_pooler(model: PreTrainedModel) -> bool:
    """Return whether a model's backbone holds a pooler, as BERT's does."""
    return getattr(getattr(model, model.base_model_prefix), "pooler", None) is not None


def split(model: PreTrainedModel, pooled: bool = True) -> tuple[TextEncoder, TextHead]:
    """Split a model into its backbone and the rest; it is of no use by itself afterwards.

    Args:
        model: a classifier.
        pooled: whether a pooler in the backbone is merged with it. It cannot be where the base, a masked
            language model, has none: then every expert's belongs to its head.
    """
    prefix = model.base_model_prefix
    backbone, pooler = getattr(model, prefix), None
    if has_pooler(model) and not pooled:
        pooler, backbone.pooler = backbone.pooler, None
    setattr(model, prefix, _StandIn())
    return TextEncoder(backbone), TextHead(model, pooler)


def names_on_disk(model: PreTrainedModel, pooled: bool = True) -> dict[str, str]:
    """Return name in `TextEncoder`, or `head.` and name in `TextHead` -> tensor name on disk.

    Args:
        model: before `split`.
        pooled: as `split`.
    """
    prefix, names = f"{model.base_model_prefix}.", {}
    for name, tensor in model.state_dict().items():
        (stored,) = revert_weight_conversion(model, {name: tensor})
        short = name.removeprefix(prefix)
        if short == name:
            names[f"head.rest.{name}"] = stored
        elif short.startswith("pooler.") and not pooled:
            names[f"head.{short}"] = stored
        else:
            names[f"backbone.{short}"] = stored
    return names
