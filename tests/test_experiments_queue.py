"""The queue of the experiments: shared, killed, committed, and never a run twice."""

import dataclasses
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import cyclr
import run
import tiny_queue
from cells import Cell, Found, claimed
from cyclr.lab import read_records
from tiny_task import make

WORKER = [sys.executable, str(Path(__file__).with_name("tiny_queue.py"))]
RUNS = 6


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(run, "PAUSE", 0.01)


def results_of(folder):
    return {record["run"]: record["result"]["history"] for record in read_records(folder / "tiny")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    torch.set_num_threads(1)
    run.Queue([tiny_queue.table()], root=folder, say=lambda text: None).work()
    return results_of(folder)


def test_two_workers_share_the_runs_and_a_killed_one_loses_nothing(tmp_path, undisturbed):
    workers = [subprocess.Popen([*WORKER, tmp_path], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    while len(list(tmp_path.glob("tiny/checkpoints/[!.]*"))) < 2:  # each is at a run of its own
        assert all(worker.poll() is None for worker in workers)
        time.sleep(0.002)
    victim, other = workers
    victim.kill()
    before = victim.communicate()[0]
    said = before + other.communicate(timeout=300)[0]
    assert other.returncode == 0
    records = read_records(tmp_path / "tiny")
    assert len(records) == len({record["run"] for record in records}) == RUNS
    assert results_of(tmp_path) == undisturbed
    told = re.findall(r"(\S+): \S+ \(\S+ updates a second\)", said)
    assert len(told) == len(set(told)) >= RUNS - 1  # the victim may have had no time to tell of its own


def steady_net():
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))


def test_threads_leave_a_task_that_may_draw_on_the_cpu_to_a_process_of_its_own(tmp_path):
    said = []
    queue = run.Queue([tiny_queue.table()], root=tmp_path, say=said.append)
    run.work_at_once(queue, 2)
    assert not read_records(tmp_path / "tiny")
    assert len(queue.failed) == RUNS
    assert all(text.endswith("train it without --at-once") for text in queue.failed.values())
    run.Queue([tiny_queue.table()], root=tmp_path, seeds=1, only="low", say=said.append).work()
    assert len(read_records(tmp_path / "tiny")) == 1


def test_what_stops_one_thread_stops_the_others_at_their_next_look(tmp_path, monkeypatch):
    begun = []

    def train(task, schedule, updates, out, *, policy, seed, progress, **how):
        begun.append(policy)
        if len(begun) == 2:
            raise KeyboardInterrupt
        while True:  # as a run does, until it is told
            progress(0, updates, 0.1, 0.5)
            time.sleep(0.001)

    table = tiny_queue.table(train=train, tasks={"tiny": lambda data_dir: make(capturable=True)})
    before = sys.getswitchinterval()
    with pytest.raises(KeyboardInterrupt):
        run.work_at_once(run.Queue([table], root=tmp_path, say=lambda text: None), 2)
    assert sys.getswitchinterval() == before


def test_runs_at_once_in_one_process_have_the_bits_of_runs_one_after_the_other(tmp_path):
    def steady(data_dir):  # draws nothing in training, so that threads don't take each other's random numbers
        return make(model=steady_net, capturable=True)

    queues = [
        run.Queue([tiny_queue.table(tasks={"tiny": steady})], root=tmp_path / name, say=lambda text: None)
        for name in ("alone", "at-once")
    ]
    queues[0].work()
    run.work_at_once(queues[1], 3)
    assert len(results_of(tmp_path / "alone")) == RUNS
    assert results_of(tmp_path / "at-once") == results_of(tmp_path / "alone")


def test_seed_0_of_everything_comes_first_and_the_cells_keep_their_order():
    names = [each.name for each in run.Queue([tiny_queue.table()]).order()]
    assert names == [f"tiny-{cell}-all-seed{seed}" for seed in (0, 1) for cell in ("low", "high", "higher")]
    some = [each.name for each in run.Queue([tiny_queue.table()], only="high-all").order()]
    assert some == ["tiny-high-all-seed0", "tiny-high-all-seed1"]


def test_a_run_that_another_process_finished_meanwhile_is_not_made_again(tmp_path):
    quiet = {"root": tmp_path, "seeds": 1, "say": lambda text: None}
    run.Queue([tiny_queue.table()], **quiet).work()
    queue = run.Queue([tiny_queue.table(train=None)], **quiet)  # it could not train
    assert all(queue._tried(each) for each in queue.order())
    assert not queue.failed


def test_a_claim_holds_until_it_is_given_back(tmp_path):
    with claimed(tmp_path, "a"), claimed(tmp_path, "b"), pytest.raises(run.Busy), claimed(tmp_path, "a"):
        pass
    with claimed(tmp_path, "a"):
        pass


def test_a_run_that_fails_leaves_the_others_alone(tmp_path):
    table = tiny_queue.table()
    broken = dataclasses.replace(table.cells[0], task="broken")
    tasks = {**table.tasks, "broken": lambda data_dir: make(name="broken", optimizer=lambda model: 0)}
    said = []
    queue = run.Queue([tiny_queue.table(cells=(broken, *table.cells[1:]), tasks=tasks)], root=tmp_path, say=said.append)
    queue.work()
    assert sorted(queue.failed) == ["tiny-low-all-seed0", "tiny-low-all-seed1"]
    assert len(read_records(tmp_path / "tiny")) == 4
    assert "must return a torch optimiser" in said[0]


def test_a_task_that_has_changed_is_not_trained_beside_its_older_records(tmp_path):
    run.Queue([tiny_queue.table()], seeds=1, root=tmp_path, say=lambda text: None).work()
    changed = tiny_queue.table(tasks={"tiny": lambda data_dir: make(name="tiny", batch_size=10)})
    queue = run.Queue([changed], root=tmp_path, say=lambda text: None)
    queue.work()
    assert len(queue.failed) == 3
    assert "no longer what the records of tiny were made with" in queue.failed["tiny-low-all-seed1"]


def test_a_slice_of_time_ends_a_worker_and_the_next_one_goes_on(tmp_path, undisturbed):
    with pytest.raises(run.TimeIsUp):
        run.Queue([tiny_queue.table()], root=tmp_path, until=time.time(), say=lambda text: None).work()
    assert not results_of(tmp_path)
    run.Queue([tiny_queue.table()], root=tmp_path, say=lambda text: None).work()
    assert results_of(tmp_path) == undisturbed


def test_a_slice_ends_at_a_time_of_day_which_all_machines_share(monkeypatch):
    sent = []
    monkeypatch.setattr(run, "spread_over", lambda on, queue, cpus, gpus: sent.append(queue))
    monkeypatch.setattr(sys, "argv", ["run.py", "--on", "ray", "--minutes", "1"])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 0
    assert sent[0].until == pytest.approx(time.time() + 60, abs=30)


def test_bounds_that_are_needed_are_read_first_and_once(tmp_path):
    made = []

    def make_schedule(base, top):
        made.append((base, top))
        return cyclr.triangular(base, top, 30)

    ramp = cyclr.ramp(1e-4, 30.0, 300, "log")
    cell = Cell("found", "all", "tiny", Found("tiny/range", make_schedule, ramp=ramp), 120, seeds=2)
    queue = run.Queue([tiny_queue.table(cells=(cell,))], root=tmp_path, say=print)
    assert cell.schedule_in(tmp_path) is None
    queue.work()
    assert not queue.failed
    assert len(set(made)) == 1
    assert all(float(f"{rate:.3g}") == rate for rate in made[0])
    assert len(read_records(tmp_path / "tiny")) == 2
    assert sorted(path.name for path in (tmp_path / "tiny/range").iterdir()) == [
        "bounds-triangular.json",
        "curve.json",
    ]
    curve = cyclr.Curve.load(tmp_path / "tiny/range/curve.json")
    bounds = json.loads((tmp_path / "tiny/range/bounds-triangular.json").read_text())
    assert bounds["max_lr"] == cyclr.find_bounds(curve, metric="loss").max_lr


def test_each_record_is_committed_and_nothing_else(tmp_path):
    def git(*words):
        done = subprocess.run(["git", "-C", str(tmp_path), *words], capture_output=True, text=True, check=True)
        return done.stdout

    git("init", "-q")
    git("config", "user.name", "test")
    git("config", "user.email", "test@localhost")
    (tmp_path / "other.txt").write_text("somebody's work")
    git("add", "other.txt")
    run.Queue([tiny_queue.table()], seeds=1, root=tmp_path, commit=True, say=lambda text: None).work()
    assert git("log", "--format=%s").splitlines()[0] == "Record: tiny, higher-all, seed 0"
    assert len(git("log", "--format=%s").splitlines()) == 3
    assert git("ls-tree", "-r", "--name-only", "HEAD").split() == ["tiny/records.jsonl"]
    assert "A  other.txt" in git("status", "--short")


def test_a_record_that_was_cut_off_does_not_stop_the_queue(tmp_path, undisturbed):
    run.Queue([tiny_queue.table()], seeds=1, root=tmp_path, say=lambda text: None).work()
    path = tmp_path / "tiny" / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-100])
    queue = run.Queue([tiny_queue.table()], root=tmp_path, say=lambda text: None)
    queue.work()
    assert not queue.failed
    assert results_of(tmp_path) == undisturbed


def test_a_task_in_another_precision_is_not_trained_beside_its_older_records(tmp_path):
    run.Queue([tiny_queue.table()], seeds=1, root=tmp_path, say=lambda text: None).work()
    changed = tiny_queue.table(tasks={"tiny": lambda data_dir: make(precision="bf16")})
    queue = run.Queue([changed], root=tmp_path, say=lambda text: None)
    queue.work()
    assert len(queue.failed) == 3
    assert all("no longer what the records of tiny were made with" in text for text in queue.failed.values())
    assert len(read_records(tmp_path / "tiny")) == 3


def test_threads_leave_a_task_of_another_precision_to_another_process(tmp_path):
    table = tiny_queue.table()
    other = dataclasses.replace(table.cells[0], task="half")
    tasks = {
        "tiny": lambda data_dir: make(model=steady_net, capturable=True),
        "half": lambda data_dir: make(name="half", model=steady_net, capturable=True, precision="bf16"),
    }
    queue = run.Queue(
        [tiny_queue.table(cells=(*table.cells[1:], other), tasks=tasks)], root=tmp_path, say=lambda text: None
    )
    run.work_at_once(queue, 1)
    assert len(read_records(tmp_path / "tiny")) == 4
    assert len(queue.failed) == 2
    assert all("half computes in bf16, other runs of this process do not" in text for text in queue.failed.values())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--seeds", "-1"], "--seeds must be at least 1, got -1"),
        (["--minutes", "nan"], "--minutes must be above 0, got nan"),
        (["--minutes", "0"], "--minutes must be above 0, got 0"),
        (["--only", "table1-fixed-70000"], "no run's name holds 'table1-fixed-70000'"),
    ],
)
def test_options_that_would_train_nothing_are_refused(options, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", "table1", *options])
    with pytest.raises(SystemExit) as stopped:
        run.main()
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err
