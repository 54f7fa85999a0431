"""The parts of `gpu.py` that have no peer: bandwidth, where a step's time goes, a Llama, exactness."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from unittest.mock import patch

import torch
from torch import Tensor, nn

import fusion_tinting as ft
from fusion_tinting.method.content import content_hash
from fusion_tinting.method.task_vectors import Rows
from fusion_tinting.run.top_predictions import ClassIds
from helpers.peers import Experts, InItsPrecision, Ours, World, encoder, now, timed


class Unhashed(World):
    """A world whose models are not hashed: that runs on the CPU, and takes longer than all else here."""

    def vectors(self, **kind: object) -> ft.TaskVectors:
        """Return the task vectors of a kind, whose hashes are left out."""
        with unhashed():
            return super().vectors(**kind)


@contextmanager
def unhashed() -> Iterator[None]:
    """Leave content hashes out while the context lasts."""
    with patch("fusion_tinting.method.task_vectors.content_hash", lambda tensors: "left out"):
        yield


def settle(device: torch.device) -> None:
    """Free what is not used any more, and count the peak anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    count_peak_anew(device)


def count_peak_anew(device: torch.device) -> None:
    """Count the peak of allocated memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> float | None:
    """Return the gigabytes allocated at most since the peak was counted anew; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def numerics(device: torch.device) -> dict:
    """Return relative errors of the fast path on the device beside the formula in float64 on the CPU."""
    world = World("S", 8, 1, str(device))
    errors = {}
    for dtype in ("fp32", "fp16"):
        vectors = world.vectors(dtype)
        lam = torch.rand(len(vectors.slots), 8, device=device)
        gradient = torch.randn_like(vectors.base)
        deltas = vectors.deltas.double().cpu()
        exact = vectors.views(vectors.base.double().cpu().clone())
        weights = (lam * vectors.scales).double().cpu()
        for row, part, tau in zip(weights, exact.values(), vectors.views(deltas).values(), strict=True):
            part += torch.tensordot(row, tau, 1)
        parts = vectors.views(gradient.double().cpu()), vectors.views(deltas)
        exact_gradient = torch.stack(
            [parts[1][n].flatten(1) @ parts[0][n].flatten() for n in vectors.names]
        )
        exact_gradient *= vectors.scales.double().cpu()
        merged = ft.merge(vectors, lam)
        errors[dtype] = {
            "merge": distance(merged, torch.cat([part.flatten() for part in exact.values()])),
            "gradient": distance(ft.coefficient_gradient(vectors, vectors.views(gradient)), exact_gradient),
            "formula": distance(merged, flat(ft.merge_reference(vectors, lam))),
            "zero_is_the_pretrained": bool(ft.merge(vectors, 0 * lam).equal(vectors.base)),
        }
    return errors


def flat(tensors: dict[str, Tensor]) -> Tensor:
    """Return all numbers of some tensors, one after another."""
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def distance(computed: Tensor, exact: Tensor) -> float:
    """Return the relative error of all numbers together."""
    computed, exact = computed.double().cpu(), exact.double().cpu()
    return float((computed - exact).norm() / exact.norm())


def random_vectors(scale: str, tasks: int, dtype: torch.dtype, device: torch.device) -> ft.TaskVectors:
    """Return random task vectors of a tower's shapes, of any dtype."""
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in encoder(scale).named_parameters()}
    slots, start = {}, 0
    for name, shape in shapes.items():
        slots[name] = start, start + shape.numel(), shape
        start += shape.numel()
    rows = Rows(tasks, start, dtype, device)
    rows.whole.normal_()
    base, scales = torch.randn(start, device=device), torch.ones(len(slots), tasks, device=device)
    return ft.TaskVectors([f"task{k}" for k in range(tasks)], slots, base, scales, {}, rows)


def bandwidth(scale: str, tasks: int, device: torch.device) -> dict:
    """Return gigabytes a second of a merge and its gradient, by what they must read and write."""
    speeds = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        settle(device)
        vectors = random_vectors(scale, tasks, dtype, device)
        numbers = vectors.size
        read = vectors.deltas.nbytes
        milliseconds = {name: 1e3 * seconds for name, seconds in merges(vectors).items()}
        speeds[str(dtype).removeprefix("torch.")] = {
            "milliseconds": milliseconds,
            "merge_gb_per_s": (read + 8 * numbers) / 1e6 / milliseconds["merge"],
            "gradient_gb_per_s": (read + 4 * numbers) / 1e6 / milliseconds["gradient"],
        }
    return {
        **speeds,
        "parameters": numbers,
        "tensors": len(vectors.slots),
        "copy_gb_per_s": copying(device),
    }


def merges(vectors: ft.TaskVectors) -> dict[str, float]:
    """Return median seconds of a merge and its gradient, by the fast path and by the formula's autograd."""
    device = vectors.base.device
    lam = torch.rand(len(vectors.slots), len(vectors.tasks), device=device, requires_grad=True)
    out, gradient = torch.empty_like(vectors.base), vectors.views(torch.randn_like(vectors.base))
    naive: dict[str, Tensor] = {}

    def formula() -> None:
        naive.clear()
        naive.update(ft.merge_reference(vectors, lam))

    def backward() -> None:
        torch.autograd.backward(list(naive.values()), list(gradient.values()), retain_graph=True)

    works = {
        "merge": lambda: ft.merge(vectors, lam, out),
        "gradient": lambda: ft.coefficient_gradient(vectors, gradient),
        "naive merge": formula,
        "naive gradient": backward,
    }
    return {name: often(device, work) for name, work in works.items()}


def often(device: torch.device, work: Callable[[], object], count: int = 10) -> float:
    """Return median seconds, the first two left out."""
    return median([timed(device, work) for _ in range(count + 2)][2:])


def copying(device: torch.device) -> float:
    """Return the gigabytes a second of a plain copy on the device, read and written."""
    source = torch.randn(1 << (29 if device.type == "cuda" else 20), device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / 1e9 / often(device, lambda: target.copy_(source))


PHASES = {
    "encoder passes": "teach",
    "gradient": "take_gradient",
    "merge": "merged.write",
    "optimizer, λ": "optimizers.step_coefficients",
    "optimizer, tints": "optimizers.step_tint",
}
"""Phase of a step -> the method of `Adaptation`, or of a part of it, that does it."""


class Phases:
    """Measures how long the host and the device take for each phase of an adaptation's steps."""

    def __init__(self, adaptation: ft.Adaptation, device: torch.device):
        self.device, self.marks = device, {phase: [] for phase in PHASES}
        for phase, place in PHASES.items():
            owner, _, method = place.rpartition(".")
            owner = getattr(adaptation, owner) if owner else adaptation
            setattr(owner, method, self._watched(phase, getattr(owner, method)))

    def _watched(self, phase: str, work: Callable) -> Callable:
        def watched(*args: object) -> object:
            start = self._mark()
            result = work(*args)
            self.marks[phase].append((start, self._mark()))
            return result

        return watched

    def _mark(self) -> tuple:
        event = torch.cuda.Event(enable_timing=True) if self.device.type == "cuda" else None
        if event is not None:
            event.record()
        return time.perf_counter(), event

    def milliseconds(self) -> dict[str, dict[str, float]]:
        """Return phase -> milliseconds of the `host` until all is asked for, and of the `device`."""
        return {
            phase: {
                "host": sum(1e3 * (stop[0] - start[0]) for start, stop in marks),
                "device": sum(start[1].elapsed_time(stop[1]) for start, stop in marks if start[1]),
            }
            for phase, marks in self.marks.items()
        }


def split(scale: str, tasks: int, precision: str, update: str, device: torch.device) -> dict:
    """Return where the time of one of our steps goes, and how long the device works in it."""
    settle(device)
    world = Unhashed(scale, tasks, 10, str(device), precision)
    ours = Ours(world, objective="hard", update=update)
    step = median([timed(device, ours.step) for _ in range(6)][2:])
    start = time.perf_counter()
    ours.step()
    asked = time.perf_counter() - start
    kernels = profiled(ours.step, device)
    phases = Phases(ours.adaptation, device)
    watched = 1e3 * timed(device, ours.step)
    spent = phases.milliseconds()
    return {
        "milliseconds": 1e3 * step,
        "host_milliseconds": 1e3 * asked,
        **kernels,
        "busy_share": kernels["kernel_milliseconds"] / 1e3 / step,
        "watched_milliseconds": watched,
        "host_elsewhere": watched - sum(phase["host"] for phase in spent.values()),
        "phases": spent,
    }


def profiled(step: Callable[[], object], device: torch.device) -> dict:
    """Return how many kernels a step has, how long they take, and the ten that take longest."""
    from torch.profiler import ProfilerActivity, profile

    activities = {"cpu": [ProfilerActivity.CPU], "cuda": [ProfilerActivity.CPU, ProfilerActivity.CUDA]}
    with profile(activities=activities[device.type]) as profiler:
        step()
        now(device)
    kernels = [e for e in profiler.key_averages() if e.device_type != torch.autograd.DeviceType.CPU]
    kernels.sort(key=lambda e: -e.self_device_time_total)
    return {
        "kernels": sum(e.count for e in kernels),
        "kernel_milliseconds": sum(e.self_device_time_total for e in kernels) / 1e3,
        "longest": {e.key[:80]: [e.count, e.self_device_time_total / 1e3] for e in kernels[:10]},
    }


LLAMA = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
         "vocab_size": 32000}  # fmt: skip
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 200}  # fmt: skip
BATCH, LENGTH = 2, 256


class LlamaWorld(Unhashed):
    """Three random experts of a random Llama, the logits of which are merged: no heads."""

    def __init__(self, shape: dict[str, int], steps: int, device: torch.device, half: bool = False):
        from transformers import LlamaConfig, LlamaForCausalLM

        from fusion_tinting.families.causal_lm import LanguageModel

        self.tasks, self.steps, self.device = ["a", "b", "c"], steps, device
        self.batch, self.precision = BATCH, "32-true" if half else "bf16-mixed"
        with device:
            model = LlamaForCausalLM(LlamaConfig(**shape))
        self.pretrained = LanguageModel(model.bfloat16() if half else model).eval()
        self.experts = Experts(self.pretrained, self.tasks)
        self.heads = {task: nn.Identity() for task in self.tasks}
        tokens = torch.randint(shape["vocab_size"], (2 * BATCH, LENGTH))
        self.unlabeled = dict.fromkeys(self.tasks, ft.Unlabeled(list(tokens)))
        self.predictions = dict.fromkeys(self.tasks, ClassIds(tokens.short(), shape["vocab_size"]))
        self._vectors = {}


def llama(update: str, device: torch.device, quick: bool, storage: str | None = None) -> dict:
    """Return costs of steps on a Llama, the last block of which is tinted.

    It is of float32, passes in bfloat16 and task vectors in float16; or, with a storage, all of bfloat16.
    """
    settle(device)
    shape, count = (TINY if quick else LLAMA), (2 if quick else 6)
    world, start = LlamaWorld(shape, count, device, half=storage is not None), now(device)
    work = BlockTint(world, update, {"dtype": "fp16"} if storage is None else {"storage": storage})
    costs = {"setup_seconds": now(device) - start, "setup_peak_gb": peak(device)}
    count_peak_anew(device)
    seconds = [timed(device, work.step) for _ in range(count)]
    parameters = work.adaptation.vectors.size
    costs |= {"parameters": parameters, "milliseconds": 1e3 * median(seconds[1:]), "peak_gb": peak(device)}
    if costs["peak_gb"] is not None:
        costs["bytes_per_parameter"] = 1e9 * costs["peak_gb"] / parameters
    losses = work.adaptation.figures[..., 0].mean(1).tolist()
    return {**costs, "tint": work.adaptation.model.layer, "losses": losses, "seconds": seconds}


class BlockTint(Ours):
    """The same with each expert's last block as its task's tint."""

    def __init__(self, world: World, update: str, kept: dict[str, str]):
        pretrained, experts = world.pretrained, world.experts
        with unhashed():
            model = ft.TintedModel.untrained(pretrained, experts, world.heads, "block:-1", kept)
        settings = ft.Settings(
            layer="block:-1", sampler="all", update=update, steps=world.steps, batch_size=world.batch,
            task_vectors=kept,
        )  # fmt: skip
        self._start(world, model, settings, InItsPrecision(world))


def hashing(device: torch.device, quick: bool) -> dict:
    """Return how fast a model's content hash is computed, which every run does once a model."""
    with device:
        model = encoder("S" if quick else "B")
    tensors = dict(model.named_parameters())
    seconds = timed(device, lambda: content_hash(tensors))
    return {"gb_per_s": sum(t.nbytes for t in tensors.values()) / 1e9 / seconds, "seconds": seconds}
