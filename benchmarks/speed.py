"""How fast a merge, its gradient and a whole training step are, beside the ways that others take.

    python benchmarks/speed.py --scale S --tasks 8      # or --scale B, a ViT-B/32
    python benchmarks/speed.py --quick                  # less than a minute
    python benchmarks/speed.py --plot against_k.png     # step times for several numbers of tasks

Peers and ours take turns in one process, on the same models and batches, and must agree in what they
compute. Ratios are a peer's median time over ours: above 1 ours is faster. On a CPU it is CPU time.

The peers: FusionBench's layer-wise AdaMerging class as it is; and the paper's training loop, written
anew as the released code has it: θ(λ) in Python sums for every task, task vectors that require
gradients; but with the experts' labels computed beforehand, where theirs asks the experts at every step.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from io import StringIO
from pathlib import Path
from statistics import median

import torch
from common import about, against_k, save
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import fusion_tinting as ft
from fusion_tinting.unlabeled import batch_schedule, task_order

SCALES = {
    "S": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
          "image_size": 32, "patch_size": 8},
    "B": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
          "image_size": 224, "patch_size": 32},
}  # fmt: skip
BATCH = {"S": 32, "B": 16}
CLASSES, SEED, LR = 10, 0, 1e-3
AGAINST_K = (2, 4, 8, 14, 20)


class Encoder(nn.Module):
    """A CLIP vision tower that returns normalised embeddings."""

    def __init__(self, scale: str):
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel

        self.tower = CLIPVisionModel(CLIPVisionConfig(**SCALES[scale]))

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.tower(images).pooler_output, dim=-1)


class Experts(Mapping):
    """Made when asked for, as a model pool loads them: who needs all at once pays for it."""

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
    """Random models and inputs: speed does not depend on what they have learned."""

    def __init__(self, scale: str, tasks: int, steps: int, device: str):
        torch.manual_seed(SEED)
        self.tasks = [f"task{k:02d}" for k in range(tasks)]
        self.batch, self.steps, self.device = BATCH[scale], steps, torch.device(device)
        self.pretrained = Encoder(scale).to(device).eval()
        self.experts = Experts(self.pretrained, self.tasks)
        width = SCALES[scale]["hidden_size"]
        self.heads = {task: nn.Linear(width, CLASSES).to(device) for task in self.tasks}
        size = SCALES[scale]["image_size"]
        # The same images for every task: those of real tasks are on disk, and would count as ours here.
        images = torch.randn(2 * self.batch, 3, size, size)
        self.inputs = dict.fromkeys(self.tasks, images)
        self.unlabeled = dict.fromkeys(self.tasks, ft.Unlabeled(list(images)))
        self.predictions = {task: torch.randn(2 * self.batch, CLASSES) for task in self.tasks}
        self._vectors: dict[tuple[str, str], ft.TaskVectors] = {}

    def vectors(self, dtype: str = "fp32", storage: str = "memory") -> ft.TaskVectors:
        """Task vectors, made once for all that ask for the same kind."""
        kind = dtype, storage
        if kind not in self._vectors:
            self._vectors[kind] = ft.TaskVectors.from_models(
                self.pretrained, self.experts, dtype=dtype, storage=storage
            )
        return self._vectors[kind]

    def schedule(self, task: str) -> Tensor:
        return batch_schedule(2 * self.batch, self.batch, self.steps, SEED, task)


class Ours:
    """`ft.Adaptation`, an iteration a step."""

    def __init__(self, world: World, processes: ft.Processes | None = None, **settings):
        options = {
            "steps": world.steps,
            "batch_size": world.batch,
            "lr": LR,
            "sampler": "all",
            "seed": SEED,
        }
        settings = ft.Settings(**{**options, **settings})
        vectors = world.vectors(**settings.task_vectors)
        tints = deepcopy(nn.ModuleList(world.heads.values() if settings.layer == "head" else ()))
        model = ft.TintedModel(
            deepcopy(world.pretrained), world.heads, tints, layer=settings.layer, vectors=vectors
        )
        processes = processes or ft.Processes(world.device)
        self.adaptation = ft.Adaptation(
            model, world.unlabeled, world.predictions, settings, processes
        ).__enter__()
        self.batches = self.adaptation.batches()
        self.done = 0

    def step(self) -> None:
        self.adaptation.iteration(self.done, self.batches)
        self.done += 1

    def lam(self) -> Tensor:
        return self.adaptation.coefficients.raw.detach()


class Paper:
    """The paper's loop as released; `joint` sums the K losses before one backward."""

    def __init__(self, world: World, joint: bool):
        self.world, self.joint, self.done = world, joint, 0
        self.base = {n: p.detach() for n, p in world.pretrained.named_parameters()}
        self.vectors = [
            {
                n: (p.detach() - self.base[n]).requires_grad_()
                for n, p in world.experts[task].named_parameters()
            }
            for task in world.tasks
        ]
        self.raw = nn.Parameter(torch.full((len(self.base), len(world.tasks)), 0.3, device=world.device))
        self.heads = deepcopy(nn.ModuleList(world.heads.values()))
        self.labels = {t: rows.argmax(1) for t, rows in world.predictions.items()}
        self.schedules = {task: world.schedule(task) for task in world.tasks}
        self.optimizer = torch.optim.Adam([self.raw, *self.heads.parameters()], lr=LR)

    def merged(self) -> dict[str, Tensor]:
        lam = self.raw.clamp(0, 1)
        return {
            name: base + sum(lam[place, k] * vector[name] for k, vector in enumerate(self.vectors))
            for place, (name, base) in enumerate(self.base.items())
        }

    def step(self) -> None:
        total = 0.0
        for task in task_order(self.world.tasks, self.done, SEED):
            rows = self.schedules[task][self.done]
            images = self.world.inputs[task][rows].to(self.world.device)
            features = functional_call(self.world.pretrained, self.merged(), (images,))
            logits = self.heads[self.world.tasks.index(task)](features)
            loss = F.cross_entropy(logits, self.labels[task][rows].to(self.world.device))
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
        return self.raw.detach()


def fusionbench_steps(
    world: World, steps: int, between: Callable[[], object] = lambda: None
) -> tuple[list[float], Tensor]:
    """Seconds of each step of FusionBench's own AdaMerging loop, and λ after the last.

    Args:
        between: called before each step; its time does not count.
    """
    import fusion_tinting.fusionbench  # noqa: F401, I001 (repairs it for today's transformers)
    from fusion_bench.method.adamerging.layer_wise_adamerging import LayerWiseAdaMergingAlgorithm
    from fusion_bench.models.wrappers.layer_wise_fusion import LayerWiseMergedModel, get_layer_wise_weights
    from lightning import Fabric
    from omegaconf import OmegaConf

    class Timed(LayerWiseAdaMergingAlgorithm):
        def get_shuffled_test_loader_iter(self, task):
            if task == world.tasks[0]:
                stops.append(now(world.device))
                between()
                starts.append(now(world.device))
            return ((world.inputs[task][rows].to(world.device),) for rows in self.schedules[task])

        def compute_logits(self, module, images, task):
            return world.heads[task](module(images))

    starts: list[float] = []
    stops: list[float] = []
    for head in world.heads.values():
        head.requires_grad_(False)
    config = {"optimizer": "adam", "lr": LR, "max_steps": steps, "fast_dev_run": False}
    theirs = Timed(OmegaConf.create(config))
    theirs.schedules = {task: iter(world.schedule(task)) for task in world.tasks}
    accelerator = "cpu" if world.device.type == "cpu" else "gpu"
    theirs.fabric = Fabric(accelerator=accelerator, devices=1, loggers=[])
    theirs.modelpool = type("Pool", (), {"model_names": world.tasks})
    count = len(list(world.pretrained.parameters()))
    merged = LayerWiseMergedModel(
        get_layer_wise_weights(len(world.tasks), count, 0.3),
        deepcopy(world.pretrained),
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
    """CPU seconds of this process; on a GPU seconds by the clock, once it has finished."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(device: torch.device, work: Callable[[], object]) -> float:
    start = now(device)
    work()
    return now(device) - start


def merges(world: World, rounds: int) -> dict[str, list[float]]:
    """Times of θ(λ) and of ∂λ, by the formula under autograd and by the fast path, in turns."""
    vectors = world.vectors()
    lam = torch.rand(len(vectors.slots), len(world.tasks), device=world.device, requires_grad=True)
    gradient = torch.randn_like(vectors.base)
    out, views = torch.empty_like(vectors.base), vectors.views(gradient)
    seconds: dict[str, list[float]] = {name: [] for name in ("naive θ", "ours θ", "naive ∂λ", "ours ∂λ")}
    for _ in range(rounds):
        start = now(world.device)
        naive = ft.merge_reference(vectors, lam)
        seconds["naive θ"].append(now(world.device) - start)
        seconds["ours θ"].append(timed(world.device, lambda: ft.merge(vectors, lam, out)))
        lam.grad = None
        start = now(world.device)
        torch.autograd.backward(list(naive.values()), list(views.values()))
        seconds["naive ∂λ"].append(now(world.device) - start)
        start = now(world.device)
        ours = ft.coefficient_gradient(vectors, views)
        seconds["ours ∂λ"].append(now(world.device) - start)
        agree("θ(λ)", vectors.views(out)[vectors.names[-1]], naive[vectors.names[-1]].detach(), 1e-5)
        agree("∂λ", ours, lam.grad, 1e-4)
    return seconds


def steps(world: World, rounds: int) -> dict[str, list[float]]:
    """Times of training steps: each peer and ours in turns, one peer after another, for at scale B no two
    peers fit beside each other in 24 GB. λ of both are compared at the end."""
    seconds = against_fusionbench(world, rounds + 1)
    for kind in ("joint", "sequential"):
        seconds |= against_paper(world, rounds + 1, kind)
    return {name: values[1:] for name, values in seconds.items()}  # the first warmed up


def against_fusionbench(world: World, rounds: int) -> dict[str, list[float]]:
    ours, encoder = Ours(world, objective="entropy", layer=None, update="joint"), encoder_alone(world)
    seconds: dict[str, list[float]] = {"ours entropy": [], "encoder alone": []}

    def our_turn() -> None:
        seconds["ours entropy"].append(timed(world.device, ours.step))
        seconds["encoder alone"].append(timed(world.device, encoder))

    seconds["FusionBench entropy"], lam = fusionbench_steps(world, rounds, our_turn)
    agree("λ of the entropy steps", ours.lam(), lam, 1e-3)
    return seconds


def encoder_alone(world: World) -> Callable[[], None]:
    """The passes that nobody can leave out: every task's batch through a plain model and back."""
    model, entropy = deepcopy(world.pretrained), ft.OBJECTIVES["entropy"]

    def work() -> None:
        for task in world.tasks:
            images = world.inputs[task][: world.batch].to(world.device)
            entropy(world.heads[task](model(images)), images).mean().backward()

    return work


def against_paper(world: World, rounds: int, kind: str) -> dict[str, list[float]]:
    paper, ours = Paper(world, kind == "joint"), Ours(world, objective="hard", update=kind)
    seconds: dict[str, list[float]] = {f"paper {kind}": [], f"ours {kind}": []}
    for _ in range(rounds):
        seconds[f"paper {kind}"].append(timed(world.device, paper.step))
        seconds[f"ours {kind}"].append(timed(world.device, ours.step))
    agree(f"λ of the {kind} steps", ours.lam(), paper.lam(), 1e-3)
    return seconds


def agree(what: str, ours: Tensor, theirs: Tensor, relative: float) -> None:
    """Stop if the two are not the same computation, by the relative error of all numbers together."""
    error = float((ours - theirs).norm() / theirs.norm())
    if not error <= relative:
        raise SystemExit(f"Ours and the peer's {what} differ: relative error {error:.1e}.")


def measure(scale: str, tasks: int, rounds: int, device: str, only_steps: bool = False) -> dict:
    """Median seconds and ratios for one scale and K."""
    world = World(scale, tasks, rounds + 1, device)
    seconds = ({} if only_steps else merges(world, max(rounds, 5))) | steps(world, rounds)
    half = {name: median(values) for name, values in seconds.items()}
    ratios = {
        "step_ratio_entropy": half["FusionBench entropy"] / half["ours entropy"],
        "step_ratio_paper": half["paper joint"] / half["ours joint"],
        "step_ratio_paper_sequential": half["paper sequential"] / half["ours sequential"],
        "encoder_share": half["encoder alone"] / half["ours entropy"],
    }
    if not only_steps:
        ratios["merge_forward_ratio"] = half["naive θ"] / half["ours θ"]
        ratios["lambda_gradient_ratio"] = half["naive ∂λ"] / half["ours ∂λ"]
    return {**ratios, "median_seconds": half, "seconds": seconds}


def table(found: dict) -> str:
    """Peers and ours side by side, in milliseconds."""
    half = found["median_seconds"]
    rows = [
        ("merge θ(λ)", "naive θ", "ours θ", "merge_forward_ratio"),
        ("its gradient ∂λ", "naive ∂λ", "ours ∂λ", "lambda_gradient_ratio"),
        ("entropy step, FusionBench", "FusionBench entropy", "ours entropy", "step_ratio_entropy"),
        ("tinting step, paper, joint", "paper joint", "ours joint", "step_ratio_paper"),
        (
            "tinting step, paper, sequential",
            "paper sequential",
            "ours sequential",
            "step_ratio_paper_sequential",
        ),
    ]
    lines = ["| | peer, ms | ours, ms | ratio |", "|---|---|---|---|"]
    for title, peer, ours, ratio in rows:
        if peer in half:
            cells = f"{1e3 * half[peer]:.1f} | {1e3 * half[ours]:.1f} | {found[ratio]:.2f}"
            lines.append(f"| {title} | {cells} |")
    alone = f"{1e3 * half['encoder alone']:.1f} ms, {100 * found['encoder_share']:.0f} %"
    lines.append(f"\nThe encoder's passes alone take {alone} of our entropy step.")
    return "\n".join(lines)


def plot(scale: str, rounds: int, device: str, path: Path) -> None:
    """Draw step times against the number of tasks."""
    by_k = {k: measure(scale, k, rounds, device, only_steps=True)["median_seconds"] for k in AGAINST_K}
    curves = {name: {k: half[name] for k, half in by_k.items()} for name in by_k[AGAINST_K[0]]}
    against_k(path, f"One training step, scale {scale}, one thread", "seconds a step", curves)


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    rounds = 3 if options.quick else options.rounds
    found = measure(options.scale, options.tasks, rounds, options.device)
    print(table(found))
    if options.plot is not None:
        plot(options.scale, rounds, options.device, options.plot)
    if options.json is not None:
        asked = {name: getattr(options, name) for name in ("scale", "tasks", "threads", "device")}
        save(options.json, {**asked, **about(options.device), **found})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--scale", choices=SCALES, default="S", help="S: tiny tower; B: ViT-B/32")
    parser.add_argument("--tasks", type=int, default=8, help="number of experts K")
    parser.add_argument("--rounds", type=int, default=10, help="turns that each takes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--plot", type=Path, help="draw step times against K into this file")
    parser.add_argument("--json", type=Path, help="write everything measured into this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
