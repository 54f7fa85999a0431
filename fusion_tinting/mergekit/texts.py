"""The tokenizer that the models of a configuration share."""

from pathlib import Path

from transformers import AutoTokenizer

from fusion_tinting.mergekit.config import Config, Expert
from fusion_tinting.mergekit.rows import reachable


def shared_tokenizer(config: Config):
    """The tokenizer of the first expert.

    Raises:
        FileNotFoundError: an expert without tokenizer.
        ValueError: experts whose vocabularies differ.
    """
    found = {expert.task: _tokenizer(expert) for expert in config.experts}
    first, *others = found
    vocabulary = found[first].get_vocab()
    for task in others:
        if found[task].get_vocab() != vocabulary:
            raise ValueError(
                f"The vocabulary of the expert `{task}` differs from that of `{first}`: "
                f"{len(found[task].get_vocab())} and {len(vocabulary)} tokens. Models that read text "
                "differently cannot be merged."
            )
    tokenizer = found[first]
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _tokenizer(expert: Expert):
    tokenizer, folder = reachable(AutoTokenizer.from_pretrained, expert.model), Path(expert.model)
    files = [name for name in tokenizer.vocab_files_names.values() if name]
    # transformers makes an empty one where there is none
    if folder.is_dir() and not any((folder / name).is_file() for name in files):
        raise FileNotFoundError(
            f"The expert of `{expert.task}`, `{expert.model}`, has no tokenizer: it lacks {files}. "
            "Copy the one that it was trained with there."
        )
    return tokenizer
