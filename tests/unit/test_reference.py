"""The fast path against the plain loop, in value: λ and the tints after a few iterations."""

from copy import deepcopy

import pytest
import torch
from world import make_world

import fusion_tinting as ft
from fusion_tinting.method.reference import Visit, adapt_reference
from fusion_tinting.method.sampling import resolve_sampler
from fusion_tinting.method.schedule import batch_schedule, task_order

STEPS, BATCH, SEED = 6, 8, 3


@pytest.mark.parametrize("objective", ["hard", "soft"])
@pytest.mark.parametrize("sampler", ["all", "confidence_difference", "top_confidence:0.3"])
def test_sequential_training_is_the_papers_loop(sampler, objective):
    world = make_world()
    settings = {
        "sampler": sampler,
        "objective": objective,
        "steps": STEPS,
        "batch_size": BATCH,
        "seed": SEED,
    }
    tinted = world.tint(**settings)

    vectors = ft.TaskVectors.from_models(world.pretrained, world.experts)
    tints = {task: deepcopy(head) for task, head in world.heads.items()}
    encoder = deepcopy(world.pretrained).eval()
    lam = adapt_reference(
        encoder,
        tints,
        vectors,
        list(visits(world)),
        sampler=resolve_sampler(sampler),
        objective=ft.OBJECTIVES[objective],
    )
    torch.testing.assert_close(torch.stack(list(tinted.coefficients.values())), lam, rtol=0, atol=2e-5)
    for task, tint in tints.items():
        for ours, theirs in zip(tinted.tints[task].parameters(), tint.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def visits(world):
    """The batches as the schedule has them, with what the experts predict."""
    inputs = {task: torch.cat(batches) for task, batches in world.unlabeled.items()}
    places = {task: batch_schedule(len(x), BATCH, STEPS, SEED, task) for task, x in inputs.items()}
    for step in range(STEPS):
        for task in task_order(list(inputs), step, SEED):
            batch = inputs[task][places[task][step]]
            with torch.no_grad():
                expert = world.heads[task](deepcopy(world.experts[task]).eval()(batch))
            yield Visit(task, batch, expert)
