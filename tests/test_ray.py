"""Sweeps on Ray: a real cluster of two worker nodes, one of which is killed."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ray = pytest.importorskip("ray")

import tiny_queue  # noqa: E402
from cyclr import cli  # noqa: E402
from cyclr.lab import compare, load_task, read_records  # noqa: E402
from cyclr.lab.on_ray import _room, _trouble, address_of, spread  # noqa: E402
from run import Queue, spread_over  # noqa: E402

TASK = Path(__file__).parent / "tiny_task.py"
SETTINGS = {"policies": ["fixed", "triangular"], "seeds": (0, 1), "epochs": 16}


@pytest.fixture(scope="module")
def cluster():
    """A head that does no work itself, and two nodes with a core each."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    options = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **options})
    nodes = [cluster.add_node(num_cpus=1, **options) for _ in range(2)]
    cluster.wait_for_nodes()
    yield cluster, nodes
    cluster.shutdown()


@pytest.fixture(scope="module")
def on(cluster):
    return f"ray:{cluster[0].address}"


def square(shared, number):
    return shared["factor"] * number**2


def test_results_come_with_their_jobs_number(on):
    found = dict(spread(square, {"factor": 2}, [{"number": n} for n in (5, 3, 1)], on=on))
    assert found == {0: 50, 1: 18, 2: 2}


def killing_itself(folder, number):
    mark = folder / f"tried-{number}"
    if number == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_job_whose_worker_is_killed_is_done_again(on, tmp_path):
    found = dict(spread(killing_itself, tmp_path, [{"number": n} for n in range(3)], on=on))
    assert found == {0: 0, 1: 1, 2: 2}
    assert (tmp_path / "tried-1").exists()


def failing(folder, number):
    if number == 0:
        raise OSError("this run's own trouble")
    time.sleep(0.2)
    (folder / str(number)).touch()
    return number


def test_an_error_of_one_job_is_raised_when_the_others_have_ended(on, tmp_path):
    found = []
    with pytest.raises(OSError, match="this run's own trouble"):
        found += [number for number, _ in spread(failing, tmp_path, [{"number": n} for n in range(3)], on=on)]
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}


def test_there_are_as_many_jobs_as_the_cluster_has_room_for(on):
    assert len(list(spread(lambda shared: None, None, None, on=on, cpus=1.0))) == 2
    assert len(list(spread(lambda shared: None, None, None, on=on, cpus=0.5))) == 4


def test_room_is_that_of_single_nodes_and_what_a_job_does_not_need_limits_nothing(monkeypatch):
    nodes = [{"CPU": 3.0, "GPU": 2.0}, {"CPU": 3.0}, {"CPU": 9.0, "GPU": 9.0}]
    table = [{"Alive": number < 2, "Resources": node} for number, node in enumerate(nodes)]
    monkeypatch.setattr(ray, "nodes", lambda: table)
    assert _room(2.0, 0.0) == 2  # 6 / 2 would be 3
    assert _room(0.0, 0.5) == 4
    assert _room(1.0, 1.0) == 2
    assert _room(3 * 0.1, 0.0) == 20  # 3 / (3 * 0.1) is hardly 10
    assert _room(0.0, 0.0) == 2
    with pytest.raises(ValueError, match=r"needs 4 CPU, .*the most that one has: 3 CPU\)"):
        _room(4.0, 0.0)


@pytest.mark.parametrize("jobs", [None, [{}]])
def test_what_no_node_has_is_told_instead_of_waited_for(on, jobs):
    sentence = "a run needs 1 CPU and 1 GPU, but no node of this cluster has as many .*let a run need less, or add such"
    with pytest.raises(ValueError, match=sentence):
        list(spread(lambda shared: None, None, jobs, on=on, gpus=1.0))


def test_the_records_are_those_of_a_local_comparison_though_a_node_is_killed(cluster, on, tmp_path):
    """The task is a user's file, which no worker can import."""
    whole, nodes = cluster
    task = load_task(str(TASK), {})
    local = compare(task, 0.02, 0.2, tmp_path / "local", **SETTINGS)

    def kill():
        while not (tmp_path / "ray" / "records.jsonl").exists():
            time.sleep(0.02)
        whole.remove_node(nodes[0], allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    records = compare(task, 0.02, 0.2, tmp_path / "ray", on=on, **SETTINGS)
    killer.join(30)
    assert not killer.is_alive()
    assert [each["run"] for each in records] == [each["run"] for each in local]
    for ours, theirs in zip(records, local, strict=True):
        assert ours["result"]["history"] == theirs["result"]["history"]
        assert ours["result"]["test"] == theirs["result"]["test"]
    assert sorted(each["run"] for each in read_records(tmp_path / "ray")) == sorted(each["run"] for each in local)


def test_the_experiments_queue_is_worked_on_by_the_whole_cluster(on, tmp_path):
    queue = Queue([tiny_queue.table()], root=tmp_path)
    spread_over(on, queue, cpus=1.0, gpus=0.0)
    assert queue.failed == {}
    assert queue.left() == []
    assert len(read_records(tmp_path / "tiny")) == len(queue.order())


def test_the_command_makes_a_cluster_of_its_own_and_prints_one_object(tmp_path):
    arguments = ["compare", str(TASK), "--base-lr", "0.02", "--max-lr", "0.2", "--epochs", "8", "--seeds", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    result = subprocess.run(
        [sys.executable, "-m", "cyclr", *arguments, "--on", "ray", "--json", "--out", str(tmp_path)],
        capture_output=True, text=True, env=environment | {"OMP_NUM_THREADS": "1"}, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)["rows"]) == 3
    assert len(read_records(tmp_path)) == 3


@pytest.mark.parametrize(
    ("needs", "kind", "sentence"),
    [
        ({"cpus": math.nan}, ValueError, "cpus must be finite and at least 0, got nan"),
        ({"cpus": -1.0}, ValueError, "cpus must be finite and at least 0, got -1"),
        ({"cpus": None}, TypeError, "cpus must be a number, got None"),
        ({"gpus": math.inf}, ValueError, "gpus must be finite and at least 0, got inf"),
        ({"gpus": 1.5}, ValueError, "gpus must be a whole number or a part of 1, got 1.5; round it up"),
        ({"cpus": 1e-300}, ValueError, "precision"),  # Ray's own sentence
    ],
)
@pytest.mark.parametrize("jobs", [None, [{}]])
def test_needs_that_ray_cannot_meet_are_refused(on, needs, kind, sentence, jobs):
    with pytest.raises(kind, match=sentence):
        list(spread(lambda shared: None, None, jobs, on=on, **needs))


@pytest.mark.parametrize("needs", [("--cpus", "nan"), ("--cpus", "-1"), ("--gpus", "1.5")])
def test_the_command_refuses_them_before_it_starts_anything(needs, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cyclr", "compare", "missing.py", "--on", "ray", *needs])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert re.match(f"cyclr: {needs[0][2:]} must be .*, got {needs[1]}", capsys.readouterr().err)


@pytest.mark.parametrize("on", ["rays", "ray:", "ray:host", "ray:host:port", "ray//host:1", "ray://host", "", None])
def test_an_unknown_place_is_refused(on):
    with pytest.raises(ValueError, match=r"on must be local, ray, ray:auto, ray:HOST:PORT or ray://HOST:PORT"):
        address_of(on)


@pytest.mark.parametrize("address", ["head:abc", "head", "ray:head:1", "http://head:1", "head:6379 "])
def test_an_unknown_place_in_the_environment_is_refused(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    sentence = f"RAY_ADDRESS must be local, auto, HOST:PORT or ray://HOST:PORT, got {address!r}"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        address_of("ray")


def test_the_environment_names_the_place(monkeypatch):
    for given, address in (("", None), ("local", None), ("auto", "auto"), ("a:1", "a:1"), ("ray://a:1", "ray://a:1")):
        monkeypatch.setenv("RAY_ADDRESS", given)
        assert address_of("ray") == address
    monkeypatch.delenv("RAY_ADDRESS")
    assert address_of("ray") is None


def test_nobody_there_is_told_at_once():
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"no Ray cluster answers at 127.0.0.1:9 .*is its head node running"):
        list(spread(square, None, [], on="ray:127.0.0.1:9"))
    assert time.monotonic() - started < 10


def test_no_cluster_on_this_machine_is_wrong_input(monkeypatch):
    def init(**_options):
        raise ConnectionError("Could not find any running Ray instance. Please specify the one by `--address`.")

    monkeypatch.setattr(ray, "init", init)  # there may be one, after all
    sentence = r"a Ray cluster on this machine \(Could not find any running Ray instance\); is its head node running"
    with pytest.raises(ValueError, match=sentence):
        list(spread(square, None, [], on="ray:auto"))


def test_only_a_lost_worker_is_called_so():
    for error in (
        ray.exceptions.WorkerCrashedError(),
        ray.exceptions.OutOfMemoryError("5 GB\nof 4"),
        ray.exceptions.NodeDiedError("gone"),
    ):
        sentence = str(_trouble(error))
        assert sentence.startswith("a run's worker was lost 6 times (")
        assert sentence.endswith("); has it enough memory?")
        assert "\n" not in sentence
    other = ray.exceptions.RuntimeEnvSetupError("no such package")
    assert _trouble(other) is other
