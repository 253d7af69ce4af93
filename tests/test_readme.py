"""README's code runs as it stands, and says what the program says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_first_lines_find_bounds_and_train_to_a_lower_loss():
    names = {}
    exec(BLOCKS[0], names)
    assert names["bounds"].status == "ok"
    model, optimizer, scheduler, plan = (names[key] for key in ("model", "optimizer", "scheduler", "plan"))

    def loss_of():
        with torch.no_grad():
            return names["loss_fn"](model(names["x"]), names["y"]).item()

    before, steps = loss_of(), 0
    while steps < plan.total_steps:
        for x, y in names["loader"]:
            optimizer.zero_grad()
            names["loss_fn"](model(x), y).backward()
            optimizer.step()
            scheduler.step()
            steps += 1
    assert steps == plan.total_steps
    assert optimizer.param_groups[0]["lr"] == pytest.approx(names["bounds"].base_lr)
    assert loss_of() < before / 5


def test_the_task_is_one(tmp_path):
    file = tmp_path / "signs.py"
    file.write_text(BLOCKS[1])
    from cyclr.lab import load_task

    task = load_task(str(file), {})
    assert task.name == "signs"
    assert isinstance(task.build(seed=0)[0], torch.nn.Module)


def test_the_commands_named_are_those_that_exist():
    help_text = subprocess.run([sys.executable, "-m", "cyclr", "--help"], capture_output=True, text=True, check=True)
    named = set(re.findall(r"^    cyclr (\w+) ", README, flags=re.MULTILINE))
    assert named == {"find", "train", "compare", "ensemble", "report", "demo"}
    assert all(command in help_text.stdout for command in named)


def test_every_file_of_the_tree_exists_and_every_module_is_in_it():
    tree = README.partition("## Where things are")[2].partition("## Words")[0]
    named = set(re.findall(r"[\w/]+\.py|torch/|lab/(?=\s)", tree))
    modules = {path.name for path in (ROOT / "src/cyclr").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert modules <= {Path(name).name for name in named}
    for folder in ("tests", "benchmarks", "experiments", "docs"):
        assert (ROOT / folder).is_dir()
