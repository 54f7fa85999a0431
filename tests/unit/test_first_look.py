"""What the first samples tell before any work: outputs, gradients, layers, and functions of the user's."""

from functools import partial

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from world import Encoder, make_world

import fusion_tinting as ft

pytestmark = pytest.mark.quick


@pytest.fixture
def unasked(monkeypatch):
    """No expert may be asked."""
    monkeypatch.setattr("fusion_tinting.tinting.predict_experts", None)


def with_encoder(kind: type[nn.Module]):
    """A small world, with the same weights in another encoder."""
    world = make_world()
    for name, model in {"": world.pretrained, **world.experts}.items():
        other = kind()
        other.load_state_dict(model.state_dict(), strict=False)
        if name:
            world.experts[name] = other
        else:
            world.pretrained = other
    return world


class Head(nn.Module):
    """A linear head that gives something else than its logits."""

    def __init__(self, change, classes=4):
        super().__init__()
        self.linear, self.change = nn.Linear(6, classes), change

    def forward(self, features):
        return self.change(self.linear(features))


def with_heads(change):
    world = make_world()
    world.heads = {task: Head(change) for task in world.heads}
    return world


class Wrapping(Encoder):
    def forward(self, x):
        return BaseModelOutput(last_hidden_state=super().forward(x))


class Taking(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, features):
        return SequenceClassifierOutput(logits=self.linear(features.last_hidden_state))


@pytest.mark.parametrize("update", ["sequential", "joint"])
def test_outputs_of_transformers_are_as_good_as_tensors(update):
    wrapped = with_encoder(Wrapping)
    wrapped.heads = {task: Taking(head) for task, head in wrapped.heads.items()}
    plain, found = make_world().tint(update=update), wrapped.tint(update=update)
    torch.testing.assert_close(found.history.values, plain.history.values, rtol=1e-5, atol=1e-6)
    x = torch.randn(2, 5)
    torch.testing.assert_close(found(x, "cats"), plain(x, "cats"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: (x,), "A head must return a tensor.*Found tuple"),
        (lambda x: {"scores": x}, r"A head must return.*of \['scores'\]"),
        (lambda x: x.argmax(1), "torch.int64: expected logits"),
        (lambda x: x.squeeze(), "samples along its first axis"),
        (lambda x: x.mean(0, keepdim=True), "samples along its first axis"),
        (lambda x: x[:, :0], "of one size"),
        (lambda x: x / 0, "NaN or infinite"),
        (lambda x: x[:, 0], "objective=l1"),
        (lambda x: x + torch.randn(x.shape), "draws at random"),
        (lambda x: x - x.mean(0, keepdim=True), "differs with the other samples"),
    ],
)
def test_an_output_that_is_no_logits_is_refused(unasked, change, said):
    with pytest.raises(ValueError, match=rf"(?s)Task `cats`: .*{said}"):
        with_heads(change).tint()


class Positions(Encoder):
    """(B, 5) -> features at three positions, (B, 3, 6)."""

    def forward(self, x):
        return super().forward(x).unsqueeze(1) * torch.arange(1.0, 4.0)[:, None]


@pytest.mark.parametrize("classes", [4, 3])  # 3 also is the number of positions
def test_classes_along_the_last_axis_are_refused_and_along_axis_1_taken(classes):
    world = with_encoder(Positions)
    world.heads = {task: Head(lambda x: x, classes) for task in world.heads}
    with pytest.raises(ValueError, match=r"classes along axis 2.*`.movedim\(2, 1\)`"):
        world.tint(sampler="all")
    world.heads = {task: Head(lambda x: x.transpose(1, 2), classes) for task in world.heads}
    assert world.tint(sampler="all").history.loss.isfinite().all()


def test_an_expert_with_another_output_is_refused(unasked, world):
    class Wide(Encoder):
        def forward(self, x):
            return super().forward(x)[:, :3]

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 1))

        def forward(self, features):
            return features * self.weight[0]

    expert = Wide()
    expert.load_state_dict(world.experts["owls"].state_dict())
    world.experts["owls"] = expert
    world.heads = {task: Both() for task in world.heads}
    with pytest.raises(ValueError, match="owls"):
        world.tint()


class Unmoved(Encoder):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class Detaching(Encoder):
    def forward(self, x):
        return self.norm(self.stem(x).detach())


class Freezing(Encoder):
    def forward(self, x):
        self.stem.requires_grad_(False)
        return super().forward(x)


class Constant(Encoder):
    def forward(self, x):
        return x.sum(1, keepdim=True).expand(-1, 6)


@pytest.mark.parametrize(
    ("kind", "named"),
    [(Unmoved, "blocks"), (Detaching, "stem.weight"), (Freezing, "stem.weight"), (Constant, "blocks")],
)
def test_tensors_that_no_gradient_reaches_are_named(unasked, kind, named):
    with pytest.raises(ValueError, match=f"No gradient reaches .*{named}.*λ would never move"):
        with_encoder(kind).tint()


def test_nothing_is_asked_of_a_λ_that_is_frozen():
    assert with_encoder(Unmoved).tint(lr_coefficients=0).history.loss.isfinite().all()
    assert with_encoder(Unmoved).tint(steps=0).history.values.numel() == 0


class Listed(Encoder):
    """Calls its blocks through a plain list."""

    def __init__(self):
        super().__init__()
        self.listed = list(self.blocks)

    def forward(self, x):
        x = self.stem(x)
        for block in self.listed:
            x = x + block(x).tanh()
        return self.norm(x)


class Skipping(Encoder):
    """Has a block that nothing reads."""

    def forward(self, x):
        x = self.stem(x)
        self.blocks[2](x)
        return self.norm(x + self.blocks[0](x).tanh() + self.blocks[1](x))


class Functional(Encoder):
    """Uses a block, and its weight by another way too."""

    def __init__(self):
        super().__init__()
        self.weights = [self.blocks[2].weight]

    def forward(self, x):
        return super().forward(x) @ self.weights[0]


@pytest.mark.parametrize("kind", [Listed, Skipping, Functional])
def test_a_tint_that_is_never_used_or_not_alone_is_refused(unasked, kind):
    with pytest.raises(ValueError, match=r"`blocks.2` is to be tinted, but .*plain list"):
        with_encoder(kind).tint(layer="blocks.2")


class Counting(Encoder):
    """Keeps count of its calls, in a buffer and beside."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        self.count += 1
        return super().forward(x)


def test_a_model_that_counts_is_none_the_wiser(unasked, monkeypatch):
    world, seen = with_encoder(Counting), []

    def identify(model, *_):
        own = model.encoder
        clean = all(p.grad is None and not p.requires_grad for p in own.parameters())
        seen.append((own.calls, own.count.item(), clean))
        raise InterruptedError

    monkeypatch.setattr("fusion_tinting.tinting.Identity.of", identify)  # next after the look
    with pytest.raises(InterruptedError):
        world.tint()
    assert seen == [(0, 0, True)]
    assert (world.pretrained.calls, world.pretrained.count.item()) == (0, 0)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda output, expert: (output - expert).abs(), "one loss per sample"),
        (lambda output, expert: None, "one loss per sample.*NoneType"),
        (lambda output, expert: (output - expert).abs().mean(1).detach(), "No gradient flows"),
        (lambda output, expert: output @ expert, "cannot take outputs of shape"),
    ],
)
def test_an_objective_that_returns_something_else_is_found_before_any_work(unasked, world, loss, said):
    with pytest.raises(ValueError, match=rf"Task `cats`: .*{said}"):
        world.tint(objective=ft.Objective("mine", loss))


@pytest.mark.parametrize(
    "sampler",
    [
        lambda logits, expert: None,
        lambda logits, expert: [True] * len(logits),
        lambda logits, expert: logits.argmax(1),
        lambda logits, expert: logits > 0,
    ],
)
def test_a_sampler_that_returns_something_else_is_found_before_any_work(unasked, world, sampler):
    with pytest.raises(ValueError, match="Task `cats`: The sampler must return a boolean mask"):
        world.tint(sampler=sampler)


@pytest.mark.parametrize("objective", ["sigmoid", "l1", "cosine"])
def test_of_labels_and_values_every_sample_is_kept(world, objective):
    by_confidence = world.tint(objective=objective)
    assert (by_confidence.history.kept == 1).all()
    assert torch.equal(
        by_confidence.history.values, world.tint(objective=objective, sampler="all").history.values
    )


class Holding(Encoder):
    """Multiplies by what it holds."""

    held = None

    def forward(self, x):
        held = self.held
        if callable(held):
            return held(super().forward(x))
        if isinstance(held, (list, dict)):
            held = held[0]
        return super().forward(x) * (1 if held is None else held)


def times(factor):
    return lambda x: x * factor


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tensor(1.0), torch.tensor(3.0)),
        ([1.0], [3.0]),
        ({0: 1.0}, {0: 3.0}),
        (times(1), times(3)),
        (partial(torch.mul, other=1), partial(torch.mul, other=3)),
        (None, torch.tensor(3.0)),
    ],
    ids=["tensor", "list", "dict", "closure", "partial", "none"],
)
def test_what_an_expert_alone_holds_otherwise_is_found_by_what_it_answers(unasked, one, other):
    world = with_encoder(Holding)
    for model in (world.pretrained, *world.experts.values()):
        model.held = one
    world.experts["dogs"].held = other
    with pytest.raises(ValueError, match="Task `dogs`: With λ = 1"):
        world.tint()


class Keeping(Encoder):
    """Keeps what it has computed from its weights, for good."""

    kept = None

    def forward(self, x):
        if self.kept is None:
            self.kept = self.stem.weight.detach().clone()
        return super().forward(x) + x @ self.kept.T


@pytest.mark.parametrize("rate", [None, 0])
@pytest.mark.parametrize("used", [True, False])
def test_what_is_computed_from_weights_and_kept_for_good_is_refused(unasked, used, rate):
    world = with_encoder(Keeping)
    if used:
        for model in (world.pretrained, *world.experts.values()):
            model.eval()(torch.randn(2, 5))
    with pytest.raises(ValueError, match="computed from its weights and kept"):
        world.tint(lr_coefficients=rate)


def test_data_that_are_augmented_at_random_are_not_taken_for_a_model_that_draws(unasked, world):
    class Augmented(torch.utils.data.Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, place):
            return torch.full((5,), float(place)) + torch.randn(5)

    world.unlabeled["cats"] = Augmented()
    with pytest.raises(ValueError, match="Task `cats`: A sample that is read twice"):
        world.tint()


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("sampler", lambda output, expert: expert.zero_().sum(1) == 0),
        ("sampler", lambda output, expert: output.clamp_(max=0).sum(1) <= 0),
        ("objective", lambda output, expert: (output - expert.div_(2)).abs().sum(1)),
    ],
)
def test_a_function_that_changes_what_it_is_given_is_refused(unasked, world, name, function):
    for task in world.heads:
        world.heads[task] = nn.Linear(6, 3)
    with pytest.raises(ValueError, match=f"The {name} changes the outputs"):
        world.tint(**{name: function})


def test_inputs_that_is_no_function_is_said_to_be_that(unasked, world):
    with pytest.raises(ValueError, match="`inputs` must be a function"):
        world.tint(inputs="x")


@pytest.mark.parametrize("act", [torch.tanh, torch.sigmoid])
def test_a_model_that_cannot_take_gradients_is_refused(act):
    """What is changed in place is no longer what the backward pass needs."""

    class InPlace(nn.Linear):
        def forward(self, x):
            return act(super().forward(x)).mul_(2)

    world = make_world()
    for model in (world.pretrained, *world.experts.values()):
        model.stem.__class__ = InPlace
    with pytest.raises(ValueError, match=r"Task `cats`: no gradients can be taken of the model.*inplace"):
        world.tint()
