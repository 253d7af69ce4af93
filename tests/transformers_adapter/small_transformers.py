"""Small transformers on real text, their trainers, and everything about them that a range test must leave alone."""

import random
import subprocess
import sys
import warnings

import numpy as np
import torch
import transformers
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import cyclr
from cyclr.torch import ScheduleLR

transformers.logging.set_verbosity_error()
SCHEDULE = cyclr.triangular(0.001, 0.01, stepsize=4)
RAMP = cyclr.ramp(0.0, 0.02, 12)
LENGTH, BATCH = 32, 4
TEXT = "".join(
    each.__doc__ for each in (random, subprocess, warnings, str, int, dict, list, bytes, sys) if each.__doc__
)
LETTERS = sorted(set(TEXT))


def text_rows(rows=26):
    """Characters of the standard library's own documentation; the label of a row is the one that follows it."""
    codes = torch.tensor([LETTERS.index(letter) for letter in TEXT])
    rows = codes[: rows * LENGTH].reshape(-1, LENGTH)
    return [{"input_ids": row, "labels": row} for row in rows]


def sentences(rows=26):
    """Rows of the same text for a classifier: is the middle of it a space?"""
    return [
        {"input_ids": row["input_ids"], "labels": int(row["input_ids"][LENGTH // 2] == LETTERS.index(" "))}
        for row in text_rows(rows)
    ]


def gpt2(seed=0):
    torch.manual_seed(seed)
    size = {"vocab_size": len(LETTERS), "n_positions": LENGTH, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0))


def bert():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(BertConfig(vocab_size=len(LETTERS), max_position_embeddings=LENGTH, **size))


class Plain(nn.Module):
    """A model that knows nothing of accumulation: the Trainer divides its mean loss by the batches of an update."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Embedding(len(LETTERS), 8), nn.Flatten(), nn.Linear(8 * LENGTH, 2))

    def forward(self, input_ids, labels):
        return {"loss": nn.functional.cross_entropy(self.net(input_ids), labels)}


class Spy(TrainerCallback):
    """What a user's callback is called for."""

    def __init__(self):
        self.calls = []

    def __getattribute__(self, name):
        if name.startswith("on_"):
            self.calls.append(name)
        return super().__getattribute__(name)


def trainer_of(folder, model=None, kind=Trainer, optimizers=(None, None), data=None, callbacks=(), **options):
    chosen = {"max_steps": 10, "save_strategy": "no", "logging_strategy": "no", "learning_rate": 0.003, **options}
    return kind(
        model or gpt2(),
        TrainingArguments(
            str(folder), use_cpu=True, report_to="none", disable_tqdm=True, per_device_train_batch_size=BATCH, **chosen
        ),
        train_dataset=text_rows() if data is None else data,
        optimizers=optimizers,
        callbacks=list(callbacks),
    )


def scheduled(model, schedule=SCHEDULE, kind=torch.optim.AdamW):
    """An optimiser, its ScheduleLR, and the rate of each update as the optimiser has it."""
    optimizer = kind(model.parameters(), lr=0.1)
    rates = []
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    return (optimizer, ScheduleLR(optimizer, schedule)), rates


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def state_of(trainer):
    """Everything about a trainer that a range test must leave: which objects it has, and what is in them."""
    optimizer, scheduler, accelerator = trainer.optimizer, trainer.lr_scheduler, trainer.accelerator
    objects = {name: id(value) for name, value in vars(trainer).items()}
    modules = [(name, each.training, sorted(vars(each))) for name, each in trainer.model.named_modules()]
    hooks = [len(value) for each in trainer.model.modules() for name, value in vars(each).items() if "_hooks" in name]
    gradients = [None if p.grad is None else p.grad.tolist() for p in trainer.model.parameters()]
    prepared = [list(map(id, value)) for value in vars(accelerator).values() if isinstance(value, list)]
    references = len(accelerator.gradient_state.dataloader_references)  # weak ones
    inside = None
    if optimizer is not None:
        inside = (
            repr(optimizer.state_dict()),
            [sorted(group) for group in optimizer.param_groups],
            [sorted(vars(each)) for each in (optimizer, getattr(optimizer, "optimizer", optimizer))],
            [len(v) for k, v in sorted(vars(getattr(optimizer, "optimizer", optimizer)).items()) if "hooks" in k],
        )
    return {
        "objects": objects,
        "args": repr(trainer.args.to_dict()),
        "config": repr(getattr(trainer.model, "config", None)),
        "state": repr(trainer.state),
        "control": repr(trainer.control),
        "weights": {name: value.tolist() for name, value in trainer.model.state_dict().items()},
        "gradients": gradients,
        "modules": (modules, hooks),
        "optimizer": inside,
        "scheduler": None if scheduler is None else (repr(scheduler.state_dict()), getattr(scheduler, "_due", None)),
        "prepared": (prepared, references, accelerator.gradient_state.sync_gradients),
        "random": (random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()),
    }
