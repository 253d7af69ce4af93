"""Several processes of the Trainer see one curve."""

import json
import os
import subprocess
import sys

import transformers_ddp
from small_transformers import (
    SCHEDULE,
    gpt2,
)

from cyclr.torch import Ensemble


def test_under_ddp_all_processes_see_one_curve_and_the_training_is_not_touched(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=127.0.0.1:0", transformers_ddp.__file__, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["processes"] == 2
    assert first["untouched"]
    assert first["plain"] == first["before"] == first["inside"]
    assert first["plain"]["rates"] == [SCHEDULE(step) for step in range(6)]
    assert first["curves"][0] == first["curves"][1]
    assert len(first["curves"][0]) == 12
    updates, weights = first["at a cycle's end"]
    assert updates == SCHEDULE.length
    net = gpt2()
    ensemble = Ensemble(tmp_path / "snapshots", net)
    assert [member.step for member in ensemble.members] == [updates]
    net.load_state_dict(ensemble._tensors(ensemble.members[0]), strict=False)  # its head is its embedding
    assert [each.tolist() for each in net.parameters()] == weights
