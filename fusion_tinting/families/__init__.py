"""Model families: one file for each kind of models, read by both hosts. See README.md beside this file."""

import importlib
from typing import TYPE_CHECKING

from fusion_tinting.errors import unknown

if TYPE_CHECKING:
    from fusion_tinting.families.family import Family

FAMILIES = {
    "sequence_classification": "sequence_classification:SequenceClassification",
    "token_classification": "token_classification:TokenClassification",
    "sentence_embedding": "sentence_embedding:SentenceEmbedding",
    "causal_lm": "causal_lm:CausalLM",
    "seq2seq": "seq2seq:Seq2Seq",
    "image_classification": "image_classification:ImageClassification",
    "clip": "clip:Clip",
    "open_clip": "open_clip:OpenClip",
    "dense": "dense:Dense",
}
"""Name -> the module in this package and its class; imported on first use."""

ENDINGS = {
    "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
    "ForCausalLM": "causal_lm",
    "LMHeadModel": "causal_lm",
    "T5ForConditionalGeneration": "seq2seq",
    "BartForConditionalGeneration": "seq2seq",
    "PegasusForConditionalGeneration": "seq2seq",
    "M2M100ForConditionalGeneration": "seq2seq",
    "MarianMTModel": "seq2seq",
    "ForImageClassification": "image_classification",
    "CLIPModel": "clip",
    "CLIPVisionModel": "clip",
    "CLIPVisionModelWithProjection": "clip",
    "Model": "sentence_embedding",
}
"""Ending of an architecture of transformers -> its family; the first that fits counts."""


def family_class(name: str) -> "type[Family]":
    """Return the class of a family.

    Args:
        name: one of `FAMILIES`.

    Raises:
        ValueError: an unknown name.
    """
    if name not in FAMILIES:
        raise unknown("family", name, FAMILIES)
    module, _, attribute = FAMILIES[name].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def family_of_architecture(architecture: str) -> str | None:
    """Return the name of the family of an architecture of transformers; None where none handles it.

    Args:
        architecture: such as `RobertaForSequenceClassification`.
    """
    return next((family for ending, family in ENDINGS.items() if architecture.endswith(ending)), None)
