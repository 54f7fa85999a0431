"""Whether what mergekit has written is whole: the base's tensors, by name and shape."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from fusion_tinting.mergekit.checkpoints import Checkpoint, require_same

LAYER = re.compile(r"\.(\d+)\.")
BY_NAME = (
    "By the checkpoints' own names go `mergekit-tint variants RUN OUT`, for a run and heads that differ, "
    "and `mergekit-tint pytorch`, for files of the same tensors."
)
"""Where to go from here, for every architecture that mergekit does not handle."""

Shapes = Mapping[str, tuple[int, ...]]


def check(config: MergeConfiguration, options: MergeOptions, out: Path) -> None:
    """Compare what was written with what its base, or else its first model, makes of the recipe.

    Raises:
        ValueError: naming tensors that are missing or of another shape.
    """
    reference = config.base_model or _first(config)
    base = opened(reference, options)
    written = any(out.glob("*.safetensors")) or any(out.glob("*.bin"))
    output = Checkpoint.open(str(out)).shapes() if written else {}
    wanted = expected(config, base.shapes())
    if any(name not in output for name in wanted):
        wanted = when_loaded(base.folder).renamed(wanted, output)
    if vocabulary_may_change(config, options):
        wanted = _resized(wanted, output, base.folder)
    advice = f"mergekit does not write this architecture whole. {BY_NAME}"
    require_same(output, wanted, f"`{out}` is not what `{reference}` is", advice)


def expected(config: MergeConfiguration, base: Shapes) -> Shapes:
    """Return the tensors that a recipe makes of a model with the tensors `base`."""
    if config.modules:  # their layers may be any
        return {name: shape for name, shape in base.items() if not LAYER.search(name)}
    if not config.slices:
        return base
    ranges = [part.sources[0].layer_range for part in config.slices]
    layers = [layer for first, last in ranges for layer in range(first, last)]
    shapes = {}
    for name, shape in base.items():
        at = LAYER.search(name)
        if at is None:
            shapes[name] = shape
        for place in [place for place, layer in enumerate(layers) if at and int(at[1]) == layer]:
            shapes[f"{name[: at.start(1)]}{place}{name[at.end(1) :]}"] = shape
    return shapes


@dataclass(frozen=True)
class WhenLoaded:
    """What transformers makes of the names in a checkpoint of one architecture.

    Attributes:
        prefix: of the backbone; a checkpoint may have it or not.
        recomputed: expressions for the names of buffers that old checkpoints have and nothing needs.
        transforms: by which several tensors become one, such as a mixture's experts.
    """

    prefix: str
    recomputed: tuple[str, ...]
    transforms: tuple

    def needed(self, names: Iterable[str]) -> list[str]:
        """Those that are not recomputed."""
        patterns = [re.compile(rf"(^|\.)({pattern})$") for pattern in self.recomputed]
        return [name for name in names if not any(pattern.search(name) for pattern in patterns)]

    def renamed(self, wanted: Shapes, output: Shapes) -> Shapes:
        """Return those of `wanted` that are needed, by the names that `output` may have for them."""
        shapes = {}
        for name in self.needed(wanted):
            names = (name, f"{self.prefix}.{name}", name.removeprefix(f"{self.prefix}."))
            if not any(step.rename_source_key(name)[0] in output for step in self.transforms):
                shapes[next((n for n in names if n in output), name)] = wanted[name]
        return shapes


def when_loaded(folder: Path) -> WhenLoaded:
    """Return what transformers makes of the checkpoint in a folder."""
    import transformers
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    config = _config(folder)
    name = (config.get("architectures") or ["PreTrainedModel"])[0]
    kind = getattr(transformers, name, transformers.PreTrainedModel)
    ignored = kind._keys_to_ignore_on_load_unexpected or ()
    transforms = get_checkpoint_conversion_mapping(config.get("model_type", "")) or ()
    return WhenLoaded(
        kind.base_model_prefix, (*ignored, r"rotary_emb\.inv_freq", "position_ids"), tuple(transforms)
    )


def opened(model: ModelReference, options: MergeOptions) -> Checkpoint:
    """Return a model of a recipe, its LoRA merged into it as mergekit does it."""
    if model.lora is not None and not options.lora_merge_cache:
        raise ValueError(f"`{model}` names a LoRA: say with `--lora-merge-cache` where to merge it.")
    merged = model.merged(options.lora_merge_cache, options.trust_remote_code, options.lora_merge_dtype)
    return Checkpoint.open(str(merged))


def vocabulary_may_change(config: MergeConfiguration, options: MergeOptions) -> bool:
    """Return whether mergekit aligns the models' vocabularies itself."""
    return bool(config.tokenizer or config.tokenizer_source or options.unsafe_truncate_embeddings)


def _resized(wanted: Shapes, output: Shapes, folder: Path) -> Shapes:
    """Return `wanted` with the output's size where the base's is that of its vocabulary."""
    size = _config(folder).get("vocab_size")

    def fits(was: tuple[int, ...], now: tuple[int, ...]) -> bool:
        return len(was) == len(now) and all(a in (b, size) for a, b in zip(was, now, strict=True))

    fitting = {n: output[n] for n, shape in wanted.items() if n in output and fits(shape, output[n])}
    return {**wanted, **fitting}


def _first(config: MergeConfiguration) -> ModelReference:
    part = next(iter((config.modules or {"": config}).values()))
    return (part.models or part.slices[0].sources)[0].model


def _config(folder: Path) -> dict:
    path = folder / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
