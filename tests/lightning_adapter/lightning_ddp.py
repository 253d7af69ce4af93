"""One of several processes under DDP: `torchrun lightning_ddp.py FOLDER` writes what each saw, as JSON."""

import hashlib
import json
import os
import sys
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import cyclr
from cyclr.lightning import AtCycleEnds, RangeTest, range_test
from cyclr.torch import Snapshots

RAMP = cyclr.ramp(0.0, 0.5, 30)


class Module(pl.LightningModule):
    """Without random numbers, so that two processes see what one sees with twice the batch."""

    def __init__(self, process=0):
        super().__init__()
        torch.manual_seed(process)  # DDP gives all the weights of process 0, for the test's time
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))

    def training_step(self, batch):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def loader(batch_size, process=None):
    """One process's half of the batches, or all; in order, which Lightning's own sampler would not keep."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 4, generator=rng), torch.randint(3, (64,), generator=rng)
    data = TensorDataset(x, y)
    half = None if process is None else DistributedSampler(data, num_replicas=2, rank=process, shuffle=False)
    return DataLoader(data, batch_size, sampler=half)


def trainer_of(*callbacks, **options):
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options = {"accelerator": "cpu", "max_epochs": 1} | options
    return pl.Trainer(**dict.fromkeys(quiet, False), callbacks=list(callbacks), **options)


def digest(module):
    return hashlib.sha256(repr([parameter.tolist() for parameter in module.parameters()]).encode()).hexdigest()


def fitted(*callbacks):
    module = Module()
    trainer_of(*callbacks, strategy="ddp", devices=2, accumulate_grad_batches=2).fit(module, loader(4))
    return digest(module)


def to_cycle_ends(folder, rank):
    """A fit with snapshots, which the second process alone wants to end: the updates, and the weights then."""
    schedule, module = cyclr.triangular(0.01, 0.1, stepsize=1), Module()
    ends = AtCycleEnds(Snapshots(folder, schedule), schedule=schedule, stop=lambda step, module: rank == 1)
    trainer = trainer_of(ends, strategy="ddp", devices=2)
    trainer.fit(module, loader(4))
    return [trainer.global_step, digest(module)]


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    trainer = trainer_of(strategy="ddp", devices=2)
    module = Module(trainer.global_rank)
    before = digest(module)
    outside = range_test(trainer, module, loader(4, trainer.global_rank), ramp=RAMP)
    callback = RangeTest(steps=20, at=2)
    seen = {
        "outside": outside.values.tolist(),
        "before": before,
        "after": digest(module),
        "fitted with a test": fitted(callback),
        "inside": callback.curve.values.tolist(),
        "fitted": fitted(),
        "at the first cycle's end": to_cycle_ends(Path(sys.argv[1]) / "snapshots", trainer.global_rank),
    }
    (Path(sys.argv[1]) / f"{trainer.global_rank}.json").write_text(json.dumps(seen))
    os._exit(0)  # gloo's threads, if they are still there at the very end, abort the process now and then
