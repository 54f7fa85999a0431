import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import MethodType

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint
from world import make_world

import fusion_tinting as ft
from fusion_tinting.method.tints import Layer, make_tints, resolve_layer, tintable, view

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("layer", "resolved"),
    [
        ("head", "head"),
        (None, None),
        ("head.last", "head.last"),
        ("block:0", "blocks.0"),
        ("block:-1", "blocks.2"),
        ("stem", "stem"),
        ("blocks.1", "blocks.1"),
    ],
)
def test_layers_are_found(world, layer, resolved):
    layer = resolve_layer(world.pretrained, layer)
    assert (layer and layer.name) == resolved


def test_every_layer_that_can_be_tinted(world):
    assert tintable(world.pretrained) == ["head", "block:0", "block:1", "block:2", "stem", "norm"]


def test_layers_that_can_be_tinted_share_no_parameter_and_leave_none_out():
    """But for those that only a module around the blocks has: of an OpenCLIP tower, its class embedding."""
    tower = nn.Module()
    tower.class_embedding = nn.Parameter(torch.zeros(2))
    tower.embeddings = nn.Embedding(3, 2)
    tower.embeddings.patches = nn.Linear(2, 2)  # a layer of one that is a layer itself
    tower.transformer = nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(2, 2) for _ in range(2))})
    tower.act = nn.GELU()
    encoder = nn.ModuleDict({"vision": tower, "projection": nn.Linear(2, 4)})
    found = tintable(encoder)
    assert found == ["head", "block:0", "block:1", "vision.embeddings", "projection"]
    layers = [encoder.get_submodule(resolve_layer(encoder, layer).path) for layer in found[1:]]
    counted = [id(p) for layer in layers for p in layer.parameters()]
    everything = {id(p): p for p in encoder.parameters()}
    assert len(counted) == len(set(counted))
    assert set(everything) - set(counted) == {id(tower.class_embedding)}


def test_without_blocks_every_single_layer_can_be_tinted():
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    assert tintable(encoder) == ["head", "0", "2.1"]


def test_an_ending_that_only_one_module_has_is_enough(world):
    tower = nn.ModuleDict({"vision": world.pretrained})
    assert resolve_layer(tower, "norm").name == "vision.norm"


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("steam", "Did you mean `stem`"),
        ("block:3", "from -3 to 2"),
        ("block:last", "from -3 to 2"),
        ("dropout", "no parameters"),
    ],
)
def test_layers_that_cannot_be_tinted(world, layer, message):
    with pytest.raises(ValueError, match=message):
        resolve_layer(world.pretrained, layer)


def test_several_matches_are_listed():
    towers = nn.ModuleDict({side: nn.ModuleDict({"norm": nn.LayerNorm(2)}) for side in ("a", "b")})
    with pytest.raises(ValueError, match=r"matches 2 submodules: \['a.norm', 'b.norm'\]"):
        resolve_layer(towers, "norm")


def test_an_encoder_without_blocks():
    with pytest.raises(ValueError, match="needs a ModuleList or a Sequential of blocks"):
        resolve_layer(nn.Linear(2, 2), "block:0")


def test_a_head_without_parameters(world):
    heads = {**world.heads, "dogs": nn.Identity()}
    with pytest.raises(ValueError, match="head of `dogs` has no parameters"):
        make_tints(Layer(True, ""), world.experts, heads)


def test_tints_start_at_the_experts_layer_and_are_copies(world):
    tints = make_tints(Layer(False, "blocks.1"), world.experts, world.heads)
    for tint, expert in zip(tints, world.experts.values(), strict=True):
        assert torch.equal(tint.weight, expert.blocks[1].weight)
        assert tint.weight.data_ptr() != expert.blocks[1].weight.data_ptr()


def test_a_tint_is_in_its_view_alone(world):
    encoder, x = world.pretrained.eval(), torch.randn(2, 5)
    tint, other = (world.experts[task].blocks[1] for task in ("cats", "dogs"))
    before = encoder(x)
    with view(encoder, "blocks.1", tint) as seen, view(encoder, "blocks.1", other) as beside:
        assert seen.blocks[1] is tint
        assert beside.blocks[1] is other
        assert seen.stem is encoder.stem
        assert torch.equal(encoder(x), before)
        assert len({outputs.sum().item() for outputs in (before, seen(x), beside(x))}) == 3


class Counting(nn.Module):
    """Counts its calls, and runs what was put into it."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 6))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.inner(x)


def instances_own(encoder):
    encoder.forward = MethodType(lambda self, x: 2 * Counting.forward(self, x), encoder)


def accelerates(encoder):
    """As accelerate hooks a model."""
    encoder.old_forward = encoder.forward
    encoder.forward = partial(lambda module, x: module.old_forward(x), encoder)


@pytest.mark.parametrize("change", [lambda encoder: None, instances_own, accelerates])
def test_a_forward_of_the_instances_own_sees_the_tint(change):
    encoder, tint, x = Counting(), nn.Linear(5, 6), torch.randn(2, 5)
    change(encoder)
    factor = 2 if change is instances_own else 1
    with view(encoder, "inner.1", tint) as seen:
        torch.testing.assert_close(seen(x), factor * tint(encoder.inner[0](x)))
    assert encoder.calls == 1  # what a model keeps of its calls it has kept
    assert encoder.inner[1] is not tint


class Hooking(nn.Module):
    """Hooks its blocks when it runs for the first time, as transformers does for hidden states."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.hooked, self.seen = encoder, False, []

    def forward(self, x):
        if not self.hooked:
            for block in self.encoder.blocks:
                block.register_forward_hook(lambda _, __, output: self.note(output))
            self.hooked = True
        Hooking.seen_now = []
        self.encoder(x)
        return sum(Hooking.seen_now)

    def note(self, output):
        Hooking.seen_now.append(output)


@pytest.mark.parametrize("layer", ["block:0", "block:-1"])
def test_what_a_model_hooks_when_it_runs_sees_every_tint_once(world, layer):
    world.pretrained = Hooking(world.pretrained)
    world.experts = {task: Hooking(expert) for task, expert in world.experts.items()}
    model, x = world.tint(layer=layer), torch.randn(2, 5)
    for task in model.tasks:
        model(x, task)
        assert len(Hooking.seen_now) == 3
        plain = model.encoder.encoder.stem(x)
        total = 0
        with view(model.encoder, model.layer, model.tints[task]) as seen:
            for block in seen.encoder.blocks:
                output = nn.functional.linear(plain, block.weight, block.bias)
                total, plain = total + output, plain + output.tanh()
        expected = model.heads[model.tasks.index(task)](total)
        torch.testing.assert_close(model(x, task), expected)


@pytest.mark.long
@pytest.mark.parametrize("layer", ["block:1", "stem", "head.last"])
def test_threads_get_their_own_tasks(decoders, layer):
    model = decoders.tint(layer=layer)
    x = torch.randn(3, 5)
    alone = {task: model(x, task) for task in model.tasks}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def wrong(place):
        task = model.tasks[place % len(model.tasks)]
        return sum(not torch.equal(model(x, task), alone[task]) for _ in range(50))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(wrong, range(24))) == 0
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


class Checkpointed(nn.Module):
    """An encoder whose blocks are computed again in the backward pass."""

    def __init__(self, encoder, reentrant):
        super().__init__()
        self.encoder, self.reentrant = encoder, reentrant

    def forward(self, x):
        x = self.encoder.stem(x)
        if self.reentrant is None:
            return self.tail(x)
        return checkpoint(self.tail, x, use_reentrant=self.reentrant)

    def tail(self, x):
        for block in self.encoder.blocks:
            x = x + block(x).tanh()
        return self.encoder.norm(x)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("layer", ["block:1", "norm", "head"])
def test_gradient_checkpointing_changes_nothing(layer):
    runs = []
    for reentrant in (None, False, True):
        world = make_world()
        world.pretrained = Checkpointed(world.pretrained, reentrant)
        world.experts = {task: Checkpointed(expert, reentrant) for task, expert in world.experts.items()}
        runs.append(world.tint(layer=layer, update="joint"))
    plain, *checkpointed = (run.state_dict() for run in runs)
    assert runs[0].coefficients["encoder.blocks.0.bias"].ne(0.3).all()
    for state in checkpointed:
        assert all(torch.equal(tensor, state[name]) for name, tensor in plain.items())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("layer", ["block:1", "head"])
def test_a_tinted_model_is_copied_and_pickled_whole(world, copied, layer):
    model, x = world.tint(layer=layer), torch.randn(3, 5)
    model(x, "cats")
    other = copied(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    again = copied(other)
    for task in other.tasks:
        assert torch.equal(other(x, task), again(x, task))
        assert other(x, task).abs().sum() > 0


class Decoder(nn.Module):
    """A head of two layers: a trunk of the task's own and the last layer."""

    def __init__(self, classes: int):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
        self.last = nn.Linear(4, classes)

    def forward(self, features):
        return self.last(self.trunk(features))


@pytest.fixture
def decoders(world):
    """The same world, with decoders for heads."""
    world.heads = {task: Decoder(3 + k) for k, task in enumerate(world.experts)}
    return world


def test_of_a_head_a_submodule_alone_can_be_tinted(decoders, tmp_path):
    model = decoders.tint(layer="head.last", run_dir=tmp_path)
    assert model.layer == "head.last"
    assert model.tinted_tensors == []
    for task, tint in model.tints.items():
        head = decoders.heads[task]
        stored = load_file(tmp_path / "tints" / f"{task}.safetensors")
        assert stored.keys() == {"head.last.weight", "head.last.bias"}
        assert not torch.equal(tint.weight, head.last.weight)
        x = torch.randn(2, 5)
        expected = tint(head.trunk(model.merged(x)))
        assert torch.equal(model(x, task), expected)
        original = model.heads[model.tasks.index(task)].last
        assert torch.equal(original.weight, head.last.weight)
    again = ft.TintedModel.load(tmp_path, **decoders.models())
    assert all(torch.equal(again(x, task), model(x, task)) for task in model.tasks)


@pytest.mark.parametrize("update", ["sequential", "joint"])
def test_a_head_of_one_layer_is_its_own_only_submodule(world, update):
    """Tinting `head.0` of a head that is nothing else is tinting `head`."""
    whole = world.tint(update=update)
    world.heads = {task: nn.Sequential(head) for task, head in world.heads.items()}
    part = world.tint(layer="head.0", update=update)
    for task in whole.tasks:
        assert torch.equal(part.tints[task].weight, whole.tints[task].weight)
        assert torch.equal(part.history.loss, whole.history.loss)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("head.first", "Unknown submodule of the head of `cats` `first`.*`trunk`.*`last`"),
        ("head.trunk.1", "`trunk.1` of the head of `cats` has no parameters"),
    ],
)
def test_submodules_of_a_head_that_cannot_be_tinted(decoders, layer, message):
    with pytest.raises(ValueError, match=message):
        decoders.tint(layer=layer)
