"""A finished run's models, merged tensor by tensor: in memory is what is at hand, and nothing more."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig

from fusion_tinting.errors import abbreviate
from fusion_tinting.families.batch_norm import Form
from fusion_tinting.families.loading import require_one_architecture
from fusion_tinting.mergekit.checkpoints import Checkpoint, require_same
from fusion_tinting.mergekit.folders import now_at, require_used
from fusion_tinting.mergekit.names import ModelNames
from fusion_tinting.mergekit.run_files import CoefficientFile, tint_file
from fusion_tinting.method.content import content_hash
from fusion_tinting.method.merging import merge_tensor
from fusion_tinting.run.artifact import COEFFICIENTS, tint_path
from fusion_tinting.run.files import read_json, write_json
from fusion_tinting.run.manifest import MANIFEST, Manifest, Source

Shapes = dict[str, tuple[int, ...]]
ADVICE = "The run was learned from other models: give it those, or learn anew."


class Named(NamedTuple):
    """A checkpoint by the names that the model itself has for its tensors: name -> name on disk."""

    checkpoint: Checkpoint
    stored: Mapping[str, str]

    def tensor(self, name: str) -> Tensor:
        """Read one tensor from its file."""
        return self.checkpoint.tensor(self.stored[name])

    def shapes(self) -> Shapes:
        """Return name -> shape."""
        shapes = self.checkpoint.shapes()
        return {name: shapes[stored] for name, stored in self.stored.items()}


class Parameters(Mapping):
    """Merged tensors as the run saw them: by their names in the encoder, in float32, read on access."""

    def __init__(self, model: Named, names: Mapping[str, str], form: Callable[[str], Form]):
        self._model, self._names, self._form = model, names, form

    def __getitem__(self, name: str) -> Tensor:
        name = self._names[name]
        return self._form(name).merged(self._model.tensor(name).float())

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class MergedRun:
    """What a finished run makes of its models. Names are those in the model, unless said otherwise.

    Attributes:
        shared: the merged tensors, all but the tinted layer's.
        experts: task -> its checkpoint.

    Raises:
        FileNotFoundError: a file of the run, or one of its models, is not there.
        ValueError: models that the run was not learned from, junk or NaN in a file; the tensor is named.
    """

    def __init__(self, run_dir: Path, manifest: Manifest, moves: Mapping[str, str]):
        tasks = manifest.tasks
        ids = [_id(entry, run_dir) for entry in (manifest.base, *map(manifest.experts.get, tasks))]
        require_used(moves, ids)
        base, *others = (Checkpoint.open(now_at(name, moves)) for name in ids)
        experts = dict(zip(tasks, others, strict=True))
        self._names = self._names_of(base, experts[tasks[0]])
        self._base = Named(base, self._names.of(base.files))
        self.experts = {task: Named(c, self._names.of(c.files)) for task, c in experts.items()}
        self._file = CoefficientFile(run_dir / COEFFICIENTS)
        self._rows = self._names.of(self._file.rows)
        tinted = self._names.of(manifest.tinted_tensors)
        self.shared = [name for name in self._rows if name not in tinted]
        self._paths = {t: tint_path(run_dir, t) for t in tasks} if manifest.layer is not None else {}
        self._tinted = {task: list(self._tint(task)) for task in self._paths}
        self._check_configurations()
        self._check_shapes()
        self._check_content(manifest)

    @property
    def sources(self) -> list[Path]:
        """The folders of the base and of the experts."""
        return [model.checkpoint.folder for _, model, _ in self._models()]

    def merged(self, name: str) -> Tensor:
        """θ₀ + Σ_k λ_k (θ_k − θ₀) of one tensor, one expert at a time, in float32.

        Returns:
            It in the experts' dtype.
        """
        form, dtypes = self._names.form(name), []

        def read(model: Named) -> Tensor:
            tensor = model.tensor(name)
            dtypes.append(tensor.dtype)
            return form.merged(tensor.float())

        base = read(self._base)
        lams = [self._file.value(self._rows[name], task) for task in self.experts]
        total = merge_tensor(base, map(read, self.experts.values()), lams)
        return form.stored(total).to(reduce(torch.promote_types, dtypes[1:]))

    def stored(self, name: str) -> str:
        """Return what a shared tensor is called on disk: as in the first expert's checkpoint."""
        return self.on_disk(next(iter(self.experts)), name)

    def on_disk(self, task: str, name: str) -> str:
        """Return what a tensor is called on disk in a task's variant."""
        return self.experts[task].stored.get(name, name)

    def own(self, task: str) -> dict[str, Tensor]:
        """Return name on disk -> what a task does not share: its tint, and its expert's head."""
        expert, tint = self.experts[task], self._tint(task)
        rest = [name for name in self.wanted(task) if name not in self._rows and name not in tint]
        own = {expert.stored[name]: expert.tensor(name) for name in rest}
        for name, tensor in tint.items():
            like = expert.tensor(name if name in expert.stored else self._names.tied[name])
            own[self.on_disk(task, name)] = self._names.form(name).stored(tensor).to(like.dtype)
        return own

    def wanted(self, task: str) -> Shapes:
        """Return name -> shape of every tensor that a variant must have: those of its expert.

        A second copy of a tied tensor, which some checkpoints hold, is not needed.
        """
        known = {*self._rows, *self._tinted.get(task, ())}
        copies = [name for name, other in self._names.tied.items() if name not in known and other in known]
        return {n: shape for n, shape in self.experts[task].shapes().items() if n not in copies}

    def write_rest(self, task: str, folder: Path) -> None:
        """Write what a variant needs beside its tensors and what is copied from the expert.

        LM head and embedding, one tensor there, are two where one of them has a tint. Of models with an
        encoder the configuration stays: the same key says more there (that both embeddings are one in BART,
        how logits are scaled in T5), and transformers goes by the tensors where they differ.

        Raises:
            ValueError: an architecture that ties them whatever its configuration says.
        """
        tensors = [name for name in self._tinted.get(task, ()) if name in self._names.tied]
        if not tensors:
            return
        path = folder / "config.json"
        config = read_json(path)
        if config.get("is_encoder_decoder"):
            return
        inner = {
            key: {**config[key], "tie_word_embeddings": False} for key in ("text_config",) if key in config
        }
        write_json(path, {**config, **inner, "tie_word_embeddings": False})
        if tied := [name for name in tensors if name in ModelNames(folder).tied]:
            raise ValueError(f"{tied} cannot have a tint: {config['architectures'][0]} always ties them.")

    def named(self, stored: Shapes) -> Shapes:
        """Shapes by names on disk -> by names in the model."""
        return {name: stored[on_disk] for name, on_disk in self._names.of(stored).items()}

    @staticmethod
    def _names_of(base: Checkpoint, expert: Checkpoint) -> ModelNames:
        return ModelNames(expert.folder)

    def _tint(self, task: str) -> dict[str, Tensor]:
        if task not in self._paths:
            return {}
        tensors = tint_file(str(self._paths[task]))
        return {name: tensors[stored] for name, stored in self._names.of(tensors).items()}

    def _check_configurations(self) -> None:
        base, *experts = (
            AutoConfig.from_pretrained(model.checkpoint.folder) for _, model, _ in self._models()
        )
        require_one_architecture(base, dict(zip(self.experts, experts, strict=True)))

    def _check_shapes(self) -> None:
        shapes = next(iter(self.experts.values())).shapes()
        wanted = {name: shapes.get(name) for name in self.shared}
        for who, model, _ in self._models():
            require_same(model.shapes(), wanted, f"The {who}, `{model.checkpoint.folder}`", ADVICE)
        theirs = [name for name in self._names.backbone if name in self._base.stored]
        if lacking := [name for name in theirs if not self._has(name)]:
            raise ValueError(
                f"`{self._file.path}` has no row for {len(lacking)} tensor(s) of the base: "
                f"{lacking[:5]}. {ADVICE}"
            )
        for task, names in self._tinted.items():
            self._check_tint(task, names)

    def _check_content(self, manifest: Manifest) -> None:
        if strange := [name for name in self._rows if name not in self._names.encoder]:
            raise ValueError(
                f"The expert `{next(iter(self.experts))}` is configured without {len(strange)} tensor(s) "
                f"that were merged: {abbreviate(strange)}. {ADVICE}"
            )
        names = {self._names.encoder[name]: name for name in self._rows}
        for who, model, key in self._models():
            entry = manifest.base if key is None else manifest.experts[key]
            if content_hash(Parameters(model, names, self._names.form)) != entry.sha256:
                raise ValueError(f"The {who}, `{model.checkpoint.folder}`, has changed since. {ADVICE}")

    def _models(self) -> Iterator[tuple[str, Named, str | None]]:
        """(What to call it, model, task), the base first, which has no task."""
        yield "base", self._base, None
        yield from ((f"expert `{task}`", model, task) for task, model in self.experts.items())

    def _has(self, name: str) -> bool:
        return name in self._rows or self._names.tied.get(name) in self._rows

    def _check_tint(self, task: str, names: Iterable[str]) -> None:
        theirs, tint = self.experts[task].shapes(), self._tint(task)
        wanted = {n: theirs.get(n, theirs.get(self._names.tied.get(n))) for n in names}
        shapes = {name: tuple(tint[name].shape) for name in names}
        require_same(shapes, wanted, f"The tint `{self._paths[task]}`", "It is another model's.")


def _id(entry: Source, run_dir: Path) -> str:
    if not entry.id:
        raise ValueError(f"`{run_dir / MANIFEST}` does not say where its models are; was it run in Python?")
    return entry.id
