"""The command under torchrun and accelerate launch: real gloo groups on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_model

import tiny_task
from cyclr import cli, console
from cyclr.console import FAILED, WRONG_INPUT
from cyclr.lab import training
from cyclr.torch.processes import ProcessError

TASK = str(Path(__file__).parent / "tiny_task.py")
RUN = ["train", TASK, "--base-lr", "0.02", "--max-lr", "0.2"]
SECONDS = 600


def torchrun(processes, *arguments, cwd, **popen):
    """The command on so many processes, whatever becomes of them within a while."""
    options = [f"--nproc-per-node={processes}"] if isinstance(processes, int) else processes
    command = [sys.executable, "-m", "torch.distributed.run", *options]
    if isinstance(processes, int):
        command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "-m", "cyclr", *map(str, arguments)], cwd=cwd, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **popen,
    )  # fmt: skip


def accelerate(processes, *arguments, cwd):
    """As torchrun(), by Accelerate's launcher, which says --multi_gpu for several processes on CPUs too."""
    options = ["--multi_gpu", f"--num_processes={processes}", "--main_process_port=0"]
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "-m", "cyclr", *map(str, arguments)], cwd=cwd, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def done(process):
    output, errors = process.communicate(timeout=SECONDS)
    return process.returncode, output, errors


def alone(*arguments, cwd):
    command = [sys.executable, "-m", "cyclr", *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=SECONDS)
    assert result.returncode == 0, result.stderr
    return result.stdout


def records(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def weights(folder):
    (path,) = (folder / "weights").iterdir()
    return path.read_bytes()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run on two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    code, output, errors = done(torchrun(2, *RUN, "--steps", 3000, "--json", "--out", folder, cwd=folder))
    assert code == 0, errors
    return folder, json.loads(output)


def test_two_processes_leave_one_record_and_one_output(whole):
    folder, record = whole
    assert records(folder) == [record]
    assert record["hardware"]["processes"] == 2
    assert record["result"]["status"] == "done"


def test_accelerate_launch_is_another_torchrun(tmp_path):
    code, output, errors = done(accelerate(2, *RUN, "--steps", 60, "--json", "--out", tmp_path, cwd=tmp_path))
    assert code == 0, errors
    assert records(tmp_path) == [json.loads(output)]
    assert records(tmp_path)[0]["hardware"]["processes"] == 2


def test_two_processes_learn_what_one_learns(whole, tmp_path):
    _folder, record = whole
    one = json.loads(alone(*RUN, "--steps", 3000, "--json", "--out", tmp_path, cwd=tmp_path))
    assert one["run"] == record["run"]
    assert record["result"]["test"] == pytest.approx(one["result"]["test"], abs=0.05)
    first, other = (each["result"]["history"][0]["loss"] for each in (one, record))
    assert other == pytest.approx(first, rel=0.2)
    assert first != other  # dropout differs


def test_scores_see_the_outputs_of_all_processes(tmp_path):
    arguments = ["train", f"{TASK}:scored", *RUN[2:], "--steps", 60, "--json", "--out", tmp_path]
    code, output, errors = done(torchrun(2, *arguments, cwd=tmp_path))
    assert code == 0, errors
    scores = json.loads(output)["result"]["scores"]
    task = tiny_task.scored()
    model, _ = task.build(seed=0)
    (path,) = (tmp_path / "weights").iterdir()
    load_model(model, path)
    x, y = task.test
    with torch.no_grad():
        assert scores == {"balance": pytest.approx(tiny_task.balance(model.eval()(x), y)), "examples": len(y)}


def test_a_process_that_dies_is_started_again_with_the_others_and_they_reach_the_same_bits(whole, tmp_path):
    folder, record = whole
    arguments = [*RUN, "--steps", 3000, "--json", "--checkpoint-seconds", 0, "--out", tmp_path]
    # The agent looks every 10 seconds, so that it doesn't end the other process before that has said what it saw.
    agent = ["--nproc-per-node=2", "--max-restarts=1", "--monitor-interval=10", *rendezvous()]
    process = torchrun(agent, *arguments, cwd=tmp_path)
    checkpoint = tmp_path / "checkpoints"
    until(lambda: list(checkpoint.glob("[!.]*.safetensors")), process)
    os.kill(worker(process.pid, rank=1), signal.SIGKILL)
    code, _output, errors = done(process)
    assert code == 0, errors
    assert "another process of this run stopped answering" in errors
    assert [each["run"] for each in records(tmp_path)] == [record["run"]]
    assert records(tmp_path)[0]["result"]["history"] == record["result"]["history"]
    assert weights(tmp_path) == weights(folder)


def rendezvous():
    return ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]


def until(condition, process):
    for _ in range(20 * SECONDS):
        if condition():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise TimeoutError


def worker(agent, rank):
    """The process that torchrun started as this rank."""
    for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        if f"\0RANK={rank}\0" in "\0" + Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise ProcessLookupError


def on_two_nodes(*arguments, folders):
    """Two agents, as on two machines, each in its folder; they meet on the loopback address."""
    node = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-id=cyclr", *rendezvous()]
    agents = [torchrun(node, *arguments, cwd=folder) for folder in folders]
    return [done(agent) for agent in agents]


def test_two_nodes_are_one_job(whole, tmp_path):
    folder, _record = whole
    arguments = [*RUN, "--steps", 3000, "--json", "--out", tmp_path]
    outcomes = on_two_nodes(*arguments, folders=(tmp_path, tmp_path))
    assert [code for code, *_ in outcomes] == [0, 0], outcomes
    assert sorted(len(output) > 2 for _, output, _ in outcomes) == [False, True]
    assert len(records(tmp_path)) == 1
    assert weights(tmp_path) == weights(folder)


def test_find_and_compare_on_two_processes(tmp_path):
    arguments = [TASK, "--seeds", 2, "--out", tmp_path, "--json"]
    code, output, errors = done(torchrun(2, "find", *arguments, "--end-lr", 3, "--steps", 200, cwd=tmp_path))
    assert code == 0, errors
    found = json.loads(output)
    assert json.loads((tmp_path / "bounds.json").read_text())["max_lr"] == found["max_lr"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "bounds.json", "curve.json", "curve-seed1.json", "range_test.png",
    }  # fmt: skip

    range_ = ["--base-lr", 0.02, "--max-lr", 0.2] if found["status"] != "ok" else []
    code, output, errors = done(torchrun(2, "compare", *arguments, *range_, "--epochs", 8, cwd=tmp_path))
    assert code == 0, errors
    assert len(records(tmp_path)) == 6
    assert len(json.loads(output)["rows"]) == 3
    assert (tmp_path / "report.html").exists()


def test_wrong_input_is_told_once(tmp_path):
    code, output, errors = done(torchrun(3, *RUN, "--steps", 10, "--out", tmp_path, cwd=tmp_path))
    assert code == 1  # torchrun's
    assert output.count("triangular: 6 updates") == 1
    assert errors.count("cyclr: a batch of 20 examples cannot be shared equally by 3 processes") == 1
    assert not (tmp_path / "records.jsonl").exists()


def test_what_is_wrong_on_the_second_node_only_is_told_there(tmp_path, monkeypatch):
    """A checkpoint in a folder that isn't shared: only the processes that don't see it know of that."""
    folders = tmp_path / "first", tmp_path / "second"
    for folder in folders:
        folder.mkdir()
    monkeypatch.chdir(folders[0])
    monkeypatch.setattr(training.Run, "finish", lambda run: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["cyclr", *RUN, "--steps", "60", "--checkpoint-seconds", "0", "--out", "out"])
    with pytest.raises(SystemExit):
        cli.main()
    (checkpoint,) = Path("out/checkpoints").iterdir()

    outcomes = on_two_nodes(*RUN, "--steps", 60, "--out", "out", folders=folders)
    assert [code for code, *_ in outcomes] == [1, 1]
    told = "".join(errors for *_, errors in outcomes)
    assert f"cyclr, process 1: process 1 sees no out/checkpoints/{checkpoint.name}, which the first one wrote" in told
    assert "cyclr: another process of this run stopped answering" in told


@pytest.mark.parametrize(
    ("rank", "local", "code", "told"),
    [
        (0, 0, WRONG_INPUT, "cyclr: no\n"),
        (0, 0, FAILED, "cyclr: no\n"),
        (1, 1, WRONG_INPUT, ""),  # the first one on this node says so
        (1, 1, FAILED, "cyclr, process 1: no\n"),
        (8, 0, WRONG_INPUT, "cyclr, process 8: no\n"),
        (8, 0, FAILED, "cyclr, process 8: no\n"),
    ],
)
@pytest.mark.parametrize("way", ["raised", "stopped"])
def test_who_speaks(rank, local, code, told, way, monkeypatch, capsys):
    def command():
        if way == "stopped":
            console.stop(code, "no")
        raise ValueError("no") if code == WRONG_INPUT else ProcessError("no")

    app = typer.Typer()
    app.command()(command)
    app.command("other")(command)
    monkeypatch.setattr(console, "RANK", rank)
    monkeypatch.setattr(console, "LOCAL_RANK", local)
    monkeypatch.setattr(console.notes, "quiet", rank > 0)
    monkeypatch.setattr(sys, "argv", ["cyclr", "command"])
    with pytest.raises(SystemExit) as ended:
        console.run(app)
    assert ended.value.code == code
    assert capsys.readouterr().err == told


def test_a_process_has_left_its_group_when_python_ends(tmp_path):
    """Threads of a group that is still there abort the process now and then; DDP must not keep them."""
    script = tmp_path / "script.py"
    script.write_text(
        "import atexit, os\n"
        "from pathlib import Path\n"
        "import torch\n"
        "import torch.distributed as dist\n"
        "def threads():\n"
        "    return sum('gloo' in path.read_text() for path in Path('/proc/self/task').glob('*/comm'))\n"
        # The last to be called; in one piece, since both processes write to one pipe.
        "told = lambda: os.write(1, f'in a group: {dist.is_initialized()}, its threads: {threads()}\\n'.encode())\n"
        "atexit.register(told)\n"
        "from cyclr.lab.precision import accelerator\n"
        "net = accelerator('no').prepare(torch.nn.Linear(2, 1))\n"
        "net(torch.ones(3, 2)).sum().backward()\n"
        "assert dist.get_world_size() == 2 and threads()\n"
        "del net\n"
        "dist.barrier()  # or one could be gone before the other has found it\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    ended = subprocess.run(
        [*command, "--rdzv-endpoint=127.0.0.1:0", script], capture_output=True, text=True, timeout=SECONDS
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("in a group: False, its threads: 0") == 2
