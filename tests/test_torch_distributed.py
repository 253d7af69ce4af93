"""Range tests in real process groups (gloo, 2 and 4 processes): DDP, FSDP2, accumulation, lost processes.

What the processes do is in the folder distributed. One that hangs is killed, an outcome that no test accepts.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from cyclr.files import write_atomically
from cyclr.torch import RestoreError, restored

LAUNCH = Path(__file__).parent / "distributed" / "launch.py"
UPDATES, NAN_AT = 15, 9
SECONDS = 600
sizes = pytest.mark.parametrize("size", [2, 4])
kinds = pytest.mark.parametrize("kind", ["ddp", "fsdp"])


@pytest.fixture(scope="session")
def seen(tmp_path_factory):
    """What each process of each scenario saw; if pytest has several workers, one of them runs it for all."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "processes"
    result, started = folder.with_suffix(".json"), time.monotonic()
    try:
        folder.mkdir()
    except FileExistsError:
        while not result.exists():
            assert time.monotonic() < started + SECONDS
            time.sleep(0.1)
    else:
        command = [sys.executable, str(LAUNCH), str(folder)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr
        write_atomically(result, done.stdout.splitlines()[-1].encode())
    return json.loads(result.read_text())


def of_kind(processes, kind):
    assert all(isinstance(each, dict) and kind in each for each in processes), processes
    return [each[kind] for each in processes]


def all_agree_and_are_as_before(processes):
    """Every process ended its range test, with the same curve to the bit, and has its own state again."""
    assert all(isinstance(each, dict) and "curve" in each for each in processes), processes
    assert all(each["curve"] == processes[0]["curve"] for each in processes)
    assert all(each["before"] == each["after"] for each in processes)
    return processes[0]["curve"]


# A curve is the mean over the processes, and all have the same


@kinds
@sizes
def test_a_point_is_the_mean_over_the_processes(seen, kind, size):
    processes = of_kind(seen[f"given_ramp-{size}"], kind)
    curve = all_agree_and_are_as_before(processes)
    assert len(curve[0]["values"]) == UPDATES
    own = np.array([each["own"] for each in processes])
    assert np.ptp(own, axis=0).min() > 0  # the processes have data of their own
    np.testing.assert_allclose(processes[0]["values"], own.mean(axis=0), rtol=1e-12)


@kinds
def test_without_a_ramp_all_processes_decide_alike(seen, kind):
    curves = all_agree_and_are_as_before(of_kind(seen["default_ramp-2"], kind))
    names = [each["metric"] for each in curves]
    assert names == ["validation accuracy", "loss", "accuracy", "loss after a short cycle"]
    assert all(len(each["values"]) >= 3 for each in curves)


def test_a_ddp_module_with_a_group_of_its_own_is_averaged_over_that(seen):
    processes = seen["groups_of_two-4"]
    curves = [all_agree_and_are_as_before(pair) for pair in (processes[:2], processes[2:])]
    assert [len(curve[0]["values"]) for curve in curves] == [20, 21]


@pytest.mark.parametrize("how", ["ddp", "fsdp", "ddp, accumulated", "fsdp, accumulated"])
def test_two_processes_see_the_curve_that_one_sees_at_the_same_global_batch(seen, how):
    """What differs is the order of sums in single precision."""
    for each in seen["as_one_process-2"]:
        np.testing.assert_allclose(each[how], each["alone"], rtol=1e-5)


def test_a_group_of_one_process_changes_nothing(seen):
    (alone,) = seen["one_process-1"]
    assert alone["group"] == alone["none"]
    assert len(alone["none"][0]["values"]) == UPDATES


def test_ddp_reduces_gradients_once_in_an_update_of_several_batches(seen):
    processes = seen["accumulation-2"]
    all_agree_and_are_as_before(processes)
    assert [each["reduced"] for each in processes] == [UPDATES, UPDATES]


# Every decision is the same in all processes


@kinds
def test_nan_in_one_process_ends_it_in_all_at_the_same_update(seen, kind):
    processes = of_kind(seen["nan_in_one-2"], kind)
    (curve,) = all_agree_and_are_as_before(processes)
    assert curve["stopped"] == "non-finite"
    assert len(curve["values"]) == NAN_AT
    assert np.isfinite(processes[0]["own"][:NAN_AT]).all()
    assert [np.isnan(each["own"][NAN_AT]) for each in processes] == [False, True]


def test_a_validation_that_is_nan_in_one_process_ends_it_in_all(seen):
    curve, *_ = all_agree_and_are_as_before(of_kind(seen["nan_in_one-2"], "validation"))
    assert curve["stopped"] == "non-finite"
    assert [float.fromhex(each) for each in curve["values"]] == pytest.approx([0.5, 0.6])


def test_an_update_that_a_scaler_skips_in_one_process_is_made_again_in_all(seen):
    processes = seen["skip_in_one-2"]
    all_agree_and_are_as_before(processes)
    assert [each["read"] for each in processes] == [UPDATES + 1, UPDATES + 1]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("ramp", "ramp is Ramp(start_lr=0.0, end_lr=0.5, steps=20) in process 0 and Ramp(start_lr=0.0, end_lr=0.5, "),
        ("accumulation", "accumulation is 1 in process 0 and 2 in process 1"),
        ("validate", "validate is None is True in process 0 and False in process 1"),
        ("metrics", "the processes must measure the same metrics in an update, but not all have ['loss', 'metric "),
        ("too many", "several processes can share at most 15 metrics of an update, got 17"),
    ],
)
def test_processes_that_ask_for_different_things_are_told_so(seen, what, words):
    for each in of_kind(seen["different_arguments-2"], what):
        assert each["error"] == "ValueError"
        assert words in each["message"]
        assert each["before"] == each["after"]
    all_agree_and_are_as_before(of_kind(seen["different_arguments-2"], "then"))


# Afterwards everything is as it was, and training goes on as if nothing had happened


@sizes
def test_training_goes_on_to_the_bits_that_it_would_have_had(seen, size):
    """For DDP and FSDP2, before any update and after some; also when forward or backward fails half-way."""
    assert seen[f"training_afterwards-{size}"] == [[]] * size


@kinds
@sizes
def test_a_snapshot_is_the_whole_net_under_its_plain_names(seen, size, kind):
    wanted = {"taken": True, "members": 1, "names": True, "same": True, "trained": True}
    assert of_kind(seen[f"snapshots-{size}"], kind) == [wanted] * size


def test_fsdp2_still_saves_shards(seen):
    assert seen["state_dict_afterwards-2"] == [{"gathered": True, "same": True}] * 2


def test_gathered_parameters_take_no_memory_afterwards(seen):
    assert max(seen["memory_afterwards-2"]) <= 0


@pytest.mark.parametrize("kind", ["fsdp", "fsdp, mixed"])
def test_gradients_that_fsdp2_has_not_reduced_are_refused(seen, kind):
    processes = of_kind(seen["gradients_not_reduced-2"], kind)
    for each in processes:
        assert each["refused"]["error"] == "ValueError"
        assert "holds gradients of a backward without gradient sync" in each["refused"]["message"]
        assert each["refused"]["before"] == each["refused"]["after"]
    all_agree_and_are_as_before(of_kind(processes, "reduced"))


def test_the_users_own_way_of_reducing_gradients_stays(seen):
    assert seen["comm_hook_stays-2"] == [True, True]


# A process is lost


def lost_another(each, seconds):
    assert isinstance(each, dict), each
    assert each["error"] == "ProcessError", each
    assert "another process of this range test stopped answering: it raised an error, died, or did" in each["message"]
    assert each["cause"] == "RuntimeError"
    assert each["notes"] == []  # what restored would note
    assert each["before"] == each["after"]
    assert each["seconds"] < seconds


@pytest.mark.parametrize("scenario", ["error_in_one_ddp-2", "error_in_one_fsdp-4"])
def test_an_error_in_one_process_is_raised_there_and_the_others_say_that_it_is_gone(seen, scenario):
    own = seen[scenario].pop(1)
    assert (own["error"], own["message"]) == ("OSError", "the disk with the data is gone")
    assert own["before"] == own["after"]
    for each in seen[scenario]:
        lost_another(each, seconds=30)


@pytest.mark.parametrize("scenario", ["death_ddp-4", "death_fsdp-2"])
def test_when_a_process_dies_the_others_end_with_their_state_restored(seen, scenario):
    assert "died" in seen[scenario].pop(1)
    for each in seen[scenario]:
        lost_another(each, seconds=30)


@pytest.mark.parametrize("scenario", ["called_in_one-2", "silence-2"])
def test_a_process_that_does_not_answer_is_waited_for_as_long_as_the_group_does(seen, scenario):
    lost_another(seen[scenario][0], seconds=10)
    assert seen[scenario][0]["seconds"] >= 3


def test_what_a_modules_lists_and_sets_hold_is_restored():
    """FSDP2 keeps its state in such."""
    net = nn.Linear(1, 1)
    net.seen, net.names, net.full = [], {"a"}, [1, 2]
    kept = (net.seen, net.names, net.full)
    with restored(net):
        net.seen.append(1)
        net.names.add("b")
        net.full[0] = net.names
    assert (net.seen, net.names, net.full) == ([], {"a"}, [1, 2])
    assert all(now is each for now, each in zip((net.seen, net.names, net.full), kept, strict=True))


def test_an_error_is_not_hidden_by_what_could_not_be_restored():
    class Forgetful:
        n = 0

        def state_dict(self):
            return {"n": self.n}

        def load_state_dict(self, state):
            pass

    def spoil(error=None):
        forgetful = Forgetful()
        with restored(forgetful):
            forgetful.n = 1
            if error is not None:
                raise error

    with pytest.raises(OSError, match="disk") as caught:
        spoil(OSError("no disk"))
    assert "RestoreError: the state before had checksum" in caught.value.__notes__[0]
    with pytest.raises(RestoreError, match="the state before had checksum"):
        spoil()


# Many in a row


def test_range_tests_that_break_at_any_update_end_alike_in_four_processes(seen):
    ended = [all_agree_and_are_as_before(processes) for processes in zip(*seen["several-4"], strict=True)]
    assert len(ended) == 8
    assert {curve["stopped"] for (curve,) in ended} == {None, "diverged", "non-finite"}
    assert len({len(curve["values"]) for (curve,) in ended}) > 5
