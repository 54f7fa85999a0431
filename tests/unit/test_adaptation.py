"""The method itself: against the plainest loop that autograd allows, and its invariances."""

import copy
import functools

import pytest
import torch
from world import TASKS, make_world

import fusion_tinting as ft
from fusion_tinting.method.averaging import Average
from fusion_tinting.method.reference import Visit, adapt_reference
from fusion_tinting.method.sampling import resolve_sampler
from fusion_tinting.method.schedule import batch_schedule, task_order

pytestmark = pytest.mark.quick


def visits(world, models, *, update, steps, batch_size=8, seed=0):
    """The batches as the schedule has them, in float64, with what the experts predict; a group a step."""
    inputs = {task: torch.cat(batches).double() for task, batches in world.unlabeled.items()}
    rows = {task: batch_schedule(len(x), batch_size, steps, seed, task) for task, x in inputs.items()}
    for step in range(steps):
        group = []
        for task in task_order(list(inputs), step, seed):
            batch = inputs[task][rows[task][step]]
            with torch.no_grad():
                group.append(Visit(task, batch, models["heads"][task](models["experts"][task](batch))))
        yield from [group] if update == "joint" else [[visit] for visit in group]


@pytest.mark.parametrize("update", ["sequential", "joint"])
@pytest.mark.parametrize(
    ("layer", "sampler", "objective"),
    [
        ("head", "all", "hard"),
        ("head", "confidence_difference", "soft"),
        ("blocks.1", "top_confidence:0.6", "hard"),
        ("stem", "all", "l1"),
        (None, "all", "entropy"),
    ],
)
def test_it_is_the_papers_algorithm(world, layer, sampler, objective, update):
    options = {"layer": layer, "sampler": sampler, "objective": objective, "update": update, "steps": 6}
    plain = copy.deepcopy(world)
    models = {"heads": plain.heads, "experts": {t: e.eval() for t, e in plain.experts.items()}}
    for model in (plain.pretrained.eval(), *models["heads"].values(), *models["experts"].values()):
        model.double()
    tinted = world.tint(**options)
    lam, tints = adapt_reference(
        plain.pretrained,
        **models,
        groups=visits(world, models, update=update, steps=6),
        layer=tinted.tinted,
        sampler=resolve_sampler(sampler),
        objective=ft.OBJECTIVES[objective],
    )
    rows = torch.stack(list(tinted.coefficients.values())).double()
    torch.testing.assert_close(rows, lam, rtol=0, atol=2e-5)
    prefix = f"{layer}." if layer not in ("head", None) else ""
    for task, tint in tinted.tints.items():
        for name, parameter in tint.named_parameters():
            expected = tints[task][prefix + name].detach()
            torch.testing.assert_close(parameter.double(), expected, rtol=0, atol=1e-4)


def test_golden_values(world):
    """Pins the arithmetic, the batches and the task order across releases of this package."""
    tinted = world.tint(steps=6, sampler="confidence_difference")
    assert tinted.coefficients["stem.weight"].tolist() == pytest.approx(GOLDEN["stem.weight"], abs=1e-5)
    assert tinted.tints["dogs"].bias.tolist() == pytest.approx(GOLDEN["dogs.bias"], abs=1e-5)
    assert tinted.history.agreement[-1].tolist() == pytest.approx(GOLDEN["agreement"])


GOLDEN = {
    "stem.weight": [0.321052, 0.436167, 0.21514],
    "dogs.bias": [0.222211, 0.372284, 0.109271, -0.091332],
    "agreement": [0.625, 1.0, 1.0],
}


def test_the_merged_encoder_is_the_merge_of_the_exported_coefficients(world):
    tinted = world.tint()
    vectors = ft.TaskVectors.from_models(world.pretrained, world.experts)
    merged = vectors.views(ft.merge(vectors, torch.stack(list(tinted.coefficients.values()))))
    for name, parameter in tinted.merged.named_parameters():
        assert torch.equal(parameter, merged[name])


def test_nothing_of_the_callers_is_changed(world):
    world.pretrained.train()
    models = [world.pretrained, *world.experts.values(), *world.heads.values()]
    before = copy.deepcopy(models)
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    world.tint(layer="block:-1")
    for was, now in zip(before, models, strict=True):
        assert was.training == now.training
        for a, b in zip(was.parameters(), now.parameters(), strict=True):
            assert torch.equal(a, b)
            assert b.grad is None
            assert a.requires_grad == b.requires_grad
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), generator)


def test_it_adapts_without_dropout(world):
    world.pretrained.train()
    for expert in world.experts.values():
        expert.train()
    one, two = world.tint(seed=1), world.tint(seed=1)
    assert torch.equal(one.history.values, two.history.values)


@pytest.mark.parametrize("update", ["sequential", "joint"])
def test_permuting_the_tasks_permutes_the_result(update):
    straight = make_world()
    turned = make_world()
    order = [2, 0, 1]
    for name in ("experts", "heads", "unlabeled"):
        entries = getattr(turned, name)
        setattr(turned, name, {TASKS[k]: entries[TASKS[k]] for k in order})
    a, b = straight.tint(update=update), turned.tint(update=update)
    assert b.tasks == [TASKS[k] for k in order]
    for name, row in a.coefficients.items():
        torch.testing.assert_close(b.coefficients[name], row[order], rtol=0, atol=1e-6)
    torch.testing.assert_close(b.history.values, a.history.values[:, order], rtol=1e-4, atol=1e-5)


def test_one_expert_alone_is_enough():
    tinted = make_world(["cats"]).tint(steps=2)
    assert tinted.coefficients["stem.weight"].shape == (1,)


def test_a_sampler_that_keeps_nothing_skips_the_step_and_is_counted(world):
    with pytest.warns(UserWarning, match="No sample taught"):
        tinted = world.tint(sampler=lambda output, expert: torch.zeros(len(output), dtype=torch.bool))
    assert tinted.history.skipped == 4 * 3
    assert all(torch.equal(row, torch.full((3,), 0.3)) for row in tinted.coefficients.values())
    for task, tint in tinted.tints.items():
        assert torch.equal(tint.weight, world.heads[task].weight)
    assert torch.isfinite(tinted.history.values).all()


@pytest.mark.parametrize("update", ["sequential", "joint"])
def test_a_task_that_is_skipped_leaves_its_tint_alone(world, update):
    world.heads = {task: torch.nn.Linear(6, 3 + k) for k, task in enumerate(world.experts)}
    tinted = world.tint(
        update=update,
        sampler=lambda output, expert: torch.full((len(output),), output.shape[1] != 4),
    )
    assert torch.equal(tinted.tints["dogs"].weight, world.heads["dogs"].weight)
    assert not torch.equal(tinted.tints["cats"].weight, world.heads["cats"].weight)
    assert tinted.history.skipped == 4


def test_frozen_coefficients_and_frozen_tints(world):
    tints_only = world.tint(lr_coefficients=0)
    assert all(torch.equal(row, torch.full((3,), 0.3)) for row in tints_only.coefficients.values())
    assert not torch.equal(tints_only.tints["cats"].weight, world.heads["cats"].weight)
    coefficients_only = world.tint(lr_tints=0)
    assert not torch.equal(coefficients_only.coefficients["stem.weight"], torch.full((3,), 0.3))
    assert torch.equal(coefficients_only.tints["cats"].weight, world.heads["cats"].weight)


def test_the_tinted_layer_keeps_its_initial_coefficients_in_the_shared_encoder(world):
    tinted = world.tint(layer="blocks.1")
    assert tinted.tinted_tensors == ["blocks.1.weight", "blocks.1.bias"]
    for name, row in tinted.coefficients.items():
        assert torch.equal(row, torch.full((3,), 0.3)) == (name in tinted.tinted_tensors)


@pytest.mark.parametrize("layer", ["head", "blocks.1"])
def test_average_keeps_the_mean_of_the_last_quarter(world, monkeypatch, layer):
    add, seen = Average.add, []

    def watched(self, step):
        add(self, step)
        seen.append({name: tensor.clone() for name, tensor in self.trained.items()})

    monkeypatch.setattr(Average, "add", watched)
    tinted = world.tint(average=True, steps=8, layer=layer)
    constant = world.tint(steps=8, layer=layer)  # goes the same way
    assert torch.equal(seen[-1]["coefficients"], torch.stack([*constant.coefficients.values()]))
    mean = {name: (tensor + seen[-2][name]) / 2 for name, tensor in seen[-1].items()}
    lam = torch.stack([*tinted.coefficients.values()])
    torch.testing.assert_close(lam, mean.pop("coefficients"), rtol=0, atol=1e-6)
    for name, parameter in tinted.tint_modules.named_parameters():
        torch.testing.assert_close(parameter, mean.pop(f"tints.{name}"), rtol=0, atol=1e-6)
    assert not mean
    merged = tinted.vectors.views(ft.merge(tinted.vectors, lam))
    for name, parameter in tinted.merged.named_parameters():
        assert torch.equal(parameter, merged[name])


@pytest.mark.parametrize("clamp", ["no", 0, None])
def test_clamp_is_yes_or_no(world, clamp):
    with pytest.raises(ValueError, match="`clamp` must be true or false"):
        world.tint(clamp=clamp)


def test_tasks_have_names_before_any_work(world, tmp_path):
    one = {part: {1: getattr(world, part)["cats"]} for part in ("experts", "heads", "unlabeled")}
    with pytest.raises(ValueError, match=r"names of tasks must be strings\. Found 1"):
        ft.tint(world.pretrained, **one, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_iteration_has_no_mean(world):
    tinted = world.tint(average=True, steps=0)
    assert torch.equal(tinted.coefficients["stem.weight"], torch.full((3,), 0.3))


def test_only_the_samples_that_will_be_visited_are_asked_of_the_experts(world, monkeypatch):
    asked = {}

    def count(experts, heads, unlabeled, **_):
        asked.update({task: len(inputs) for task, inputs in unlabeled.items()})
        return ft.predict_experts(experts, heads, unlabeled, progress=False)

    monkeypatch.setattr("fusion_tinting.tinting.predict_experts", count)
    world.tint(steps=2, batch_size=8)
    assert asked == dict.fromkeys(TASKS, 16)
    world.tint(steps=20, batch_size=8)
    assert asked == dict.fromkeys(TASKS, 40)


def test_history_has_one_row_per_iteration_and_task(world):
    history = world.tint(steps=5).history
    assert history.loss.shape == history.agreement.shape == history.kept.shape == (5, 3)
    assert ((history.agreement >= 0) & (history.agreement <= 1)).all()
    rows = list(history.rows())
    assert len(rows) == 15
    assert rows[4]["step"] == 1
    assert rows[4]["task"] == "dogs"


@pytest.mark.long
def test_adaptation_brings_the_model_nearer_to_the_experts(world):
    history = world.tint(steps=80, layer="block:-1").history
    assert history.loss[-20:].mean() < 0.8 * history.loss[:20].mean()
    assert history.agreement[-20:].mean() > history.agreement[:20].mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "al"}, "Unknown sampler `al`.*`all`"),
        ({"objective": "harder"}, "Did you mean `hard`"),
        ({"update": "both"}, "`sequential`, `joint`"),
        ({"average": "yes"}, "`average` must be true or false"),
        ({"steps": -1}, "`steps` must be a whole number, at least 0. Found -1"),
        ({"batch_size": 0}, "`batch_size` must be a whole number, at least 1"),
        ({"lr": "fast"}, "`lr` must be a number, at least 0. Found 'fast'"),
        ({"lr": "1e-3"}, "Found '1e-3'. YAML takes .* write 1.0e-3"),
        ({"init": float("nan")}, "`init` must be a number"),
        ({"objective": ["hard"]}, "Unknown objective"),
        (
            {"objective": dict.fromkeys(["cats", "dogs", "owls", "bees"], "hard")},
            r"`objective`.*\['bees'\]",
        ),
        ({"task_vectors": "fp16"}, "`task_vectors` must map settings to values.* Found 'fp16'"),
        ({"stepz": 3}, "Unknown setting `stepz`. Did you mean `steps`"),
        ({"layer": "bodies.1"}, "Unknown layer"),
        ({"layer": 0}, "`layer` must be a layer's name or None. Found 0"),
        ({"layer": "block:--1"}, "index from -3 to 2"),
        ({"layer": None, "lr_tints": 0.1}, "has no effect with `layer=None`"),
        ({"layer": None, "lr_coefficients": 0}, "Nothing would be trained"),
    ],
)
def test_bad_settings_are_refused_before_any_work(world, monkeypatch, options, message):
    monkeypatch.setattr("fusion_tinting.tinting.predict_experts", None)
    with pytest.raises(ValueError, match=message):
        world.tint(**options)


def test_any_callable_can_be_sampler_or_objective(world):
    named = world.tint(sampler="top_confidence:0.3", objective="soft")
    share = functools.partial(ft.SAMPLERS["top_confidence"], share=0.3)
    passed = world.tint(sampler=share, objective=ft.OBJECTIVES["soft"])
    assert torch.equal(named.coefficients["stem.bias"], passed.coefficients["stem.bias"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"sampler": lambda output, expert: torch.ones(len(output))}, "must return a boolean mask"),
        ({"objective": lambda output, expert: output.mean()}, "must return one loss per sample"),
    ],
)
def test_what_a_callable_returns_is_checked(world, option, message):
    with pytest.raises(ValueError, match=message):
        world.tint(**option)


def test_half_precision_experts_adapt_in_float32(world):
    for module in (world.pretrained, *world.experts.values(), *world.heads.values()):
        module.half()
    assert torch.isfinite(world.tint().history.values).all()


def test_what_diverges_is_stopped_and_named(world):
    with pytest.raises(ValueError, match=r"loss of `\w+` became .* in iteration"):
        world.tint(lr=1e30, clamp=False, steps=20)


@pytest.mark.parametrize("what", ["heads", "unlabeled"])
def test_a_task_without_head_or_data_is_named(world, what):
    del getattr(world, what)["dogs"]
    with pytest.raises(ValueError, match=rf"`{what}` must have one entry.*none for \['dogs'\]"):
        world.tint()


def test_heads_without_expert_are_named(world):
    world.heads["bats"] = torch.nn.Linear(6, 2)
    with pytest.raises(ValueError, match=r"has \['bats'\], which is none of them"):
        world.tint()


def test_a_state_dict_or_a_function_in_place_of_a_model_is_named(world):
    world.heads["dogs"] = world.heads["dogs"].forward
    with pytest.raises(ValueError, match=r"The head of `dogs` must be .*Module`\. Found method"):
        world.tint()
    world.heads["dogs"] = torch.nn.Linear(6, 2)
    world.experts["owls"] = world.experts["owls"].state_dict()
    with pytest.raises(ValueError, match=r"The expert `owls` must be .*Module`\. Found OrderedDict"):
        world.tint()
    world.pretrained = world.pretrained.state_dict()
    with pytest.raises(ValueError, match=r"`pretrained` must be .*Module`\. Found OrderedDict"):
        world.tint()


def test_an_expert_that_is_the_pretrained_model_itself_is_named(world):
    world.experts["owls"] = world.pretrained
    with pytest.raises(ValueError, match=r"expert `owls` is the pre-trained model itself"):
        world.tint()


def test_empty_data_names_its_task(world):
    world.unlabeled["owls"] = []
    with pytest.raises(ValueError, match="Task `owls`: The unlabeled data is empty"):
        world.tint()


def test_a_head_that_gives_nan_is_found_before_adaptation(world):
    world.heads["cats"].bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"Task `cats`.*NaN or infinite; check its inputs"):
        world.tint()


def test_inputs_that_a_model_cannot_take_are_found_before_any_expert_is_asked(world, monkeypatch):
    monkeypatch.setattr("fusion_tinting.tinting.predict_experts", None)
    world.unlabeled["owls"] = [torch.randn(10, 4)]
    with pytest.raises(ValueError, match=r"Task `owls`: .*the first is a tensor \(1, 4\) of torch.float32"):
        world.tint()
    world.unlabeled["owls"] = [torch.randn(10, 5)]
    world.heads["dogs"] = torch.nn.Linear(7, 3)
    with pytest.raises(ValueError, match="Task `dogs`: the model and its head cannot take"):
        world.tint(layer="blocks.1")


@pytest.mark.parametrize(
    ("layer", "update", "at_once", "passes"),
    [
        ("head", "joint", 1 << 18, 1),
        (None, "joint", 80, 2),  # two batches of 8 inputs of 5 numbers fit
        ("head", "joint", 79, 3),
        ("head", "sequential", 1 << 18, 3),
        ("blocks.1", "joint", 1 << 18, 3),  # each task has a block of its own
    ],
)
def test_several_tasks_share_a_pass_of_the_encoder_and_nothing_changes(
    world, monkeypatch, layer, update, at_once, passes
):
    options = {"layer": layer, "update": update, "steps": 3}
    monkeypatch.setattr("fusion_tinting.method.adaptation.ON_A_CPU", 0)
    apart = world.tint(**options)
    monkeypatch.setattr("fusion_tinting.method.adaptation.ON_A_CPU", at_once)
    calls = []
    taught = ft.Adaptation.teach
    monkeypatch.setattr(
        ft.Adaptation,
        "teach",
        lambda self, step, batches: calls.append(step) or taught(self, step, batches),
    )
    together = world.tint(**options)
    assert calls.count(0) == passes
    torch.testing.assert_close(together.history.values, apart.history.values, rtol=1e-5, atol=1e-6)
    for name, row in apart.coefficients.items():
        torch.testing.assert_close(together.coefficients[name], row, rtol=0, atol=1e-5)


@pytest.mark.parametrize("update", ["sequential", "joint"])
@pytest.mark.parametrize("layer", ["blocks.1", "head"])
def test_no_gradient_of_a_tint_waits_while_another_task_is_taught(world, monkeypatch, layer, update):
    waiting, taught = [], ft.Adaptation.teach

    def teach(self, step, batches):
        waiting.extend(p for p in self.model.tint_modules.parameters() if p.grad is not None)
        return taught(self, step, batches)

    monkeypatch.setattr(ft.Adaptation, "teach", teach)
    monkeypatch.setattr("fusion_tinting.method.adaptation.ON_A_CPU", 0)
    world.tint(layer=layer, update=update, steps=2)
    assert not waiting


def test_more_processes_than_tasks_are_refused_in_joint_mode(world):
    processes = ft.Processes()
    processes.count = 4
    with pytest.raises(ValueError, match="4 processes are too many for 3 tasks"):
        world.tint(update="joint", processes=processes)
