"""Random models and inputs, with our steps and the peers' steps on them, for the benchmarks of cost.

The peers: FusionBench's layer-wise AdaMerging class as it is; and the paper's training loop, written
anew after the released code. That of versions 1 and 2, here `sequential`: before every task's optimizer
step θ(λ) in Python sums, of θ₀ times one and the task vectors, all of which require gradients. That of
version 3, here `v3`: the same without those gradients. And `joint`, which no release has: the first loop
with one step for the sum of the K losses, as AdaMerging does it. All are given the experts' labels, where
the released code runs the experts at every step.

Peers run CLIP's tower as transformers does; ours as our CLIP family does, without the tokens of the last
block that are not read.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, redirect_stderr, redirect_stdout
from copy import deepcopy
from io import StringIO
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import fusion_tinting as ft
from fusion_tinting.families.clip import CLIPImageEncoder
from fusion_tinting.method.schedule import batch_schedule, task_order
from fusion_tinting.method.tints import resolve_layer
from fusion_tinting.run.context import Context
from fusion_tinting.run.sharding import shard
from fusion_tinting.run.storage import load_task_vectors
from fusion_tinting.run.training import Training

SCALES = {
    "S": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
          "image_size": 32, "patch_size": 8},
    "B": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
          "image_size": 224, "patch_size": 32},
    "L": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
          "num_attention_heads": 16, "image_size": 224, "patch_size": 14},
}  # fmt: skip
BATCH = {"S": 32, "B": 16, "L": 16}
KINDS = {"S": ("joint", "sequential", "v3"), "B": ("sequential", "v3"), "L": ("sequential", "v3")}
"""Of the paper's loop; joint, its K graphs and merged models of scale B do not fit in 24 GB."""
CLASSES, SEED, LR = 10, 0, 1e-3
AGAINST_K = (2, 4, 8, 14, 20)


class EveryToken(CLIPImageEncoder):
    """The encoder as its library runs it, which computes every token of the last block too."""

    def forward(self, images: Tensor) -> Tensor:
        """Return normalized embeddings, (B, D)."""
        return F.normalize(self.visual_projection(self.vision_model(images).pooler_output), dim=-1)


def encoder(scale: str) -> CLIPImageEncoder:
    """Return a CLIP vision tower that returns normalized embeddings."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPImageEncoder(CLIPVisionModel(CLIPVisionConfig(**SCALES[scale])), nn.Identity())


class Experts(Mapping):
    """Experts that are created on access, as a model pool loads them: who needs all at once pays for it."""

    def __init__(self, pretrained: nn.Module, tasks: list[str]):
        self._pretrained, self._tasks = pretrained, tasks

    @torch.no_grad()
    def __getitem__(self, task: str) -> nn.Module:
        if task not in self._tasks:
            raise KeyError(task)
        torch.manual_seed(1 + self._tasks.index(task))
        expert = deepcopy(self._pretrained)
        for parameter in expert.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
        return expert

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)


class World:
    """Random models and inputs: speed does not depend on what they have learned.

    Args:
        precision: Fabric's name of it, in which the models of ours and of the peers run.
    """

    def __init__(self, scale: str, tasks: int, steps: int, device: str, precision: str = "32-true"):
        torch.manual_seed(SEED)
        self.tasks = [f"task{k:02d}" for k in range(tasks)]
        self.batch, self.kinds = BATCH[scale], KINDS[scale]
        self.steps, self.device, self.precision = steps, torch.device(device), precision
        with self.device:
            self.pretrained = encoder(scale).eval()
        self.peers_pretrained = EveryToken(self.pretrained.vision_model, nn.Identity()).eval()
        self.experts = Experts(self.pretrained, self.tasks)
        width = SCALES[scale]["hidden_size"]
        heads = (nn.Linear(width, CLASSES).to(device).requires_grad_(False) for _ in self.tasks)
        self.heads = dict(zip(self.tasks, heads, strict=True))
        size = SCALES[scale]["image_size"]
        # The same images for every task: those of real tasks are on disk, and would count as ours here.
        images = torch.randn(2 * self.batch, 3, size, size)
        self.inputs = dict.fromkeys(self.tasks, images)
        self.unlabeled = dict.fromkeys(self.tasks, ft.Unlabeled(list(images)))
        self.predictions = {task: torch.randn(2 * self.batch, CLASSES) for task in self.tasks}
        self._vectors: dict[tuple[str, str], ft.TaskVectors] = {}

    def vectors(self, dtype: str = "fp32", storage: str = "memory", **_: object) -> ft.TaskVectors:
        """Return the task vectors of a kind, which are made once; other options change nothing here."""
        kind = dtype, storage
        if kind not in self._vectors:
            options = {"dtype": dtype, "storage": storage}
            self._vectors[kind] = load_task_vectors(self.pretrained, self.experts, options)
        return self._vectors[kind]

    def autocast(self) -> AbstractContextManager:
        """Return the precision in which models run."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed")

    def schedule(self, task: str) -> Tensor:
        """Return the rows of a task's batch at every step, (steps, batch)."""
        return batch_schedule(2 * self.batch, self.batch, self.steps, SEED, task)


class InItsPrecision(ft.Processes):
    """One process, where and in the precision that a world names."""

    def __init__(self, world: World):
        super().__init__(world.device)
        self.world = world

    def autocast(self) -> AbstractContextManager:
        """Return the precision in which models run."""
        return self.world.autocast()


class Ours:
    """`ft.Adaptation`, one iteration a step."""

    def __init__(self, world: World, processes: ft.Processes | None = None, **settings: object):
        options = {
            "steps": world.steps,
            "batch_size": world.batch,
            "lr": LR,
            "sampler": "all",
            "seed": SEED,
        }
        settings = ft.Settings(**{**options, **settings})
        shared = processes is not None and processes.shards
        vectors = (
            load_task_vectors(world.pretrained, world.experts, settings.task_vectors, processes)
            if shared
            else world.vectors(**settings.task_vectors)
        )
        tints = deepcopy(nn.ModuleList(world.heads.values() if settings.layer == "head" else ()))
        tints.requires_grad_(True)
        layer = resolve_layer(world.pretrained, settings.layer)
        encoder = deepcopy(world.pretrained)
        model = ft.TintedModel(encoder, world.heads, tints, layer=layer, vectors=vectors)
        processes = processes or InItsPrecision(world)
        shard(model, processes)
        self._start(world, model, settings, processes)

    def _start(
        self, world: World, model: ft.TintedModel, settings: ft.Settings, processes: ft.Processes
    ) -> None:
        self.adaptation = ft.Adaptation(model, settings, processes).__enter__()
        context = Context(processes, progress=False)
        self.lessons = Training(self.adaptation, world.unlabeled, world.predictions, context).lessons()
        self.done = 0

    def step(self) -> None:
        """Do one iteration."""
        self.adaptation.iteration(self.done, self.lessons)
        self.done += 1

    def lam(self) -> Tensor:
        """Return the raw λ, (L, K)."""
        return self.adaptation.coefficients.raw.detach()


class Paper:
    """The paper's loop, of one of the three kinds above."""

    def __init__(self, world: World, kind: str):
        self.world, self.joint, self.done = world, kind == "joint", 0
        base = {n: p.detach() for n, p in world.pretrained.named_parameters()}
        experts = (world.experts[task].named_parameters() for task in world.tasks)
        self.terms = [base, *({n: p.detach() - base[n] for n, p in expert} for expert in experts)]
        for tensor in chain.from_iterable(term.values() for term in self.terms):
            tensor.requires_grad_(kind != "v3")
        self.raw = nn.Parameter(torch.full((len(base), len(world.tasks)), 0.3, device=world.device))
        self.heads = deepcopy(nn.ModuleList(world.heads.values())).requires_grad_(True)
        self.labels = {t: rows.argmax(1) for t, rows in world.predictions.items()}
        self.schedules = {task: world.schedule(task) for task in world.tasks}
        self.optimizer = torch.optim.Adam([self.raw, *self.heads.parameters()], lr=LR)

    def merged(self) -> dict[str, Tensor]:
        """Return θ(λ) by name, with its graph."""
        lam = torch.cat([torch.ones_like(self.raw[:, :1]), self.raw.clamp(0, 1)], 1)
        return {
            name: sum(weight * term[name] for weight, term in zip(lam[place], self.terms, strict=True))
            for place, name in enumerate(self.terms[0])
        }

    def step(self) -> None:
        """Visit every task once."""
        total = 0.0
        for task in task_order(self.world.tasks, self.done, SEED):
            rows = self.schedules[task][self.done]
            images = self.world.inputs[task][rows].to(self.world.device)
            with self.world.autocast():
                features = functional_call(self.world.peers_pretrained, self.merged(), (images,))
                logits = self.heads[self.world.tasks.index(task)](features)
            loss = F.cross_entropy(logits.float(), self.labels[task][rows].to(self.world.device))
            if self.joint:
                total = total + loss
            else:
                self._update(loss)
        if self.joint:
            self._update(total)
        self.done += 1

    def _update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def lam(self) -> Tensor:
        """Return the raw λ, (L, K)."""
        return self.raw.detach()


class Passes:
    """Every task's batch, one by one, through a plain model and back: a step without an engine."""

    def __init__(self, world: World, encoder: nn.Module):
        self.world, self.encoder = world, deepcopy(encoder)

    def step(self) -> None:
        """Do the passes of every task."""
        for task in self.world.tasks:
            images = self.world.inputs[task][: self.world.batch].to(self.world.device)
            with self.world.autocast():
                logits = self.world.heads[task](self.encoder(images))
            ft.OBJECTIVES["entropy"](logits.float(), images).mean().backward()


def fusionbench_steps(
    world: World, steps: int, between: Callable[[], object] = lambda: None
) -> tuple[list[float], Tensor]:
    """Return the seconds of each step of FusionBench's own AdaMerging loop, and λ after the last, (L, K).

    Args:
        world: the models and inputs.
        steps: the number of steps.
        between: called before each step; its time does not count.
    """
    import fusion_tinting.fusionbench  # noqa: F401, I001 (repairs it for today's transformers)
    from fusion_bench.method.adamerging.layer_wise_adamerging import LayerWiseAdaMergingAlgorithm
    from fusion_bench.models.wrappers.layer_wise_fusion import LayerWiseMergedModel, get_layer_wise_weights
    from lightning import Fabric
    from omegaconf import OmegaConf

    class Timed(LayerWiseAdaMergingAlgorithm):
        def get_shuffled_test_loader_iter(self, task: str) -> Iterator[tuple[Tensor]]:
            if task == world.tasks[0]:
                stops.append(now(world.device))
                between()
                starts.append(now(world.device))
            return ((world.inputs[task][rows].to(world.device),) for rows in self.schedules[task])

        def compute_logits(self, module: nn.Module, images: Tensor, task: str) -> Tensor:
            return world.heads[task](module(images))

    starts: list[float] = []
    stops: list[float] = []
    config = {"optimizer": "adam", "lr": LR, "max_steps": steps, "fast_dev_run": False}
    theirs = Timed(OmegaConf.create(config))
    theirs.schedules = {task: iter(world.schedule(task)) for task in world.tasks}
    accelerator = "cpu" if world.device.type == "cpu" else "gpu"
    theirs.fabric = Fabric(accelerator=accelerator, devices=1, loggers=[], precision=world.precision)
    theirs.modelpool = type("Pool", (), {"model_names": world.tasks})
    count = len(list(world.pretrained.parameters()))
    merged = LayerWiseMergedModel(
        get_layer_wise_weights(len(world.tasks), count, 0.3),
        deepcopy(world.peers_pretrained),
        list(world.experts.values()),
        tie_weights=True,  # these two as in their configuration for CLIP
        strict=False,
    )
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        theirs.test_time_adaptation(merged)
    stops.append(now(world.device))
    seconds = [stop - start for start, stop in zip(starts, stops[1:], strict=True)]
    return seconds, merged.merge_weight.detach().T


def now(device: torch.device) -> float:
    """Return CPU seconds of this process; on a GPU seconds by the clock, once it has finished."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Return the seconds that some work takes."""
    start = now(device)
    work()
    return now(device) - start
