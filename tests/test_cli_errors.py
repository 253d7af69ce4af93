"""Every wrong input is one sentence on stderr and exit code 2, nothing is left half written and nothing is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cyclr import cli
from cyclr.lab import read_records, training

TASK = str(Path(__file__).with_name("tiny_task.py"))
RANGE = ("--base-lr", 0.02, "--max-lr", 0.2)
SHORT = (*RANGE, "--steps", 24)


@pytest.fixture
def refused(monkeypatch, capfd, tmp_path):
    """Run the command in this process, expect its refusal, return the sentence."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.chdir(tmp_path)

    def call(*arguments, code=2):
        torch.set_num_threads(1)
        monkeypatch.setattr(sys, "argv", ["cyclr", *map(str, arguments)])
        before = contents(tmp_path)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        err = capfd.readouterr().err
        assert stop.value.code == code, err
        return one_sentence(err), before

    return call


def one_sentence(err):
    lines = [line for line in err.splitlines() if not line.startswith("no bounds yet")]
    assert len(lines) == 1, err
    assert lines[0].startswith("cyclr: ")
    assert len(lines[0]) < 500
    return lines[0]


def contents(folder):
    """What lies in a folder, but for what Python writes beside a module."""
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: content for path, content in files.items() if path.suffix != ".pyc"}


HEAD = "import torch\nfrom tiny_task import make, net\n"
TASKS = {
    "syntax": ("def task(:\n", "cannot be loaded: SyntaxError"),
    "raises": ("raise OSError('no disk')", "cannot be loaded: OSError: no disk"),
    "exits": ("import sys\nsys.exit(0)", "cannot be loaded: SystemExit"),
    "no function": ("def tusk(): pass", "has no function 'task' that returns a Task; it has tusk"),
    "inside": ("def task(): return {}['key']", "failed while it was being built: KeyError: 'key'"),
    "argument": ("def task(data): pass", "failed while it was being built: TypeError"),
    "no task": ("def task(): return 7", "must return a cyclr.lab.Task, got int"),
    "not callable": ("task = 7", "has no function 'task'"),
    "no data": (HEAD + "def task(): return make(train=(torch.zeros(0, 6), torch.zeros(0)))", "has no examples"),
    "loss": (HEAD + "def task(): return make(loss=torch.nn.CrossEntropyLoss(reduction='none'))", "one number"),
    "shape": (HEAD + "def task(): return make(model=lambda: torch.nn.Linear(5, 2))", "failed on its first batch"),
    "frozen": (HEAD + "def task(): return make(model=lambda: net().requires_grad_(False))", "nothing to train"),
    "empty": (
        HEAD + "def task(): return make(optimizer=lambda m: torch.optim.SGD([], lr=1.0))",
        "empty parameter list",
    ),
    "one net": (HEAD + "n = net()\ndef task(): return make(model=lambda: n)", "must build a new net each time"),
    "lines": ("raise ValueError('first\\nsecond')", "cannot be loaded: ValueError: first"),
}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("command", [("find",), ("train", *SHORT), ("compare", *SHORT)], ids=lambda words: words[0])
def test_a_broken_task_is_one_sentence_and_leaves_nothing(refused, tmp_path, name, command):
    text, words = TASKS[name]
    (tmp_path / "broken.py").write_text(text)
    sentence, before = refused(command[0], "broken.py", *command[1:], "--out", "out")
    assert words in sentence
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("find", "missing.py"), "there is no task file missing.py"),
        (("find", f"{TASK}:tusk"), "has no function 'tusk'"),
        (
            ("find", "digit"),
            "unknown task 'digit'; choose from digits, cifar10-caffe, googlenet-pneumonia (did you mean digits?)",
        ),
        (("find", TASK, "--policy", "triangle"), "unknown policy 'triangle'"),
        (("find", TASK, "--metric", "acuracy"), "did you mean accuracy?"),
        (("find", TASK, "--precision", "bf61"), "did you mean bf16?"),
        (("find", TASK, "--seeds", 0), "seeds must be at least 1, got 0"),
        (("find", TASK, "--seeds", "many"), "--seeds"),
        (("find", TASK, "--steps", 0), "steps must be at least 20, got 0"),
        (("find", TASK, "--steps", -5, "--end-lr", 1), "steps must be at least"),
        (("find", TASK, "--end-lr", -1), "end_lr"),
        (("find", TASK, "--end-lr", "nan"), "end_lr must be finite"),
        (("find",), "TASK"),
        (("find", TASK, "--step", 30), "--step"),
        (("fnd", TASK), "find"),
        (("train", TASK, *SHORT, "--policy", "triangluar"), "did you mean triangular?"),
        (("train", TASK, "--base-lr", 0.2, "--max-lr", 0.02), "base_lr=0.2 and max_lr=0.02 (swapped?)"),
        (("train", TASK, "--base-lr", 0.2), "give both --base-lr and --max-lr"),
        (("train", TASK, "--base-lr", -1, "--max-lr", 0.02), "base_lr must be finite and at least 0, got -1"),
        (("train", TASK, *RANGE, "--epochs", 0), "epochs must be finite and above 0, got 0"),
        (("train", TASK, *RANGE, "--epochs", "nan"), "epochs must be finite and above 0, got nan"),
        (("train", TASK, *RANGE, "--epochs", "inf"), "epochs must be finite"),
        (("train", TASK, *RANGE, "--steps", 0), "got 0"),
        (("train", TASK, *RANGE, "--stepsize", -2), "stepsize must be at least 1, got -2"),
        (("train", TASK, *SHORT, "--seed", -1), "seed must be at least 0, got -1"),
        (("train", TASK, *SHORT, "--accumulation", 0), "accumulation must be at least 1, got 0"),
        (("train", TASK, *SHORT, "--checkpoint-seconds", -1), "checkpoint_seconds must be finite and at least 0"),
        (("train", TASK, *SHORT, "--policy", "fixed=-1"), "at least 0, got -1"),
        (("compare", TASK, *SHORT, "--policies", "fixed,triangel"), "did you mean triangular?"),
        (("compare", TASK, *SHORT, "--policies", ""), "unknown policy ''"),
        (("compare", TASK, *SHORT, "--seeds", 0), "seeds must be at least 1, got 0"),
        (("compare", TASK, *RANGE, "--epochs", "nan"), "epochs must be finite"),
        (("compare", TASK, "--base-lr", 0.2, "--max-lr", 0.02), "swapped?"),
        (("report", "nowhere"), "there is no folder nowhere"),
        (("report", "."), "holds no records; run cyclr compare or cyclr train"),
    ],
    ids=lambda value: "-".join(map(str, value[:1] + value[-2:])) if isinstance(value, tuple) else "",
)
def test_a_wrong_argument_is_one_sentence_and_leaves_nothing(refused, tmp_path, arguments, words):
    sentence, before = refused(*arguments)
    assert words in sentence
    assert contents(tmp_path) == before


@pytest.mark.parametrize("prepare", ["missing", "empty", "corrupt"])
def test_a_data_folder_without_data_is_one_sentence(refused, tmp_path, monkeypatch, prepare):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    if prepare != "missing":
        (tmp_path / "data").mkdir()
    if prepare == "corrupt":
        for split in ("train", "test"):
            (tmp_path / "data" / f"{split}-0.parquet").write_bytes(b"PAR1, and then nothing")
    sentence, _ = refused("find", "cifar10-caffe", "--data-dir", "data", "--out", "out")
    assert "data" in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [("find",), ("train", *SHORT), ("compare", *SHORT)], ids=lambda words: words[0])
@pytest.mark.parametrize("out", ["a file", "a file/below", "/proc/cyclr"])
def test_a_place_that_cannot_be_written_is_told_before_anything_runs(refused, tmp_path, command, out):
    (tmp_path / "a file").write_bytes(b"content")
    sentence, before = refused(command[0], TASK, *command[1:], "--out", out)
    assert f"cannot write to {out}" in sentence
    assert "choose another --out" in sentence
    assert contents(tmp_path) == before


@pytest.fixture
def trained(refused, tmp_path):
    """A folder with bounds, a curve and a record."""
    folder = tmp_path / "out"
    for arguments in (("find", TASK, "--steps", 60), ("train", TASK, *SHORT)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["cyclr", *map(str, arguments), "--out", str(folder), "--json"])
            cli.main()
    return folder


@pytest.mark.parametrize(
    ("file", "content", "commands", "words"),
    [
        ("bounds.json", b"{half", ["report", "train", "compare"], "bounds.json is damaged; remove it"),
        ("bounds.json", b"[]", ["report", "train"], "bounds.json is damaged"),
        ("bounds.json", b'{"status": "ok", "reason": ""}', ["report"], "bounds.json is damaged"),
        ("bounds.json", b'{"status": "flat", "reason": "", "fingerprint": 1}', ["train"], "of another task or setting"),
        ("curve.json", b"{half", ["report"], "curve.json: this is no JSON, or not all of it"),
        ("records.jsonl", b"{half\n", ["report", "train", "compare"], "records.jsonl, line 1 is damaged"),
        ("records.jsonl", b'{"format": "cyclr-record", "version": 9}\n', ["report", "train"], "no record of version 1"),
    ],
)
def test_a_damaged_file_is_named_and_stays(refused, capfd, tmp_path, trained, file, content, commands, words):
    capfd.readouterr()
    (trained / file).write_bytes(content)
    for command in commands:
        rates = () if file == "bounds.json" else RANGE
        more = (trained,) if command == "report" else (TASK, *rates, "--steps", 30, "--out", trained)
        sentence, before = refused(command, *more)
        assert words in sentence
        assert contents(tmp_path) == before


def test_a_checkpoint_cut_in_half_is_named_and_stays(refused, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Run, "finish", lambda run: 1 / 0)
        sentence, _ = refused("train", TASK, *SHORT, "--checkpoint-seconds", 0, "--out", "out", code=1)
    assert "the run failed: ZeroDivisionError" in sentence
    (checkpoint,) = (tmp_path / "out" / "checkpoints").iterdir()
    checkpoint.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
    sentence, before = refused("train", TASK, *SHORT, "--out", "out")
    assert f"{checkpoint.name} is damaged" in sentence
    assert contents(tmp_path) == before


# A disk that is full, for real: no file may grow beyond `size` bytes.


FULL = """
import json, resource, signal, sys
from cyclr import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for size, arguments in json.loads(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    sys.argv = ["cyclr", *arguments]
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    print(code)
"""


def test_a_full_disk_is_one_sentence_and_leaves_no_half_of_a_file(tmp_path, trained):
    before = contents(tmp_path)
    size = (trained / "records.jsonl").stat().st_size + 300
    more = ("--out", trained, "--json")
    commands = [
        (size, ("find", TASK, "--steps", 60, *more)),  # the curve does not fit
        (size, ("train", TASK, *SHORT, "--seed", 1, *more)),  # the weights do, the record does not
        (size, ("report", trained, "--json")),
        (1000, ("train", TASK, *SHORT, "--seed", 2, "--checkpoint-seconds", 0, *more)),
    ]
    plan = json.dumps([(size, list(map(str, arguments))) for size, arguments in commands])
    line, environment = [sys.executable, "-c", FULL, plan], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines() == ["1"] * 4
    for sentence in done.stderr.splitlines():
        assert "File too large" in one_sentence(sentence)
    after = contents(tmp_path)
    assert {path: content for path, content in after.items() if path in before} == before
    assert {path.suffix for path in after.keys() - before.keys()} == {".safetensors"}  # the weights of seed 1
    assert len(read_records(trained)) == 1
    assert not list((trained / "checkpoints").iterdir())


def test_a_typing_error_is_told_before_the_range_test(refused):
    sentence, _ = refused("train", TASK, "--policy", "triangluar", "--out", "results")
    assert "did you mean triangular?" in sentence
    assert not Path("results", "bounds.json").exists()
