"""One contract for all frameworks: the same task, the same rates, nothing lost, nothing left behind."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

CONTRACT = Path(__file__).parent / "frameworks" / "contract.py"
sys.path.insert(0, str(CONTRACT.parent))
from contract import FAILS_AT, NAN_AT, RAMP, SCHEDULE, STEPS, STOP  # noqa: E402

FRAMEWORKS = ["numpy", "torch", "lightning", "transformers", "accelerate", "keras-torch", "keras-jax", "jax"]
frameworks = pytest.mark.parametrize("name", FRAMEWORKS)


@pytest.fixture(scope="session")
def seen(tmp_path_factory):
    """What a framework did, from processes of its own: one that is stopped, and one that continues."""

    @cache
    def run(name):
        folder = tmp_path_factory.mktemp(name)
        module, _, backend = name.partition("-")
        environment = os.environ | {"KERAS_BACKEND": backend or "torch", "OMP_NUM_THREADS": "1"}

        def process(*options):
            command = [sys.executable, str(CONTRACT), module, str(folder), *options]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout.splitlines()[-1])

        return process() | {"continued": process("--continue")}

    return run


def as_used(rates, precision):
    return np.asarray(rates, dtype=precision)


@frameworks
def test_the_optimiser_uses_the_schedules_rate_in_every_update_of_three_cycles(seen, name):
    precision = seen(name)["precision"]
    used = as_used(seen(name)["whole"]["rates"], precision)
    np.testing.assert_array_equal(used, as_used([SCHEDULE(step) for step in range(STEPS)], precision))


@frameworks
def test_a_training_stopped_in_mid_cycle_goes_on_in_another_process_to_the_same_bits(seen, name):
    whole, stopped, continued = (seen(name)[part] for part in ("whole", "stopped", "continued"))
    assert len(stopped["rates"]) == STOP
    assert stopped["rates"] + continued["rates"] == whole["rates"]
    assert stopped["weights"] != continued["weights"] == whole["weights"]


@frameworks
def test_a_range_test_leaves_everything_as_it_was(seen, name):
    tested = seen(name)["tested"]
    assert tested["stopped"] is None
    assert tested["lrs"] == [RAMP(step) for step in range(RAMP.steps)]
    assert tested["before"] == tested["after"]


@frameworks
def test_a_range_test_that_fails_says_so_and_leaves_everything_as_it_was(seen, name):
    failed = seen(name)["failed"]
    assert "the disk with the data is gone" in failed["error"]
    assert failed["before"] == failed["after"]


@frameworks
def test_nan_ends_a_range_test_cleanly(seen, name):
    poisoned = seen(name)["poisoned"]
    assert poisoned["stopped"] == "non-finite"
    assert poisoned["lrs"] == [RAMP(step) for step in range(NAN_AT)]
    assert poisoned["before"] == poisoned["after"]


@frameworks
def test_all_frameworks_see_the_same_curve(seen, name):
    """The same net on the same batches at the same rates: what differs is the order of sums in single precision."""
    values, by_hand = seen(name)["tested"]["values"], seen("numpy")["tested"]["values"]
    np.testing.assert_allclose(values, by_hand, rtol=1e-3, atol=1e-4)
    assert seen(name)["poisoned"]["values"] == values[:NAN_AT]
    assert FAILS_AT < NAN_AT < RAMP.steps
