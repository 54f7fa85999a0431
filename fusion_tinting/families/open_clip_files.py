"""The files of OpenCLIP encoders and heads: the released pickles, state dicts, and safetensors.

The released files (`zeroshot.pt`, `<task>/finetuned.pt`, `head_<task>.pt`) are pickles of whole modules,
written by torch or by pickle itself. Loading a pickle can run any code that its author put there.
"""

import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusion_tinting.errors import abbreviate
from fusion_tinting.families.open_clip import INFO, VISUAL, Architecture, ClassificationHead, VisualEncoder
from fusion_tinting.families.pickles import unpickled
from fusion_tinting.run.files import read_tensors

CONVERTED = ".safetensors"


@dataclass(frozen=True)
class Stored:
    """What a file holds, whatever its format.

    Attributes:
        tensors: by their names in the state dict.
        info: of an encoder its `Architecture`'s fields, as far as they are known; of a head `normalize`.
    """

    tensors: Mapping[str, Tensor]
    info: Mapping


def load_encoder(path: str | Path, model_name: str | None, trust_pickles: bool = False) -> VisualEncoder:
    """Load the encoder of a checkpoint, released or converted, in float32.

    Args:
        path: of the file.
        model_name: its architecture, where the file does not tell it.
        trust_pickles: see `read`.

    Raises:
        ValueError: a pickle that is not trusted, or no image encoder of that architecture.
        FileNotFoundError: no such file.
    """
    stored = read(path, trust_pickles)
    tensors = {n: t.float() for n, t in stored.tensors.items() if n.startswith(VISUAL)}
    if "vision_cfg" in stored.info:
        architecture = Architecture(**stored.info)
    elif model_name is None:
        raise ValueError(
            f"`{path}` does not tell its architecture. Give a `model_name` such as `ViT-B-32`."
        )
    else:
        architecture = Architecture.named(model_name, stored.info.get("quick_gelu", True))
    _check_fits(path, tensors, architecture)
    return VisualEncoder(architecture, tensors).requires_grad_(False).eval()


def load_head(path: str | Path, trust_pickles: bool = False) -> ClassificationHead:
    """Load a classification head, released or converted, in float32; raises as `load_encoder`.

    Args:
        path: of the file.
        trust_pickles: see `read`.
    """
    stored = read(path, trust_pickles)
    weight, bias = stored.tensors.get("weight"), stored.tensors.get("bias")
    if "normalize" not in stored.info or weight is None or weight.ndim != 2:
        raise ValueError(
            f"`{path}` is no classification head. Found tensors {abbreviate(list(stored.tensors))}."
        )
    bias = None if bias is None else bias.float()
    return ClassificationHead(weight.float(), bias, stored.info["normalize"]).requires_grad_(False).eval()


def converted(path: str | Path) -> Path:
    """Return the safetensors file in the place of a released one, if it is there, else `path` itself."""
    path = Path(path)
    return path.with_suffix(CONVERTED) if path.with_suffix(CONVERTED).is_file() else path


def read(path: str | Path, trust_pickles: bool = False) -> Stored:
    """Read the tensors of a file; of `x.pt` those of `x.safetensors`, where that exists.

    Args:
        path: of the file.
        trust_pickles: whether a pickle of a whole module may be loaded.

    Raises:
        ValueError: a pickle that is not trusted, or a damaged file.
        FileNotFoundError: no such file.
    """
    path = converted(path)
    if path.suffix == CONVERTED:
        tensors, metadata = read_tensors(path)
        return Stored(tensors, json.loads(metadata.get(INFO, "{}")))
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` is missing, and so is `{path.with_suffix(CONVERTED)}`.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles of another protocol, which are refused below
            return Stored(_tensors_of(path, torch.load(path, map_location="cpu", weights_only=True)), {})
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        if not trust_pickles:
            raise ValueError(
                f"`{path}` is a pickle of a whole module: loading it can run any code that was put there. "
                "If you trust its author, convert the folder once, `python -m fusion_tinting.convert "
                f"FOLDER OUT --trust-pickles`, and use OUT; or set `modelpool.trust_pickles=true`."
            ) from error
    return _of_module(path, unpickled(path))


def _of_module(path: Path, content: Any) -> Stored:
    if not isinstance(content, nn.Module):
        return Stored(_tensors_of(path, content), {})
    info = {}
    if hasattr(content, "normalize"):
        info["normalize"] = bool(content.normalize)
    else:
        info["quick_gelu"] = any(type(module).__name__ == "QuickGELU" for module in content.modules())
    return Stored(content.state_dict(), info)


def _tensors_of(path: Path, content: Any) -> Mapping[str, Tensor]:
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"`{path}` holds a {type(content).__name__}. Expected a module or a state dict.")
    return content


def _check_fits(path: str | Path, tensors: Mapping[str, Tensor], architecture: Architecture) -> None:
    expected = {VISUAL + n: t.shape for n, t in architecture.build().state_dict().items()}
    missing = [n for n in expected if n not in tensors]
    extra = [n for n in tensors if n not in expected]
    if missing or extra:
        raise ValueError(
            f"`{path}` holds no image encoder of the architecture `{architecture.model_name}`: missing "
            f"tensors {abbreviate(missing)}, additional tensors {abbreviate(extra)}."
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ValueError(
                f"Tensor `{name}` of `{path}` is {tuple(tensors[name].shape)}; the architecture "
                f"`{architecture.model_name}` has {tuple(shape)}."
            )
