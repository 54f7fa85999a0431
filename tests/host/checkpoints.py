"""A small world of checkpoints in Hugging Face's format, written in a moment: bases, and experts of them.

Experts are the base with noise on every tensor: what they compute is of no use, but every tensor counts.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

WORDS = (
    "the", "a", "film", "book", "dog", "cat", "was", "is", "not", "very",
    "good", "bad", "old", "new", "runs", "sleeps", "and", "but", "in", "on",
)  # fmt: skip
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
LENGTH = 32
NOISE = 0.02


def make_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """One token a word, RoBERTa's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {word: place for place, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
        pad_token="<pad>", unk_token="<unk>", mask_token="<mask>", model_max_length=LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def llama(folder: Path, layers: int = 2, tied: bool = False, words: Sequence[str] = WORDS) -> Path:
    """A causal language model. `tied`: the LM head is the embedding, and is not in the checkpoint."""
    tokenizer = make_tokenizer(words)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=LENGTH,
        tie_word_embeddings=tied, bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return save(LlamaForCausalLM(config), tokenizer, folder)


def masked_lm(folder: Path, layers: int = 2) -> Path:
    """A RoBERTa masked language model, the base of `classifier`."""
    tokenizer = make_tokenizer()
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=LENGTH + 2, type_vocab_size=1,
        bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return save(RobertaForMaskedLM(config), tokenizer, folder)


def classifier(folder: Path, base: Path, labels: int, seed: int) -> Path:
    """An expert of `masked_lm`: its backbone with noise, and a head of its own for `labels` labels."""
    torch.manual_seed(seed)
    model = RobertaForSequenceClassification.from_pretrained(base, num_labels=labels)
    for parameter in model.parameters():
        parameter.data += NOISE * torch.randn_like(parameter)
    return save(model, make_tokenizer(), folder)


def expert(folder: Path, base: Path, seed: int) -> Path:
    """An expert with the tensors of `base`, any checkpoint in one safetensors file, each with noise."""
    generator = torch.Generator().manual_seed(seed)
    shutil.copytree(base, folder)
    noisy = {
        name: tensor + (NOISE * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in tensors(base).items()
    }
    save_file(noisy, folder / "model.safetensors", {"format": "pt"})
    return folder


def save(model, tokenizer, folder: Path) -> Path:
    """Write a model with its tokenizer, in one safetensors file."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, by its name on disk; of however many safetensors files."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found
