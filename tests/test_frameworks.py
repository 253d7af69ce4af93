"""One contract for all frameworks: the same task, the same rates, nothing lost, nothing left behind.

And one sentence where a framework is missing or too old.
"""

import json
import os
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cyclr.frameworks import NEEDS, check

ROOT = Path(__file__).parent.parent
CONTRACT = ROOT / "tests" / "frameworks" / "contract.py"
sys.path.insert(0, str(CONTRACT.parent))
from contract import FAILS_AT, NAN_AT, RAMP, SCHEDULE, STEPS, STOP  # noqa: E402

ADAPTED = ["torch", "lightning", "transformers", "accelerate", "keras-torch", "keras-jax", "jax"]
frameworks = pytest.mark.parametrize("name", ["numpy", *ADAPTED])
adapted = pytest.mark.parametrize("name", ADAPTED)  # those whose range test puts everything back


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
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
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


@adapted
def test_a_range_test_leaves_everything_as_it_was(seen, name):
    tested = seen(name)["tested"]
    assert tested["stopped"] is None
    assert tested["lrs"] == [RAMP(step) for step in range(RAMP.steps)]
    assert tested["before"] == tested["after"]


def test_what_nobody_puts_back_does_not_look_as_it_was(seen):
    """By hand, a range test is a training: what is compared before and after would show that of an adapter too."""
    for part in ("tested", "failed", "poisoned"):
        assert seen("numpy")[part]["before"] != seen("numpy")[part]["after"]


@adapted
def test_a_range_test_that_fails_says_so_and_leaves_everything_as_it_was(seen, name):
    failed = seen(name)["failed"]
    assert "the disk with the data is gone" in failed["error"]
    assert failed["before"] == failed["after"]


@adapted
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


NEEDED = [(adapter, *each) for adapter, needed in NEEDS.items() for each in needed]
needed = pytest.mark.parametrize(("adapter", "module", "name", "oldest"), NEEDED)


def refused(adapter, **versions):
    """The last line of an import of the adapter, with frameworks of these versions, or none."""
    fakes = [f"{each!r}: {version and f'Is(__version__={version!r})'}" for each, version in versions.items()]
    code = f"""
import sys
from types import SimpleNamespace as Is
sys.modules.update({{{", ".join(fakes)}}})
import cyclr.{adapter}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def new_enough(adapter):
    return {module: "99.0" for module, _, _ in NEEDS[adapter]}


@needed
def test_a_missing_framework_is_one_sentence_with_the_command(adapter, module, name, oldest):
    assert refused(adapter, **new_enough(adapter) | {module: None}) == (
        f"ImportError: cyclr.{adapter} needs {name}: pip install 'cyclr[{adapter}]'"
    )


@needed
@pytest.mark.parametrize("kind", ["{}.{}.1", "{}.{}rc1+cpu"])
def test_a_framework_that_is_too_old_is_one_sentence_with_the_command(adapter, module, name, oldest, kind):
    major, minor = oldest
    older = kind.format(*((major, minor - 1) if minor else (major - 1, 57)))
    assert refused(adapter, **new_enough(adapter) | {module: older}) == (
        f"ImportError: cyclr.{adapter} needs {name} {major}.{minor} or later, found {older}: "
        f"pip install --upgrade 'cyclr[{adapter}]'"
    )


@needed
def test_what_an_adapter_needs_is_what_its_extra_installs(adapter, module, name, oldest):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = [*extras[adapter], *(extras["torch"] if "cyclr[torch]" in extras[adapter] else [])]
    assert f"{module.replace('_', '-')}>={oldest[0]}.{oldest[1]}" in wanted


@pytest.mark.parametrize("version", ["2.9", "2.9.0", "2.10rc1", "3.0.dev2026", "10.0+cpu"])
def test_a_framework_that_is_new_enough_is_taken(monkeypatch, version):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__=version))
    check("torch")


def test_a_framework_that_lacks_something_itself_says_so(monkeypatch, tmp_path):
    (tmp_path / "optional_part.py").write_text("import a_module_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(NEEDS, "torch", [("optional_part", "PyTorch", (2, 9))])
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has"):
        check("torch")
