"""The result: ONE shared encoder θ(λ) and K small tints; the task must be known at inference."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from fusion_tinting.errors import same_tasks, unknown
from fusion_tinting.method.merging import load_merged
from fusion_tinting.method.task_vectors import TaskVectors, content_hash, require_module
from fusion_tinting.method.tints import HEAD, active, make_tints, part_of_head, resolve_layer
from fusion_tinting.run import artifact
from fusion_tinting.run.history import History
from fusion_tinting.run.unlabeled import call


class TintedModel(nn.Module):
    """C_k(x; θ(λ), φ_k): the logits of task k from the shared encoder and the task's tint.

    Attributes:
        tasks: the K task names, in the order of every per-task value.
        layer: `head`, `head.<submodule>`, the full name of the tinted submodule of the encoder, or None (no
            tint).
        coefficients: tensor name -> the K effective values of λ. The tinted layer's own tensors keep
            their initial λ in the shared encoder, which no task uses there.
        history: loss, agreement and share kept of the adaptation; None if there was none.
        info: what the artefact's `tinting.json` says of the run.
        vectors: θ₀ and the task vectors, so that other merges can be looked at (`remerged`).
    """

    def __init__(
        self,
        encoder: nn.Module,
        heads: Mapping[str, nn.Module],
        tints: nn.ModuleList,
        *,
        layer: str | None,
        vectors: TaskVectors,
    ):
        super().__init__()
        self.tasks, self.layer, self.vectors = vectors.tasks, layer, vectors
        self.encoder = encoder
        self.heads = nn.ModuleList(heads[task] for task in self.tasks)
        self.tint_modules = tints
        self.coefficients: dict[str, Tensor] = {}
        self.history: History | None = None
        self.info: dict = {}
        self._task: str | None = None

    @classmethod
    def untrained(
        cls,
        pretrained: nn.Module,
        experts: Mapping[str, nn.Module],
        heads: Mapping[str, nn.Module],
        layer: str | None = HEAD,
        task_vectors: Mapping[str, str] | None = None,
    ) -> "TintedModel":
        """Where adaptation starts: the pre-trained encoder (not merged yet), and each task's own layer.

        Everything is a copy; what was passed in is never changed.

        Args:
            task_vectors: their `dtype` and `storage`; see `TaskVectors.from_models`.

        Raises:
            ValueError: see `TaskVectors.from_models`, `resolve_layer` and `make_tints`; or heads for
                other tasks than there are experts.
        """
        same_tasks(list(experts), heads=heads)
        for task in experts:
            require_module(f"The head of `{task}`", heads[task])
        vectors = TaskVectors.from_models(pretrained, experts, **(task_vectors or {}))
        layer = resolve_layer(pretrained, layer)
        encoder = deepcopy(pretrained).float().requires_grad_(False).eval()
        copies = {task: deepcopy(heads[task]).float().requires_grad_(False).eval() for task in experts}
        tints = make_tints(layer, experts, heads)
        return cls(encoder, copies, tints, layer=layer, vectors=vectors)

    def tint(self, layer: str, experts: Mapping[str, nn.Module]) -> None:
        """Take a layer, as `resolve_layer` names it, for the tint of a model that has none yet."""
        heads = dict(zip(self.tasks, self.heads, strict=True))
        self.layer, self.tint_modules = layer, make_tints(layer, experts, heads)

    def forward(self, inputs, task: str | None = None) -> Tensor:
        """The logits of `task` (default: the task of the last `set_task`); shape as its head's.

        Raises:
            ValueError: no task given or set, or an unknown one.
        """
        task = self._task if task is None else task
        if task not in self.tasks:
            raise unknown("task", task, self.tasks)
        k = self.tasks.index(task)
        inside = self._tint_in_encoder
        with active(self.encoder, self.layer, self.tint_modules[k]) if inside else nullcontext():
            features = call(self.encoder, inputs)
        return self._answer(k, features)

    def _answer(self, k: int, features) -> Tensor:
        """What task k's head, with its tint if that is there, makes of the encoder's output."""
        part = part_of_head(self.layer)
        if part == "":
            return self.tint_modules[k](features)
        with active(self.heads[k], part, self.tint_modules[k]) if part else nullcontext():
            return self.heads[k](features)

    def together(self, inputs: Mapping) -> dict[str, Tensor]:
        """Task -> its logits of its own batch, from one pass of the encoder over all the batches.

        Only where no tint stands inside the encoder, and inputs are tensors of one shape but for their
        number: `one_pass` says so.
        """
        if len(inputs) == 1:
            return {task: self(batch, task) for task, batch in inputs.items()}
        sizes = [len(batch) for batch in inputs.values()]
        features = self.encoder(torch.cat(list(inputs.values()))).split(sizes)
        return {
            task: self._answer(self.tasks.index(task), part)
            for task, part in zip(inputs, features, strict=True)
        }

    def one_pass(self, inputs: Iterable) -> bool:
        """Whether batches of different tasks can go through the encoder together."""
        shapes = {(batch.shape[1:], batch.dtype) if isinstance(batch, Tensor) else None for batch in inputs}
        return not self._tint_in_encoder and len(shapes) == 1 and None not in shapes

    @property
    def _tint_in_encoder(self) -> bool:
        return self.layer is not None and part_of_head(self.layer) is None

    def set_task(self, task: str) -> None:
        """Make `task` the default of `forward` (FusionBench's ModulatedModel convention)."""
        if task not in self.tasks:
            raise unknown("task", task, self.tasks)
        self._task = task

    def tells_values(self, task: str) -> bool:
        """Whether a task's output is values and no class distribution, as its objective `l1` says."""
        objective = self.info.get("settings", {}).get("objective")
        return (objective.get(task) if isinstance(objective, Mapping) else objective) == "l1"

    @property
    def tints(self) -> dict[str, nn.Module]:
        """Task -> its tint, a module like the layer it stands in for; empty without a tint."""
        return dict(zip(self.tasks, self.tint_modules, strict=False))

    @property
    def merged(self) -> nn.Module:
        """The shared encoder θ(λ), of the class of the pre-trained model."""
        return self.encoder

    @property
    def head_hashes(self) -> dict[str, str]:
        """Task -> content hash of its original head."""
        return {t: content_hash(h.state_dict()) for t, h in zip(self.tasks, self.heads, strict=True)}

    @property
    def tinted_tensors(self) -> list[str]:
        """The merged tensors that the tint replaces, by name; empty for a head tint."""
        if not self._tint_in_encoder:
            return []
        return [name for name in self.vectors.slots if name.startswith(f"{self.layer}.")]

    def remerged(self, lam: Tensor | float | str) -> "TintedModel":
        """Another merge of the same models, with the original heads and no tints.

        Args:
            lam: coefficients of shape (L, K); one number for all (Task Arithmetic; 0 is the
                pre-trained model); or a task's name (its expert).
        """
        if isinstance(lam, str):
            lam = torch.eye(len(self.tasks))[self.tasks.index(lam)]
        lam = torch.as_tensor(lam, dtype=torch.float32).to(self.vectors.base.device)
        lam = lam.expand(len(self.vectors.slots), len(self.tasks))
        encoder = load_merged(deepcopy(self.encoder), self.vectors, lam)
        heads = dict(zip(self.tasks, self.heads, strict=True))
        return type(self)(encoder, heads, nn.ModuleList(), layer=None, vectors=self.vectors)

    def save(self, run_dir: str | Path) -> None:
        """Write the artefact folder: `tinting.json`, `coefficients.safetensors`, `tints/`, curves."""
        artifact.save(self, Path(run_dir))

    @classmethod
    def load(
        cls,
        run_dir: str | Path,
        *,
        pretrained: nn.Module,
        experts: Mapping[str, nn.Module],
        heads: Mapping[str, nn.Module],
        tensor_names: Mapping[str, str] | None = None,
    ) -> "TintedModel":
        """Rebuild a tinted model from its artefact folder; no data and no adaptation.

        Args:
            tensor_names: parameter name -> its name in the artefact, where they differ.

        Raises:
            ValueError: an artefact of other models or tasks, of a newer format, or damaged.
            FileNotFoundError: no artefact there, or a part of it missing.
        """
        manifest = artifact.read_manifest(Path(run_dir))
        # The artefact's own task order counts: the columns of λ are in it.
        same_tasks(manifest["tasks"], experts=experts, heads=heads)
        experts = artifact.Reordered(experts, manifest["tasks"])
        # Whatever their origin: `restore` compares their hashes with the run's.
        kept = {**manifest["settings"].get("task_vectors", {}), "pretraining": "different"}
        model = cls.untrained(pretrained, experts, heads, manifest["layer"], kept)
        return artifact.restore(model, Path(run_dir), manifest, tensor_names)


class OneTask(nn.Module):
    """One task of a tinted model, as an encoder that gives its logits."""

    def __init__(self, model: TintedModel, task: str):
        super().__init__()
        self.model, self.task = model, task

    def forward(self, inputs=None, **tokens) -> Tensor:
        return self.model(tokens if inputs is None else inputs, self.task)

    def __deepcopy__(self, memo) -> "OneTask":
        return self  # `predict` copies what it runs; the model and its task vectors are ours already
