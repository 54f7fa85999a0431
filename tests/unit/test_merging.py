"""θ(λ) and ∂λ: identities of the formula, and the fast path against the reference."""

import pytest
import torch
from world import TASKS

import fusion_tinting as ft
from fusion_tinting.run.cache import cache_folder
from fusion_tinting.run.storage import load_task_vectors

pytestmark = pytest.mark.quick


@pytest.fixture
def vectors(world):
    return ft.TaskVectors.from_models(world.pretrained, world.experts)


def named(vectors, lam):
    return vectors.views(ft.merge(vectors, lam))


def test_zero_coefficients_give_the_pretrained_model(world, vectors):
    merged = named(vectors, torch.zeros(len(vectors.slots), 3))
    for name, tensor in world.pretrained.named_parameters():
        assert torch.equal(merged[name], tensor)


@pytest.mark.parametrize("k", range(3))
def test_a_one_hot_row_gives_that_expert(world, vectors, k):
    merged = named(vectors, torch.eye(3)[k].expand(len(vectors.slots), 3))
    for name, tensor in world.experts[TASKS[k]].named_parameters():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=2e-7)


def test_the_merge_is_the_formula_in_float64(vectors):
    torch.manual_seed(1)
    lam = torch.rand(len(vectors.slots), 3)
    for row, (name, (a, b, _)) in zip(lam, vectors.slots.items(), strict=True):
        exact = vectors.base[a:b].double() + row.double() @ vectors.deltas[:, a:b].double()
        for merged in (named(vectors, lam)[name], ft.merge_reference(vectors, lam)[name]):
            torch.testing.assert_close(merged.flatten().double(), exact, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1.0, 1e8, 1e15])
def test_fast_and_reference_agree_in_value_and_gradient_at_any_scale(vectors, scale):
    torch.manual_seed(2)
    vectors.deltas.mul_(scale)
    lam = torch.rand(len(vectors.slots), 3, requires_grad=True)
    weights = torch.randn_like(vectors.base)
    reference = torch.cat([t.flatten() for t in ft.merge_reference(vectors, lam).values()])
    (reference * weights).sum().backward()
    close = {"rtol": 1e-5, "atol": 1e-5 * max(scale, 1e-3)}
    torch.testing.assert_close(ft.merge(vectors, lam), reference.detach(), **close)
    gradient = ft.coefficient_gradient(vectors, vectors.views(weights))
    torch.testing.assert_close(gradient, lam.grad, **close)


def test_merging_is_linear_in_the_coefficients(vectors):
    torch.manual_seed(3)
    one, two = torch.rand(2, len(vectors.slots), 3)
    between = ft.merge(vectors, (one + two) / 2)
    torch.testing.assert_close(between, (ft.merge(vectors, one) + ft.merge(vectors, two)) / 2)


def test_tensors_are_matched_by_name_not_by_place(world):
    """Experts whose parameters are registered in another order are the same experts."""
    straight = ft.TaskVectors.from_models(world.pretrained, world.experts)
    for expert in world.experts.values():
        expert._modules = dict(reversed(expert._modules.items()))
    turned = ft.TaskVectors.from_models(world.pretrained, world.experts)
    assert torch.equal(straight.deltas, turned.deltas)
    assert straight.hashes == turned.hashes


def test_a_parameter_shared_with_the_pretrained_model_is_not_merged(world):
    for expert in world.experts.values():
        expert.stem = world.pretrained.stem
    vectors = ft.TaskVectors.from_models(world.pretrained, world.experts)
    assert not any(name.startswith("stem") for name in vectors.names)


@pytest.mark.parametrize("order", [["cats", "dogs", "owls"], ["dogs", "cats", "owls"]])
def test_sharing_by_some_experts_only_is_refused_in_any_order(world, order):
    world.experts["cats"].stem = world.pretrained.stem
    with pytest.raises(ValueError, match="shares other parameter objects"):
        ft.TaskVectors.from_models(world.pretrained, {task: world.experts[task] for task in order})


class TestBadModels:
    def test_no_expert(self, world):
        with pytest.raises(ValueError, match="at least one expert"):
            ft.TaskVectors.from_models(world.pretrained, {})

    def test_missing_and_additional_tensors(self, world):
        world.experts["dogs"].stem = torch.nn.Linear(5, 6, bias=False)
        world.experts["dogs"].extra = torch.nn.Linear(1, 1)
        with pytest.raises(ValueError, match=r"`dogs`.*missing.*stem.bias.*additional.*extra.weight"):
            ft.TaskVectors.from_models(world.pretrained, world.experts)

    def test_another_shape(self, world):
        world.experts["owls"].stem = torch.nn.Linear(4, 6)
        with pytest.raises(ValueError, match=r"`stem.weight`.*`owls`.*\(6, 4\).*\(6, 5\)"):
            ft.TaskVectors.from_models(world.pretrained, world.experts)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_values_that_are_not_finite(self, world, bad):
        world.experts["cats"].norm.weight.data[2] = bad
        with pytest.raises(ValueError, match=r"`norm.weight` of the expert `cats`.*NaN or infinite"):
            ft.TaskVectors.from_models(world.pretrained, world.experts)


class TestLeanTaskVectors:
    """Half precision and memory-mapped files against float32 in memory, and against float64."""

    @pytest.fixture(params=["fp32", "fp16"])
    def dtype(self, request):
        return request.param

    @pytest.fixture(params=["memory", "mmap"])
    def storage(self, request):
        return request.param

    @staticmethod
    def shrink_pieces(monkeypatch):
        """So that these small tensors are cut as large ones are."""
        monkeypatch.setattr("fusion_tinting.method.rows.PIECE", 7)
        monkeypatch.setattr("fusion_tinting.run.storage.HELD", 10)

    @pytest.mark.parametrize("pieces", ["whole", "small"])
    @pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
    def test_merge_and_gradient_equal_the_formula_in_float64(
        self, world, dtype, storage, pieces, scale, monkeypatch
    ):
        torch.manual_seed(4)
        with torch.no_grad():  # tensors of very different sizes, and one that was not fine-tuned
            for expert in world.experts.values():
                for k, (name, p) in enumerate(expert.named_parameters()):
                    p -= world.pretrained.get_parameter(name)
                    p *= scale * 10.0**-k if k else 0.0
            for p in world.pretrained.parameters():
                p.zero_()
        exact = ft.TaskVectors.from_models(world.pretrained, world.experts)
        if pieces == "small":
            self.shrink_pieces(monkeypatch)
        lean = load_task_vectors(world.pretrained, world.experts, {"dtype": dtype, "storage": storage})
        lam, weights = torch.rand(len(lean.slots), 3), torch.randn_like(lean.base)
        merged = ft.merge(lean, lam)
        found = ft.coefficient_gradient(lean, lean.views(weights))
        error = 1e-3 if dtype == "fp16" else 1e-5
        for place, (a, b, _) in enumerate(exact.slots.values()):
            deltas = exact.deltas[:, a:b].double()
            for ours, true in (
                (merged[a:b], lam[place].double() @ deltas),
                (found[place], deltas @ weights[a:b].double()),
            ):
                bound = deltas.norm() * max(1, weights[a:b].norm())
                assert (ours.double() - true).norm() <= error * bound
        reference = torch.cat([t.flatten() for t in ft.merge_reference(lean, lam).values()])
        torch.testing.assert_close(merged, reference, rtol=1e-5, atol=1e-6 * scale)

    def test_where_they_are_kept_changes_nothing(self, world, dtype, monkeypatch):
        self.shrink_pieces(monkeypatch)
        kept = {
            storage: load_task_vectors(
                world.pretrained, world.experts, {"dtype": dtype, "storage": storage}
            )
            for storage in ("memory", "mmap")
        }
        assert torch.equal(kept["memory"].deltas, kept["mmap"].deltas)
        assert kept["memory"].hashes == kept["mmap"].hashes

    @pytest.mark.long
    def test_a_whole_adaptation_saved_and_loaded(self, world, dtype, storage, tmp_path):
        how = {"dtype": dtype, "storage": storage}
        plain = world.tint(steps=5)
        lean = world.tint(steps=5, task_vectors=how, run_dir=tmp_path)
        error = 2e-3 if dtype == "fp16" else 0
        for name, row in plain.coefficients.items():
            torch.testing.assert_close(lean.coefficients[name], row, rtol=0, atol=error)
        loaded = ft.TintedModel.load(tmp_path, **world.models())
        for name, tensor in lean.merged.named_parameters():
            assert torch.equal(loaded.merged.get_parameter(name), tensor)

    def test_the_file_has_no_name_and_a_full_disk_is_found_out_first(self, world, monkeypatch):
        folder = cache_folder()
        load_task_vectors(world.pretrained, world.experts, {"storage": "mmap"})
        before = sorted(folder.iterdir())

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.posix_fallocate", full)
        with pytest.raises(OSError, match=r"`task_vectors.storage: mmap` needs .* GB.*No space left"):
            load_task_vectors(world.pretrained, world.experts, {"storage": "mmap"})
        assert sorted(folder.iterdir()) == before

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"dtype": "int8"}, "Unknown task_vectors.dtype `int8`.*`fp32`, `fp16`"),
            (
                {"storage": "disk"},
                "Unknown task_vectors.storage `disk`.*`memory`.*`stream`, `mmap`",
            ),
            ({"stores": "disk"}, "Unknown setting of task_vectors `stores`"),
        ],
    )
    def test_unknown_values_are_refused(self, world, given, message):
        with pytest.raises(ValueError, match=message):
            world.tint(task_vectors=given)

    def test_a_map_is_for_the_cpu(self, world):
        vectors = load_task_vectors(world.pretrained, world.experts, {"storage": "mmap"})
        with pytest.raises(ValueError, match="Found device `meta`"):
            vectors.to("meta")


@pytest.mark.parametrize("merge", [ft.merge, ft.merge_reference])
def test_coefficients_of_another_shape_are_refused(vectors, merge):
    rows, tasks = len(vectors.slots), len(vectors.tasks)
    for shape in ((tasks, rows), (rows + 1, tasks), (rows, tasks + 1), (rows,)):
        with pytest.raises(ValueError, match=r"`lam` must have shape .*, one row for each merged tensor"):
            merge(vectors, torch.ones(shape))


@pytest.mark.parametrize("shape", [(3, 2), (6,), (1,)])
def test_an_experts_tensor_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="An expert's tensor has shape"):
        ft.merge_tensor(torch.ones(2, 3), [torch.ones(shape)], [0.3])
