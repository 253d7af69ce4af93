"""The pages' code runs as it stands."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DOCS = Path(__file__).parent.parent / "docs"


def sections(page):
    """The code of each section that has some."""
    parts = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    found = {part.partition("\n")[0]: re.findall(r"```python\n(.*?)```", part, flags=re.DOTALL) for part in parts}
    return {title: blocks[0] for title, blocks in found.items() if blocks}


PAGE = (DOCS / "frameworks.md").read_text()
SECTIONS = sections(PAGE)
CYCLE_ENDS = sections((DOCS / "cycle-ends.md").read_text())
HOLDS = {  # what is true after a section's code
    "Snapshots in your own loop": "[each.step for each in ensemble.members] == [400, 600, 800] "
    "and ((probabilities.argmax(-1) == y).float().mean() > 0.8) and (average(x).argmax(-1) == y).float().mean() > 0.8",
    "In Lightning and Transformers": "len(ensemble.members) == 2 and probabilities.shape == (400, 2)",
    "Layer by layer": "bounds.status == 'ok' and head.status == 'ok' and len(optimizer.param_groups) == 3",
    "Your own images": "callable(task)",
}


@pytest.mark.parametrize("framework", SECTIONS)
def test_ten_lines_for_each_framework_run_and_find_bounds(framework, tmp_path):
    run(SECTIONS[framework] + "\nassert bounds.status == 'ok', bounds\n", tmp_path)


def run(code, folder):
    file = folder / "lines.py"
    file.write_text(code)
    result = subprocess.run(
        [sys.executable, str(file)], cwd=folder, capture_output=True, text=True, timeout=300,
        env=os.environ | {"KERAS_BACKEND": "torch"},
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


def test_the_page_has_every_framework():
    assert len(SECTIONS) == PAGE.count("\n## ") == PAGE.count("```python")
