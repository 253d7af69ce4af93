"""Training: killed at any moment it ends with the same bits; it follows its schedule and tells when it diverged."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

import cyclr
from cyclr.lab import TaskError, evaluate, read_records, train
from cyclr.lab.checkpoint import CheckpointError
from tiny_task import adamw, make, net, points, sgd, task

TASK = Path(__file__).with_name("tiny_task.py")
SCHEDULE = cyclr.triangular(0.02, 0.2, stepsize=30)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


class Crash(Exception):
    """What stops a run in the tests that need no real kill."""


def stop_at(step):
    def progress(done, total, lr, value):
        if done >= step:
            raise Crash

    return progress


def weights_of(folder):
    (file,) = (folder / "weights").iterdir()
    return file.read_bytes()


def facts(record):
    return {key: record["result"][key] for key in ("status", "steps", "test", "validation", "history")}


# Kill and resume


# The command, and a thread that sends its process a signal some seconds after the next checkpoint: from outside it may
# come late on a busy machine, when the run has ended.
KILLED = """
import os, runpy, signal, sys, threading, time
from pathlib import Path

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and what they start
number, seconds, folder = int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[-1], "checkpoints")

def stamps():
    return [path.stat().st_mtime_ns for path in folder.glob("*.safetensors")]

def kill(first=stamps()):
    while stamps() == first:
        time.sleep(0.02)
    time.sleep(seconds)
    os.kill(os.getpid(), number)

threading.Thread(target=kill, daemon=True).start()
sys.argv = ["cyclr", *sys.argv[3:]]
runpy.run_module("cyclr", run_name="__main__")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    options = ["--base-lr=0.02", "--max-lr=0.2", "--steps=2400", "--checkpoint-seconds=0", "--json"]
    words = ["train", str(TASK), *options, "--out", str(tmp_path / "killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    chance = random.Random(0)
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        command = [sys.executable, "-c", KILLED, str(int(number)), str(chance.uniform(0.0, 0.1)), *words]
        killed = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert killed.returncode == (1 if number == signal.SIGINT else -signal.SIGKILL), killed.stderr
        if number == signal.SIGINT:
            assert killed.stderr.strip() == "cyclr: stopped; the same command goes on from its last checkpoint"
        assert not (tmp_path / "killed" / "records.jsonl").exists()
    command = [sys.executable, "-m", "cyclr", *words]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    (record,) = read_records(tmp_path / "killed")
    schedule = cyclr.schedule_from_dict(record["config"]["schedule"])
    whole = train(task(), schedule, record["config"]["total_steps"], tmp_path / "whole", policy="triangular")
    assert facts(record) == facts(whole)
    assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.joinpath("killed").rglob(".*")) == []  # no half-written checkpoint


def with_dataset():
    x, y = points()
    return make(train=TensorDataset(x[:240], y[:240]), validation=None, test=TensorDataset(x[240:], y[240:]))


def normalising():
    return make(model=lambda: torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), net()[1:3],
                                                  torch.nn.Linear(8, 2)))  # fmt: skip


def tensor_rate():
    return make(optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1), momentum=0.9))


@pytest.mark.parametrize("build", [task, adamw, with_dataset, normalising, tensor_rate])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_stopped_at_any_checkpoint_ends_with_the_same_bits(tmp_path, build, accumulation):
    settings = {"accumulation": accumulation, "evaluate_at": [70, 111, 130, 190]}
    whole = train(build(), SCHEDULE, 200, tmp_path / "whole", **settings)
    for step in (50, 70, 111, 161, 200):
        torch.rand(3)  # what happened before in the process does not matter
        with pytest.raises(Crash):
            train(build(), SCHEDULE, 200, tmp_path / "cut", **settings, checkpoint_seconds=0, progress=stop_at(step))
    resumed = train(build(), SCHEDULE, 200, tmp_path / "cut", **settings)
    assert facts(resumed) == facts(whole)
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "whole")
    assert not list((tmp_path / "cut" / "checkpoints").iterdir())


def test_a_seed_determines_a_run_and_another_one_another(tmp_path):
    first, again, other = (
        train(task(), SCHEDULE, 60, tmp_path / name, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert facts(first) == facts(again)
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b") != weights_of(tmp_path / "c")
    assert first["result"]["history"] != other["result"]["history"]


def test_a_finished_run_is_not_repeated_but_a_changed_one_is(tmp_path):
    first = train(task(), SCHEDULE, 30, tmp_path)
    assert train(task(), SCHEDULE, 30, tmp_path, progress=stop_at(0)) == first
    for changed, settings in [
        (make(model=lambda: net().append(torch.nn.Dropout(0.1))), {}),
        (make(loss=torch.nn.functional.multi_margin_loss), {}),
        (make(batch_size=10), {}),
        (adamw(), {}),
        (task(), {"precision": "bf16"}),
        (task(), {"evaluate_at": [7]}),
    ]:
        train(changed, SCHEDULE, 30, tmp_path, **settings)
    assert len(read_records(tmp_path)) == 7


# What a run does


def watched(rates, **changes):
    """The tiny task with an optimiser that notes the rate of every update."""

    def optimizer(model):
        made = sgd(model)
        made.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
        return made

    return make(optimizer=optimizer, **changes)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_rates_used_are_the_schedule(tmp_path, accumulation):
    rates = []
    train(watched(rates), SCHEDULE, 70, tmp_path, accumulation=accumulation)
    assert rates == [SCHEDULE(step) for step in range(70)]


def test_an_update_that_was_skipped_does_not_count(tmp_path, monkeypatch):
    rates, asked = [], []

    def skipped(machine):
        asked.append(len(asked))
        return asked[-1] % 3 == 1

    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(skipped))
    record = train(watched(rates), SCHEDULE, 40, tmp_path)
    assert record["result"]["steps"] == 40
    assert [rate for turn, rate in enumerate(rates) if turn % 3 != 1] == [SCHEDULE(step) for step in range(40)]


def test_a_run_whose_every_update_is_skipped_ends_as_diverged(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(lambda machine: True))
    assert train(task(), SCHEDULE, 40, tmp_path)["result"]["status"] == "diverged"


def test_accumulating_two_batches_is_one_update_on_both(tmp_path):
    plain = {"model": lambda: torch.nn.Linear(6, 2), "optimizer": sgd}
    train(make(batch_size=10, **plain), SCHEDULE, 12, tmp_path / "accumulated", accumulation=2)  # half an epoch
    train(make(batch_size=20, **plain), SCHEDULE, 12, tmp_path / "large")
    one, other = (
        load_file(next((tmp_path / name / "weights").iterdir())) for name in ("accumulated", "large")
    )  # the same seed, so the same order of examples
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)


def test_it_is_evaluated_at_the_cycles_ends_and_at_the_end(tmp_path):
    history = train(task(), SCHEDULE, 140, tmp_path)["result"]["history"]
    assert [point["step"] for point in history] == [60, 120, 140]
    rises = train(task(), cyclr.fixed(0.1), 100, tmp_path)["result"]["history"]
    assert [point["step"] for point in rises] == list(range(10, 101, 10))


def test_the_record_is_what_the_weights_do_and_they_have_learnt(tmp_path):
    record = train(task(), SCHEDULE, 240, tmp_path)
    model = net()
    model.load_state_dict(load_file(next((tmp_path / "weights").iterdir())))
    model.train()
    cpu = torch.device("cpu")
    assert evaluate(task(), model, task().test, cpu) == pytest.approx(record["result"]["test"])
    assert evaluate(task(), model, task().validation, cpu) == pytest.approx(record["result"]["validation"])
    assert record["result"]["test"] > 0.9
    assert model.training  # as it was


def test_evaluation_is_the_mean_over_examples_not_batches():
    x, y = torch.zeros(1300, 1), (torch.arange(1300) < 1000).long()
    ones = torch.nn.Linear(1, 2)
    with torch.no_grad():
        ones.bias.copy_(torch.tensor([0.0, 1.0]))
        ones.weight.zero_()
    for source in ((x, y), TensorDataset(x, y)):
        assert evaluate(task(), ones, source, torch.device("cpu")) == pytest.approx(1000 / 1300)


def test_bf16_runs_the_net_in_bf16_and_keeps_weights_and_loss_in_full(tmp_path):
    inside, outside = set(), set()

    def loss(output, target):
        outside.add(output.dtype)
        return torch.nn.functional.cross_entropy(output, target)

    def model():
        made = net()
        made[0].register_forward_hook(lambda *call: inside.add(call[2].dtype))
        return made

    for precision, wanted in (("bf16", torch.bfloat16), ("no", torch.float32)):
        inside.clear()
        record = train(make(model=model, loss=loss), SCHEDULE, 120, tmp_path, precision=precision)
        assert (inside, outside) == ({wanted}, {torch.float32})
        assert record["result"]["test"] > 0.8
    for file in (tmp_path / "weights").iterdir():
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float32}


# What goes wrong


def test_a_diverging_run_ends_with_that_status_and_a_record(tmp_path):
    steep = make(loss=lambda output, target: (output**4).mean())
    record = train(steep, cyclr.fixed(1e6), 100, tmp_path)
    assert record["result"]["status"] == "diverged"
    assert record["result"]["steps"] < 100
    assert record["result"]["history"][-1]["loss"] is None
    assert read_records(tmp_path) == [record]


def test_a_run_that_was_killed_after_it_diverged_has_diverged(tmp_path):
    steep = make(loss=lambda output, target: (output**4).mean())
    whole = train(steep, cyclr.fixed(1e6), 200, tmp_path / "whole")

    def killed(run):  # between the last checkpoint and the record
        raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cyclr.lab.run.Run.finish", killed)
        with pytest.raises(Crash):
            train(steep, cyclr.fixed(1e6), 200, tmp_path / "cut", checkpoint_seconds=0)
    resumed = train(steep, cyclr.fixed(1e6), 200, tmp_path / "cut")
    assert facts(resumed) == facts(whole)


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of the tiny task at step 50 of 100."""
    with pytest.raises(Crash):
        train(task(), SCHEDULE, 100, tmp_path, checkpoint_seconds=0, progress=stop_at(100))
    (file,) = (tmp_path / "checkpoints").iterdir()
    return file


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_checkpoint_cut_short_is_one_sentence_and_stays(tmp_path, checkpoint, share):
    content = checkpoint.read_bytes()[: int(share * checkpoint.stat().st_size)]
    checkpoint.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is damaged .* remove it to start this run again") as caught:
        train(task(), SCHEDULE, 100, tmp_path)
    assert "\n" not in str(caught.value)
    assert checkpoint.read_bytes() == content


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda out: train(task(), SCHEDULE, 100, out, seed=1), "belongs to another run, it differs in seed;"),
        (lambda out: train(task(), SCHEDULE, 99, out), "it differs in total_steps, evaluate_at;"),
        (lambda out: train(adamw(), SCHEDULE, 100, out), "it differs in fingerprint;"),
    ],
)
def test_a_checkpoint_of_something_else_is_one_sentence_and_stays(tmp_path, checkpoint, run, words):
    """A run's name tells them apart by itself; here the checkpoint was moved by hand to where the other is sought."""
    content = checkpoint.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cyclr.lab.run.run_name", lambda config: checkpoint.stem)
        with pytest.raises(CheckpointError, match=words):
            run(tmp_path)
    assert checkpoint.read_bytes() == content


def test_a_checkpoint_of_another_net_is_one_sentence(tmp_path, checkpoint, monkeypatch):
    wide = make(model=lambda: torch.nn.Sequential(torch.nn.Linear(6, 17), *net()[1:3], torch.nn.Linear(17, 2)))
    with safe_open(checkpoint, "pt") as file:
        config = json.loads(file.metadata()["header"])["config"]
    monkeypatch.setattr(type(wide), "fingerprint", lambda self: config["fingerprint"])
    with pytest.raises(CheckpointError, match=r"has shape \(16, 6\) for 0.weight of shape \(17, 6\)"):
        train(wide, SCHEDULE, 100, tmp_path)


shared = net()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"loss": torch.nn.CrossEntropyLoss(reduction="none")},
            r"must return one number, got a tensor of shape \(20,\)",
        ),
        ({"loss": lambda output, target: 0.5}, "must return one number, got float"),
        ({"metric": lambda output, target: output}, "failed on its first batch"),
        ({"model": lambda: torch.nn.Linear(7, 2)}, r"failed on its first batch: RuntimeError: .*mat1 and mat2"),
        ({"model": lambda: net().requires_grad_(False)}, "nothing to train"),
        ({"model": lambda: shared}, "must build a new net each time"),
        ({"model": lambda: 1 / 0}, r"model\(\) of task tiny failed: ZeroDivisionError"),
        ({"model": lambda: "net"}, r"model\(\) of task tiny must return a torch module, got str"),
        ({"optimizer": lambda model: torch.optim.SGD([], lr=0.1)}, "failed: ValueError: optimizer got an empty"),
        ({"optimizer": lambda model: None}, "must return a torch optimiser, got NoneType"),
        ({"train": TensorDataset(torch.zeros(30, 6))}, "failed on its first batch: ValueError"),
    ],
)
def test_a_task_that_does_not_fit_together_is_told_before_anything_is_written(tmp_path, changes, words):
    with pytest.raises(TaskError, match=words):
        train(make(**changes), SCHEDULE, 30, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": -1}, "seed must be at least 0"),
        ({"accumulation": 0}, "accumulation must be at least 1"),
        ({"precision": "bf61"}, "did you mean bf16"),
        ({"checkpoint_seconds": -1.0}, "checkpoint_seconds must be"),
        ({"total_steps": 0}, "total_steps must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        train(task(), SCHEDULE, **{"total_steps": 30, "out": tmp_path, **settings})
    assert not list(tmp_path.iterdir())


def test_a_fingerprint_knows_betas_that_are_not_the_usual_ones():
    def with_betas(*betas):
        return make(optimizer=lambda model: torch.optim.Adam(model.parameters(), betas=betas)).fingerprint()

    usual = make(optimizer=lambda model: torch.optim.Adam(model.parameters())).fingerprint()
    assert with_betas(0.9, 0.999) == usual
    assert len({usual, with_betas(0.1, 0.5), with_betas(0.1, 0.6)}) == 3
