"""Every family whose experts are safetensors: read from their files, they teach and merge as in memory."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoModel,
    BartConfig,
    BartForConditionalGeneration,
    BatchEncoding,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import fusion_tinting as ft
from fusion_tinting.families import family_class
from fusion_tinting.families.family import Classes, Models
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.run.storage import stored_files

pytestmark = pytest.mark.quick
TASKS = ["cats", "dogs"]
SIZE = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = BertConfig(vocab_size=30, max_position_embeddings=16, **SIZE)
ROBERTA = RobertaConfig(vocab_size=30, max_position_embeddings=16, type_vocab_size=1, **SIZE)
LLAMA = LlamaConfig(vocab_size=30, max_position_embeddings=16, tie_word_embeddings=True, **SIZE)
VIT = ViTConfig(image_size=16, patch_size=8, num_labels=3, **SIZE)
RESNET = ResNetConfig(
    embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3
)
T5 = T5Config(
    vocab_size=30, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, decoder_start_token_id=0
)
BART = BartConfig(
    vocab_size=30, d_model=8, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=12, decoder_ffn_dim=12,
    encoder_attention_heads=2, decoder_attention_heads=2,
)  # fmt: skip
CLIP = CLIPConfig(
    text_config={**SIZE, "vocab_size": 30, "max_position_embeddings": 16, "eos_token_id": 2},
    vision_config={**SIZE, "image_size": 16, "patch_size": 8}, projection_dim=8,
)  # fmt: skip


def pixels() -> list:
    return [torch.rand(4, 3, 16, 16) for _ in range(3)]


def tokens() -> list:
    ids = [torch.randint(3, 30, (4, 8)) for _ in range(3)]
    return [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in ids]


def words() -> list:
    return [{**batch, "words": torch.arange(8).expand(4, 8)} for batch in tokens()]


class Reader:
    """CLIP's processor, of any text."""

    def __call__(self, text, **_):
        ids = [[3 + len(each) % 20, 4, 2] for each in text]
        return BatchEncoding({"input_ids": torch.tensor(ids)})


TOKENIZER = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>")),
    pad_token="<pad>", eos_token="</s>",
)  # fmt: skip

CASES = {
    "sequence classification": (
        "sequence_classification", RobertaForMaskedLM, RobertaForSequenceClassification, ROBERTA, tokens,
        "block:-1",
    ),
    "a bare base": (
        "sequence_classification", BertModel, BertForSequenceClassification, BERT, tokens, "head",
    ),
    "token classification": (
        "token_classification", BertForTokenClassification, BertForTokenClassification, BERT, words, "head",
    ),
    "sentence embedding": ("sentence_embedding", BertModel, BertModel, BERT, tokens, "block:0"),
    "images": (
        "image_classification", ViTForImageClassification, ViTForImageClassification, VIT, pixels,
        "block:-1",
    ),
    "batch norms": (
        "image_classification", ResNetForImageClassification, ResNetForImageClassification, RESNET, pixels,
        "head",
    ),
    "T5": ("seq2seq", T5ForConditionalGeneration, T5ForConditionalGeneration, T5, tokens, "block:-1"),
    "a bias of the logits": (
        "seq2seq", BartForConditionalGeneration, BartForConditionalGeneration, BART, tokens, "head",
    ),
    "CLIP": ("clip", CLIPModel, CLIPModel, CLIP, pixels, "head"),
    "a language model": ("causal_lm", LlamaForCausalLM, LlamaForCausalLM, LLAMA, None, "block:0"),
}  # fmt: skip


def written(folder: Path, base: type, expert: type, config, **how) -> dict[str, str]:
    """Write a base and experts with noise, and return their folders."""
    torch.manual_seed(0)
    models = {PRETRAINED: base(config)}
    models[PRETRAINED].save_pretrained(folder / PRETRAINED, **how)
    for task in TASKS:
        models[task] = expert.from_pretrained(folder / PRETRAINED)
        for name, tensor in models[task].state_dict().items():
            if tensor.is_floating_point():  # batch norms' statistics and biases of logits too
                tensor += 0.1 * (torch.rand_like(tensor) if "var" in name else torch.randn_like(tensor))
        if isinstance(models[task], CLIPModel):
            models[task] = models[task].vision_model
        models[task].save_pretrained(folder / task, **how)
    return {name: str(folder / name) for name in models}


def loaded(kind: str, paths: dict[str, str]):
    """Return a family with its models."""
    rest = {task: path for task, path in paths.items() if task != PRETRAINED}
    classes = dict.fromkeys(TASKS, Classes(["a", "of b", "of them c"], [str]))
    reader = Reader() if kind == "clip" else TOKENIZER
    family = family_class(kind)(Models(paths[PRETRAINED], rest, reader=reader, classes=classes))
    family.load()
    return family


def learned(kind: str, paths: dict[str, str], make, layer: str, storage: str) -> ft.TintedModel:
    torch.manual_seed(1)
    family = loaded(kind, paths)
    batches = make() if make else [torch.randint(3, 30, (4, 8)) for _ in range(3)]
    # The order in which gradients are contracted counts for the last bit.
    options = {"storage": storage, "gradients": "arriving"}
    settings = {"sampler": "all", "layer": layer, "steps": 3, "batch_size": 4, "task_vectors": options}
    return ft.tint(
        family.pretrained,
        experts=family.experts,
        heads=family.heads,
        unlabeled=dict.fromkeys(TASKS, batches),
        model_class=family.model_class,
        progress=False,
        **family.settings(settings),
    )


def require_equal(one: ft.TintedModel, other: ft.TintedModel) -> None:
    assert torch.equal(one.history.loss, other.history.loss)
    assert one.coefficients.keys() == other.coefficients.keys()
    assert all(torch.equal(row, other.coefficients[name]) for name, row in one.coefficients.items())
    assert any((row != 0.3).any() for row in one.coefficients.values())
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("case", CASES)
def test_a_family_learns_the_same_from_files(tmp_path, case):
    kind, base, expert, config, make, layer = CASES[case]
    paths = written(tmp_path, base, expert, config)
    require_equal(*(learned(kind, paths, make, layer, storage) for storage in ("memory", "stream")))


def test_checkpoints_may_be_in_several_files_and_in_half_precision(tmp_path):
    paths = written(
        tmp_path, ViTForImageClassification, ViTForImageClassification, VIT, max_shard_size="4kB"
    )
    assert len(list((tmp_path / "cats").glob("*.safetensors"))) > 1
    for file in (tmp_path / "dogs").glob("*.safetensors"):
        save_file({n: t.half() for n, t in load_file(file).items()}, file, {"format": "pt"})
    require_equal(
        *(
            learned("image_classification", paths, pixels, "head", storage)
            for storage in ("memory", "stream")
        )
    )


def test_names_of_older_checkpoints_are_known(tmp_path):
    paths = written(tmp_path, BertModel, BertForSequenceClassification, BERT)
    file = tmp_path / PRETRAINED / "model.safetensors"
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for name, t in load_file(file).items()
    }
    save_file(older, file, {"format": "pt"})
    assert AutoModel.from_pretrained(tmp_path / PRETRAINED)
    runs = (learned("sequence_classification", paths, tokens, "head", way) for way in ("memory", "stream"))
    require_equal(*runs)


@pytest.mark.parametrize("who", [PRETRAINED, "dogs"])
def test_files_of_another_kind_are_refused_by_name(tmp_path, who):
    paths = written(tmp_path, ViTForImageClassification, ViTForImageClassification, VIT)
    file = tmp_path / who / "model.safetensors"
    torch.save(load_file(file), tmp_path / who / "pytorch_model.bin")
    file.unlink()
    family = loaded("image_classification", paths)
    with pytest.raises(ValueError, match=rf"stream` reads `{tmp_path / who}` tensor by tensor.*`memory`"):
        stored_files(family.experts)
