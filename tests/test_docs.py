"""The pages' code runs as it stands."""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def sections(page):
    """The code of each section that has some."""
    parts = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    found = {part.partition("\n")[0]: re.findall(r"```python\n(.*?)```", part, flags=re.DOTALL) for part in parts}
    return {title: blocks[0] for title, blocks in found.items() if blocks}


PAGE = (DOCS / "frameworks.md").read_text()
SECTIONS = sections(PAGE)
KERAS = "Keras 3, on JAX or torch"
CYCLE_ENDS = sections((DOCS / "cycle-ends.md").read_text())
HOLDS = {  # what is true after a section's code
    "Snapshots in your own loop": "[each.step for each in ensemble.members] == [400, 600, 800] "
    "and ((probabilities.argmax(-1) == y).float().mean() > 0.8) and (average(x).argmax(-1) == y).float().mean() > 0.8",
    "Stopping in your own loop": "reason and len(ends) > 3 and max(accuracy for _, accuracy in ends) > 0.8",
    "In Lightning": "[each.step for each in ensemble.members] == [200, 300, 400] "
    "and (probabilities.argmax(-1) == y).float().mean() > 0.9",
    "In Transformers": "len(ensemble.members) == 2 and probabilities.shape == (400, 2)",
    "Layer by layer": "bounds.status == 'ok' and head.status == 'ok' and len(optimizer.param_groups) == 3",
    "Your own images": "callable(task)",
}


@pytest.mark.parametrize("framework", [each for each in SECTIONS if each != KERAS])
def test_ten_lines_for_each_framework_run_and_find_bounds(framework, tmp_path):
    run(SECTIONS[framework] + "\nassert bounds.status == 'ok', bounds\n", tmp_path)


@pytest.mark.parametrize(("environment", "backend"), [({}, "jax"), ({"KERAS_BACKEND": "torch"}, "torch")])
def test_the_lines_for_keras_run_on_the_backend_that_the_page_names_and_on_torch(environment, backend, tmp_path):
    run(f"{SECTIONS[KERAS]}\nassert bounds.status == 'ok' and keras.backend.backend() == {backend!r}\n"
        "assert plan.schedule.cycle_ends(480)\n"
        "assert all(os.path.exists(f'{end}.weights.h5') for end in plan.schedule.cycle_ends(480))\n",
        tmp_path, **environment)  # fmt: skip


def run(code, folder, **environment):
    """In the environment that a reader has: nothing in it says which backend Keras takes."""
    file = folder / "lines.py"
    file.write_text(code)
    result = subprocess.run(
        [sys.executable, str(file)], cwd=folder, capture_output=True, text=True, timeout=600,
        env={name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"} | environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("section", CYCLE_ENDS)
def test_what_a_cycles_end_gives_runs_as_the_page_says(section, tmp_path):
    run(f"{CYCLE_ENDS[section]}\nassert {HOLDS[section]}\n", tmp_path)


def test_ones_own_images_are_found_and_trained(tmp_path):
    rng = np.random.default_rng(0)
    for part, kind in itertools.product(("train", "validation"), ("owl", "wren")):
        folder = tmp_path / "birds" / part / kind
        folder.mkdir(parents=True)
        for number in range(16):
            low, high = (0, 128) if kind == "owl" else (128, 256)
            Image.fromarray(rng.integers(low, high, (20, 30, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "birds.py").write_text(CYCLE_ENDS["Your own images"])
    command = [sys.executable, "-m", "cyclr", "train", "birds.py", "--base-lr=0.001", "--max-lr=0.05", "--epochs=20"]
    result = subprocess.run([*command, "--snapshots=2", "--json"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["result"]["validation"] == 1.0
    assert len(list(tmp_path.glob("cyclr-out/birds/snapshots/*/step-*.safetensors"))) == 2


def commands(title):
    """What the pip commands of a section name."""
    section = PAGE.partition(f"## {title}\n")[2].partition("```python")[0]
    return [shlex.split(each) for each in re.findall(r"`pip install (.*?)`", section)]


def installed(names):
    """The distributions that these names install, with what our own extras add."""
    found, extras = set(), tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in names:
        base, *asked = re.split(r"[\[\],]+", name.strip("]"))
        if base == "cyclr":
            found |= {"cyclr", "numpy"}.union(*(installed(extras[each]) for each in asked))
        else:
            found.add(re.match(r"[\w-]+", base)[0])
    return found


@pytest.mark.parametrize("title", SECTIONS)
def test_the_pip_command_of_a_section_installs_what_its_code_imports(title):
    imported = set(re.findall(r"^(?:import|from) (\w+)", SECTIONS[title], flags=re.MULTILINE)) - sys.stdlib_module_names
    wanted = {{"sklearn": "scikit-learn"}.get(each, each.replace("_", "-")) for each in imported}
    assert commands(title), "the section has no pip command"
    for names, backend in zip(commands(title), ("jax", "torch"), strict=False):
        assert wanted | ({backend} if title == KERAS else set()) <= installed(names)


def test_the_page_has_every_framework():
    assert len(SECTIONS) == PAGE.count("\n## ") == PAGE.count("```python")
