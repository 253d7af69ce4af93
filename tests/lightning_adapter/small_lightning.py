"""Small modules, their data and trainers, and everything about them that a range test must leave alone."""

import itertools
import math

import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import cyclr
from cyclr.lightning import range_test
from cyclr.torch import ScheduleLR

QUIET = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (
        ".*does not have many workers",
        ".*isinstance.treespec, LeafSpec",
        ".*litlogger",
        ".*Checkpoint directory",
        ".*tensorboardX. has been removed",
        "Total length of .* across ranks is zero",
        ".training_step. returned .None.",
        ".*returned .None., this fit will run with no optimizer",
    )
]
RAMP = cyclr.ramp(0.0, 0.1, 12)
SCHEDULE = cyclr.triangular(0.01, 0.2, stepsize=5)
torch.manual_seed(0)
X, Y = torch.randn(32, 4), torch.randint(3, (32,))


def loader_of(**options):
    options = {"batch_size": 8, "shuffle": True, "generator": torch.Generator().manual_seed(3)} | options
    return DataLoader(TensorDataset(X, Y), **options)


class Module(pl.LightningModule):
    """All that a module may keep: buffers, dropout, a metric, a list, a plain tensor; and it logs."""

    def __init__(self, schedule=None):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
        self.schedule = schedule
        self.losses, self.batches, self.trouble = [], torch.zeros(()), None

    def training_step(self, batch, batch_idx):
        output = self.net(batch[0])
        loss = cross_entropy(output, batch[1])
        if self.trouble is not None:
            loss = self.trouble(loss)
        self.losses.append(loss.detach())
        self.batches += 1
        self.accuracy(output, batch[1])
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log("loss", loss)
        return {"loss": loss, "seen": float(batch_idx)}

    def configure_optimizers(self):
        self.updates = self.trainer.estimated_stepping_batches  # Lightning reads the loader for that
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        if self.schedule is None:
            return optimizer
        return [optimizer], [{"scheduler": ScheduleLR(optimizer, self.schedule), "interval": "step"}]


class Pair(pl.LightningModule):
    """Two nets, an optimiser each, by hand; the second steps in every other batch."""

    automatic_optimization = False

    def __init__(self, schedule=SCHEDULE, answer="logged", every=1):
        super().__init__()
        self.automatic_optimization = False
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)
        self.schedule, self.answer, self.every = schedule, answer, every

    def training_step(self, batch, batch_idx):
        losses = []
        if (batch_idx + 1) % self.every == 0:
            for net, optimizer, scheduler in zip(
                (self.one, self.two), self.optimizers(), self.lr_schedulers(), strict=True
            ):
                losses.append(cross_entropy(net(batch[0]), batch[1]))
                optimizer.zero_grad()
                self.manual_backward(losses[-1])
                optimizer.step()
                scheduler.step()
        else:
            losses.append(cross_entropy(self.one(batch[0]), batch[1]))
        if self.answer == "logged":
            self.log_dict({"loss": losses[0], "second": losses[-1]})
            return None
        return {"returned": losses[0], "nothing": None}[self.answer]

    def configure_optimizers(self):
        optimizers = [torch.optim.SGD(self.one.parameters(), 0.1), torch.optim.Adam(self.two.parameters(), 0.1)]
        return optimizers, [ScheduleLR(each, self.schedule) for each in optimizers]


class Silent(CSVLogger):
    """A logger that keeps what it is told."""

    told = ()

    def log_metrics(self, metrics, step=None):
        self.told = (*self.told, metrics)


class Watching(pl.Callback):
    """Keeps the names of its hooks that were called."""

    def __init__(self):
        self.seen = []

    def __getattribute__(self, name):
        if name.startswith(("on_", "setup", "teardown")):
            self.seen.append(name)
        return super().__getattribute__(name)


def trainer_of(*callbacks, **options):
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options = {"accelerator": "cpu", "max_epochs": -1 if "max_steps" in options else 1} | options
    return pl.Trainer(**dict.fromkeys(quiet, False), callbacks=list(callbacks), **options)


def rates_of(optimizer):
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append([float(group["lr"]) for group in optimizer.param_groups]))
    return seen


class Rates(pl.Callback):
    """The rates of each step of each optimiser, read from the optimisers."""

    def on_fit_start(self, trainer, pl_module):
        self.seen = [rates_of(optimizer) for optimizer in trainer.optimizers]


def text(thing):
    torch.set_printoptions(profile="full", precision=20)
    as_text = repr(thing)
    torch.set_printoptions(profile="default")
    return as_text


def everything(trainer, module, loader):
    """What a range test could have changed, as text."""
    parts = [
        module.state_dict(),
        {name: value for name, value in vars(module).items() if not name.startswith("_")},
        [(name, vars(each).get("_state", None), each.metric_state) for name, each in [("accuracy", module.accuracy)]],
        [parameter.grad for parameter in module.parameters()],
        [optimizer.state_dict() for optimizer in trainer.optimizers],
        [len(optimizer._optimizer_step_pre_hooks) for optimizer in trainer.optimizers],
        [vars(config) | vars(config.scheduler) for config in trainer.lr_scheduler_configs],
        [vars(trainer), vars(trainer.strategy), trainer.fit_loop.state_dict(), trainer.callback_metrics],
        [torch.get_rng_state(), loader.generator.get_state(), module.training],
    ]
    return text(parts)


def wrong(error, after):
    calls = itertools.count()

    def trouble(loss):
        if next(calls) >= after:
            if isinstance(error, BaseException):
                raise error
            return loss * error
        return loss

    return trouble


ENDS = {"normal": None, "exception": OSError("disk full"), "ctrl-c": KeyboardInterrupt(), "nan": math.nan}


def probed(trainer, module, loader, end, **options):
    """A range test that ends in this way."""
    module.trouble = None if ENDS[end] is None else wrong(ENDS[end], 5)
    try:
        curve = range_test(trainer, module, loader, **{"ramp": RAMP} | options)
        assert curve.stopped == ("non-finite" if end == "nan" else None)
    except (OSError, KeyboardInterrupt):
        assert end in ("exception", "ctrl-c")
    finally:
        module.trouble = None
