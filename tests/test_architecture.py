"""The arrows between the parts, as code: who may import whom, who may print, and what is public."""

import ast
import itertools
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cyclr

SRC = Path(cyclr.__file__).parent
ROOT = Path(__file__).parent.parent
CORE = {
    "arrays",
    "batches",
    "checks",
    "files",
    "frameworks",
    "schedules",
    "stages",
    "policies",
    "plan",
    "curve",
    "range_test",
    "bounds",
    "stopping",
}
STANDARD = set(sys.stdlib_module_names)


def part_of(path):
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports_of(path, *, lazy=True):
    """Names of the modules that a file imports; those inside functions only if `lazy`."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if lazy else tree.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found |= {f"cyclr.{alias.name}" for alias in node.names} if node.module == "cyclr" else {node.module}
    return found


def inner(modules):
    """First part below cyclr of each of our modules."""
    return {module.split(".")[1] for module in modules if module.startswith("cyclr.")}


def outer(modules):
    return {module.partition(".")[0] for module in modules} - STANDARD - {"cyclr"}


FILES = {
    part: [path for path in SRC.rglob("*.py") if part_of(path) == part]
    for part in {part_of(p) for p in SRC.rglob("*.py")}
}


ADAPTERS = {"torch", "jax", "keras", "lightning", "transformers"}
COMMAND = {"pictures", "report", "results", "ranges", "cli", "console"}


def test_every_file_belongs_to_a_part_that_has_rules():
    assert set(FILES) <= CORE | ADAPTERS | COMMAND | {"__init__", "__main__", "lab"}


@pytest.mark.parametrize("part", sorted(CORE))
def test_the_core_knows_numpy_the_standard_library_and_itself(part):
    for path in FILES[part]:
        assert outer(imports_of(path, lazy=False)) <= {"numpy"}
        assert outer(imports_of(path)) <= {"numpy", "matplotlib"}  # Curve.plot, when it is called
        assert inner(imports_of(path)) <= CORE


def test_schedules_know_no_other_part():
    assert inner(imports_of(SRC / "schedules.py")) == {"arrays", "checks"}


def test_the_torch_adapter_knows_torch_and_the_core():
    for path in FILES["torch"]:
        assert outer(imports_of(path, lazy=False)) <= {"numpy", "torch"}
        assert outer(imports_of(path)) <= {"numpy", "torch", "safetensors"}  # when a snapshot is written or read
        assert inner(imports_of(path)) <= CORE | {"torch"}


LIGHTNING = {"pytorch_lightning", "lightning_fabric", "torch"}


@pytest.mark.parametrize(
    ("part", "framework", "below"),
    [
        ("jax", {"jax", "numpy"}, CORE),
        ("keras", {"keras", "numpy"}, CORE | {"torch", "keras"}),
        ("lightning", LIGHTNING, CORE | {"torch", "lightning"}),
        ("transformers", {"accelerate", "torch", "transformers"}, CORE | {"torch"}),
    ],
)
def test_an_adapter_knows_its_framework_and_what_is_below(part, framework, below):
    for path in FILES[part]:
        assert outer(imports_of(path)) <= framework
        assert inner(imports_of(path)) <= below


def test_the_adapter_computes_no_rate():
    """It multiplies a schedule's value by a group's own factor, and has no other arithmetic on rates."""
    assert not inner(imports_of(SRC / "torch" / "scheduler.py")) & {"policies", "plan"}


def test_the_lab_knows_the_adapter_and_the_core():
    for path in FILES["lab"]:
        assert inner(imports_of(path)) <= CORE | {"torch", "lab"}


def test_report_and_pictures_do_not_know_the_command():
    for part in ("report", "pictures"):
        assert inner(imports_of(SRC / f"{part}.py")) <= CORE | {"lab", "pictures"}
    assert inner(imports_of(SRC / "results.py")) <= CORE | {"lab", "pictures", "report"}


def test_only_the_command_prints_and_exits():
    for path in SRC.rglob("*.py"):
        if path.name in ("cli.py", "console.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"print", "sys.exit", "exit", "input"}, f"{path.name}: {called}"


def test_nothing_is_pickled_or_asserted_on_input():
    for path in SRC.rglob("*.py"):
        assert not outer(imports_of(path)) & {"pickle", "dill"}
        assert "pickle" not in imports_of(path)
        assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)], path.name


def test_importing_cyclr_loads_no_framework():
    code = "import sys, cyclr; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    heavy = {
        "torch",
        "jax",
        "keras",
        "scipy",
        "matplotlib",
        "accelerate",
        "typer",
        "rich",
        "plotly",
        "sklearn",
        "datasets",
    }
    assert not loaded & heavy


def test_the_public_names_are_those_that_are_listed():
    modules = CORE | ADAPTERS | COMMAND | {"lab"}
    public = {name for name in vars(cyclr) if not name.startswith("_")} - (modules - set(cyclr.__all__))
    assert public == set(cyclr.__all__)
    assert len(cyclr.__all__) == len(set(cyclr.__all__))


def test_the_oldest_versions_that_are_tested_are_those_that_the_extras_allow():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    allowed = dict(each.split(">=") for each in itertools.chain(*lists) if ">=" in each)
    tested = dict(line.split("==") for line in (ROOT / "oldest.txt").read_text().splitlines() if "==" in line)
    assert tested.keys() >= {"pytorch-lightning", "transformers", "accelerate", "keras", "jax", "optax", "numpy"}
    for name in tested.keys() & allowed.keys():
        assert f"{tested[name]}.".startswith(f"{allowed[name]}."), name
