"""Models of bfloat16, tensors kept as they are or read from files, and what is computed again."""

from collections.abc import Mapping
from copy import deepcopy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.func import functional_call
from world import TASKS, make_world

import fusion_tinting as ft
from fusion_tinting.method.merging import MergedWeights
from fusion_tinting.method.models import release
from fusion_tinting.method.precision import cast, precision_of
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.method.tensors import HostTensors, Tensors
from fusion_tinting.method.tints import view
from fusion_tinting.run.experts import LoadedExperts
from fusion_tinting.run.stored import StoredTensors
from fusion_tinting.run.tinted_model import OneTask

pytestmark = pytest.mark.quick


def in_half(world):
    for model in (world.pretrained, *world.experts.values(), *world.heads.values()):
        model.bfloat16()
    return world


def tensors_of(module: nn.Module) -> dict:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def files_of(world) -> dict:
    return {PRETRAINED: tensors_of(world.pretrained)} | {t: tensors_of(e) for t, e in world.experts.items()}


class TestTensors:
    @pytest.fixture
    def pair(self):
        world = make_world()
        flat = ft.TaskVectors.from_models(world.pretrained, world.experts)
        options = {"storage": HostTensors, "files": files_of(world)}
        kept = ft.TaskVectors.from_models(world.pretrained, world.experts, **options)
        assert isinstance(kept.kept, Tensors)
        return world, flat, kept

    def test_merges_are_those_of_flat_buffers_bit_for_bit(self, pair):
        _, flat, kept = pair
        lam = torch.rand(len(flat.slots), len(TASKS))
        assert torch.equal(ft.merge(flat, lam), ft.merge(kept, lam))
        for one, other in zip(
            ft.merge_reference(flat, lam).values(), ft.merge_reference(kept, lam).values(), strict=True
        ):
            assert torch.equal(one, other)

    @pytest.mark.parametrize("arriving", [False, True])
    def test_gradients_are_those_of_flat_buffers_bit_for_bit(self, pair, arriving):
        world, flat, kept = pair
        lam, x = torch.rand(len(flat.slots), len(TASKS)), torch.randn(7, 5)
        taken = []
        for vectors, arrives in ((flat, False), (kept, arriving), (flat, arriving)):
            module = deepcopy(world.pretrained).eval()
            with MergedWeights(module, vectors, arriving=arrives) as merged:
                merged.write(lam)
                module(x).square().sum().backward()
                assert all(p.grad is None for p in module.parameters()) == arrives
                taken.append(merged.take_gradient())
        assert taken[0].abs().sum() > 0
        assert all(torch.equal(taken[0], other) for other in taken[1:])

    def test_several_backward_passes_add_up(self, pair):
        world, flat, _ = pair
        lam, x = torch.rand(len(flat.slots), len(TASKS)), torch.randn(7, 5)
        module = deepcopy(world.pretrained).eval()
        with MergedWeights(module, flat, arriving=True) as merged:
            merged.write(lam)
            for part in x.split(3):
                module(part).square().sum().backward()
            together = merged.take_gradient()
            module(x).square().sum().backward()
            torch.testing.assert_close(together, merged.take_gradient())
            assert merged.take_gradient().eq(0).all()

    def test_files_of_other_values_are_refused(self):
        world = make_world()
        files = files_of(world)
        files["dogs"]["stem.weight"] += 1
        with pytest.raises(ValueError, match=r"`stem.weight` of the expert `dogs` is another in its file"):
            ft.TaskVectors.from_models(world.pretrained, world.experts, storage=HostTensors, files=files)


class TestHalf:
    def test_a_model_of_bfloat16_stays_one_and_what_is_trained_is_float32(self):
        tinted = in_half(make_world()).tint(layer="block:1", steps=3)
        assert tinted.precision == torch.bfloat16
        assert {p.dtype for p in tinted.merged.parameters()} == {torch.bfloat16}
        assert {p.dtype for p in tinted.tint_modules.parameters()} == {torch.float32}
        assert {row.dtype for row in tinted.coefficients.values()} == {torch.float32}
        assert tinted.info.precision == "bfloat16-true"

    def test_zero_is_the_pre_trained_model_and_one_the_expert_exactly(self):
        world = in_half(make_world())
        untrained = ft.TintedModel.untrained(world.pretrained, world.experts, world.heads, None)
        for name, value in world.pretrained.state_dict().items():
            assert torch.equal(untrained.remerged(0.0).merged.state_dict()[name], value)
        for task, expert in world.experts.items():
            for name, value in expert.state_dict().items():
                assert torch.equal(untrained.remerged(task).merged.state_dict()[name], value)

    @pytest.mark.long
    @pytest.mark.parametrize("layer", ["head", "block:1", "norm"])
    def test_what_is_learned_is_near_to_float32s(self, layer):
        half, full = in_half(make_world()), in_half(make_world())
        for model in (full.pretrained, *full.experts.values(), *full.heads.values()):
            model.float()  # of the same values
        learned = [world.tint(layer=layer, steps=30, objective="soft", lr=1e-3) for world in (half, full)]
        rows = [torch.stack(list(model.coefficients.values())) for model in learned]
        assert (rows[0] - rows[1]).abs().mean() < 0.01
        assert (rows[1] - 0.3).abs().mean() > 0.01
        losses = [model.history.loss[-10:].mean() for model in learned]
        assert losses[0] == pytest.approx(losses[1].item(), rel=0.03)

    def test_a_saved_run_loads_to_the_same(self, tmp_path):
        world = in_half(make_world())
        tinted = world.tint(layer="block:1", run_dir=tmp_path / "run")
        loaded = ft.TintedModel.load(tmp_path / "run", **world.models())
        x = torch.randn(4, 5)
        for task in TASKS:
            assert torch.equal(tinted(x, task), loaded(x, task))

    @pytest.mark.parametrize("given", [{"dtype": "fp16"}, {"storage": "mmap"}, {"storage": "host"}])
    def test_task_vectors_kept_otherwise_give_the_same(self, given):
        plain, other = (in_half(make_world()).tint(task_vectors=one) for one in ({}, given))
        assert other.precision == torch.bfloat16
        assert {p.dtype for p in other.merged.parameters()} == {torch.bfloat16}
        for name, row in plain.coefficients.items():
            torch.testing.assert_close(row, other.coefficients[name], rtol=0, atol=1e-3)

    @pytest.mark.parametrize("part", ["head", "norm", "expert"])
    def test_of_mixed_precision_all_is_computed_in_float32_but_for_an_experts(self, part):
        world = in_half(make_world())
        {"head": world.heads["owls"], "norm": world.pretrained.norm, "expert": world.experts["cats"]}[
            part
        ].float()
        tinted = world.tint(steps=1)
        assert tinted.precision == (torch.bfloat16 if part == "expert" else torch.float32)

    def test_float16_is_computed_in_float32(self):
        assert precision_of([nn.Linear(2, 2).half()]) == torch.float32


class Scaled(nn.Module):
    """A block with a buffer, which a tint has too."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(6, 6)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 6))

    def forward(self, x):
        return self.map(x * self.scale)


class Words(nn.Module):
    """(B, 4) -> (B, 6), by an embedding with sparse gradients."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 6, sparse=True)
        self.map = nn.Linear(6, 6)

    def forward(self, x):
        return self.map(self.words(x).mean(1))


class Products(nn.Module):
    """A head without parameters, such as one of texts' embeddings."""

    def __init__(self):
        super().__init__()
        self.register_buffer("classes", torch.randn(6, 3))

    def forward(self, x):
        return x @ self.classes


def remade(world, make, inputs=None):
    """Give a world other models, and perhaps inputs."""
    torch.manual_seed(1)
    world.pretrained = make()
    world.experts = {task: deepcopy(world.pretrained) for task in TASKS}
    for parameter in (p for expert in world.experts.values() for p in expert.parameters()):
        parameter.data += 0.1 * torch.randn_like(parameter)
    if inputs is not None:
        world.unlabeled = {task: [inputs() for _ in range(4)] for task in TASKS}
    return world


def with_blocks(make):
    """Return an encoder of the world's kind with other blocks."""
    encoder = make_world().pretrained
    encoder.blocks = nn.ModuleList(make() for _ in range(3))
    return encoder


class TestHalfOf:
    """Models of bfloat16 that learn what those of float32 of the same values learn."""

    def compare(self, world, layer):
        full = deepcopy(in_half(world))
        for model in (full.pretrained, *full.experts.values(), *full.heads.values()):
            model.float()
        half, full = (each.tint(layer=layer, steps=20, objective="soft", lr=1e-3) for each in (world, full))
        for name, row in full.coefficients.items():
            torch.testing.assert_close(row, half.coefficients[name], rtol=0, atol=0.02)
        return half

    @pytest.mark.long
    @pytest.mark.parametrize("layer", ["block:1", "norm"])
    def test_blocks_with_buffers(self, layer):
        half = self.compare(remade(make_world(), lambda: with_blocks(Scaled)), layer)
        assert half.precision == torch.bfloat16
        assert all(buffer.dtype != torch.float32 for tint in half.tint_modules for buffer in tint.buffers())

    @pytest.mark.long
    @pytest.mark.parametrize("layer", ["words", "map"])
    def test_embeddings_with_sparse_gradients(self, layer):
        self.compare(remade(make_world(), Words, lambda: torch.randint(0, 20, (10, 4))), layer)

    @pytest.mark.long
    @pytest.mark.parametrize("layer", [None, "block:1"])
    def test_heads_of_buffers_alone(self, layer):
        world = make_world()
        world.heads = {task: Products() for task in TASKS}
        assert self.compare(world, layer).precision == torch.bfloat16

    def test_heads_of_float32_buffers_are_computed_in_float32(self):
        world = in_half(make_world())
        world.heads = {task: Products() for task in TASKS}
        assert world.tint(layer=None).precision == torch.float32

    @pytest.mark.parametrize(
        "load", [dict, lambda models: LoadedExperts(TASKS, lambda t: deepcopy(models[t]))]
    )
    def test_a_layer_is_chosen(self, load):
        world = in_half(make_world())
        world.experts = load(world.experts)
        tinted = world.tint(layer="auto", steps=8)
        assert tinted.precision == torch.bfloat16
        assert {p.dtype for head in tinted.heads for p in head.parameters()} == {torch.bfloat16}

    def test_asking_for_predictions_leaves_a_tinted_model_as_it_is(self):
        tinted = in_half(make_world()).tint(layer="block:1")
        before = {name: tensor.clone() for name, tensor in tinted.state_dict().items()}
        x = torch.randn(8, 5)
        predicted = ft.predict(OneTask(tinted, "cats"), nn.Identity(), ft.Unlabeled.of(x))
        assert torch.equal(predicted, tinted(x, "cats").float())
        for name, tensor in tinted.state_dict().items():
            assert tensor.dtype == before[name].dtype
            assert torch.equal(tensor, before[name])

    @pytest.mark.parametrize("learned", [torch.bfloat16, torch.float32])
    def test_a_run_loads_with_the_same_models_in_another_precision(self, tmp_path, learned):
        worlds = {}
        for dtype in (torch.bfloat16, torch.float32):
            world = worlds[dtype] = in_half(make_world())
            for model in (world.pretrained, *world.experts.values(), *world.heads.values()):
                model.to(dtype)
        tinted = worlds.pop(learned).tint(layer="block:1", run_dir=tmp_path / "run")
        (other,) = worlds.values()
        loaded = ft.TintedModel.load(tmp_path / "run", **other.models())
        x = torch.randn(4, 5)
        for task in TASKS:
            torch.testing.assert_close(tinted(x, task).float(), loaded(x, task), rtol=0, atol=0.02)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_task_vectors_are_the_same_under_another_default_dtype(self, dtype):
        world = in_half(make_world())
        vectors = ft.TaskVectors.from_models(world.pretrained, world.experts)
        lam = torch.rand(len(vectors.slots), len(TASKS))
        want = ft.merge(vectors, lam)
        torch.set_default_dtype(dtype)
        try:
            again = ft.TaskVectors.from_models(world.pretrained, world.experts)
            merged = ft.merge(again, lam)
        finally:
            torch.set_default_dtype(torch.float32)
        assert merged.dtype == torch.float32 == vectors.scales.dtype
        assert torch.equal(want, merged)


def test_a_cast_tint_is_the_tint_and_takes_its_gradient():
    torch.manual_seed(0)
    tint = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    tint[0].extra = tint[0].weight  # one tensor by two names
    x = torch.randn(3, 4).bfloat16()
    twin = cast(tint, torch.bfloat16)
    twin(x).float().sum().backward()
    found = [p.grad.clone() for p in tint.parameters()]
    tint.zero_grad()
    casted = {name: p.bfloat16() for name, p in tint.named_parameters()}
    functional_call(tint, casted, x).float().sum().backward()
    assert all(torch.equal(p.grad, other) for p, other in zip(tint.parameters(), found, strict=True))
    assert twin[0].extra is twin[0].weight
    assert {p.dtype for p in tint.parameters()} == {torch.float32}


class TestComputedAgain:
    @pytest.mark.parametrize("layer", ["head", "block:0", "block:-1", "norm"])
    @pytest.mark.parametrize("half", [False, True])
    def test_the_run_is_the_same(self, layer, half):
        worlds = [in_half(make_world()) if half else make_world() for _ in range(2)]
        plain, again = (
            world.tint(layer=layer, gradient_checkpointing=on)
            for world, on in zip(worlds, (False, True), strict=True)
        )
        for name, row in plain.coefficients.items():
            torch.testing.assert_close(row, again.coefficients[name], rtol=0, atol=1e-6)
        for one, other in zip(
            plain.tint_modules.parameters(), again.tint_modules.parameters(), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)

    def test_each_block_runs_twice_a_visit_and_is_left_as_it_was(self):
        world, runs = make_world(), []
        world.pretrained.blocks[1].register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))
        for expert in world.experts.values():
            expert.blocks[1].register_forward_hook(lambda *_: runs.append(False))
        counts = []
        for on in (False, True):
            runs.clear()
            tinted = world.tint(steps=2, layer=None, gradient_checkpointing=on)
            counts.append(sum(runs))
        assert all("forward" not in vars(block) for block in tinted.encoder.blocks)
        assert counts[1] == counts[0]  # the hook sees a block once: what is computed again is within it

    def test_what_a_block_computes_is_not_kept(self):
        world, saved = make_world(), {}
        for on in (False, True):
            seen = saved[on] = []
            with torch.autograd.graph.saved_tensors_hooks(
                lambda t, seen=seen: seen.append(t) or t, lambda t: t
            ):
                world.tint(steps=1, layer=None, gradient_checkpointing=on)
        assert len(saved[True]) < len(saved[False])

    def test_a_block_in_several_places_is_computed_again_in_each(self):
        def encoder():
            made = with_blocks(lambda: nn.Linear(6, 6))
            made.blocks[2] = made.blocks[0]
            return made

        plain, again = (
            remade(make_world(), encoder).tint(layer=None, gradient_checkpointing=on)
            for on in (False, True)
        )
        for name, row in plain.coefficients.items():
            torch.testing.assert_close(row, again.coefficients[name], rtol=0, atol=1e-6)
        assert all("forward" not in vars(block) for block in again.encoder.blocks)

    @pytest.mark.parametrize("kind", ["list", "in place", "raises"])
    @pytest.mark.parametrize("layer", [None, "block:1"])
    def test_blocks_that_do_not_do_the_same_again_are_refused(self, kind, layer):
        class Block(nn.Linear):
            def forward(self, x, before=None):
                if kind == "list":
                    before.append(x)
                    return super().forward(sum(before))
                if kind == "raises":
                    assert not before
                    before.append(x)
                return (x.add_(1) if kind == "in place" else x) + super().forward(x + 1).tanh()

        class Remembering(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.blocks = nn.Linear(5, 6), nn.ModuleList(Block(6, 6) for _ in range(3))

            def forward(self, x):
                x, before = self.stem(x), []
                for block in self.blocks:
                    x = block(x, before)
                    before = before if kind == "list" else []
                return x

        remade(make_world(), Remembering).tint(layer=layer)
        with pytest.raises(
            ValueError, match=r"`cats`: With `gradient_checkpointing`.* a Block does not do the"
        ):
            remade(make_world(), Remembering).tint(layer=layer, gradient_checkpointing=True)

    def test_an_encoder_without_blocks_is_refused(self):
        world = make_world()
        world.pretrained = nn.Linear(5, 6)
        world.experts = {task: deepcopy(world.pretrained) for task in TASKS}
        for expert in world.experts.values():
            expert.weight.data += 0.1
        with pytest.raises(ValueError, match=r"`gradient_checkpointing`.*the encoder has none"):
            world.tint(gradient_checkpointing=True)

    def test_a_view_compiles(self):
        world = make_world()
        tint = deepcopy(world.experts["cats"].blocks[1])
        x = torch.randn(3, 5)
        with view(world.pretrained.eval(), "blocks.1", tint) as seen:
            torch.testing.assert_close(torch.compile(seen, backend="eager")(x), seen(x))


class TestStored:
    @pytest.fixture
    def file(self, tmp_path):
        save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}, tmp_path / "model.safetensors")
        return tmp_path / "model.safetensors"

    def test_tensors_are_read_by_the_models_names(self, file):
        stored = StoredTensors({"x.weight": (file, "a")})
        assert torch.equal(stored["x.weight"], torch.arange(6.0).view(2, 3))
        assert list(stored) == ["x.weight"]

    @pytest.mark.parametrize("change", ["other", "gone", "cut"])
    def test_a_file_that_changes_is_refused(self, file, change):
        stored = StoredTensors({"a": (file, "a")})
        if change == "gone":
            file.unlink()
        elif change == "cut":
            file.write_bytes(file.read_bytes()[:-4])
        else:
            save_file({"a": torch.zeros(2, 3), "b": torch.ones(9)}, file)
        with pytest.raises(ValueError, match=f"`{file}` was changed or removed"):
            stored["a"]

    def test_a_file_that_is_cut_short_is_named(self, file):
        file.write_bytes(file.read_bytes()[:-4])
        with pytest.raises(ValueError, match=f"`{file}` is cut short"):
            StoredTensors({"a": (file, "a")})

    def test_it_is_refused_where_no_file_is_known(self):
        with pytest.raises(ValueError, match=r"`task_vectors.storage: stream`.*none that are known"):
            make_world().tint(task_vectors={"storage": "stream"})

    @pytest.mark.parametrize("half", [False, True])
    def test_a_run_that_streams_is_the_run_that_does_not(self, tmp_path, half):
        """Each expert is loaded once, and is asked as weights in the one encoder afterward."""
        runs = []
        for storage in ("memory", "stream"):
            world = in_half(make_world()) if half else make_world()
            loads = written(world, tmp_path)
            runs.append(streamed(world, storage))
            assert storage == "memory" or loads == TASKS
        require_equal(*runs)

    @pytest.mark.parametrize("which", ["cats", "_pretrained_", "all"])
    def test_models_of_another_precision_than_their_files_count_as_they_are(self, tmp_path, which):
        """As with `fabric.precision=bf16-true`: what is merged and asked is rounded, in files too."""
        runs = []
        for storage in ("memory", "stream"):
            world = make_world()
            written(world, tmp_path)
            world.experts = Rounded(world.experts, TASKS if which == "all" else [which])
            if which in ("all", PRETRAINED):
                world.pretrained.bfloat16()
            for head in world.heads.values() if which == "all" else ():
                head.bfloat16()
            runs.append(streamed(world, storage))
        require_equal(*runs)
        assert runs[0].precision == (torch.bfloat16 if which == "all" else torch.float32)

    def test_an_expert_of_float32_is_asked_in_it_wherever_it_is_kept(self, tmp_path):
        runs = []
        for storage in ("memory", "stream"):
            world = in_half(make_world())
            world.experts["dogs"] = make_world().experts["dogs"]
            world.heads = dict.fromkeys(TASKS, nn.Identity())
            written(world, tmp_path)
            runs.append(streamed(world, storage))
        require_equal(*runs)
        assert runs[0].precision == torch.bfloat16


class Rounded(Mapping):
    """Experts of which some are converted when they are asked for, as FusionBench's are."""

    def __init__(self, experts, tasks):
        self.experts, self.tasks, self.stored = experts, tasks, experts.stored

    def __getitem__(self, task):
        return self.experts[task].bfloat16() if task in self.tasks else self.experts[task]

    def __iter__(self):
        return iter(self.experts)

    def __len__(self):
        return len(self.experts)


def written(world, folder):
    """Write a world's models, and load its experts from there; return whom it has loaded."""
    paths, models, loads = {}, world.experts, []
    for name, model in {PRETRAINED: world.pretrained, **models}.items():
        paths[name] = folder / f"{name}.safetensors"
        save_file(tensors_of(model), paths[name])

    def load(task):
        loads.append(task)
        return release(deepcopy(models[task]))

    names = list(tensors_of(world.pretrained))
    world.experts = LoadedExperts(
        TASKS, load, lambda name: StoredTensors({tensor: (paths[name], tensor) for tensor in names})
    )
    return loads


def streamed(world, storage):
    """Learn with gradients that are contracted in the same order."""
    options = {"storage": storage, "gradients": "arriving"}
    return world.tint(layer="block:1", objective="soft", task_vectors=options)


def require_equal(one, other):
    """Two runs have learned the same."""
    assert one.vectors.hashes == other.vectors.hashes
    assert torch.equal(one.history.values, other.history.values)
    for name, row in one.coefficients.items():
        assert torch.equal(row, other.coefficients[name]), name
    x = torch.randn(4, 5)
    for task in TASKS:
        assert torch.equal(one(x, task), other(x, task))
