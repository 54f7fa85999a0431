"""Models as people have them: right out of their wrappers, or refused in one line before any work."""

import importlib
import threading
import types
from contextlib import contextmanager
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from world import TASKS, World, make_world

import fusion_tinting as ft


def refused(world: World, message: str, **settings) -> None:
    """Assert that a run is refused in one line."""
    with pytest.raises(ValueError, match=message) as caught:
        world.tint(**settings)
    assert "\n" not in str(caught.value)


def outputs(tinted: ft.TintedModel) -> torch.Tensor:
    torch.manual_seed(9)
    x = torch.randn(4, 5)
    return torch.cat([tinted(x, task) for task in tinted.tasks], 1)


# Wrappers: the model in them is tinted.


WRAPPED = {
    "data parallel": nn.DataParallel,
    "compiled": torch.compile,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled and parallel": lambda model: torch.compile(nn.DataParallel(model)),
    "own class": lambda model: type("Parallel", (nn.DataParallel,), {})(model),
}


@pytest.mark.parametrize("where", ["all", "base", "experts", "heads"])
@pytest.mark.parametrize("wrap", WRAPPED)
def test_a_wrapped_model_is_tinted_as_the_model_in_it(world, wrap, where):
    expected = outputs(make_world().tint())
    wrap = WRAPPED[wrap]
    if where in ("all", "base"):
        world.pretrained = wrap(world.pretrained)
    if where in ("all", "experts"):
        world.experts = {task: wrap(expert) for task, expert in world.experts.items()}
    if where in ("all", "heads"):
        world.heads = {task: wrap(head) for task, head in world.heads.items()}
    tinted = world.tint()
    assert torch.equal(outputs(tinted), expected)
    assert next(iter(tinted.coefficients)) == "stem.weight"


class Within(nn.Module):
    """(B, 5) -> (B, 6), by another encoder."""

    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def forward(self, x):
        return self.tower(x)


@pytest.mark.parametrize("wrap", ["data parallel", "compiled"])
def test_a_wrapper_deeper_inside_is_named(world, wrap):
    world.experts["dogs"] = Within(WRAPPED[wrap](world.experts["dogs"]))
    world.pretrained = Within(world.pretrained)
    for task in ("cats", "owls"):
        world.experts[task] = Within(world.experts[task])
    refused(world, r"The expert `dogs` holds at `tower` a \w+: give what is in it")


def fully_sharded(model: nn.Module) -> nn.Module:
    kind = type("FSDPEncoder", (type(model),), {"__module__": "torch.distributed.fsdp._fully_shard"})
    model.__class__ = kind
    return model


def parametrized(model):
    return nn.utils.parametrize.register_parametrization(model.stem, "weight", nn.Identity()) and model


def with_meta_weights(model):
    model.stem.to("meta")
    return model


def lazy(model):
    model.extra = nn.LazyLinear(3)
    return model


def sparse(model):
    model.register_parameter("mask", nn.Parameter(torch.eye(3).to_sparse()))
    return model


def csr(model):
    model.register_buffer("adjacency", torch.eye(3).to_sparse_csr())
    return model


def float8(model):
    model.stem.weight.data = model.stem.weight.data.to(torch.float8_e4m3fn)
    return model


def hand_made_adapter(model):
    model.stem.lora_A, model.stem.lora_B = nn.Parameter(torch.zeros(2, 5)), nn.Parameter(torch.zeros(6, 2))
    return model


def torchtune_adapter(model):
    model.lora_a = nn.Linear(5, 2, bias=False)
    return model


def with_lock(model):
    model.norm.lock = threading.Lock()
    return model


def with_generator(model):
    model.batches = (x for x in [])
    return model


def with_file(model):
    model.log = open(__file__, encoding="utf-8")  # noqa: SIM115
    return model


def with_a_result(model):
    model.last = model.stem(torch.zeros(1, 5))
    return model


def with_buffer_of_weights(model):
    model.register_buffer("scaled", 2 * model.stem.weight)
    return model


def with_lambda(model):
    original = model.forward
    model.forward = lambda x: original(x)
    return model


def with_function_in_a_block(model):
    block = model.blocks[0]
    block.forward = partial(lambda weight, x: x @ weight, block.weight)
    return model


class Single(nn.Linear):
    def __deepcopy__(self, memo):
        return self


def with_single(model):
    model.stem = Single(5, 6)
    return model


def with_backward_hook(model):
    model.norm.register_full_backward_hook(lambda module, inputs, outputs: None)
    return model


def with_backward_pre_hook(model):
    model.stem.register_full_backward_pre_hook(lambda module, outputs: None)
    return model


def overlapping(model):
    flat = torch.randn(9)
    model.first, model.second = nn.Parameter(flat[:6]), nn.Parameter(flat[3:])
    return model


def tied_by_memory(model):
    model.blocks[2].weight = nn.Parameter(model.blocks[0].weight.data)
    return model


CHANGED = {
    "backward hook": (with_backward_hook, "holds at `norm` a LayerNorm: .* hook in the backward pass"),
    "backward pre-hook": (with_backward_pre_hook, "holds at `stem` .* hook in the backward pass"),
    "overlapping": (overlapping, "has tensors `first` and `second` that share memory"),
    "tied by memory": (tied_by_memory, "has tensors `blocks.0.weight` and `blocks.2.weight` that share"),
    "fsdp": (fully_sharded, "is a FSDPEncoder: its tensors are spread over processes"),
    "scripted": (lambda m: torch.jit.trace(m.eval(), torch.zeros(1, 5)), "cannot be copied and changed"),
    "parametrized": (parametrized, "holds at `stem` a ParametrizedLinear: .*remove_parametrizations"),
    "weight norm": (lambda m: parametrizations.weight_norm(m.stem) and m, "remove_parametrizations"),
    "old weight norm": (
        lambda m: nn.utils.weight_norm(m.stem) and m,
        "holds at `stem` a Linear: .*remove_w",
    ),
    "spectral norm": (lambda m: nn.utils.spectral_norm(m.stem) and m, "remove_spectral_norm"),
    "pruned": (lambda m: prune.l1_unstructured(m.stem, "weight", 0.5) and m, "prune.remove"),
    "meta": (with_meta_weights, "has a tensor `stem.weight` that is on the meta device"),
    "all meta": (lambda m: m.to("meta"), "has a tensor `stem.weight` that is on the meta device"),
    "lazy": (lazy, "has a tensor `extra.weight` that is not initialized yet"),
    "sparse": (sparse, r"has a tensor `mask` that is torch.sparse_coo.*to_dense"),
    "sparse buffer": (csr, r"has a tensor `adjacency` that is torch.sparse_csr"),
    "float8": (float8, "has a tensor `stem.weight` that is torch.float8_e4m3fn"),
    "own adapter": (hand_made_adapter, "has a tensor `stem.lora_A` that is a factor of a matrix"),
    "another's adapter": (torchtune_adapter, "has a tensor `lora_a.weight` that is a factor of a matrix"),
    "lock": (with_lock, "cannot be copied.*`norm.lock`"),
    "generator": (with_generator, "cannot be copied.*`batches`"),
    "file": (with_file, "cannot be copied.*`log`"),
    "result": (with_a_result, "cannot be copied.*`last`"),
    "result in a buffer": (with_buffer_of_weights, "cannot be copied.*`scaled`"),
    "lambda": (with_lambda, "is a Encoder: its `forward` was set on the object"),
    "function in a block": (
        with_function_in_a_block,
        "holds at `blocks.0` a Linear: its `forward` was set",
    ),
    "single": (with_single, "the `__deepcopy__` of `stem`, a Single, returns the module itself"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("where", ["base", "expert"])
@pytest.mark.parametrize("change", CHANGED)
def test_what_cannot_be_merged_or_copied_is_named(world, change, where):
    make, message = CHANGED[change]
    if where == "base":
        world.pretrained = make(world.pretrained)
        refused(world, f"^`pretrained` .*{message}")
        with pytest.raises(ValueError, match=f"^The pre-trained model .*{message}"):
            ft.TaskVectors.from_models(world.pretrained, world.experts)
    else:
        world.experts["dogs"] = make(world.experts["dogs"])
        refused(world, f"^The expert `dogs` .*{message}")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("what", ["experts", "heads"])
def test_models_come_by_their_tasks(world, what):
    setattr(world, what, list(getattr(world, what).values()))
    refused(world, f"`{what}` must map each task to its own.*Found a list")


def test_a_head_that_cannot_be_copied_is_named(world):
    world.heads["owls"].handle = threading.Lock()
    refused(world, r"^The head of `owls` cannot be copied.*`handle`")
    world.heads["owls"] = nn.LazyLinear(3)
    refused(world, r"^The head of `owls` has a tensor `weight` that is not initialized yet")


def test_a_quantized_model_is_named(world):
    layer = type("Linear4bit", (nn.Linear,), {"__module__": "bitsandbytes.nn.modules"})
    world.experts["cats"].stem = layer(5, 6)
    refused(world, "The expert `cats` holds at `stem` a Linear4bit: it is quantized")


def twice_the_stem(self, x):
    return type(self).forward(self, 2 * x)


@pytest.mark.parametrize("bind", [types.MethodType, partial])
def test_a_forward_that_is_bound_to_the_model_is_bound_to_the_copy_in_a_copy(world, bind):
    """`types.MethodType(function, model)` and `partial(function, model)` are copied with the model."""
    for model in (world.pretrained, *world.experts.values()):
        order = (twice_the_stem, model)
        model.forward = bind(*order)
    tinted = world.tint()
    x, before = torch.randn(3, 5), None
    before = tinted(x, "cats")
    world.pretrained.stem.weight.data.zero_()
    assert torch.equal(tinted(x, "cats"), before)
    tinted.encoder.stem.weight.data.zero_()
    assert not torch.equal(tinted(x, "cats"), before)


# Tensors that are not merged.


def give(world: World, make) -> None:
    for name, model in {"base": world.pretrained, **world.experts}.items():
        make(model, name)


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.bool])
def test_parameters_that_are_no_numbers_to_merge_must_be_equal(world, dtype):
    give(world, lambda m, _: m.register_parameter("code", nn.Parameter(torch.ones(3).to(dtype), False)))
    assert "code" not in world.tint(layer="blocks.1").coefficients
    world.experts["dogs"].code.data[1] = 0
    refused(world, f"The expert `dogs` has another `code` than the pre-trained model, of {dtype}")


def test_a_quantized_expert_of_a_plain_base_is_named(world):
    world.experts["owls"].stem.weight = nn.Parameter(
        torch.ones(6, 5, dtype=torch.int8), requires_grad=False
    )
    refused(world, r"Tensor `stem.weight` of the expert `owls` is \(6, 5\) torch.int8.*torch.float32")


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("values", [torch.ones(2), torch.ones(2, dtype=torch.int32)])
def test_buffers_must_be_equal(world, values, persistent):
    give(world, lambda m, _: m.register_buffer("scale", values.clone(), persistent))
    world.tint()
    world.experts["dogs"].scale[0] = 3
    refused(world, "The expert `dogs` has another buffer `scale` than the pre-trained model")


@pytest.mark.parametrize("values", [[float("nan"), 1.0], [float("inf"), -1.0]])
def test_buffers_that_are_equal_but_not_finite_are_no_difference(world, values):
    give(world, lambda m, _: m.register_buffer("mask", torch.tensor(values)))
    world.tint()


# Ties.


class Tied(nn.Module):
    """(B, 5) -> (B, 5): there by a weight and back by it, or by another one."""

    def __init__(self, tie: bool):
        super().__init__()
        self.there, self.between, self.back = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5, bias=False)
        if tie:
            self.back.weight = self.there.weight

    def forward(self, x):
        return self.back(self.between(self.there(x)).tanh())


def tied_world(base: bool, experts: bool, equal: bool = True) -> World:
    torch.manual_seed(1)
    world, pretrained = make_world(), Tied(base)
    world.pretrained, world.heads = pretrained, {task: nn.Linear(5, 3) for task in TASKS}
    for task in TASKS:
        expert = Tied(experts)
        expert.load_state_dict(
            {n: t + 0.1 * torch.randn_like(t) for n, t in pretrained.state_dict().items()}
        )
        if equal:
            expert.back.weight.data.copy_(expert.there.weight)
        world.experts[task] = expert
    return world


@pytest.mark.parametrize(("base", "experts"), [(True, True), (True, False), (False, True), (False, False)])
def test_one_for_an_expert_is_the_expert_whoever_ties(base, experts):
    world = tied_world(base, experts)
    tinted = ft.TintedModel.untrained(**world.models())
    x = torch.randn(3, 5)
    for task, expert in world.experts.items():
        expected = world.heads[task](expert(x))
        torch.testing.assert_close(tinted.remerged(task)(x, task), expected)


def test_an_expert_that_has_changed_one_end_of_a_tie_is_named():
    world = tied_world(True, False, equal=False)
    refused(world, "`cats` has other values in `back.weight` than in `there.weight`, which are one tensor")


def test_tinted_is_the_end_that_has_no_merged_tensor():
    world = tied_world(True, True)
    refused(world, "`layer=there` shares a tensor with `back.weight`", layer="there")
    tinted = world.tint(layer="back", steps=20)
    assert tinted.tinted_tensors == []
    for task, tint in tinted.tints.items():
        assert not torch.equal(tint.weight, world.experts[task].back.weight)
    assert {"there", "between", "back"} >= {world.tint(layer="auto", steps=20).layer}
    assert tinted.encoder.back.weight is tinted.encoder.there.weight


# Experts that compute otherwise than by their tensors.


@pytest.mark.parametrize("act", [nn.GELU(), nn.LeakyReLU(0.3), nn.Identity()])
def test_an_expert_with_another_activation_is_named(world, act):
    give(world, lambda m, _: m.add_module("act", nn.LeakyReLU(0.1)))
    world.experts["dogs"].act = act
    refused(world, r"The expert `dogs` has .* at `act`; the pre-trained model has (LeakyReLU|0.1)")


class Doubled(type(make_world().pretrained)):
    """The same tensors, and another `forward`."""

    def forward(self, x):
        return 2 * super().forward(x)


def by_eps(model):
    model.norm.eps = 0.1


def by_class(model):
    model.__class__ = Doubled


def by_function(model):
    model.act = torch.relu


def by_mode(model):
    model.blocks.pool = "max"


@pytest.mark.parametrize("change", [by_eps, by_class, by_function, by_mode])
def test_an_expert_that_computes_otherwise_is_named(world, change):
    give(world, lambda m, _: (setattr(m, "act", torch.tanh), setattr(m.blocks, "pool", "mean")))
    world.tint()
    change(world.experts["owls"])
    refused(world, "^The expert `owls` has .*the pre-trained model has")


def test_an_expert_may_have_other_names_and_dropout(world):
    give(world, lambda m, name: setattr(m, "name_or_path", name))
    world.experts["owls"].dropout.p = 0.9
    world.experts["owls"].gradient_checkpointing = True
    world.pretrained.gradient_checkpointing = False
    world.tint()


def test_what_does_nothing_in_evaluation_may_differ(world):
    world.experts["dogs"].dropout = nn.Identity()
    world.experts["cats"].dropout = nn.Dropout(0.1)
    world.tint()


def twice(module, inputs, output):
    return 2 * output


def before(module, inputs):
    return (2 * inputs[0],)


@pytest.mark.parametrize("who", ["base", "expert"])
@pytest.mark.parametrize(
    ("register", "hook"), [("register_forward_hook", twice), ("register_forward_pre_hook", before)]
)
def test_hooks_run_in_copies_and_must_be_the_same(world, register, hook, who):
    give(world, lambda m, _: getattr(m.blocks[1], register)(hook))
    tinted, x = world.tint(), torch.randn(3, 5)
    for task, expert in world.experts.items():
        expected = world.heads[task].eval()(expert.eval()(x))
        torch.testing.assert_close(tinted.remerged(task)(x, task), expected)
    getattr((world.pretrained if who == "base" else world.experts["owls"]).stem, register)(hook)
    name = "cats" if who == "base" else "owls"
    refused(world, rf"The expert `{name}` has the hooks .* at `stem`; the pre-trained")


# Models that share.


def test_one_head_and_one_expert_for_several_tasks(world):
    world.heads = dict.fromkeys(TASKS, world.heads["cats"])
    world.experts["dogs"] = world.experts["cats"]
    tinted = world.tint(layer="head")
    assert len({id(tint) for tint in tinted.tints.values()}) == 3
    apart = make_world()
    apart.heads = {task: deepcopy(apart.heads["cats"]) for task in TASKS}
    apart.experts["dogs"] = deepcopy(apart.experts["cats"])
    assert torch.equal(outputs(apart.tint(layer="head")), outputs(tinted))


def test_heads_with_a_state_and_with_integers_are_tinted(world):
    world.heads = {task: nn.Sequential(nn.BatchNorm1d(6), head) for task, head in world.heads.items()}
    for head in world.heads.values():
        head[0].running_mean.add_(0.3)
        head.register_parameter("code", nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False))
    before = deepcopy(world.heads["cats"].state_dict())
    tinted = world.tint(layer="head", average=True)
    for name, tensor in world.heads["cats"].state_dict().items():
        assert torch.equal(tensor, before[name])
    assert torch.equal(tinted.tints["cats"][0].running_mean, before["0.running_mean"])
    assert not torch.equal(tinted.tints["cats"][1].weight, before["1.weight"])


# Parameters of every shape.


def scalar(model, name):
    model.logit_scale = nn.Parameter(torch.tensor(2.0 + len(name)))


def empty(model, name):
    model.nothing = nn.Parameter(torch.empty(0, 3))


def expanded(model, name):
    model.wide = nn.Parameter(torch.full((1, 3), float(len(name))).expand(4, 3))


def transposed(model, name):
    model.stem.weight = nn.Parameter(model.stem.weight.data.t().contiguous().t())


def frozen(model, name):
    model.stem.requires_grad_(False)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("make", [scalar, empty, expanded, transposed, frozen])
def test_one_for_an_expert_is_the_expert_whatever_its_parameters(world, make, dtype):
    give(world, make)
    before = deepcopy(world.pretrained.state_dict())
    tinted = world.tint(task_vectors={"dtype": dtype})
    for task, expert in world.experts.items():
        merged = tinted.remerged(task).merged
        for name, parameter in expert.named_parameters():
            torch.testing.assert_close(
                merged.get_parameter(name).data, parameter.data, rtol=1e-3, atol=1e-3
            )
    for name, tensor in before.items():
        assert torch.equal(world.pretrained.state_dict()[name], tensor)


def test_clips_own_scale_is_merged_and_learned(world):
    """A parameter without dimensions that the encoder uses."""

    class Scaled(nn.Module):
        def __init__(self, encoder, scale):
            super().__init__()
            self.encoder, self.logit_scale = encoder, nn.Parameter(torch.tensor(scale))

        def forward(self, x):
            return self.encoder(x) * self.logit_scale.exp()

    world.pretrained = Scaled(world.pretrained, 0.0)
    world.experts = {t: Scaled(e, 0.2 + i) for i, (t, e) in enumerate(world.experts.items())}
    tinted = world.tint(update="joint")
    assert tinted.coefficients["logit_scale"].shape == (3,)
    assert not torch.equal(tinted.coefficients["logit_scale"], torch.full((3,), 0.3))


# Batch norm.


class Normed(nn.Module):
    def __init__(self, affine: bool = True):
        super().__init__()
        self.stem, self.norm = nn.Linear(5, 6), nn.BatchNorm1d(6, affine=affine)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)) for _ in range(2))

    def forward(self, x):
        x = self.norm(self.stem(x)).tanh()
        for block in self.blocks:
            x = x + block(x)
        return x


def normed_world(make=Normed) -> World:
    torch.manual_seed(5)
    world = make_world()
    world.pretrained = make()
    for task in TASKS:
        expert = deepcopy(world.pretrained)
        for p in expert.parameters():
            p.data += 0.1 * torch.randn_like(p)
        for _ in range(20):  # in training mode, so that the statistics are the task's
            expert(torch.randn(32, 5) * 3 + len(task))
        world.experts[task] = expert
    return world


@pytest.mark.parametrize("layer", ["head", "block:1"])
@pytest.mark.parametrize("affine", [True, False])
def test_statistics_of_batch_norms_are_merged(layer, affine, tmp_path):
    world = normed_world(lambda: Normed(affine))
    before = deepcopy(world.experts["dogs"].state_dict())
    tinted, x = world.tint(layer=layer, run_dir=tmp_path), torch.randn(7, 5)
    for task, expert in world.experts.items():
        expected = world.heads[task](deepcopy(expert).eval()(x))
        torch.testing.assert_close(tinted.remerged(task)(x, task), expected, rtol=1e-4, atol=1e-5)
        merged = tinted.remerged(task).merged
        assert merged.state_dict().keys() == expert.state_dict().keys()
        torch.testing.assert_close(merged.norm.running_var, expert.norm.running_var, rtol=1e-4, atol=1e-5)
    assert isinstance(tinted.merged.norm, nn.BatchNorm1d)
    if layer == "head":
        assert not torch.equal(tinted.coefficients["norm.log_variance"], torch.full((3,), 0.3))
    again = ft.TintedModel.load(tmp_path, **world.models())
    assert torch.equal(again(x, "cats"), tinted(x, "cats"))
    for name, tensor in world.experts["dogs"].state_dict().items():
        assert torch.equal(tensor, before[name])


class Activated(nn.BatchNorm1d):
    """Computes more than a batch norm, as timm's BatchNormAct2d does."""

    def forward(self, x):
        return super().forward(x).relu()


def test_of_a_class_derived_from_batch_norm_the_statistics_must_be_equal():
    def make():
        model = Normed()
        model.norm = Activated(6)
        return model

    world = normed_world(make)
    refused(world, "has another buffer `norm.running_mean` than the pre-trained model")
    for expert in world.experts.values():
        expert.norm = deepcopy(world.pretrained.norm)
    tinted, x = world.tint(), torch.randn(7, 5)
    expected = world.heads["cats"](world.experts["cats"].eval()(x))
    torch.testing.assert_close(tinted.remerged("cats")(x, "cats"), expected, rtol=1e-4, atol=1e-5)


def test_the_pretrained_model_itself_is_no_expert_with_batch_norms_either():
    world = normed_world()
    world.experts["owls"] = world.pretrained
    refused(world, "The expert `owls` is the pre-trained model itself")


# Precisions.


def precise(world: World, base=torch.float32, experts=torch.float32, heads=torch.float32) -> World:
    world.pretrained.to(base)
    for task in TASKS:
        world.experts[task].to(experts)
        world.heads[task].to(heads)
    return world


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("experts", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_precisions_may_differ_and_the_base_has_its_own_again(base, experts):
    world = precise(make_world(), base, experts, base)
    same = precise(precise(make_world(), base, experts, base))  # rounded alike, all in float32
    tinted, expected = world.tint(layer="blocks.1"), same.tint(layer="blocks.1")
    half = base == torch.bfloat16  # which computes in itself
    near = {"rtol": 0.02, "atol": 0.02} if half else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(outputs(tinted).float(), outputs(expected), **near)
    for name, parameter in tinted.merged.named_parameters():
        assert parameter.dtype == base
        torch.testing.assert_close(
            parameter.data, expected.merged.get_parameter(name).data.to(base), **near
        )
    assert tinted.encoder.stem.weight.dtype == (base if half else torch.float32)
    assert next(world.pretrained.parameters()).dtype == base


def test_each_tensor_has_its_own_precision_again():
    world = normed_world()
    for model in (world.pretrained, *world.experts.values()):
        model.blocks[0].bfloat16()  # its batch norm too
        model.norm.half()
        model.register_buffer("frequencies", torch.linspace(0, 1, 3, dtype=torch.float64))
    tinted = ft.TintedModel.untrained(**world.models())
    merged = tinted.remerged(0.0).merged
    for name, tensor in world.pretrained.state_dict().items():
        assert merged.state_dict()[name].dtype == tensor.dtype
        torch.testing.assert_close(merged.state_dict()[name], tensor, rtol=1e-2, atol=1e-3)


def test_buffers_that_differ_by_their_rounding_alone_are_equal(world):
    values = torch.rand(5)
    give(world, lambda m, _: m.register_buffer("frequencies", values.clone()))
    world.experts["cats"].bfloat16()
    world.tint()
    world.experts["cats"].frequencies[1] += 0.1
    refused(world, "`cats` has another buffer `frequencies`")


# What surrounds the call.


def setting(put, get, value):
    @contextmanager
    def context():
        before = get()
        put(value)
        try:
            yield
        finally:
            put(before)

    return context


def default_dtype(dtype):
    return setting(torch.set_default_dtype, torch.get_default_dtype, dtype)


SURROUNDINGS = {
    "float64": default_dtype(torch.float64),
    "bfloat16": default_dtype(torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast of a GPU": lambda: torch.autocast("cuda", torch.float16),
    "default device": lambda: torch.device("meta"),
    # Back to none: after a device, the CPU too, every call of torch's goes through Python, half as fast.
    "set_default_device": setting(torch.set_default_device, lambda: None, "meta"),
    "deterministic": setting(
        torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled, True
    ),
    "anomaly": torch.autograd.detect_anomaly,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("options", [{"layer": "block:1"}, {"update": "joint", "layer": "head"}])
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_what_surrounds_the_call_changes_nothing(world, name, options, tmp_path):
    expected = make_world().tint(**options)
    with SURROUNDINGS[name]():
        before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        tinted = world.tint(**options, run_dir=tmp_path)
        again = ft.TintedModel.load(tmp_path, **world.models())
        resumed = world.tint(**options, run_dir=tmp_path)
        after = torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    assert before == after
    for model in (tinted, again, resumed):
        assert torch.equal(outputs(model), outputs(expected))
        for key, row in expected.coefficients.items():
            assert torch.equal(model.coefficients[key], row)
        assert not any(tensor.is_inference() for tensor in model.state_dict().values())


@pytest.mark.parametrize("name", ["float64", "no_grad", "inference_mode", "autocast"])
def test_steps_by_hand_are_not_disturbed_either(world, name):
    def by_hand(world):
        unlabeled = {task: ft.Unlabeled.of(batches) for task, batches in world.unlabeled.items()}
        predictions = ft.predict_experts(world.experts, world.heads, unlabeled, progress=False)
        model = ft.TintedModel.untrained(**world.models())
        settings = ft.Settings.from_options({"steps": 3, "batch_size": 8})
        return ft.adapt(model, unlabeled, predictions, settings, progress=False)

    expected = by_hand(make_world())
    with SURROUNDINGS[name]():
        model = by_hand(world)
    assert torch.equal(outputs(model), outputs(expected))


def test_models_and_inputs_made_under_inference_mode_can_be_trained(world):
    expected = make_world().tint(layer="block:1")
    with torch.inference_mode():
        world = make_world()
    tinted = world.tint(layer="block:1")
    assert torch.equal(outputs(tinted), outputs(expected))
    x = torch.randn(2, 5, requires_grad=True)
    tinted(x, "cats").sum().backward()
    assert x.grad is not None


def test_an_error_leaves_the_surroundings_as_they_were(world):
    world.experts["dogs"].stem.to("meta")
    with SURROUNDINGS["float64"]():
        with pytest.raises(ValueError, match="meta device"):
            world.tint()
        assert torch.get_default_dtype() == torch.float64


# peft.


@pytest.fixture(scope="module")
def peft():
    return importlib.import_module("peft")  # which mergekit brings; late, for it takes seconds


def adapted(peft, expert: nn.Module, kind: str) -> nn.Module:
    torch.manual_seed(7)
    made = {
        "lora": lambda: peft.LoraConfig(target_modules=["stem", "0"], init_lora_weights=False),
        "dora": lambda: peft.LoraConfig(target_modules=["stem"], use_dora=True, init_lora_weights=False),
        "ia3": lambda: peft.IA3Config(
            target_modules=["stem"], feedforward_modules=[], init_ia3_weights=False
        ),
        "whole modules": lambda: peft.LoraConfig(
            target_modules=["0"], modules_to_save=["norm"], init_lora_weights=False
        ),
    }[kind]()
    model = peft.get_peft_model(deepcopy(expert), made)
    if kind == "whole modules":
        model.base_model.model.norm.modules_to_save["default"].bias.data += 0.3
    return model


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "whole modules"])
def test_an_adapter_is_merged_into_the_weights_by_peft(world, peft, kind):
    adapters = {task: adapted(peft, world.pretrained, kind) for task in TASKS}
    before = deepcopy(adapters["cats"].state_dict())
    world.experts = {**world.experts, **{task: adapters[task] for task in ("cats", "owls")}}
    tinted, x = world.tint(layer="block:1"), torch.randn(3, 5)
    assert not any("lora" in name or "ia3" in name for name in tinted.coefficients)
    expected = world.heads["cats"](adapters["cats"].eval()(x))
    torch.testing.assert_close(tinted.remerged("cats")(x, "cats"), expected, rtol=1e-4, atol=1e-5)
    for name, tensor in adapters["cats"].state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("where", ["base", "expert", "deeper"])
def test_an_adapter_that_was_put_into_a_model_is_named(world, peft, where):
    config = peft.LoraConfig(target_modules=["stem"])
    if where == "base":  # as `PeftModel.from_pretrained` does to the base that it is given
        peft.get_peft_model(world.pretrained, config)
        refused(world, "^`pretrained` holds at `stem` a Linear: layers of an adapter.*merge_and_unload")
    elif where == "expert":
        peft.inject_adapter_in_model(config, world.experts["dogs"])
        refused(world, "^The expert `dogs` holds at `stem` a Linear: layers of an adapter")
    else:
        world.experts["dogs"] = Within(peft.get_peft_model(world.experts["dogs"], config))
        refused(world, "^The expert `dogs` holds at `tower` a PeftModel: layers of an adapter")


# Models that are loaded each time they are asked for.


class Loaded(dict):
    """Loads a copy each time, whose last tensor no checkpoint holds."""

    def __init__(self, models, draw):
        super().__init__(models)
        self.draw = draw

    def __getitem__(self, task):
        model = deepcopy(super().__getitem__(task))
        self.draw(list(model.parameters())[-1].data)
        return model


@pytest.mark.parametrize("which", ["experts", "heads"])
def test_a_model_that_is_another_each_time_it_is_loaded_is_named(world, which):
    models, count = getattr(world, which), iter(range(100))
    for draw in (torch.Tensor.normal_, torch.Tensor.uniform_, lambda t: t.add_(0.1 * next(count))):
        setattr(world, which, Loaded(models, draw))
        refused(world, rf"`({'|'.join(TASKS)})` is another each time .* has changed")


@pytest.mark.parametrize("which", ["experts", "heads"])
def test_a_model_that_is_loaded_each_time_is_tinted_as_one_that_is_kept(world, which):
    expected = outputs(make_world().tint())
    setattr(world, which, Loaded(getattr(world, which), lambda tensor: None))
    assert torch.equal(outputs(world.tint()), expected)
