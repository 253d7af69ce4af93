"""PyTorch Lightning."""

import warnings

import numpy as np
import pytorch_lightning as pl
import torch
from contract import STEPS, batch
from on_torch import Tensors, bits, everything, network, tensors

from cyclr.lightning import range_test as run_range_test
from cyclr.torch import ScheduleLR

RATES = np.float64


class Module(pl.LightningModule):
    def __init__(self, schedule=None):
        super().__init__()
        self.net, self.schedule = network(), schedule

    def training_step(self, pair):
        x, y = pair
        return torch.nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if self.schedule is None:
            return optimizer
        return [optimizer], [{"scheduler": ScheduleLR(optimizer, self.schedule), "interval": "step"}]


class Rates(pl.Callback):
    """The rate of each update, from the optimiser."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.seen.append(optimizer.param_groups[0]["lr"])


class Calls(pl.Callback):
    """Whether anything was called."""

    def __init__(self):
        self.seen = []

    def __getattribute__(self, name):
        if name.startswith("on_"):
            self.seen.append(name)
        return super().__getattribute__(name)


class Loader:
    """The batches of a training, as a loader that knows how far it has come: a checkpoint in mid-epoch needs that."""

    def __init__(self):
        self.read = 0

    def __len__(self):
        return STEPS

    def __iter__(self):
        for step in range(self.read, STEPS):
            self.read += 1
            yield tensors(batch(step))

    def state_dict(self):
        return {"read": self.read}

    def load_state_dict(self, state):
        self.read = state["read"]


def trainer_of(*callbacks, **options):
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )


def train(schedule, start, stop, folder):
    warnings.filterwarnings("ignore")  # Lightning's advice
    folder.mkdir(exist_ok=True)
    module, rates, file = Module(schedule), Rates(), folder / "lightning.ckpt"
    trainer = trainer_of(rates, max_steps=stop)
    trainer.fit(module, Loader(), ckpt_path=file if start else None)
    trainer.save_checkpoint(file)
    return rates.seen, bits(module.net)


def range_test(batches, ramp):
    warnings.filterwarnings("ignore")
    module, calls = Module(), Calls()
    trainer = trainer_of(calls, max_steps=1)
    trainer.fit(module, torch.utils.data.DataLoader([tensors(batch(0))], batch_size=None))

    def state():
        loops = repr((trainer.fit_loop.state_dict(), trainer.state, trainer.callbacks == [calls], calls.seen))
        return everything(module.net, trainer.optimizers[0]) + loops.encode()

    before = state()
    try:
        result = run_range_test(trainer, module, Tensors(batches), ramp=ramp)
    except Exception as error:
        result = error
    return result, before, state()
