"""A tinted model with what is known of its run: the result that people hold, save and load."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from fusion_tinting.errors import same_tasks
from fusion_tinting.method.batch_norm import with_merged_statistics
from fusion_tinting.method.merging import load_merged
from fusion_tinting.method.models import PlainModels, caching, plain_model, renew
from fusion_tinting.method.objectives import Reads
from fusion_tinting.method.precision import FULL, precision_of, working
from fusion_tinting.method.settings import Settings, reads_in
from fusion_tinting.method.shards import fill, gathered
from fusion_tinting.method.task_vectors import PRETRAINED, TaskVectors
from fusion_tinting.method.tinted_model import TintedNetwork
from fusion_tinting.method.tints import HEAD, Layer, make_tints, resolve_layer
from fusion_tinting.run.answers import otherwise
from fusion_tinting.run.artifact import COEFFICIENTS, Artifact, check_names, check_rows, tint_path
from fusion_tinting.run.experts import ResidentExperts, at_hand
from fusion_tinting.run.files import path_of
from fusion_tinting.run.history import History
from fusion_tinting.run.identity import TRUE_HALF, differing_contents
from fusion_tinting.run.info import RunInfo
from fusion_tinting.run.lock import held
from fusion_tinting.run.manifest import Manifest, Source, installed_versions
from fusion_tinting.run.processes import Processes
from fusion_tinting.run.sharding import shard
from fusion_tinting.run.storage import load_task_vectors
from fusion_tinting.run.surroundings import undisturbed

V = TypeVar("V")


class Reordered(Mapping[str, V]):
    """A mapping with its keys in another order; values are still loaded on access.

    Args:
        items: the mapping.
        keys: of it, in the order wanted.
    """

    def __init__(self, items: Mapping[str, V], keys: list[str]):
        self._items, self._keys = items, keys

    @property
    def stored(self) -> Any:
        """As the mapping's; see `LoadedExperts`."""
        return getattr(self._items, "stored", None)

    def __getitem__(self, key: str) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


class TintedModel(TintedNetwork):
    """C_k(x; θ(λ), φ_k): the logits of task k, and what is known of the run that made them.

    Args:
        encoder: the shared encoder.
        heads: task -> head.
        tints: one for each task, in order; empty without a tint.
        layer: the layer that the tints stand in for; None without.
        vectors: θ₀ and the task vectors.

    Attributes:
        coefficients: tensor name -> the K effective values of λ. The tinted layer's own tensors stay in the
            shared encoder, where no task uses them, with their initial λ (or, of a coarser
            granularity, their group's).
        history: loss, agreement and share kept of the adaptation; None if there was none.
        info: what is known of the run.
    """

    def __init__(
        self,
        encoder: nn.Module,
        heads: Mapping[str, nn.Module],
        tints: nn.ModuleList,
        *,
        layer: Layer | None,
        vectors: TaskVectors,
    ):
        super().__init__(encoder, heads, tints, layer=layer, vectors=vectors)
        self.coefficients: dict[str, Tensor] = {}
        self.history: History | None = None
        self.info = RunInfo()

    @classmethod
    @undisturbed()
    def untrained(
        cls,
        pretrained: nn.Module,
        experts: Mapping[str, nn.Module],
        heads: Mapping[str, nn.Module],
        layer: str | None = HEAD,
        task_vectors: Mapping[str, str] | None = None,
        precision: torch.dtype | None = None,
        processes: Processes | None = None,
    ) -> Self:
        """Return where adaptation starts: the pre-trained encoder, and each task's own layer.

        Everything is a copy; what was passed in is never changed.

        Args:
            pretrained: θ₀, an encoder.
            experts: task -> the encoder fine-tuned on it.
            heads: task -> head.
            layer: as `resolve_layer` takes it.
            task_vectors: their `dtype` and `storage`; see `Settings`.
            precision: in which it computes; as `precision_of` says by default.
            processes: who share it, where several do; see `run.sharding`.

        Raises:
            ValueError: see `plain_model`, `TaskVectors.from_models`, `resolve_layer` and `make_tints`; or
                heads for other tasks than there are experts.
        """
        same_tasks(list(experts), heads=heads)
        pretrained, experts, heads = plain_models(pretrained, experts, heads)
        vectors = load_task_vectors(pretrained, experts, task_vectors or {}, processes)
        tinted = resolve_layer(pretrained, layer)
        precision = precision or precision_of([pretrained, *heads.values()])
        encoder = working(pretrained, precision)
        copies = {task: working(heads[task], precision) for task in experts}
        layers = experts
        # Where processes share a model, whole layers are nowhere but in the experts.
        if tinted is not None and not tinted.in_head and not vectors.kept.shared:
            layers = at_hand(encoder, vectors, experts, encoder.get_submodule(tinted.path))
        tints = make_tints(tinted, layers, heads)
        if isinstance(layers, ResidentExperts):  # which were written into the encoder, one after another
            layers.restore()
        model = cls(encoder, copies, tints, layer=tinted, vectors=vectors)
        shard(model, processes or Processes())
        model.coefficients = {name: torch.zeros(len(copies)) for name in vectors.slots}  # θ₀
        return model

    def reads(self, task: str) -> Reads:
        """Return what a task's output is, as its objective reads it.

        Args:
            task: its name.
        """
        return reads_in(self.info.settings, task)

    @property
    def start(self) -> float | Tensor:
        """Where λ started, for Task Arithmetic beside: one number, or one for each task, (K,).

        A run that started from another one's λ is compared with the paper's 0.3.
        """
        init: Any = self.info.settings.get("init", Settings.init)
        if isinstance(init, Mapping):
            return torch.tensor([float(init[task]) for task in self.tasks])
        return init if isinstance(init, (int, float)) else 0.3

    def save(self, run_dir: str | Path, writes: bool = True) -> None:
        """Write the artifact folder: `tinting.json`, `coefficients.safetensors`, `tints/`, curves.

        Args:
            run_dir: the folder.
            writes: whether this process does; all processes that share the model must call.

        Raises:
            ValueError: a model of no run, or one that was changed since: `load` would return another.
            OSError: no room, or a run works there now.
        """
        if self.coefficients.keys() != self.vectors.slots.keys():
            raise ValueError(
                "This model has no λ to save: it comes from `remerged`, and of no run. Save what `tint`, "
                "`adapt` or `load` returned."
            )
        self.require_as_learned(self.coefficients)
        coefficients = {self.info.on_disk(name): row for name, row in self.coefficients.items()}
        tints = {
            task: {self._name_in_tint(name): tensor for name, tensor in tensors.items()}
            for task, tint in self.tints.items()
            for tensors in [gathered(tint.state_dict(), kept=writes)]
        }
        if writes:
            with held(path_of("run_dir", run_dir)):
                artifact = Artifact(self._manifest(), coefficients, tints, self.history)
                artifact.write(path_of("run_dir", run_dir))

    @classmethod
    @undisturbed()
    def load(
        cls,
        run_dir: str | Path,
        *,
        pretrained: nn.Module,
        experts: Mapping[str, nn.Module],
        heads: Mapping[str, nn.Module],
        tensor_names: Mapping[str, str] | None = None,
        storage: str = "memory",
    ) -> Self:
        """Rebuild a tinted model from its artifact folder; no data and no adaptation.

        Args:
            run_dir: the folder.
            pretrained: θ₀, the encoder that the run was learned from.
            experts: task -> the encoder that the run was learned from.
            heads: task -> the head that the run was learned with.
            tensor_names: parameter name -> its name in the artifact, where they differ.
            storage: where task vectors are kept here; see `Settings`.

        Raises:
            ValueError: an artifact of other models or tasks, of a newer format, or damaged.
            FileNotFoundError: no artifact there, or a part of it missing.
        """
        manifest = Manifest.read(path_of("run_dir", run_dir))
        # The artifact's own task order counts: the columns of λ are in it.
        same_tasks(manifest.tasks, experts=experts, heads=heads)
        ordered = Reordered(experts, manifest.tasks)
        # Wherever they are kept and come from: `restore` compares their hashes with the run's.
        kept = {"storage": storage, "pretraining": "different"}
        options = {**manifest.settings.get("task_vectors", {}), **kept}
        precision = None if manifest.precision == TRUE_HALF else FULL
        model = cls.untrained(pretrained, ordered, heads, manifest.layer, options, precision)
        return model.restore(path_of("run_dir", run_dir), manifest, tensor_names or {})

    def restore(self, run_dir: Path, manifest: Manifest, tensor_names: Mapping[str, str]) -> Self:
        """Put an artifact's λ and tints into this model, fresh from `untrained`, and return it.

        Args:
            run_dir: the folder.
            manifest: of the folder.
            tensor_names: parameter name -> its name in the artifact, where they differ.

        Raises:
            ValueError: an artifact of other models, or damaged.
            FileNotFoundError: a part of it missing.
        """
        self._check_models(run_dir, manifest)
        self.info = manifest.info(tensor_names)
        artifact = Artifact.read(run_dir, manifest)
        path, stored = run_dir / COEFFICIENTS, artifact.coefficients
        on_disk = {name: self.info.on_disk(name) for name in self.vectors.slots}
        check_names(path, list(on_disk.values()), stored)
        self.coefficients = {name: stored[there] for name, there in on_disk.items()}
        check_rows(path, self.coefficients, self.tasks)
        load_merged(self.encoder, self.vectors, torch.stack(list(self.coefficients.values())))
        for task, tint in self.tints.items():
            self._load_tint(tint, artifact.tints[task], tint_path(run_dir, task))
        renew(caching(self))
        manifest.check_files(run_dir)
        self.history = artifact.history
        return self.requires_grad_(False)

    def _manifest(self) -> Manifest:
        info, hashes, history = self.info, self.vectors.hashes, self.history
        return Manifest(
            tasks=self.tasks,
            layer=self.layer,
            base=Source(info.ids.get(PRETRAINED), hashes[PRETRAINED]),
            experts={task: Source(info.ids.get(task), hashes[task]) for task in self.tasks},
            heads=self.head_hashes,
            settings=info.settings,
            samples=info.samples,
            data=info.data,
            precision=info.precision,
            contents=info.contents,
            answers=info.answers,
            tinted_tensors=[info.on_disk(name) for name in self.tinted_tensors],
            layer_choice=info.layer_choice,
            split=info.split,
            steps=0 if history is None else len(history),
            skipped_steps=0 if history is None else history.skipped,
            seconds=info.seconds,
            peak_memory_bytes=info.peak_memory_bytes,
            versions=installed_versions(),
        )

    def _check_models(self, run_dir: Path, manifest: Manifest) -> None:
        """Refuse an artifact that was learned from other models, or with other heads."""
        hashes = self.vectors.hashes
        for name, digest in manifest.identity.models.items():
            if hashes.get(name) != digest:
                who = "pre-trained model" if name == PRETRAINED else f"expert `{name}`"
                raise ValueError(
                    f"`{run_dir}` was learned from another {who}: its tensors have sha256 "
                    f"{digest[:12]}… there and {hashes.get(name, 'none')[:12]}… here. Pass the models it "
                    "was learned from, or adapt again into another folder."
                )
        for task, digest in self.head_hashes.items():
            if manifest.heads.get(task) != digest:
                raise ValueError(
                    f"`{run_dir}` was learned with another head of `{task}`. Pass the one it was learned "
                    "with."
                )
        found = [*differing_contents(manifest.contents, self.contents, "models")]
        found += differing_contents(manifest.contents, self.contents, "heads")
        if found := found or otherwise(self, manifest.answers):
            raise ValueError(
                f"`{run_dir}` was learned from other models: {'; '.join(found)}. Pass those it was learned "
                "from, or adapt again into another folder."
            )

    def _load_tint(self, tint: nn.Module, stored: Mapping[str, Tensor], path: Path) -> None:
        own = {self._name_in_tint(name): name for name in tint.state_dict()}
        check_names(path, list(own), stored)
        for name, tensor in stored.items():
            target = tint.state_dict()[own[name]]
            if tensor.shape != target.shape:
                raise ValueError(
                    f"`{name}` in `{path}` has shape {tuple(tensor.shape)}; the layer `{self.layer}` "
                    f"of these models has {tuple(target.shape)}."
                )
        state = tint.state_dict()
        for name, tensor in stored.items():
            fill(state[own[name]], tensor)

    def _name_in_tint(self, name: str) -> str:
        """Return what a tensor of the tinted layer is called in its file."""
        return self.info.on_disk(f"{self.layer}.{name}")


def plain_models(
    pretrained: nn.Module, experts: Mapping[str, nn.Module], heads: Mapping[str, nn.Module]
) -> tuple[nn.Module, Mapping[str, nn.Module], Mapping[str, nn.Module]]:
    """Return models as they are tinted: out of wrappers, the statistics of their batch norms parameters.

    Args:
        pretrained: θ₀, an encoder.
        experts: task -> the encoder fine-tuned on it; loaded on access, as those that are returned.
        heads: task -> head.

    Raises:
        ValueError: see `plain_model`; of experts and heads when they are asked for.
    """
    if isinstance(experts, PlainModels) and isinstance(heads, PlainModels):
        return pretrained, experts, heads
    return (
        with_merged_statistics(plain_model("`pretrained`", pretrained)),
        PlainModels("The expert", experts, with_merged_statistics),
        PlainModels("The head of", heads),
    )


class OneTask(nn.Module):
    """One task of a tinted model, as an encoder that gives its logits.

    Args:
        model: the tinted model.
        task: the name of the task.
    """

    def __init__(self, model: TintedNetwork, task: str):
        super().__init__()
        self.model, self.task = model, task

    def forward(self, *inputs: Any, **tokens: Any) -> Tensor:
        """Return the logits of the task.

        Args:
            *inputs: what the encoder takes.
            **tokens: the same as keyword arguments.
        """
        logits: Tensor = self.model(tokens or inputs, self.task)
        return logits

    def float(self) -> Self:
        """Return itself: the model computes in its own precision, whatever that of its tints."""
        return self

    def __deepcopy__(self, memo: object) -> "OneTask":
        return self  # `predict` copies what it runs; the model and its task vectors are ours already
