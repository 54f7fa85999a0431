"""A base as it was published, without the classifier's prefix, or with another head of its own."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DistilBertConfig,
    ElectraConfig,
)

from fusion_tinting.families import family_class
from fusion_tinting.families.family import Models

pytestmark = pytest.mark.quick

CONFIGS = {
    "electra": ElectraConfig(
        vocab_size=20, embedding_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=16),
    "distilbert": DistilBertConfig(
        vocab_size=20, dim=8, hidden_dim=8, n_layers=1, n_heads=2, max_position_embeddings=16),
}  # fmt: skip
KINDS = {
    "sequence_classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
}


class Tokenizer:
    """As much of one as loading asks for."""

    pad_token, pad_token_id, padding_side = "[PAD]", 0, "right"


@pytest.mark.parametrize("base", [AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_backbone_of_any_base_is_merged_and_its_head_left(tmp_path, name, kind, base):
    torch.manual_seed(0)
    config = CONFIGS[name]
    published = base.from_config(config)
    published.save_pretrained(tmp_path / "base")
    KINDS[kind].from_config(type(config)(**config.to_diff_dict(), num_labels=5)).save_pretrained(
        tmp_path / "expert"
    )
    models = Models(str(tmp_path / "base"), {"task": str(tmp_path / "expert")}, reader=Tokenizer())
    family = family_class(kind)(models)
    family.load()
    merged = family.pretrained.backbone.state_dict()
    backbone = getattr(published, published.base_model_prefix, published).state_dict()
    assert merged.keys() == backbone.keys() == family.experts["task"].backbone.state_dict().keys()
    assert all(torch.equal(tensor, backbone[name]) for name, tensor in merged.items())
    assert any(len(tensor) == 5 for tensor in family.heads["task"].parameters())


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_threads_that_ask_one_head_get_their_own_answers(tmp_path, name, kind):
    torch.manual_seed(0)
    config = type(CONFIGS[name])(**CONFIGS[name].to_diff_dict(), num_labels=3)
    KINDS[kind].from_config(config).save_pretrained(tmp_path)
    family = family_class(kind)(Models(str(tmp_path), {"task": str(tmp_path)}, reader=Tokenizer()))
    family.load()
    extra = {"words": torch.arange(4)[None]} if kind == "token_classification" else {}
    tokens = [torch.full((1, 4), token) for token in range(1, 9)]
    head = family.heads["task"].eval().requires_grad_(False)
    features = [
        family.pretrained(input_ids=ids, attention_mask=torch.ones_like(ids), **extra) for ids in tokens
    ]
    alone = [head(one) for one in features]
    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(head, features * 200))
    assert all(torch.equal(logits, alone[place % 8]) for place, logits in enumerate(together))
    assert len({tuple(logits.flatten().tolist()) for logits in alone}) == 8
