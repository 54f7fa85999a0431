"""What an installation contains and does, and what it must not do to the user's other programs."""

import ast
import os
import re
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from shell import run

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = "hydra_plugins/fusion_tinting_search_path.py"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(folder))))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder that holds the wheel's files, for PYTHONPATH: it comes before this checkout."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def elsewhere(folder: Path) -> Path:
    """An unrelated folder with configurations of its own, where FusionBench looks for its own."""
    for name in ("config", "configs"):
        (folder / name).mkdir()
        (folder / name / "mine.yaml").write_text("a: 1\n")
    return folder


def test_the_wheel_holds_the_package_its_yaml_and_the_plugin_once(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"fusion_tinting", "hydra_plugins"}
    assert [name for name in names if name.endswith("search_path.py")] == [PLUGIN]
    assert "hydra_plugins/__init__.py" not in names  # shared with other distributions
    for file in (ROOT / "configs").rglob("*.yaml"):
        assert f"fusion_tinting/{file.relative_to(ROOT)}" in names
    for file in (ROOT / "fusion_tinting").rglob("*.py"):
        name = file.relative_to(ROOT).as_posix()
        assert name in names or name.endswith(PLUGIN)
    assert any(name.endswith("/licenses/LICENSE") for name in names)


PLUGIN_IN_FUSIONBENCH = """
import sys
from fusion_bench.scripts.cli import _hydra_main
before = set(sys.modules)
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra_plugins.fusion_tinting_search_path import FusionTintingSearchPath
path = ConfigSearchPathImpl()
FusionTintingSearchPath().manipulate_search_path(path)
assert len(path.get_path()) == 2
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
print("@@")
from fusion_tinting.fusionbench import compat
compat.apply(); compat.apply()
print(sum(type(finder).__name__ == "RepairOnImport" for finder in sys.meta_path))
print("transformers.models.clip.modeling_clip" in sys.modules)
from transformers import CLIPVisionModel  # through transformers' own lazy modules
from transformers.models.clip.modeling_clip import CLIPVisionTransformer
print(CLIPVisionTransformer is CLIPVisionModel)
compat.apply()
print(CLIPVisionTransformer is CLIPVisionModel)
print("@@")
sys.argv[1:] = ["modelpool=clip-vit-b32_TA8", "--info", "searchpath"]
_hydra_main()
print("@@")
sys.argv[1:] = ["--help"]
_hydra_main()
"""


@pytest.fixture(scope="module")
def shown(installed, tmp_path_factory) -> tuple[Path, list[str]]:
    """A folder with configurations of its own, and what FusionBench says there.

    These are its imports, the repair of CLIP, its search path and its help.

    All in one process, for FusionBench takes long to import.
    """
    folder = elsewhere(tmp_path_factory.mktemp("elsewhere"))
    code = (sys.executable, "-c", PLUGIN_IN_FUSIONBENCH)
    return folder, run(*code, cwd=folder, env={"PYTHONPATH": str(installed)}).stdout.split("@@\n")


def test_help_lists_our_groups_beside_a_foreign_config_folder(shown):
    for group, name in [
        ("method", "simple_average"),
        ("method", "model_tinting"),
        ("modelpool", "clip-vit-b32_TA8"),
        ("taskpool", "clip-vit-l14_TALL20"),
    ]:
        (line,) = re.findall(rf"^{group}: (.*)$", shown[1][3], re.MULTILINE)
        assert name in line.split(", ")


def test_the_installed_yaml_is_found_inside_the_package(installed, shown):
    rows = [line.split("|") for line in shown[1][2].splitlines() if "file://" in line]
    paths = [(row[1].strip(), row[2].strip()) for row in rows]
    assert paths[0] == ("main", f"file://{shown[0]}/config")  # the user's files win
    assert paths[1] == ("fusion_tinting", f"file://{installed}/fusion_tinting/configs")
    assert paths[2][0] == "fusion_bench"


def test_the_plugin_costs_fusionbench_no_further_imports(shown):
    added = shown[1][0].split()
    light = {"fusion_tinting", "hydra_plugins", "safetensors"}
    assert set(added) - set(sys.stdlib_module_names) <= light


def test_clip_is_repaired_when_it_gets_imported_however_often_we_apply(shown):
    assert shown[1][1].split() == ["1", "False", "True", "True"]  # not imported before, and repaired


APPLICATION = """
import sys
import hydra
{imports}

@hydra.main(version_base=None, config_path="conf", config_name="app")
def main(cfg):
    print("answer", cfg.answer, "fusion_tinting" in sys.modules)

main()
"""


def application(folder: Path, imports: str = "") -> Path:
    """A Hydra application of the user's own."""
    (folder / "conf").mkdir()
    (folder / "conf" / "app.yaml").write_text("answer: 42\n")
    (folder / "app.py").write_text(APPLICATION.format(imports=imports))
    return folder / "app.py"


def test_an_unrelated_hydra_application_does_not_even_import_us(installed, tmp_path):
    result = run(sys.executable, application(tmp_path), cwd=tmp_path, env={"PYTHONPATH": str(installed)})
    assert result.stdout == "answer 42 False\n"
    assert result.stderr == ""


def test_a_broken_installation_of_ours_warns_and_breaks_nothing(installed, tmp_path):
    for package in ("broken/fusion_tinting/_hydra", "broken/fusion_bench"):
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / "__init__.py").write_text("")
    broken = tmp_path / "broken"
    (broken / "fusion_tinting" / "__init__.py").write_text("raise RuntimeError('half updated')\n")

    result = run(
        *(sys.executable, application(tmp_path, imports="import fusion_bench")),
        cwd=tmp_path,
        env={"PYTHONPATH": os.pathsep.join([str(broken), str(installed)])},
    )
    assert result.stdout == "answer 42 False\n"
    assert "half updated" in result.stderr
    assert "Traceback" not in result.stderr


def imported_modules(*folders: str) -> set[str]:
    """Top-level modules that the sources import, our own and the standard library's left out."""
    modules = set()
    for folder in folders:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    modules |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    modules.add(node.module.split(".")[0])
    return modules - set(sys.stdlib_module_names) - {"fusion_tinting", "hydra_plugins"}


def names(requirements: list[str]) -> set[str]:
    """Distribution names as modules are called."""
    modules = {
        "fusion-bench": "fusion_bench",
        "hydra-core": "hydra",
        "scikit-image": "skimage",
        "scikit-learn": "sklearn",
        "pillow": "PIL",
        "pyyaml": "yaml",
        "open_clip_torch": "open_clip",
    }
    found = {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}
    return {modules.get(name, name) for name in found}


@pytest.mark.quick
def test_every_import_is_declared_and_every_dependency_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = names(extras["openclip"] + extras["mergekit"])
    assert imported_modules("fusion_tinting") - optional == names(project["dependencies"])


@pytest.mark.quick
def test_every_dependency_is_bounded_on_both_sides():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for requirement in project["dependencies"] + extras["openclip"] + extras["mergekit"]:
        assert ">=" in requirement and "<" in requirement.replace(">=", ""), requirement
