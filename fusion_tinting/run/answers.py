"""What models answer to an invented input: two that answer otherwise are not the same."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusion_tinting.method.shards import settle
from fusion_tinting.method.tinted_model import TintedNetwork
from fusion_tinting.run.unlabeled import Unlabeled, to_device

NUMBERS = 16
"""How many numbers of an answer are kept, spread over it."""
CLOSE = 1e-2
"""Two answers may differ by this share of their size: other devices round otherwise."""
OTHERWISE = (
    "the pre-trained model and the head of `{task}` have the same tensors and answer the same input "
    "otherwise: something in their code differs"
)

Answer = Mapping[str, Any]
"""`inputs`: what was asked, as `invented` takes it, None for the task's first input; `shape`; `logits`."""


def answers(model: TintedNetwork, unlabeled: Mapping[str, Unlabeled]) -> dict[str, Answer]:
    """Return task -> what the pre-trained encoder and the task's head answer.

    They are asked an invented input, shaped as the task's first, so that they can be asked again without
    any data; the first itself where they cannot take that.

    Args:
        model: from `TintedModel.untrained`.
        unlabeled: task -> its inputs.
    """
    found: dict[str, Answer] = {}
    for task, inputs in unlabeled.items():
        first = inputs.first()
        described = described_inputs(first)
        for asked in [described, None] if described is not None else [None]:
            answer = _ask(model, task, first if asked is None else invented(asked))
            if answer is not None:
                found[task] = {"inputs": asked, **answer}
                break
    return found


def otherwise(model: TintedNetwork, told: Mapping[str, Answer]) -> list[str]:
    """Return the tasks, each in a sentence, whose encoder and head answer otherwise than they once did.

    Args:
        model: from `TintedModel.untrained`.
        told: as `answers` returned it.
    """
    asked = {task: answer for task, answer in told.items() if answer["inputs"] is not None}
    now = {task: _ask(model, task, invented(answer["inputs"])) for task, answer in asked.items()}
    return [OTHERWISE.format(task=task) for task, answer in asked.items() if not same(answer, now[task])]


def same(one: Answer, other: Answer | None) -> bool:
    """Return whether two answers are equal but for rounding.

    Args:
        one: an answer.
        other: another; None where there is none.
    """
    if other is None or list(one["shape"]) != list(other["shape"]):
        return False
    return close(torch.tensor(one["logits"]), torch.tensor(other["logits"]))


def close(one: Tensor, other: Tensor, share: float = CLOSE) -> bool:
    """Return whether two outputs are equal but for rounding.

    Args:
        one: an output.
        other: another of the same shape.
        share: by how much of their size they may differ.
    """
    usual = one[one.abs() < 1e30]  # not the least number, which stands where there is no position
    size = usual.square().mean().sqrt() if len(usual) else one.new_zeros(())
    return bool(((one - other).abs() <= share * torch.maximum(one.abs(), size) + 1e-6).all())


def described_inputs(inputs: object) -> Any:
    """Return what `invented` makes inputs of the same form from; None where they are not tensors alone.

    Args:
        inputs: of the encoder.
    """
    if isinstance(inputs, Tensor):
        if inputs.is_complex() or inputs.numel() == 0:
            return None
        low, high = (float(bound) for bound in inputs.double().aminmax())
        return [str(inputs.dtype).removeprefix("torch."), list(inputs.shape), low, high]
    if isinstance(inputs, Mapping):
        parts = {str(name): described_inputs(value) for name, value in inputs.items()}
        return None if None in parts.values() else parts
    if isinstance(inputs, (tuple, list)):
        places = [described_inputs(value) for value in inputs]
        return None if None in places else places
    return None


def invented(described: Any) -> Any:
    """Return inputs of a form: numbers spread between the bounds; whole ones at the lower, surely valid.

    Args:
        described: as `described_inputs` returned it.
    """
    if isinstance(described, Mapping):
        return {name: invented(part) for name, part in described.items()}
    if not isinstance(described[0], str):
        return tuple(map(invented, described))
    dtype, shape, low, high = described
    kind = getattr(torch, dtype)
    if not kind.is_floating_point:
        return torch.full(shape, int(low)).to(kind)
    places = torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * 7919 % 4093 / 4092
    return (low + (high - low) * places).view(shape).to(kind)


@torch.no_grad()
def _ask(model: TintedNetwork, task: str, inputs: Any) -> dict[str, Any] | None:
    """Return the answer of encoder and head, without tints; None where they cannot take the inputs."""
    heads = dict(zip(model.tasks, model.heads, strict=True))
    plain = type(model)(model.encoder, heads, nn.ModuleList(), layer=None, vectors=model.vectors)
    device = next(model.encoder.parameters()).device
    try:
        with torch.random.fork_rng(), torch.autocast(device.type, enabled=False):
            logits = plain(to_device(inputs, device), task).float().cpu()
    except Exception:  # whatever a model raises
        settle(model.encoder)
        return None
    if not logits.isfinite().all() or logits.numel() == 0:
        return None
    places = torch.linspace(0, logits.numel() - 1, NUMBERS).long()
    return {"shape": list(logits.shape), "logits": logits.flatten()[places].tolist()}
