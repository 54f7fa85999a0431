"""Models and data as users have them, which some detail could have refused or got wrong."""

from copy import deepcopy
from itertools import chain

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import fusion_tinting as ft


def rows(model) -> torch.Tensor:
    return torch.stack(list(model.coefficients.values()))


def test_experts_and_heads_may_be_a_module_dict(world, tmp_path):
    tinted = world.tint(run_dir=tmp_path)
    world.experts, world.heads = nn.ModuleDict(world.experts), nn.ModuleDict(world.heads)
    assert torch.equal(rows(world.tint()), rows(tinted))
    assert torch.equal(rows(ft.TintedModel.load(tmp_path, **world.models())), rows(tinted))


class OfWords(nn.Module):
    def __init__(self, sparse):
        super().__init__()
        self.words, self.mix = nn.Embedding(9, 6, sparse=sparse), nn.Linear(6, 6)

    def forward(self, words):
        return self.mix(self.words(words)).mean(1)


@pytest.mark.parametrize("layer", ["head", "words"])
@pytest.mark.parametrize("update", ["sequential", "joint"])
def test_embeddings_with_sparse_gradients_learn_what_others_do(layer, update):
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        pretrained = OfWords(sparse)
        experts = {task: deepcopy(pretrained) for task in ("cats", "dogs")}
        for parameter in chain.from_iterable(expert.parameters() for expert in experts.values()):
            parameter.data += 0.2 * torch.randn_like(parameter)
        data = {task: torch.randint(0, 9, (20, 4)) for task in experts}
        heads = {task: nn.Linear(6, 3) for task in experts}
        options = {"steps": 4, "batch_size": 8, "progress": False, "layer": layer, "update": update}
        tinted = ft.tint(pretrained, experts=experts, heads=heads, unlabeled=data, **options)
        found.append((rows(tinted), tinted(data["cats"], "cats")))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


class Biased(nn.Module):
    """A layer whose bias is computed from its weights, as LeViT's: in evaluation once, until `train`."""

    def __init__(self, keeps):
        super().__init__()
        self.linear, self.keeps, self.cache = nn.Linear(5, 6), keeps, {}

    def train(self, mode=True):
        super().train(mode)
        if mode and self.cache:
            self.cache = {}
        return self

    def forward(self, x):
        bias = self.cache.get("bias", self.linear.weight.sum(1))
        if self.keeps and not self.training:
            self.cache["bias"] = bias
        return torch.tanh(self.linear(x) + bias)


@pytest.mark.parametrize("layer", ["head", "0", "auto"])
@pytest.mark.parametrize("update", ["sequential", "joint"])
@pytest.mark.parametrize("used", [True, False])
def test_layers_that_keep_what_they_compute_from_their_weights(tmp_path, layer, update, used):
    found = []
    for keeps in (True, False):
        torch.manual_seed(0)
        pretrained = nn.Sequential(Biased(keeps), nn.Linear(6, 6)).eval()
        experts = {task: deepcopy(pretrained) for task in ("cats", "dogs")}
        for parameter in chain.from_iterable(expert.parameters() for expert in experts.values()):
            parameter.data += 0.2 * torch.randn_like(parameter)
        data, heads = {t: torch.randn(20, 5) for t in experts}, {t: nn.Linear(6, 3) for t in experts}
        if used:
            with torch.no_grad():
                [model(data["cats"]) for model in (pretrained, *experts.values())]
        models, folder = {"experts": experts, "heads": heads}, tmp_path / str(keeps)
        options = {"steps": 4, "batch_size": 8, "progress": False, "layer": layer, "update": update}
        tinted = ft.tint(pretrained, **models, unlabeled=data, run_dir=folder, **options)
        loaded = ft.TintedModel.load(folder, pretrained=pretrained, **models)
        with torch.no_grad():
            answers = [model(data["dogs"], "dogs") for model in (tinted, loaded, tinted.remerged("dogs"))]
        found.append((rows(tinted), *answers, heads["dogs"](experts["dogs"](data["dogs"]))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(found[0][1], found[0][2])
    torch.testing.assert_close(found[0][3], found[0][4])


def test_a_sampler_of_a_loader_leaves_the_callers_generator_alone(world, tmp_path):
    for task, batches in world.unlabeled.items():
        data = TensorDataset(torch.cat(batches))
        sampler = WeightedRandomSampler([1.0] * len(data), 20)
        world.unlabeled[task] = DataLoader(data, batch_size=4, sampler=sampler)
    before = torch.get_rng_state()
    first = world.tint(run_dir=tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(rows(first), rows(world.tint(run_dir=tmp_path)))
