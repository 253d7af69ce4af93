"""One of several processes under DDP: `torchrun transformers_ddp.py FOLDER` writes what each saw, as JSON."""

import json
import os
import sys
from pathlib import Path

import torch
from small_transformers import (
    RAMP,
    SCHEDULE,
    gpt2,
    scheduled,
    state_of,
    trainer_of,
)

from cyclr.torch import Snapshots
from cyclr.transformers import AtCycleEnds, RangeTest, range_test


def under_ddp(folder):
    """What this process saw of trainings with a range test before, inside or not at all, as JSON in `folder`."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    seen = {"processes": int(os.environ["WORLD_SIZE"])}
    for kind in ("plain", "before", "inside"):
        model = gpt2(seed=rank)  # DDP takes the first one's
        optimizers, rates = scheduled(model)
        trainer = trainer_of(folder, model, optimizers=optimizers, max_steps=6, gradient_accumulation_steps=2)
        if kind == "before":
            before = state_of(trainer)
            curve = range_test(trainer, ramp=RAMP)
            seen["untouched"] = state_of(trainer) == before
        test = RangeTest(trainer, ramp=RAMP)
        if kind == "inside":
            trainer.add_callback(test)
        rates.clear()
        trainer.train()
        seen[kind] = {"rates": rates[-6:], "weights": [p.tolist() for p in model.parameters()]}
    seen["curves"] = [curve.values.tolist(), test.curve.values.tolist()]
    seen["at a cycle's end"] = to_cycle_ends(folder, rank)
    (folder / f"{rank}.json").write_text(json.dumps(seen))


def to_cycle_ends(folder, rank):
    """A training with snapshots, which the second process alone wants to end: the updates, and the weights then."""
    model = gpt2(seed=rank)
    optimizers, _rates = scheduled(model)
    trainer = trainer_of(folder, model, optimizers=optimizers, max_steps=SCHEDULE.length + 3)
    stop = AtCycleEnds(Snapshots(folder / "snapshots", SCHEDULE), stop=lambda step, model: rank == 1)
    trainer.add_callback(stop)
    trainer.train()
    return [trainer.state.global_step, [p.tolist() for p in model.parameters()]]


if __name__ == "__main__":
    under_ddp(Path(sys.argv[1]))
    os._exit(0)  # gloo's threads, if they are still there at the very end, abort the process now and then
