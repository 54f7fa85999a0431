"""A Llama of some size, experts that differ from it at random, and texts: checkpoints of bfloat16."""

from pathlib import Path

import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from fusion_tinting.mini.tokenizer import make_tokenizer

WORDS = 4096
SPECIAL = ("<unk>", "<s>", "</s>")
SIZES = {"2M": (128, 352, 8, 4), "40M": (512, 1408, 12, 8), "170M": (768, 2048, 24, 12)}
"""Name -> hidden size, intermediate size, blocks, heads. A block is a twenty-fifth of the largest."""
STEP = 2e-3
"""Size of the experts' differences from the base, standard deviation."""


def world(
    folder: Path, size: str, count: int, tokens: int = 64, rows: int = 6, dtype=torch.bfloat16
) -> None:
    """Write `base`, `expert-0`, ... and a text for each, if they are not there.

    Args:
        folder: where to.
        size: one of `SIZES`.
        count: how many experts.
        tokens: of a block of text.
        rows: blocks of text for each expert.
        dtype: of the checkpoints.
    """
    tokenizer = make_tokenizer(
        [*SPECIAL, *(f"w{place}" for place in range(WORDS - len(SPECIAL)))], 512,
        {"single": "$A"}, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
    )  # fmt: skip
    hidden, intermediate, blocks, heads = SIZES[size]
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=blocks,
        num_attention_heads=heads, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(dtype)
    for place in range(count + 1):
        path = folder / ("base" if place == 0 else f"expert-{place - 1}")
        if not (path / "config.json").is_file():
            expert = model if place == 0 else _moved(LlamaForCausalLM(config).to(dtype), model, place)
            expert.save_pretrained(path)
            tokenizer.save_pretrained(path)
        words = torch.randint(WORDS - len(SPECIAL), (rows * (tokens + 1),), generator=draw).tolist()
        (folder / f"expert-{place - 1}.txt").write_text(" ".join(f"w{word}" for word in words) + "\n")


@torch.no_grad()
def _moved(expert: LlamaForCausalLM, base: LlamaForCausalLM, seed: int) -> LlamaForCausalLM:
    draw = torch.Generator().manual_seed(seed)
    for own, there in zip(expert.parameters(), base.parameters(), strict=True):
        own.copy_(there + STEP * torch.randn(own.shape, generator=draw))
    return expert


def configuration(folder: Path, count: int, tokens: int = 64, **adapt: object) -> Path:
    """Write a configuration of `mergekit-tint learn` for such a world, and return its path.

    Args:
        folder: of the world.
        count: how many of its experts.
        tokens: of a block of text.
        **adapt: settings.
    """
    experts = [f"expert-{place}" for place in range(count)]
    models = [
        {"model": str(folder / name), "task": name, "data": str(folder / f"{name}.txt")} for name in experts
    ]
    whole = {"base_model": str(folder / "base"), "models": models, "adapt": adapt}
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump({**whole, "data": {"max_length": tokens}}))
    return path
