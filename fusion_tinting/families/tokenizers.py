"""Whether models read texts alike: what is merged must mean the same token at the same place."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from fusion_tinting.families.loading import own_file, reachable
from fusion_tinting.method.task_vectors import PRETRAINED

FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "source.spm")
PROBES = (
    "The café isn't 1,234.5 km FAR\u00a0away —  naïve, Straße!",
    "snake_case #tag\n\tx² 日本語 русский 😀",
)
"""Texts on which tokenizers differ that differ at all: case, accents, spaces, digits, other scripts."""


def shared(experts: Mapping[str, str]) -> Any:
    """Return the tokenizer of the first expert, once all are known to read as it does.

    Args:
        experts: task -> folder or hub id.

    Raises:
        FileNotFoundError: an expert without tokenizer, or that cannot be reached.
        ValueError: experts that read texts differently.
    """
    tokenizers = {task: _tokenizer(task, path) for task, path in experts.items()}
    first, *others = tokenizers
    for task in others:
        _require_same(f"the expert `{task}`", tokenizers[task], f"that of `{first}`", tokenizers[first])
    return tokenizers[first]


def require_alike(tokenizer: Any, models: Mapping[str, str]) -> None:
    """Refuse models whose own tokenizers, where they have any, are others.

    The base's may lack tokens that were added in fine-tuning; what both have must have one number.

    Args:
        tokenizer: what texts are read with.
        models: task, or `_pretrained_` -> folder or hub id.

    Raises:
        ValueError: naming the model and what differs.
    """
    for name, path in models.items():
        if not any(own_file(path, file) for file in FILES):
            continue
        own = AutoTokenizer.from_pretrained(path)
        if name == PRETRAINED:
            _require_one_order(f"the base `{path}`", own, "the experts' tokenizer", tokenizer)
        else:
            _require_same(f"the expert `{name}`", own, "the tokenizer that is used", tokenizer)


def _require_same(called: str, own: Any, reference: str, other: Any) -> None:
    vocabulary, theirs = own.get_vocab(), other.get_vocab()
    apart = (vocabulary.keys() ^ theirs.keys()) - {*own.all_special_tokens, *other.all_special_tokens}
    if apart:
        raise ValueError(
            f"The vocabulary of {called} differs from {reference}: {len(vocabulary)} and {len(theirs)} "
            f"tokens, of which {len(apart)} are not in both. Models that read "
            "text differently cannot be merged."
        )
    _require_one_order(called, own, reference, other)
    for text in PROBES:
        tokens = [t.convert_ids_to_tokens(t(text)["input_ids"]) for t in (own, other)]
        if tokens[0] != tokens[1]:
            raise ValueError(
                f"The tokenizer of {called} reads {text!r} as {tokens[0]}; {reference}, as {tokens[1]}: "
                "they differ in case, accents, spaces, language or special tokens. Models that read text "
                "differently cannot be merged."
            )


def _require_one_order(called: str, own: Any, reference: str, other: Any) -> None:
    vocabulary, theirs = own.get_vocab(), other.get_vocab()
    moved = [token for token, place in vocabulary.items() if theirs.get(token, place) != place]
    if moved:
        first = min(moved, key=vocabulary.get)
        raise ValueError(
            f"The vocabulary of {called} differs from {reference}: {len(moved)} tokens have another "
            f"number, such as {first!r}, {vocabulary[first]} and {theirs[first]}. Models that read text "
            "differently cannot be merged."
        )
    if _merges(own) != _merges(other):
        raise ValueError(
            f"The vocabulary of {called} differs from {reference}: its pairs of tokens are joined in "
            "another order (`merges`). Models that read text differently cannot be merged."
        )


def _merges(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else json.loads(backend.to_str())["model"].get("merges")


def _tokenizer(task: str, path: str) -> Any:
    tokenizer, folder = reachable(AutoTokenizer.from_pretrained, path), Path(path)
    files = [name for name in tokenizer.vocab_files_names.values() if name]
    # transformers makes an empty one where there is none
    if folder.is_dir() and not any((folder / name).is_file() for name in files):
        raise FileNotFoundError(
            f"The expert of `{task}`, `{path}`, has no tokenizer: it lacks {files}. "
            "Copy the one that it was trained with there."
        )
    return tokenizer
