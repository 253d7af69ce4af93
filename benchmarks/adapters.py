"""Each framework's training under a cyclr schedule, as a ratio to the same training under the framework's own.

    python benchmarks/adapters.py

The net is tiny, so that an update costs little beside its scheduler; blocks of updates take turns within one process (a
further one for each backend of Keras, which cannot change it). The framework's own is, for all that step a torch
scheduler, LambdaLR with the paper's formula; for Keras and Optax their cosine with restarts. 1 means: as fast as that.
For Optax, how often jit compiled the update is counted too.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from math import floor
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

import cyclr
from cyclr.torch import ScheduleLR
from record import Row, main, paired_ratios, row

BASE_LR, MAX_LR, STEPSIZE = 0.001, 0.006, 200
SCHEDULE = cyclr.triangular(BASE_LR, MAX_LR, STEPSIZE)
UPDATES = 1000  # in a block: what a fit does once, before and after, is little beside it
BATCH, FEATURES, CLASSES = 4, 8, 2
REPETITIONS = 11
TARGET = 1.05

Block: TypeAlias = Callable[[], object]  # UPDATES updates
Pair: TypeAlias = tuple[Block, Block]  # with the framework's own scheduler, with cyclr's


def by_formula(step: int) -> float:
    """What LambdaLR multiplies base_lr by: the paper's formula."""
    cycle = floor(1 + step / (2 * STEPSIZE))
    x = abs(step / STEPSIZE - 2 * cycle + 1)
    return 1 + (MAX_LR / BASE_LR - 1) * max(0, 1 - x)


def own(optimizer: Any) -> LambdaLR:
    return LambdaLR(optimizer, by_formula)


def ours(optimizer: Any) -> ScheduleLR:
    return ScheduleLR(optimizer, SCHEDULE)


def examples() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH * UPDATES, FEATURES, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long())


def lightning() -> Pair:
    import pytorch_lightning as pl

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    class Net(pl.LightningModule):
        def __init__(self, scheduler: Callable[[Any], Any]) -> None:
            super().__init__()
            self.net, self.scheduler = nn.Linear(FEATURES, CLASSES), scheduler

        def training_step(self, batch: Any) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), BASE_LR)
            return [optimizer], [{"scheduler": self.scheduler(optimizer), "interval": "step"}]

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}

    def block(scheduler: Callable[[Any], Any]) -> Block:
        def fit() -> None:
            trainer = pl.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **quiet)
            trainer.fit(Net(scheduler), DataLoader(examples(), BATCH))

        return fit

    return block(own), block(ours)


def transformers() -> Pair:
    from transformers import PrinterCallback, Trainer, TrainingArguments, logging

    logging.set_verbosity_error()
    data = [{"x": x, "labels": y} for x, y in examples()]
    folder = tempfile.gettempdir()  # nothing is saved
    settings = TrainingArguments(
        folder,
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
    )

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(FEATURES, CLASSES)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": nn.functional.cross_entropy(self.net(x), labels)}

    def block(scheduler: Callable[[Any], Any]) -> Block:
        def train() -> None:
            net = Net()
            optimizer = SGD(net.parameters(), BASE_LR)
            trainer = Trainer(net, settings, train_dataset=data, optimizers=(optimizer, scheduler(optimizer)))
            trainer.remove_callback(PrinterCallback)
            trainer.train()

        return train

    return block(own), block(ours)


def accelerate() -> Pair:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)

    def block(scheduler: Callable[[Any], Any]) -> Block:
        net = nn.Linear(FEATURES, CLASSES)
        optimizer = SGD(net.parameters(), BASE_LR)
        net, optimizer, loader = accelerator.prepare(net, optimizer, DataLoader(examples(), BATCH))
        stepped = accelerator.prepare(scheduler(optimizer))

        def loop() -> None:
            for x, y in loader:
                optimizer.zero_grad()
                accelerator.backward(nn.functional.cross_entropy(net(x), y))
                optimizer.step()
                stepped.step()

        return loop

    return block(own), block(ours)


def keras() -> Pair:
    import keras

    from cyclr.keras import LearningRate

    def block(rate: Any) -> Block:
        net = keras.Sequential([keras.layers.Input((FEATURES,)), keras.layers.Dense(CLASSES)])
        net.compile(keras.optimizers.SGD(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        x, y = (tensor.numpy() for tensor in examples().tensors)
        return lambda: net.fit(x, y, batch_size=BATCH, epochs=1, verbose=0)

    restarting = keras.optimizers.schedules.CosineDecayRestarts(MAX_LR, 2 * STEPSIZE, t_mul=1.0, alpha=BASE_LR / MAX_LR)
    return block(restarting), block(LearningRate(SCHEDULE))


def keras_ratios(backend: str) -> list[float]:
    """To be called in a process of its own."""
    os.environ["KERAS_BACKEND"] = backend
    torch.set_num_threads(1)
    return ratios(keras())


def optax() -> tuple[Pair, Callable[[], int]]:
    """And how often the update with our schedule has been compiled."""
    import jax
    import optax

    x, y = (jax.numpy.asarray(tensor.numpy()) for tensor in examples().tensors)
    batches = list(zip(x.reshape(UPDATES, BATCH, FEATURES), y.reshape(UPDATES, BATCH), strict=True))

    def loss_of(weights: Any, batch: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(batch[0] @ weights, batch[1]).mean()

    def block(schedule: Any) -> tuple[Block, Any]:
        optimizer = optax.sgd(schedule)

        @jax.jit
        def update(weights: Any, state: Any, batch: Any) -> Any:
            slopes = jax.grad(loss_of)(weights, batch)
            changes, state = optimizer.update(slopes, state)
            return optax.apply_updates(weights, changes), state

        def loop() -> None:
            weights = jax.numpy.zeros((FEATURES, CLASSES))
            state = optimizer.init(weights)
            for batch in batches:
                weights, state = update(weights, state, batch)
            weights.block_until_ready()

        return loop, update

    cosine = {"init_value": BASE_LR, "peak_value": MAX_LR, "end_value": BASE_LR}
    cosine |= {"warmup_steps": STEPSIZE, "decay_steps": 2 * STEPSIZE}
    theirs, _ = block(optax.sgdr_schedule([cosine] * 3))
    with_ours, update = block(SCHEDULE)
    return (theirs, with_ours), update._cache_size


def ratios(pair: Pair) -> list[float]:
    return paired_ratios(pair[0], {"cyclr": pair[1]}, REPETITIONS)["cyclr"]


def measure(_: argparse.Namespace) -> list[Row]:
    warnings.simplefilter("ignore")  # the frameworks' advice: more workers, loggers
    found = {name: ratios(pair()) for name, pair in PAIRS.items()}
    spawn = multiprocessing.get_context("spawn")
    for backend in ("torch", "jax"):
        with ProcessPoolExecutor(1, mp_context=spawn) as process:
            found[f"Keras on {backend}"] = process.submit(keras_ratios, backend).result()
    pair, compiled = optax()
    found["Optax under jit"] = ratios(pair)
    return [
        *(
            row(f"an update in {name}, of the same with its own schedule", each, "x", most=TARGET)
            for name, each in found.items()
        ),
        row(f"times that jit compiled an Optax update in {UPDATES:,} steps", [compiled()], "", most=1),
    ]


PAIRS = {"Lightning": lightning, "the Trainer of Transformers": transformers, "Accelerate": accelerate}

if __name__ == "__main__":
    main("adapters", __doc__, measure, packages=["pytorch-lightning", "transformers", "keras", "jax", "optax"])
