"""YAML as people write it: a key that is there twice is a mistake, and not a choice of the last."""

import json
from pathlib import Path
from typing import Any

import yaml


def documents_of(path: Path, what: str) -> list:
    """Return the documents in a file.

    Args:
        path: of the file.
        what: it is expected to be, for the error.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no YAML, a key that is there twice, or an alias within what it stands for.
    """
    if not path.is_file():
        folder = " It is a folder; expected a file." if path.is_dir() else ""
        raise FileNotFoundError(f"There is no {what} `{path}`.{folder}")
    try:
        documents = list(yaml.load_all(path.read_text(encoding="utf-8"), _Loader))
        json.dumps(documents, default=str, skipkeys=True)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"`{path}` is no YAML that can be read: {error}") from error
    return documents


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key.value}` is there twice", key.start_mark
                )
            seen.add((key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)
