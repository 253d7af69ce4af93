"""The Trainer of Hugging Face Transformers."""

import tempfile

import numpy as np
import torch
from contract import BATCH, X, Y, batch
from on_torch import bits, everything, network
from transformers import Trainer, TrainerCallback, TrainingArguments, logging

from cyclr.torch import ScheduleLR
from cyclr.transformers import range_test as run_range_test

RATES = np.float64
logging.set_verbosity_error()


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x, y):
        return {"loss": torch.nn.functional.cross_entropy(self.net(x), y)}


def named(pair):
    return dict(zip("xy", map(torch.as_tensor, pair), strict=True))


class Loader:
    """The contract's batches as a Trainer takes them."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return map(named, self.batches)


class FromLoader(Trainer):
    """A Trainer that has its loader already."""

    def __init__(self, *args, loader, **options):
        super().__init__(*args, **options)
        self.loader = loader

    def get_train_dataloader(self):
        return self.loader


class Calls(TrainerCallback):
    """Whether anything was called."""

    def __init__(self):
        self.seen = []

    def __getattribute__(self, name):
        if name.startswith("on_"):
            self.seen.append(name)
        return super().__getattribute__(name)


def arguments(folder, **options):
    return TrainingArguments(
        str(folder), use_cpu=True, report_to="none", disable_tqdm=True, max_grad_norm=0.0, **options
    )


def train(schedule, start, stop, folder):
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rates = []
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    trainer = FromLoader(
        model,
        arguments(folder, max_steps=stop, save_steps=stop, logging_strategy="no"),
        optimizers=(optimizer, ScheduleLR(optimizer, schedule)),
        loader=torch.utils.data.DataLoader([named(pair) for pair in zip(X, Y, strict=True)], BATCH),
    )
    trainer.train(resume_from_checkpoint=bool(start) or None)
    return rates, bits(model.net)


def range_test(batches, ramp):
    model, calls = Model(), Calls()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = FromLoader(
            model,
            arguments(folder, max_steps=1, save_strategy="no"),
            callbacks=[calls],
            optimizers=(optimizer, None),
            loader=Loader([batch(0)]),
        )
        trainer.train()
        trainer.loader = Loader(batches)

        def state():
            kept = [vars(trainer)[name] for name in ("optimizer", "lr_scheduler", "callback_handler", "model_wrapped")]
            seen = repr((trainer.state, trainer.lr_scheduler.state_dict(), [id(each) for each in kept], calls.seen))
            return everything(model, optimizer) + seen.encode()

        before = state()
        try:
            result = run_range_test(trainer, ramp=ramp)
        except Exception as error:
            result = error
        return result, before, state()
