"""Test-time adaptation: λ and the tints, trained together on unlabelled inputs.

    minimise over λ and φ_1..φ_K   Σ_k E_x [ loss( C_k(x; θ(λ), φ_k), expert_k(x) ) ]

Read `Adaptation.iteration` first: it is the method.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fusion_tinting import checkpoint
from fusion_tinting.coefficients import Coefficients
from fusion_tinting.history import History
from fusion_tinting.merging import MergedWeights, coefficient_gradient
from fusion_tinting.objectives import agreement, resolve_objective
from fusion_tinting.processes import Processes, sensible_threads
from fusion_tinting.sampling import resolve_sampler
from fusion_tinting.settings import Settings
from fusion_tinting.tinted_model import TintedModel
from fusion_tinting.unlabeled import Unlabeled, batch_schedule, task_order, to_device


class Adaptation:
    """The joint optimisation of λ and the tints of `model`, whose encoder it merges anew after each step.

    Use it as a context (`with`): on leaving, the encoder holds θ(λ) of the last step.

    Args:
        model: trained in place.
        unlabeled: task -> its inputs.
        predictions: task -> what the expert predicts for each of them, (N, ...).
        settings: see `Settings`.
        processes: where it runs.
    """

    def __init__(
        self,
        model: TintedModel,
        unlabeled: Mapping[str, Unlabeled],
        predictions: Mapping[str, Tensor],
        settings: Settings,
        processes: Processes | None = None,
    ):
        self.settings, self.processes = settings, processes or Processes()
        self.model = model.to(self.processes.device)
        self.vectors = model.vectors = model.vectors.to(self.processes.device)
        self.unlabeled, self.predictions = unlabeled, predictions
        self.coefficients = Coefficients(
            self.vectors.names,
            model.tasks,
            init=settings.init,
            granularity=settings.granularity,
            clamp=settings.clamp,
        ).to(self.processes.device)
        self.objective = resolve_objective(settings.objective)
        self.sampler = resolve_sampler(settings.sampler)
        self.merged = MergedWeights(model.encoder, self.vectors, trainable=settings.lr_coefficients != 0)
        self.optimizer = self._optimizer()
        self.history = History.empty(model.tasks, settings.steps)
        self.schedules = {
            task: batch_schedule(len(inputs), settings.batch_size, settings.steps, settings.seed, task)
            for task, inputs in unlabeled.items()
        }

    def __enter__(self) -> "Adaptation":
        self.merged.__enter__().write(self.coefficients())
        return self

    def __exit__(self, *_) -> None:
        self.merged.__exit__()

    def iteration(self, step: int, inputs: Mapping[str, Iterator]) -> None:
        """Visit every task once, in random order; `inputs` yields each task's next batch."""
        self._set_learning_rates(step)
        taught = False
        for task in task_order(self.model.tasks, step, self.settings.seed):
            kept = self.teach(task, step, next(inputs[task]))
            taught = taught or kept
            if self.settings.update == "sequential" and kept:
                self.update()
            self._record_coefficients(task, step)
        if self.settings.update == "joint" and taught:
            self.update()

    def teach(self, task: str, step: int, inputs) -> bool:
        """Accumulate the gradient of one task's loss on one batch; False if no sample was kept.

        The loss is the mean over the samples that the sampler keeps of the whole batch, of which
        this process holds its share.
        """
        indices = self.schedules[task][step]
        expert = self.predictions[task][indices].to(self.processes.device)
        with self.processes.autocast():
            output = self.model(to_device(inputs, self.processes.device), task)
        output = output.float()
        batch = self.processes.gather(output.detach(), len(indices))
        keep = self.sampler(batch, expert)
        _expect(keep.dtype == torch.bool and keep.shape == (len(batch),), "sampler", "a boolean mask", keep)
        count = int(keep.sum())
        mine, expert_mine = self.processes.mine(keep), self.processes.mine(expert)
        losses = self.objective(output[mine], expert_mine[mine])
        _expect(losses.shape == (int(mine.sum()),), "objective", "one loss per sample", losses)
        loss = losses.sum() / max(count, 1)
        if not torch.isfinite(loss):
            raise ValueError(
                f"The loss of `{task}` became {loss.item()} in iteration {step}. Lower the learning rate."
            )
        if count:
            loss.backward()
        column = self.history.values[step, self.model.tasks.index(task)]
        column[0] = self.processes.sum(loss.detach())
        column[1] = agreement(batch, expert).mean()
        column[2] = count / len(indices)
        return count > 0

    def update(self) -> None:
        """One optimiser step from the accumulated gradients, then θ(λ) anew.

        λ's gradient is taken here, once: ∂λ_lk = ⟨∂θ_l, τ_k,l⟩, then through the clamp. It is linear in
        ∂θ, so that several processes need to sum only the (L, K) numbers ∂λ. The tints of tasks that
        were not visited have no gradient: Adam leaves them and their state alone.
        """
        if self.settings.lr_coefficients != 0:
            gradient = coefficient_gradient(self.vectors, self.merged.take_gradients())
            self.coefficients().backward(self.processes.sum(gradient))
        for parameter in self.model.tint_modules.parameters():
            if parameter.grad is not None:
                parameter.grad = self.processes.sum(parameter.grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.merged.write(self.coefficients())

    def state(self) -> dict[str, Tensor]:
        """Everything that the next iteration depends on, as named tensors."""
        state = {"coefficients": self.coefficients.raw.detach(), "rng": torch.get_rng_state()}
        tints = self.model.tint_modules.state_dict()
        state |= {f"tints.{name}": tensor for name, tensor in tints.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{name}": moments[name] for name in moments}
        return state | {"history": self.history.values}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` returned."""
        self.coefficients.raw.copy_(state["coefficients"])
        self.history.values.copy_(state["history"])
        torch.set_rng_state(state["rng"])
        cut = len("tints.")
        tints = {name[cut:]: t for name, t in state.items() if name.startswith("tints.")}
        self.model.tint_modules.load_state_dict(tints)
        moments: dict[int, dict] = {}
        for name, tensor in state.items():
            if name.startswith("optimizer."):
                _, index, moment = name.split(".", 2)
                moments.setdefault(int(index), {})[moment] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})

    def _optimizer(self) -> torch.optim.Adam:
        s = self.settings
        rates = [s.lr if rate is None else rate for rate in (s.lr_coefficients, s.lr_tints)]
        parameters = ([self.coefficients.raw], list(self.model.tint_modules.parameters()))
        groups = [
            {"params": params, "lr": rate, "initial_lr": rate}
            for params, rate in zip(parameters, rates, strict=True)
            if params
        ]
        return torch.optim.Adam(groups, betas=(0.9, 0.999))

    def _set_learning_rates(self, step: int) -> None:
        if self.settings.schedule == "cosine":
            factor = (1 + math.cos(math.pi * step / self.settings.steps)) / 2
            for group in self.optimizer.param_groups:
                group["lr"] = factor * group["initial_lr"]

    @torch.no_grad()
    def _record_coefficients(self, task: str, step: int) -> None:
        k = self.model.tasks.index(task)
        self.history.values[step, k, 3] = self.coefficients()[:, k].mean()


def _expect(correct: bool, what: str, wanted: str, found: Tensor) -> None:
    if not correct:
        raise ValueError(
            f"The {what} must return {wanted}, shape (batch,). "
            f"Found shape {tuple(found.shape)}, {found.dtype}."
        )


def adapt(
    model: TintedModel,
    unlabeled: Mapping[str, Unlabeled],
    predictions: Mapping[str, Tensor],
    settings: Settings,
    *,
    run_dir: Path | None = None,
    processes: Processes | None = None,
    progress: bool = True,
    on_step=None,
) -> TintedModel:
    """Train λ and the tints of `model`, in place, and return it.

    Args:
        model: from `TintedModel.untrained`.
        unlabeled, predictions: task -> its inputs, and what its expert predicts for them.
        run_dir: where checkpoints go; one found there, of the same run, is continued.
        progress: whether to show a progress bar (on the first process only).
        on_step: called with (step, history) after every iteration.

    Raises:
        ValueError: a checkpoint in `run_dir` of other settings, models or data.
        KeyboardInterrupt: after Ctrl-C, once the iteration is finished and its checkpoint written.
    """
    processes = processes or Processes()
    if (settings.layer is None) != (model.layer is None):
        raise ValueError(f"`settings.layer={settings.layer}`, but the model's is `{model.layer}`.")
    with (
        torch.random.fork_rng(devices=[]),  # a sampler may draw; the caller's generator stays as it is
        sensible_threads(model.vectors.base.numel(), processes.device),
        Adaptation(model, unlabeled, predictions, settings, processes) as adaptation,
        checkpoint.Keeper(adaptation, run_dir) as keeper,
    ):
        torch.manual_seed(settings.seed)
        start = keeper.resume()
        inputs = {
            task: unlabeled[task].batches(processes.mine(row) for row in rows[start:])
            for task, rows in adaptation.schedules.items()
        }
        show = progress and processes.rank == 0
        with tqdm(
            desc="Tinting",
            total=settings.steps,
            initial=start,
            disable=not show,
            dynamic_ncols=True,
        ) as bar:
            for step in range(start, settings.steps):
                adaptation.iteration(step, inputs)
                loss, agreed, kept, _ = adaptation.history.values[step].mean(0).tolist()
                bar.set_postfix(loss=f"{loss:.3f}", agreement=f"{agreed:.1%}", kept=f"{kept:.0%}")
                bar.update()
                if on_step is not None:
                    on_step(step, adaptation.history)
                keeper.after(step)
    model.coefficients = adaptation.coefficients.named()
    model.history = adaptation.history
    return model.requires_grad_(False)
