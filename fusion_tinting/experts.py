"""What the experts predict: computed once per sample, before adaptation, one expert at a time."""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fusion_tinting.processes import Processes, sensible_threads
from fusion_tinting.unlabeled import Unlabeled, call, to_device


@torch.no_grad()
def predict(
    encoder: nn.Module,
    head: nn.Module,
    unlabeled: Unlabeled,
    *,
    processes: Processes | None = None,
    batch_size: int = 128,
    progress: tqdm | None = None,
) -> Tensor:
    """head(encoder(x)) of every sample, shape (N, ...), float32 on the CPU, in `eval()` mode.

    With several processes each predicts its share and all receive the whole.

    Raises:
        ValueError: an output that is not finite.
    """
    processes = processes or Processes()
    # Never the caller's own, and in float32 as the tinted model.
    model = deepcopy(nn.Sequential(encoder, head)).to(processes.device).float().eval()
    alone = len(unlabeled) < processes.count  # too few to share: every process predicts them all
    mine = range(len(unlabeled)) if alone else processes.mine(range(len(unlabeled)))
    schedule = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    outputs = []
    with sensible_threads(sum(p.numel() for p in model.parameters()), processes.device):
        for inputs in unlabeled.batches(schedule):
            with processes.autocast():
                features = call(model[0], to_device(inputs, processes.device))
                outputs.append(model[1](features).float().cpu())
            if progress is not None:
                progress.update(len(outputs[-1]))
    whole = torch.cat(outputs) if alone else processes.gather(torch.cat(outputs), len(unlabeled))
    if not torch.isfinite(whole).all():
        raise ValueError("An expert's prediction is NaN or infinite; check its checkpoint and head.")
    return whole


def predict_experts(
    experts: Mapping[str, nn.Module],
    heads: Mapping[str, nn.Module],
    unlabeled: Mapping[str, Unlabeled],
    *,
    processes: Processes | None = None,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Task -> what its expert predicts for each of its unlabelled samples; see `predict`."""
    processes = processes or Processes()
    predictions = {}
    total = sum(len(unlabeled[task]) for task in experts)
    show = progress and processes.rank == 0
    with tqdm(total=total, unit="sample", disable=not show, dynamic_ncols=True) as bar:
        for task in experts:
            bar.set_description(f"Expert {task}")
            predictions[task] = predict(
                experts[task], heads[task], unlabeled[task], processes=processes, progress=bar
            )
    return predictions
