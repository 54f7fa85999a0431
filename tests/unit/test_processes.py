"""Where the arithmetic runs: threads for small models, and steps that wait for nobody."""

import platform
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fusion_tinting as ft
from fusion_tinting.method.adaptation import FIGURES
from fusion_tinting.run import processes
from fusion_tinting.run.context import Context
from fusion_tinting.run.processes import SMALL_MODEL, sensible_threads
from fusion_tinting.run.training import Training

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def eight_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({1: 1.0, 2: 4.0}, 1),  # slower by a multiple, as on some machines
        ({1: 1.0, 2: 0.95}, 1),  # not worth it
        ({1: 1.0, 2: 0.6, 4: 0.58}, 2),
        ({1: 1.0, 2: 0.6, 4: 0.4, 8: 0.2}, 8),
    ],
)
def test_a_small_model_gets_the_threads_that_are_fastest(eight_threads, monkeypatch, seconds, expected):
    monkeypatch.setattr(processes, "_seconds", lambda work, threads: seconds[threads])
    with sensible_threads(SMALL_MODEL, CPU, lambda: None):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 8


def test_a_large_model_gets_all_and_nothing_is_tried(eight_threads):
    for parameters, device in ((SMALL_MODEL + 1, CPU), (1, GPU)):
        with sensible_threads(parameters, device, pytest.fail):
            assert torch.get_num_threads() == 8


def test_without_a_rehearsal_a_small_model_gets_one(eight_threads):
    with sensible_threads(1, CPU):
        assert torch.get_num_threads() == 1


@pytest.mark.parametrize("layer", ["head", "block:-1", None])
def test_a_rehearsal_changes_nothing(eight_threads, monkeypatch, world, layer):
    options = {"layer": layer, "sampler": "all"}
    monkeypatch.setattr(processes, "_seconds", lambda work, threads: work() or threads)
    tried = world.tint(**options)
    torch.set_num_threads(1)
    plain = world.tint(**options)
    assert torch.equal(tried.history.values, plain.history.values)


class Waits(TorchDispatchMode):
    """Refuses what would make the host wait for a device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masked = name.startswith("index") and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool
            for i in (args[1] if isinstance(args[1], (list, tuple)) else ())
        )
        assert name not in ("_local_scalar_dense", "nonzero", "equal", "masked_select"), name
        assert not masked, name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("update", ["sequential", "joint"])
@pytest.mark.parametrize("sampler", ["confidence_difference", "top_confidence:0.3"])
@pytest.mark.parametrize("objective", ["hard", "soft", "l1", "entropy"])
def test_no_iteration_waits_for_the_device(world, update, sampler, objective):
    world.heads = {task: torch.nn.Linear(6, 4) for task in world.experts}
    settings = ft.Settings(update=update, sampler=sampler, objective=objective, steps=2, batch_size=8)
    model = ft.TintedModel.untrained(**world.models(), layer=settings.layer)
    unlabeled = {task: ft.Unlabeled.of(batches) for task, batches in world.unlabeled.items()}
    predictions = ft.predict_experts(world.experts, world.heads, unlabeled, progress=False)
    with ft.Adaptation(model, settings, ft.Processes()) as adaptation:
        lessons = Training(adaptation, unlabeled, predictions, Context(progress=False)).lessons()
        with Waits():
            for step in range(2):
                adaptation.iteration(step, lessons)
    assert (adaptation.figures[..., FIGURES.index("kept")] > 0).any()


FAULTS = """
import resource, torch
from fusion_tinting.run.processes import fitting_heap

with fitting_heap(1000, torch.device("cpu")):
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        del [torch.ones(1 << 20) for _ in range(25)][:]  # 100 MB in pieces of 4
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_memory_that_a_small_model_frees_is_used_again():
    """Page faults of steps that take and free the same: one for every page at first, then hardly any."""
    said = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    first, *_, last = map(int, said.split())
    assert first > 20_000
    assert last < 100


HOLES = """
import sys, torch
from fusion_tinting.run.processes import fitting_heap

def held():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Anonymous"))

with fitting_heap(10**8, torch.device("cpu"), lean=int(sys.argv[1])):
    del [torch.ones(1 << 22) for _ in range(2)][:]  # of 16 MB: from now on glibc itself keeps smaller ones
    before, tensors = held(), [torch.ones(1 << 18) for _ in range(100)]  # 100 MB in pieces of one
    del tensors[::2]
    print(held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to return memory")
def test_memory_that_a_large_model_frees_goes_back_though_there_is_other_above_it():
    """Kilobytes that are held when every second tensor is freed."""

    def held(kind: str) -> int:
        command = [sys.executable, "-c", HOLES, kind]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert held("262144") < 60_000
    assert held("0") > 90_000
