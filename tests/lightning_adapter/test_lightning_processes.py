"""Several processes of Lightning see one curve."""

import json
import os
import subprocess
import sys

import lightning_ddp
import pytest
from small_lightning import QUIET

from cyclr.lightning import range_test

pytestmark = QUIET


def test_two_processes_see_one_curve_and_keep_their_states(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, lightning_ddp.__file__, str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
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
