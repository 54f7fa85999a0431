"""Sentence encoders: a pool like FusionBench's of text classifiers, which lacks one for them."""

from typing import ClassVar

from fusion_bench.modelpool import SequenceClassificationModelPool

from fusion_tinting.fusionbench.pools.text_classification import TextClassifierPool


class SentenceEmbeddingModelPool(SequenceClassificationModelPool):
    """A pool of `AutoModel` encoders, in the files of sentence-transformers or without."""


class SentenceEncoderPool(TextClassifierPool):
    """A data set has its texts in its only column of strings.

    FusionBench has no task pool for these: a run ends with the cosine similarity to the experts' vectors on
    texts kept aside.
    """

    name: ClassVar[str] = "sentence_embedding"
    texts: ClassVar[tuple[int, ...]] = (1,)
