"""Recipes to merge, on checkpoints made on the spot; `mergekit-tint` runs in this process."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from checkpoints import expert, llama, tensors
from click.testing import CliRunner, Result
from torch import Tensor

from fusion_tinting.mergekit.cli import main
from fusion_tinting.run.files import write_tensors

TASKS = ("cats", "dogs", "owls")


@dataclass
class RecipeWorld:
    """A base, an expert for each task, λ in a file."""

    folder: Path
    base: Path
    experts: dict[str, Path]
    lam: dict[str, Tensor]
    count: int = field(default=0)

    @property
    def coefficients(self) -> Path:
        return self.folder / "coefficients.safetensors"

    @property
    def models(self) -> list[dict]:
        return [{"model": str(path), "parameters": {"task": t}} for t, path in self.experts.items()]

    def recipe(self, **changes) -> dict:
        """A recipe with coefficients from the file; `changes` replace its keys, None removes one."""
        found = {
            "merge_method": "model_tinting",
            "base_model": str(self.base),
            "models": self.models,
            "parameters": {"coefficients": str(self.coefficients)},
        }
        return {key: value for key, value in {**found, **changes}.items() if value is not None}

    def weighted(self, weights: Iterable, **changes) -> dict:
        """A recipe with a `weight` per model in place of the file."""
        pairs = zip(self.experts.values(), weights, strict=True)
        models = [{"model": str(path), "parameters": {"weight": weight}} for path, weight in pairs]
        return self.recipe(**{"models": models, "parameters": None, **changes})

    def of_files(self, **changes) -> dict:
        """A recipe of files for `mergekit-tint pytorch`."""
        recipe = self.recipe(base_model=str(self.base / "model.safetensors"), **changes)
        recipe["models"] = [{**m, "model": f"{m['model']}/model.safetensors"} for m in recipe["models"]]
        return recipe

    def merge(self, recipe: Mapping | list, *options: str, command: str = "yaml") -> Path:
        """Run the command to its end; the folder it wrote."""
        out = self.folder / f"out{self.count}"
        result = self.run(recipe, *options, out=out, command=command)
        assert result.exit_code == 0, result.output
        return out

    def run(self, recipe: Mapping | str, *options: str, out: Path, command: str = "yaml") -> Result:
        """Run the command on a recipe."""
        self.count += 1
        path = self.folder / f"recipe{self.count}.yml"
        path.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe), encoding="utf-8")
        arguments = [command, str(path), str(out), "--quiet", *options]
        result = CliRunner().invoke(main, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception  # a defect: errors of users are messages
        return result

    def by_hand(self) -> dict[str, Tensor]:
        """θ₀ + Σ_k λ_k (θ_k − θ₀), in float64."""
        experts = [tensors(path) for path in self.experts.values()]
        return {
            name: merged(start, [e[name] for e in experts], self.lam[name].tolist())
            for name, start in tensors(self.base).items()
        }


def merged(start: Tensor, experts: list[Tensor], lams: Iterable[float]) -> Tensor:
    """One tensor by hand, in float64."""
    total = start.double()
    for tensor, lam in zip(experts, lams, strict=True):
        total = total + lam * (tensor.double() - start.double())
    return total


def weights_by_hand(world: RecipeWorld, weights) -> dict[str, Tensor]:
    """θ₀ + Σ_k w_k (θ_k − θ₀) with the same weights for every tensor, or `weights(name)`; in float64."""
    experts = [tensors(path) for path in world.experts.values()]
    of = weights if callable(weights) else lambda name: weights
    start = tensors(world.base)
    return {name: merged(start[name], [e[name] for e in experts], of(name)) for name in start}


def assert_equal(found: Mapping, wanted: Mapping, relative: float = 1e-6) -> None:
    """Every tensor, by the norm of the difference."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        apart = (found[name].double() - tensor.double()).norm() / tensor.double().norm()
        assert apart <= relative, f"{name}: {apart}"


def write_coefficients(path: Path, lam: Mapping[str, Tensor], tasks: Iterable[str] = TASKS) -> None:
    """`coefficients.safetensors` as a run writes it."""
    write_tensors(path, lam, {"format": "pt", "tasks": json.dumps(list(tasks))})


def make(folder: Path, base: Path | None = None) -> RecipeWorld:
    """A world around a base, by default a Llama of twelve layers."""
    base = base or llama(folder / "base", layers=12)
    experts = {task: expert(folder / task, base, seed) for seed, task in enumerate(TASKS, start=1)}
    generator = torch.Generator().manual_seed(9)
    names = [name for name, tensor in tensors(base).items() if tensor.is_floating_point()]
    lam = {name: torch.rand(len(TASKS), generator=generator) for name in names}
    world = RecipeWorld(folder, base, experts, lam)
    write_coefficients(world.coefficients, lam)
    return world
