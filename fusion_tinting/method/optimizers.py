"""Separate Adams for λ and each tint, whose steps can be skipped without waiting for the device."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusion_tinting.method.settings import Settings
from fusion_tinting.method.shards import here, is_sharded


class Optimizers:
    """One Adam, β = (0.9, 0.999), for λ and one for each task's tint.

    They are apart because a task whose batch taught nothing leaves its tint, the moments and the step
    count alone, while λ and the other tints move. Whether it taught is known on the device only: reading
    it on the host would make every step wait, so that Adam's fused form is told to skip the step instead.

    Args:
        coefficients: raw λ.
        tints: task -> its tint; may be empty.
        settings: learning rates.
    """

    def __init__(self, coefficients: nn.Parameter, tints: Mapping[str, nn.Module], settings: Settings):
        own = settings.lr_coefficients, settings.lr_tints
        rate, tint_rate = (settings.lr if lr is None else lr for lr in own)
        self._coefficients = _Adam([coefficients], rate)
        self._tints = {
            task: _Adam([p for p in tint.parameters() if p.requires_grad], tint_rate)
            for task, tint in tints.items()
        }

    def step_coefficients(self, taught: Tensor) -> None:
        """Update λ, and drop its gradient.

        Args:
            taught: a boolean on the device; without it λ and its moments stay.
        """
        self._coefficients.step(taught)

    def step_tint(self, task: str, taught: Tensor) -> None:
        """Update a task's tint, if it has one, as `step_coefficients` does λ.

        Args:
            task: whose tint.
            taught: a boolean on the device; without it the tint and its moments stay.
        """
        if task in self._tints:
            self._tints[task].step(taught)

    def tensors(self) -> dict[str, Tensor]:
        """Return `optimizer.<name>` -> moments and step counts: themselves, not copies."""
        tints = {f"tints.{k}": adam for k, adam in enumerate(self._tints.values())}
        named = {"coefficients": self._coefficients, **tints}
        return {
            f"optimizer.{name}.{index}.{moment}": tensor
            for name, adam in named.items()
            for index, moments in enumerate(adam.moments())
            for moment, tensor in moments.items()
        }


class _Adam:
    def __init__(self, parameters: list[nn.Parameter], rate: float):
        # Of a sharded parameter each process steps the rows that it holds.
        stepped = [nn.Parameter(here(p.detach())) if is_sharded(p) else p for p in parameters]
        self._sharded = [(p, own) for p, own in zip(parameters, stepped, strict=True) if own is not p]
        self._adam = torch.optim.Adam(stepped, lr=rate, betas=(0.9, 0.999), fused=True)
        self._moments: list[dict[str, Tensor]] = [
            {
                "step": torch.zeros((), device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
            for p in parameters
        ]  # from the start, so that a checkpoint of any step has the same names
        for own, moments in zip(stepped, self._moments, strict=True):
            self._adam.state[own] = {name: here(tensor) for name, tensor in moments.items()}

    def moments(self) -> list[dict[str, Tensor]]:
        return self._moments

    def step(self, taught: Tensor) -> None:
        for parameter, own in self._sharded:
            if parameter.grad is not None:
                own.grad, parameter.grad = here(parameter.grad), None
        # What torch's gradient scaler says to a fused optimizer when a gradient is infinite.
        setattr(self._adam, "found_inf", (~taught).float())  # noqa: B010 (torch declares no such attribute)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
