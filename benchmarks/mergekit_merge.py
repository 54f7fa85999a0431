"""What a merge by `mergekit-tint yaml` costs, beside mergekit's own `task_arithmetic`.

    python benchmarks/mergekit_merge.py
    python benchmarks/mergekit_merge.py --quick         # tiny models, less than a minute

The models are Llamas with random weights in float32, written to a temporary folder: a base, and experts
that are the base with noise. Each way merges them in a fresh process, in turns; all of the process counts,
imports too. Anonymous memory is what must be held; the pages of the models' files can be dropped at any
time. (The file is not called after mergekit, which Python would then import from here.)
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from helpers.command import RESULTS, Benchmark
from helpers.machine import watch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from fusion_tinting.reporting.tables import Table

PROGRAMS = Path(sys.executable).parent
SCALES = {
    "full": {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8},
    "quick": {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
}
COMMANDS = {"model_tinting": ("mergekit-tint", "yaml"), "task_arithmetic": ("mergekit-yaml",)}
"""Way -> the program that merges by its recipe."""


def make_models(folder: Path, scale: str, count: int) -> int:
    """Write `base`, `expert-0`, …, λ and a recipe for each way; return the number of parameters."""
    torch.manual_seed(0)
    config = LlamaConfig(**SCALES[scale], num_attention_heads=4, num_key_value_heads=4)
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    base = load_file(folder / "base" / "model.safetensors")
    names = [f"expert-{place}" for place in range(count)]
    for name in names:
        (folder / name).mkdir()
        (folder / name / "config.json").write_text((folder / "base" / "config.json").read_text())
        noisy = {key: tensor + 0.01 * torch.randn_like(tensor) for key, tensor in base.items()}
        save_file(noisy, folder / name / "model.safetensors", {"format": "pt"})
    lam = {key: torch.rand(count) for key in base}
    save_file(lam, folder / "coefficients.safetensors", {"tasks": json.dumps(names)})
    write_recipes(folder, names)
    return sum(tensor.numel() for tensor in base.values())


def write_recipes(folder: Path, names: list[str]) -> None:
    """Write the recipes of the same models, by λ from the file and by one weight each."""
    ours = {"parameters": {"coefficients": str(folder / "coefficients.safetensors")}}
    for way, shared in {"model_tinting": ours, "task_arithmetic": {"dtype": "float32"}}.items():
        own = {name: {"task": name} if way == "model_tinting" else {"weight": 0.3} for name in names}
        models = [{"model": str(folder / name), "parameters": own[name]} for name in names]
        recipe = {"merge_method": way, "base_model": str(folder / "base"), "models": models, **shared}
        (folder / f"{way}.yml").write_text(yaml.safe_dump(recipe))


def one(way: str, folder: Path) -> dict[str, float]:
    """Merge in a process of its own; return seconds by the clock and of processors, and GiB at the peak."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        program, *command = COMMANDS[way]
        arguments = [PROGRAMS / program, *command, folder / f"{way}.yml", Path(out) / "merged"]
        with open(folder / "log.txt", "w") as log:
            begin = time.perf_counter()
            process = subprocess.Popen(
                [*map(str, arguments), "--no-copy-tokenizer", "--quiet"], stdout=log, stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
            largest, status, usage = watch(process.pid)
            wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{way} failed:\n{(folder / 'log.txt').read_text()[-2000:]}")
    return {
        "wall_s": wall,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "anonymous_gib": max(largest.values()) / 2**30,
    }


def measure(options: argparse.Namespace) -> dict:
    """Merge every way in turns; the first turn of large models fills the page cache and is not counted."""
    with tempfile.TemporaryDirectory() as name:
        parameters = make_models(Path(name), "quick" if options.quick else "full", options.experts)
        first = 0 if options.quick else 1
        count = first + options.rounds
        turns = [{way: one(way, Path(name)) for way in COMMANDS} for _ in range(count)][first:]
    ways = {
        way: {key: statistics.median(turn[way][key] for turn in turns) for key in turns[0][way]}
        for way in COMMANDS
    }
    ours, theirs = ways["model_tinting"], ways["task_arithmetic"]
    return {
        "mergekit": version("mergekit"), "parameters": parameters, "experts": options.experts,
        "rounds": options.rounds, "ways": ways, "turns": turns,
        "ratios": {key: theirs[key] / ours[key] for key in ours},
    }  # fmt: skip


def table(outcome: dict) -> Table:
    """Return the table of the medians, and of mergekit's over ours."""
    ways = {f"`{' '.join(COMMANDS[way])}`, `{way}`": each for way, each in outcome["ways"].items()}
    rows = [
        [name, *(each[key] for key in ("wall_s", "cpu_s", "anonymous_gib"))]
        for name, each in {**ways, "theirs / ours": outcome["ratios"]}.items()
    ]
    title = f"1 + {outcome['experts']} models of {outcome['parameters'] / 1e6:.1f} M"
    return Table([title, "wall s", "CPU s", "anonymous GiB"], rows, digits=".2f", numeric=False)


BENCHMARK = Benchmark(
    __doc__,
    measure,
    table,
    options={
        "--experts": {"type": int, "default": 8, "help": "number of experts K"},
        "--rounds": {"type": int, "default": 3, "help": "turns of each way, of which the median counts"},
        "--quick": {"help": "tiny models"},
        "--json": {"default": RESULTS / "mergekit.json"},
    },
)

if __name__ == "__main__":
    BENCHMARK.main()
