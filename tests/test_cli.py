"""The command: each does what it says, in a process of its own, and --json prints one object and nothing else."""

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import cyclr
from cyclr import cli, console
from cyclr.console import say_bounds
from cyclr.lab import read_records

TASK = str(Path(__file__).with_name("tiny_task.py"))
NOISY = """
import sys
sys.path.insert(0, {tests!r})
from tiny_task import make, net
print("importing")
def task():
    print("building")
    return make(model=loud)
def loud():
    print("a net")
    return net()
"""


def command(*arguments, check=True, **settings):
    """The command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings}
    line = [sys.executable, "-m", "cyclr", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=check, env=environment)


@pytest.fixture
def run(monkeypatch, capfd):
    """The command in this process: exit code, stdout and stderr."""

    def call(*arguments):
        torch.set_num_threads(1)
        monkeypatch.setattr(sys, "argv", ["cyclr", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        return (code, *capfd.readouterr())

    return call


def refuse(word):
    raise AssertionError(f"{word} is no JSON")


def one_object(text):
    assert text.count("\n") == 1
    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A range test of a task that prints things by itself."""
    folder = tmp_path_factory.mktemp("found")
    task = folder / "noisy.py"
    task.write_text(NOISY.format(tests=str(Path(__file__).parent)))
    done = command("find", task, "--out", folder / "out", "--seeds", 2, "--json")
    return task, folder / "out", done


def test_find_prints_one_object_whatever_the_task_prints(found):
    _, folder, done = found
    result = one_object(done.stdout)
    assert (result["status"], result["task"], result["out"]) == ("ok", "tiny", str(folder))
    assert 0.0 < result["base_lr"] < result["max_lr"] < 10.0
    assert isinstance(result["reason"], str)
    assert "building" in done.stderr


def test_find_leaves_curve_bounds_and_picture(found):
    _, folder, done = found
    names = {file.name for file in folder.iterdir()}
    assert names == {"curve.json", "curve-seed1.json", "bounds.json", "range_test.png"}
    curves = [cyclr.Curve.load(folder / name) for name in ("curve.json", "curve-seed1.json")]
    assert [curve.meta["seed"] for curve in curves] == [0, 1]
    bounds = json.loads((folder / "bounds.json").read_text())
    read = cyclr.find_bounds(curves, metric="loss")
    assert (bounds["base_lr"], bounds["max_lr"]) == (read.base_lr, read.max_lr)
    assert all(len(curve.of("loss after a short cycle")) >= 3 for curve in curves)
    assert bounds["max_lr"] == one_object(done.stdout)["max_lr"]
    assert (folder / "range_test.png").read_bytes().startswith(b"\x89PNG")


def test_train_uses_what_find_found_and_says_so_in_one_object(found, run):
    task, folder, done = found
    code, out, err = run("train", task, "--out", folder, "--steps", 48, "--json")
    assert (code, "Traceback" in err) == (0, False)
    record = one_object(out)
    bounds = one_object(done.stdout)
    assert record["config"]["schedule"]["base_lr"] == bounds["base_lr"]
    assert record["config"]["schedule"]["max_lr"] == bounds["max_lr"]
    assert record in read_records(folder)
    assert run("train", task, "--out", folder, "--steps", 48, "--json")[1] == out  # done once
    assert "bounds.json is for" not in err
    err = run("train", task, "--out", folder, "--steps", 48, "--json", "--policy", "one_cycle")[2]
    assert "bounds.json is for triangular; cyclr find --policy one_cycle says what one_cycle bears" in re.sub(
        r"\s+", " ", err
    )


def test_epochs_are_counted_in_examples_however_many_batches_make_an_update(found, run, tmp_path):
    task, folder, _ = found
    bounds = ("--base-lr", 0.01, "--max-lr", 0.1, "--json")
    settings = [
        one_object(run("train", task, "--out", tmp_path, "--epochs", 24, "--accumulation", count, *bounds)[1])["config"]
        for count in (1, 4)
    ]
    assert [config["total_steps"] for config in settings] == [24 * 12, 24 * 3]  # 240 examples in batches of 20
    code, _, err = run("train", task, "--out", folder, "--steps", 48, "--accumulation", 2)
    assert code == 2
    assert "was found with --accumulation 1, not 2; run cyclr find --accumulation 2 again" in re.sub(r"\s+", " ", err)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison with one seed, where a spread is no number; the bounds are found first."""
    folder = tmp_path_factory.mktemp("compared")
    return folder, command("compare", TASK, "--out", folder, "--steps", 24, "--seeds", 1, "--json")


def test_compare_finds_runs_and_reports(compared):
    folder, done = compared
    result = one_object(done.stdout)
    assert result["verdict"].startswith("cannot tell")
    assert {row["policy"]: row["sd"] for row in result["rows"]} == dict.fromkeys(["fixed", "triangular", "triangular2"])
    assert "running the LR range test first" in done.stderr
    names = {"curve.json", "bounds.json", "range_test.png", "records.jsonl", "report.html", "weights", "checkpoints"}
    assert names - {"checkpoints"} <= {file.name for file in folder.iterdir()} <= names
    assert len(read_records(folder)) == 3
    assert result["verdict"] in (folder / "report.html").read_text()


def test_report_is_made_again_from_the_folder_alone(compared, run):
    folder, done = compared
    page = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    code, out, _ = run("report", folder, "--json")
    assert (code, one_object(out)) == (0, {"report": str(folder / "report.html")})
    assert one_object(done.stdout)["verdict"] in (folder / "report.html").read_text()
    assert len(page) == pytest.approx(len((folder / "report.html").read_text()), rel=0.01)


def test_the_page_of_a_comparison_is_of_that_comparison(compared, run):
    folder, done = compared
    best = one_object(done.stdout)["rows"][0]["policy"]
    hopeless = ("--base-lr", 1e-9, "--max-lr", 1e-8, "--steps", 24)
    assert run("train", TASK, "--out", folder, "--policy", best, *hopeless)[0] == 0  # the same policy and seed
    code, out, _ = run("compare", TASK, "--out", folder, "--steps", 24, "--seeds", 1, "--json")
    assert (code, out) == (0, done.stdout)
    assert one_object(out)["verdict"] in (folder / "report.html").read_text()


def test_people_get_a_table_and_a_verdict(compared, run):
    folder, done = compared
    code, out, _ = run("compare", TASK, "--out", folder, "--steps", 24, "--seeds", 1)
    assert code == 0
    for words in ("triangular2: 24 updates", "metric at the end of training", one_object(done.stdout)["verdict"]):
        assert words in out
    code, out, _ = run("train", TASK, "--out", folder, "--steps", 24, "--policy", "fixed=0.1")
    assert (code, out.splitlines()[-1].partition(" ")[0]) == (0, "done:")


def test_people_get_bounds_with_their_interval(tmp_path, run):
    (tmp_path / "curve-seed7.json").write_text("of an earlier find with more seeds")
    code, out, _ = run("find", TASK, "--out", tmp_path, "--steps", 100, "--end-lr", 2, "--metric", "accuracy")
    assert code == 0
    assert out.startswith(("base_lr", "no bounds"))
    assert cyclr.Curve.load(tmp_path / "curve.json").ramp["end_lr"] == 2.0
    assert not (tmp_path / "curve-seed7.json").exists()


def test_bounds_are_told_with_what_their_interval_means(capsys):
    say_bounds(cyclr.Bounds(0.01, 0.04, (0.02, 0.08), None, "ok", "seen"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["base_lr  0.01", "max_lr   0.04   (90 % interval 0.02 to 0.08)", "seen"]
    assert "off on the tasks of a study" in lines[3]


def test_each_pass_of_a_range_test_has_a_bar_of_its_own(monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, width=200)
    monkeypatch.setattr(console, "notes", screen)
    with console.bar(quiet=False) as bars:
        move = bars("range test")
        for total, seen in ((96, 96), (300, 120), (128, 64)):
            for done in range(1, seen + 1):
                move(done, total, 0.1, 2.0)
    assert re.search(r"range test, pass 3 .*64/128", screen.file.getvalue())


def test_one_run_is_one_pass(monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, width=200)
    monkeypatch.setattr(console, "notes", screen)
    with console.bar(quiet=False) as bars:
        move = bars("triangular, seed 0")
        for done in (50, 50, 60):  # a run that goes on says so first
            move(done, 100, 0.1, 2.0)
    assert "60/100" in screen.file.getvalue()
    assert "pass" not in screen.file.getvalue()


def test_a_range_test_of_which_no_short_cycle_came_through_is_reported(compared, run, tmp_path):
    folder, _ = compared
    shutil.copy(folder / "bounds.json", tmp_path)
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "records.jsonl").write_text("".join(lines[:3]))  # the comparison's own
    curve = cyclr.Curve.load(folder / "curve.json")
    *others, cycles = curve.companions
    none = dataclasses.replace(cycles, steps=[], lrs=[], values=[])
    assert cycles.metric == "loss after a short cycle"
    dataclasses.replace(curve, companions=(*others, none)).save(tmp_path / "curve.json")
    assert run("report", tmp_path)[0] == 0
    assert "LR range test" in (tmp_path / "report.html").read_text()


FLAT = "def task():\n    import tiny_task\n    return tiny_task.make(loss=lambda output, y: 0.0 * output.sum() + 1.0)\n"


@pytest.mark.filterwarnings("default:Attempting to set identical low and high ylims")
def test_without_bounds_find_says_why_and_what_needs_them_fails(tmp_path, run, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    flat, folder = tmp_path / "flat.py", tmp_path / "out"
    flat.write_text(FLAT)
    code, out, _ = run("find", flat, "--out", folder, "--json", "--steps", 60)
    result = one_object(out)
    assert (code, result["status"], result["base_lr"], result["max_lr"]) == (0, "flat", None, None)
    assert "stayed near 1" in result["reason"]
    for name in ("train", "compare"):
        code, out, err = run(name, flat, "--out", folder, "--json")
        assert (code, out) == (1, "")
        assert err.startswith("cyclr: no bounds (flat): loss stayed near 1")
        assert "or give --base-lr and --max-lr" in err
    assert not (folder / "records.jsonl").exists()


BROKEN = "def task():\n    import tiny_task\n    return tiny_task.make(loss=lambda output, y: (output / 0.0).sum())\n"


def test_a_task_that_is_broken_from_the_start_is_told_so(tmp_path, run, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    (tmp_path / "broken.py").write_text(BROKEN)
    code, out, err = run("find", tmp_path / "broken.py", "--out", tmp_path / "out", "--json", "--steps", 60)
    assert (code, err) == (0, "")
    assert one_object(out)["status"] == "broken from the start"
    assert len(cyclr.Curve.load(tmp_path / "out" / "curve.json").of("loss")) == 0
    train = (
        "train",
        tmp_path / "broken.py",
        "--out",
        tmp_path / "out",
        "--base-lr",
        0.1,
        "--max-lr",
        0.2,
        "--steps",
        20,
    )
    assert run(*train)[0] == 1
    assert run("report", tmp_path / "out")[0] == 0


def test_a_diverging_run_is_a_failed_one_with_a_record(tmp_path, run):
    options = ("--base-lr", 1e30, "--max-lr", 1e36, "--steps", 60, "--out", tmp_path)
    code, out, _ = run("train", TASK, *options, "--json")
    assert (code, one_object(out)["result"]["status"]) == (1, "diverged")
    code, out, _ = run("train", TASK, *options)
    assert (code, out.splitlines()[-1].partition(":")[0]) == (1, "diverged")


@pytest.mark.parametrize("name", ["find", "train", "compare", "report", "demo"])
def test_every_command_has_help(run, name):
    code, out, err = run(name, "--help")
    assert (code, err) == (0, "")
    assert "--json" in out
    assert "Usage: cyclr " + name in " ".join(out.split())


def test_without_arguments_it_helps(run):
    code, out, _ = run()
    assert code == 0
    assert all(word in out for word in ("find", "train", "compare", "report", "demo", "digits"))


def test_debugging_shows_where_an_error_came_from(tmp_path, monkeypatch):
    done = command("report", tmp_path / "none", check=False, CYCLR_DEBUG="1")
    assert done.stderr.strip().endswith("one that cyclr compare or train has written")
    assert "Traceback" in done.stderr
