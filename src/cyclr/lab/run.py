"""One training run, from its start or its last checkpoint to its record."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_model
from torch import Tensor

from cyclr.files import write_atomically
from cyclr.lab.captured import ONE_AT_A_TIME, CapturedUpdates, can_be_captured
from cyclr.lab.checkpoint import load_checkpoint, save_checkpoint
from cyclr.lab.data import Batches, mixed, on_device
from cyclr.lab.ensembling import snapshots_name
from cyclr.lab.esgd import ESGD
from cyclr.lab.evaluation import METRIC, measure
from cyclr.lab.precision import accelerator
from cyclr.lab.processes import count, on_first, rank, total
from cyclr.lab.records import Record, append_record, new_record, run_name
from cyclr.lab.task import Task, TaskError
from cyclr.schedules import Schedule
from cyclr.stopping import reason_to_stop
from cyclr.torch import ScheduleLR, Snapshots, restored
from cyclr.torch.cycle_ends import Action
from cyclr.torch.scheduler import MULTIPLIER

Progress: TypeAlias = Callable[[int, int, float, float], None]  # updates done, of how many, rate, latest metric
UPDATES = 50  # between looks at the loss, the clock and the progress bar
SKIPS = 20  # updates in a row that fp16 may skip before a run counts as diverged


@dataclass
class _Progress:
    """How far a run is: what its checkpoint holds beside the model, the optimiser and the random state."""

    step: int = 0
    status: str = "done"  # or "diverged"
    batches: int = 0  # taken; more than the updates need where fp16 skipped some
    seconds: float = 0.0  # spent on updates
    clock: float = 0.0  # on everything
    ends: list[tuple[float, float]] = field(default_factory=list)  # clock and metric at the cycles' ends
    stopped: str | None = None  # why, if before the budget was used up
    history: list[dict[str, float]] = field(default_factory=list)
    scaler: dict[str, float] | None = None


class Run:
    """What `train` does once the configuration stands; in each process of a run there is one."""

    def __init__(self, task: Task, schedule: Schedule, folder: Path, config: dict[str, Any]) -> None:
        self.task, self.config, self.folder = task, config, folder
        with ONE_AT_A_TIME:  # Accelerate's precision is the process's
            self.machine = accelerator(config["precision"], config["accumulation"])
            self.plain_model, self.plain_optimizer = task.build(config["seed"])
            if count() > 1:
                self._share()
            self.model, self.optimizer = self.machine.prepare(self.plain_model, self.plain_optimizer)
        self.schedule, self.scheduler = schedule, ScheduleLR(self.plain_optimizer, schedule)
        self.at = _Progress()
        self.checkpoint = folder / "checkpoints" / f"{run_name(config)}.safetensors"
        on_first(lambda: self._open_snapshots(schedule))
        if count() > 1:
            self._warm_up()
        if on_first(self.checkpoint.exists):
            self._resume()
        batches = self._batches()
        self.supply = batches.starting_at(self.at.batches)
        self.captured = self._capture(next(batches.starting_at(0))) if self._capturable() else None
        self.sources = {  # looked at often
            name: on_device(source, self.machine.device)
            for name, source in (("validation", task.validation), ("test", task.test))
            if source is not None
        }

    def _batches(self) -> Batches:
        task, device = self.task, self.machine.device
        return Batches(
            task.train, task.batch_size, self.config["seed"], task.augment, device, task.workers, rank(), count()
        )

    def _capturable(self) -> bool:
        """Whether updates can be replayed as a CUDA graph: one batch each, none of which may be skipped."""
        whole = self.config["accumulation"] == 1 and count() == 1 and self.config["precision"] != "fp16"
        on_gpu = self.machine.device.type == "cuda" and isinstance(self.task.train, tuple)
        return self.task.capturable and whole and on_gpu and can_be_captured(self.plain_optimizer)

    def _capture(self, example: tuple[Tensor, Tensor]) -> CapturedUpdates:
        # Not self: a run that is part of a cycle would keep the GPU's memory after its end.
        model, loss_of, machine = self.model, self.task.loss, self.machine

        def backward(x: Tensor, y: Tensor) -> Tensor:
            loss: Tensor = loss_of(model(x), y)
            machine.backward(loss)
            return loss

        captured = CapturedUpdates(self.plain_model, self.plain_optimizer, backward, example, UPDATES)
        self._move_to(self.at.step)  # the capture made updates that count for nothing
        return captured

    def _share(self) -> None:
        """Several processes: one net, dropout that differs."""
        if isinstance(self.plain_optimizer, ESGD):
            raise TaskError("ESGD measures the curvature in one process; start the run without torchrun")
        if rank():
            torch.manual_seed(mixed(self.config["seed"], rank()))

    def _warm_up(self) -> None:
        """DDP sums in another order after its first backward pass; a run that goes on must sum as before."""
        with restored(self.model):
            for x, y in itertools.islice(self._batches().starting_at(0), 2):
                self.machine.backward(self.task.loss(self.model(x), y))

    def _open_snapshots(self, schedule: Schedule) -> None:
        """In the first process, which is the one that takes them."""
        if "snapshots" in self.config:
            folder, wanted = self.folder / "snapshots" / run_name(self.config), self.config["snapshots"]
            at, keep = (wanted, None) if isinstance(wanted, list) else (schedule, wanted)
            by = self.config.get("snapshots_by", "last")
            self.snapshots = Snapshots(folder, at, keep=keep, by=by, task=snapshots_name(self.task))

    def go(self, checkpoint_seconds: float, progress: Progress | None, at_cycle_end: Action | None) -> None:
        """Train to the end, evaluating where the configuration says so."""
        self.save_at = time.perf_counter() + checkpoint_seconds
        began = time.perf_counter() - self.at.clock
        evaluations = [step for step in self.config["evaluate_at"] if step > self.at.step]
        while evaluations and self.at.status == "done" and self.at.stopped is None:
            loss = self._updates(min(evaluations[0] - self.at.step, UPDATES))
            if not math.isfinite(loss):
                self.at.status = "diverged"
            self.at.clock = time.perf_counter() - began
            if self.at.step == evaluations[0] or self.at.status == "diverged":
                evaluations.pop(0)
                self.at.history.append({"step": self.at.step, "loss": loss, **self._measured()})
                self.at.clock = time.perf_counter() - began
                if self.at.status == "done":
                    self._after_evaluation(at_cycle_end)
            if progress is not None:
                progress(self.at.step, self.config["total_steps"], self.scheduler.get_last_lr()[0], self._latest())
            if on_first(lambda: time.perf_counter() > self.save_at):
                self._save()
                self.save_at = time.perf_counter() + checkpoint_seconds

    def _after_evaluation(self, at_cycle_end: Action | None) -> None:
        """Where one is due, a snapshot; at a cycle's end the caller's action, and the question whether to stop."""
        step, validation = self.at.step, self.at.history[-1].get("validation")  # the test set chooses nothing
        if "snapshots" in self.config:
            on_first(lambda: self.snapshots(step, self.plain_model, validation))
        if at_cycle_end is not None and step in self.config["cycle_ends"]:
            at_cycle_end(step, self.plain_model)
        if "stop" in self.config and step in self.config["cycle_ends"]:
            self.at.ends.append((self.at.clock, math.nan if validation is None else validation))
            limits = {name: self.config[name] for name in ("seconds", "patience")}
            self.at.stopped = on_first(lambda: reason_to_stop(self.at.ends, **limits))

    def finish(self) -> Record:
        """Write weights and record; the checkpoint has served."""
        test = self.sources.get("test")
        measured = {} if test is None else measure(self.task, self.plain_model, test, self.machine.device)
        result = {
            "status": self.at.status,
            "steps": self.at.step,
            "validation": self.at.history[-1].get("validation"),
            "test": measured.pop(METRIC, None),
            "updates_per_second": self.at.step / max(self.at.seconds, 1e-9),
            "history": self.at.history,
        }
        if "stop" in self.config:
            result["stopped"] = self.at.stopped
        if measured:
            result["scores"] = measured
        return on_first(lambda: self._written(result))

    def _written(self, result: dict[str, Any]) -> Record:
        weights = self.folder / "weights" / f"{run_name(self.config)}.safetensors"
        write_atomically(weights, lambda part: save_model(self.plain_model, str(part)))
        record = new_record(self.config, result)
        append_record(self.folder, record)
        self.checkpoint.unlink(missing_ok=True)
        for part in self.checkpoint.parent.glob(f".{self.checkpoint.name}.*.part"):  # of a kill in mid-write
            part.unlink(missing_ok=True)
        return record

    def _updates(self, updates: int) -> float:
        """Make so many real updates; the mean loss of their batches."""
        started = time.perf_counter()
        mean = self._computed(updates) if self.captured is None else self._replayed(self.captured, updates)
        self.at.seconds += time.perf_counter() - started
        return mean

    def _replayed(self, captured: CapturedUpdates, updates: int) -> float:
        batches = list(itertools.islice(self.supply, updates))
        steps = range(self.at.step, self.at.step + updates)
        multipliers = [group.get(MULTIPLIER, 1.0) for group in self.plain_optimizer.param_groups]
        rates = [[rate * factor for factor in multipliers] for rate in map(self.schedule, steps)]
        mean = captured(batches, rates)
        self.at.batches += updates
        self._move_to(steps.stop)
        return mean

    def _move_to(self, step: int) -> None:
        self.at.step = step
        self.scheduler.load_state_dict({"last_epoch": step})

    def _computed(self, updates: int) -> float:
        machine, task, summed = self.machine, self.task, torch.zeros((), device=self.machine.device)
        end, first, skips = self.at.step + updates, self.at.batches, 0
        while self.at.step < end:
            for x, y in itertools.islice(self.supply, self.config["accumulation"]):
                with machine.accumulate(self.model):
                    loss = task.loss(self.model(x.to(machine.device)), y.to(machine.device))
                    if isinstance(self.plain_optimizer, ESGD):
                        self.plain_optimizer.observe(loss)
                    machine.backward(loss)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                summed += loss.detach()
                self.at.batches += 1
            if machine.optimizer_step_was_skipped:  # an overflow in fp16 is no update
                skips += 1
                if skips == SKIPS:
                    return math.nan
            else:
                self.scheduler.step()
                self.at.step += 1
                skips = 0
        return total(float(summed)) / count() / (self.at.batches - first)

    def _measured(self) -> dict[str, float]:
        """The metric on the validation data, or on the test data where the task has no validation data."""
        task = self.task
        name = "test" if task.validation is None else "validation"
        measured = measure(task, self.plain_model, self.sources[name], self.machine.device)
        return {name: measured.pop(METRIC), **{f"{name} {score}": value for score, value in measured.items()}}

    def _latest(self) -> float:
        last = self.at.history[-1] if self.at.history else {}
        return last.get("validation", last.get("test", math.nan))

    def _save(self) -> None:
        if self.machine.scaler is not None:
            self.at.scaler = self.machine.scaler.state_dict()
        save_checkpoint(self.checkpoint, self.config, vars(self.at), self.plain_model, self.plain_optimizer)

    def _resume(self) -> None:
        self.at = _Progress(**load_checkpoint(self.checkpoint, self.config, self.plain_model, self.plain_optimizer))
        if self.machine.scaler is not None and self.at.scaler is not None:
            self.machine.scaler.load_state_dict(self.at.scaler)
        self._move_to(self.at.step)
