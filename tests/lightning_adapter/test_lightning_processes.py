"""Several processes of Lightning see one curve."""

import json
import os
import subprocess
import sys

import lightning_ddp
import pytest
from small_lightning import QUIET

from cyclr.lightning import range_test
from cyclr.torch import Ensemble

pytestmark = QUIET


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each of two processes saw, and their folder."""
    folder = tmp_path_factory.mktemp("ddp")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, lightning_ddp.__file__, str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)], folder


def test_two_processes_take_one_snapshot_and_stop_together(seen):
    (one, two), folder = seen
    assert one["at the first cycle's end"] == two["at the first cycle's end"]
    updates, weights = one["at the first cycle's end"]
    assert updates == 2
    module = lightning_ddp.Module()
    ensemble = Ensemble(folder / "snapshots", module)
    assert [member.step for member in ensemble.members] == [2]
    module.load_state_dict(ensemble._tensors(ensemble.members[0]))
    assert lightning_ddp.digest(module) == weights


def test_two_processes_see_one_curve_and_keep_their_states(seen):
    one, two = seen[0]
    for each in (one, two):
        assert each["before"] == each["after"]
        assert each["fitted with a test"] == each["fitted"]
        assert each["outside"] == one["outside"]
        assert each["inside"] == one["inside"]
    assert one["before"] != two["before"]
    alone = range_test(
        lightning_ddp.trainer_of(), lightning_ddp.Module(), lightning_ddp.loader(8), ramp=lightning_ddp.RAMP
    )
    assert one["outside"] == pytest.approx(alone.values.tolist(), rel=1e-4)
