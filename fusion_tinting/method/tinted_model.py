"""The tinted model: ONE shared encoder θ(λ) and K small tints; the task must be known at inference."""

import threading
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import cached_property
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor, nn

from fusion_tinting.errors import unknown
from fusion_tinting.method.batch_norm import MergedBatchNorm, restore_statistics
from fusion_tinting.method.content import content_hash, libraries_of, value_hash
from fusion_tinting.method.merging import load_merged, unlike
from fusion_tinting.method.precision import FULL, HALF, cast, fitting
from fusion_tinting.method.task_vectors import TaskVectors
from fusion_tinting.method.tints import Layer, make_tints, share_hooks, share_precision, view


class _Own(threading.local):
    """The task that the thread at hand has set."""

    task: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()  # of a copy no thread has set one


class TintedNetwork(nn.Module):
    """C_k(x; θ(λ), φ_k): the logits of task k from the shared encoder and the task's tint.

    `fusion_tinting.TintedModel` is this with what is known of its run, and with files.

    Args:
        encoder: the shared encoder.
        heads: task -> head.
        tints: one for each task, in order; empty without a tint.
        layer: the layer that the tints stand in for; None without.
        vectors: θ₀ and the task vectors.

    Attributes:
        tasks: the K task names, in the order of every per-task value.
        tinted: the layer that is tinted; None without a tint.
        vectors: θ₀ and the task vectors, so that other merges can be looked at (`remerged`).
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
        super().__init__()
        self.tasks, self.tinted, self.vectors = vectors.tasks, layer, vectors
        self.encoder = encoder
        self.heads = nn.ModuleList(heads[task] for task in self.tasks)
        self.tint_modules = tints
        self._fit_tints()
        self._task: str | None = None
        self._own = _Own()
        self._splits = True

    def tint(self, layer: Layer, experts: Mapping[str, nn.Module]) -> None:
        """Take a layer for the tint of a model that has none yet.

        Args:
            layer: as `resolve_layer` returns it.
            experts: task -> encoder, where the tints start.
        """
        heads = dict(zip(self.tasks, self.heads, strict=True))
        self.tinted, self.tint_modules = layer, make_tints(layer, experts, heads)
        self._fit_tints()

    def _fit_tints(self) -> None:
        """Give tints the hooks, and their buffers the precision, of the layers that they stand in for."""
        if self.tinted is None:
            return
        of_heads = zip(self.heads, self.tint_modules, strict=True) if self.tinted.in_head else ()
        for owner, tints in [(head, [tint]) for head, tint in of_heads] or [
            (self.encoder, [*self.tint_modules])
        ]:
            layer = owner.get_submodule(self.tinted.path)
            share_hooks(layer, tints)
            share_precision(layer, tints)

    def forward(self, inputs: Any, task: str | None = None) -> Tensor:
        """Return the logits of a task, shaped as its head's.

        Args:
            inputs: what the encoder takes; a mapping is passed as keyword arguments, a tuple as positional
                ones.
            task: its name; the task of the last `set_task` by default.

        Raises:
            ValueError: no task given or set, or an unknown one.
        """
        task = (self._own.task or self._task) if task is None else task
        if task not in self.tasks:
            raise unknown("task", task, self.tasks)
        k = self.tasks.index(task)
        with self._view(self.encoder, k, in_head=False) as encoder:
            features = call(encoder, fitting(inputs, self.precision))
        return self._answer(k, features)

    @property
    def precision(self) -> torch.dtype:
        """In which the encoder and the heads compute: bfloat16 or float32."""
        first = next((p for p in self.encoder.parameters() if p.is_floating_point()), None)
        return FULL if first is None or first.dtype != HALF else HALF

    def _answer(self, k: int, features: Any) -> Tensor:
        """Return what task k's head, with its tint if that is there, makes of the encoder's output."""
        with self._view(self.heads[k], k, in_head=True) as head:
            return logits_of(head(features))

    def _view(self, module: nn.Module, k: int, *, in_head: bool) -> AbstractContextManager[nn.Module]:
        """Return task k's view of the encoder, or of its head."""
        if self.tinted is None or self.tinted.in_head != in_head:
            return nullcontext(module)
        return view(module, self.tinted.path, cast(self.tint_modules[k], self.precision))

    def together(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return task -> its logits of its own batch, from one pass of the encoder over all the batches.

        Args:
            inputs: task -> batch; several only where `one_pass` says so.
        """
        if len(inputs) == 1:
            return {task: self(batch, task) for task, batch in inputs.items()}
        sizes = [len(batch) for batch in inputs.values()]
        features = self.encoder(fitting(torch.cat(list(inputs.values())), self.precision))
        if not isinstance(features, Tensor) or len(features) != sum(sizes):
            self._splits = False  # into the tasks' parts: what heads take of it is theirs to know
            return {task: self(batch, task) for task, batch in inputs.items()}
        return {
            task: self._answer(self.tasks.index(task), part)
            for task, part in zip(inputs, torch.split(features, sizes), strict=True)
        }

    def one_pass(self, inputs: Iterable[Any]) -> bool:
        """Return whether batches of different tasks can go through the encoder together.

        That is where no tint stands inside the encoder, its output is one tensor, and inputs are tensors
        of one shape but for their number.

        Args:
            inputs: the batches.
        """
        shapes = {(batch.shape[1:], batch.dtype) if isinstance(batch, Tensor) else None for batch in inputs}
        return self._splits and self._path_in_encoder is None and len(shapes) == 1 and None not in shapes

    def set_task(self, task: str) -> None:
        """Make a task the default of `forward` (FusionBench's ModulatedModel convention).

        It holds in the thread that calls it, and in threads that have not called it themselves.

        Args:
            task: its name.

        Raises:
            ValueError: an unknown one.
        """
        if task not in self.tasks:
            raise unknown("task", task, self.tasks)
        self._task = self._own.task = task

    @property
    def layer(self) -> str | None:
        """`head`, `head.<submodule>`, the full name of the tinted submodule of the encoder, or None."""
        return None if self.tinted is None else self.tinted.name

    @property
    def tints(self) -> dict[str, nn.Module]:
        """Task -> its tint, a module like the layer it stands in for; empty without a tint."""
        return dict(zip(self.tasks, self.tint_modules, strict=False))

    @property
    def merged(self) -> nn.Module:
        """The shared encoder θ(λ), of the class and the precision of the pre-trained model."""
        return self.as_given

    @property
    def as_given(self) -> nn.Module:
        """The shared encoder, each tensor in the pre-trained model's precision, with PyTorch's batch norms.

        It is a copy where the encoder itself, which computes in one precision, is made otherwise.
        """
        dtypes = self.vectors.dtypes
        tensors = chain(self.encoder.named_parameters(), self.encoder.named_buffers())
        as_it_is = all(t.dtype == dtypes.get(name, t.dtype) for name, t in tensors)
        if as_it_is and not any(isinstance(module, MergedBatchNorm) for module in self.encoder.modules()):
            return self.encoder
        encoder = deepcopy(self.encoder)
        for name, tensor in chain(encoder.named_parameters(), encoder.named_buffers()):
            tensor.data = tensor.to(dtypes.get(name, tensor.dtype))
        return restore_statistics(encoder)

    @cached_property
    def head_hashes(self) -> dict[str, str]:
        """Task -> content hash of its original head, as it was when this was first asked."""
        return self._hashes_of_heads()

    def require_as_learned(self, coefficients: Mapping[str, Tensor]) -> None:
        """Refuse a model that λ, tints and the models that it was made of would not make again.

        Args:
            coefficients: tensor name -> its K values of λ.

        Raises:
            ValueError: a tensor of the shared encoder, or a head, was changed.
        """
        now = self._hashes_of_heads()
        changed = [
            f"the head of `{task}`" for task, hash_ in self.head_hashes.items() if now[task] != hash_
        ]
        names = unlike(self.encoder, self.vectors, coefficients)
        changed += [f"`{name}` of the shared encoder, or its λ," for name in names]
        if changed:
            raise ValueError(
                f"This model is not what it was learned to be: {changed[0]} was changed, converted or "
                "loaded from elsewhere. An artifact holds λ and the tints alone: save what `tint` or "
                "`load` returned, or keep this model's `state_dict()`."
            )

    def _hashes_of_heads(self) -> dict[str, str]:
        return {t: content_hash(h.state_dict()) for t, h in zip(self.tasks, self.heads, strict=True)}

    @property
    def contents(self) -> dict[str, dict[str, str]]:
        """What `models` and `heads` are beside their tensors, by hash; the `libraries` of their classes."""
        heads = zip(self.tasks, self.heads, strict=True)
        return {
            "models": self.vectors.beside,
            "heads": {task: value_hash(h, h.state_dict(keep_vars=True).values()) for task, h in heads},
            "libraries": libraries_of([self.encoder, *self.heads]),
        }

    @property
    def tinted_tensors(self) -> list[str]:
        """The merged tensors that the tint replaces, by name; empty for a head tint."""
        path = self._path_in_encoder
        return [] if path is None else [name for name in self.vectors.slots if name.startswith(f"{path}.")]

    @property
    def _path_in_encoder(self) -> str | None:
        return None if self.tinted is None or self.tinted.in_head else self.tinted.path

    def remerged(self, lam: Tensor | float | str) -> Self:
        """Return another merge of the same models, with the original heads and no tints.

        Args:
            lam: coefficients of shape (L, K) or (K,); one number for all (Task Arithmetic; 0 is the
                pre-trained model); or a task's name (its expert).

        Raises:
            ValueError: an unknown task, or `lam` of another shape or not finite.
        """
        if isinstance(lam, str):
            if lam not in self.tasks:
                raise unknown("task", lam, self.tasks)
            lam = torch.eye(len(self.tasks))[self.tasks.index(lam)]
        lam = torch.as_tensor(lam, dtype=torch.float32)
        encoder = load_merged(deepcopy(self.encoder), self.vectors, lam)
        heads = dict(zip(self.tasks, self.heads, strict=True))
        return type(self)(encoder, heads, nn.ModuleList(), layer=None, vectors=self.vectors)


def call(module: nn.Module, inputs: Any) -> Any:
    """Return a module's output.

    Args:
        module: an encoder.
        inputs: a mapping of keyword arguments, a tuple of positional ones, or a single one.
    """
    if isinstance(inputs, Mapping):
        return module(**inputs)
    positional = isinstance(inputs, tuple) and not hasattr(inputs, "_fields")
    return module(*inputs) if positional else module(inputs)


def logits_of(output: Any) -> Tensor:
    """Return a head's output as a tensor: of an output of transformers its `logits`.

    Args:
        output: of a head.

    Raises:
        ValueError: neither.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        keys = f" of {list(output)}" if isinstance(output, Mapping) else ""
        raise ValueError(
            "A head must return a tensor (batch, classes, ...), or an output with `logits`. Found "
            f"{type(output).__name__}{keys}: give it a head that takes its part."
        )
    return logits
