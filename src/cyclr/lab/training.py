"""Training a task under a schedule, on Accelerate: resumable to the same bits, evaluated at the cycles' ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from cyclr import checks
from cyclr.lab.captured import ONE_AT_A_TIME
from cyclr.lab.data import in_order
from cyclr.lab.precision import accelerator, computing_in
from cyclr.lab.processes import count, on_first
from cyclr.lab.records import Record, find_record
from cyclr.lab.run import Progress, Run
from cyclr.lab.task import Task, TaskError
from cyclr.schedules import Schedule
from cyclr.stopping import reason_to_stop
from cyclr.torch import ProcessError, SnapshotError
from cyclr.torch.cycle_ends import Action
from cyclr.torch.processes import is_silence
from cyclr.torch.snapshots import MANIFEST

EVALUATIONS = 10  # of a run without cycles
CHECKPOINT_SECONDS = 60.0
NO_CYCLE = "the schedule completes no cycle within total_steps; train longer, or choose shorter cycles"


def try_out(task: Task, precision: str | None = None) -> None:
    """One batch through the net and back: what does not fit together is told before anything is trained.

    Raises:
        TaskError: the net, the data, the loss and the metric do not go together; there is nothing to train.
    """
    with ONE_AT_A_TIME:  # what is compiled at a first call is compiled once
        machine = accelerator(precision or task.precision)
        first, _ = task.build(seed=0)
        model, optimizer = task.build(seed=0)
        if first is model:
            raise TaskError(
                f"model() of task {task.name} must build a new net each time, it returned the same one twice"
            )
        if not any(parameter.requires_grad for group in optimizer.param_groups for parameter in group["params"]):
            raise TaskError(f"task {task.name} has nothing to train: no parameter of its optimiser requires a gradient")
        try:
            x, y = next(in_order(task.train, task.batch_size, machine.device))
            output = machine.prepare(model)(x)
            loss = task.loss(output, y)
            if not torch.is_tensor(loss) or loss.numel() != 1:
                got = f"a tensor of shape {tuple(loss.shape)}" if torch.is_tensor(loss) else type(loss).__name__
                raise TaskError(f"loss(output, target) of task {task.name} must return one number, got {got}")
            machine.backward(loss)
            float(task.metric(output.detach(), y))
        except TaskError:
            raise
        except Exception as error:
            raise TaskError(f"task {task.name} failed on its first batch: {type(error).__name__}: {error}") from error


def train(
    task: Task,
    schedule: Schedule,
    total_steps: int,
    out: Path | str,
    *,
    policy: str = "custom",
    seed: int = 0,
    evaluate_at: Sequence[int] | None = None,
    precision: str | None = None,
    accumulation: int = 1,
    stop: Literal["budget", "cycle_end"] = "budget",
    seconds: float | None = None,
    patience: int | None = None,
    snapshots: int | Sequence[int] | None = None,
    snapshots_by: Literal["last", "best"] = "last",
    at_cycle_end: Action | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: Progress | None = None,
) -> Record:
    """Train a task under a schedule and leave a record; what was done already is not done again.

    A run that was killed at any moment goes on from its last checkpoint and ends with the same weights as one that was
    not, on a CPU to the bit. A finished one just returns its record. Under `torchrun` or `accelerate launch` each
    process trains on its part of every batch, and the first one writes.

    Args:
        task, schedule, total_steps: what, how and for how many updates.
        out: folder for records.jsonl, checkpoints and weights.
        policy: the name under which the schedule is reported.
        seed: determines the initial weights, the batches and all else that is random.
        evaluate_at: numbers of updates after which the metric is measured; by default the cycles' ends, or ten
            evenly spaced points. The end is always one.
        precision: "no", "bf16" or "fp16"; the task's own by default.
        accumulation: batches in one update.
        stop: "budget", after total_steps; or "cycle_end", at the last cycle's end within them, or earlier:
        seconds: budget of wall-clock time; no cycle is begun that would exceed it, as far as the last one tells.
        patience: cycles without a better metric on the validation data, after which it stops.
        snapshots: weights of so many cycles' ends are kept in `out`/snapshots/RUN, or those after the given numbers of
            updates: see `cyclr.torch.Snapshots`, and `Ensemble` for what they are good for.
        snapshots_by: which cycles' ends: the "last", or the "best", with the highest metric on the validation data.
        at_cycle_end: called with (updates done, net) at each cycle's end, in every process, once the metric is
            measured and a snapshot taken; again, where a killed run comes to an end that its checkpoint doesn't know.
            The record says nothing of it.
        checkpoint_seconds: least time between checkpoints; 0 makes one every 50 updates.
        progress: called now and then with (updates done, updates in all, rate, latest metric).

    Returns:
        The record; `record["result"]` has status ("done" or "diverged"), the metric on validation and test data,
        the history and the timings.

    Raises:
        CheckpointError: the checkpoint in `out` is damaged or of another task.
        SnapshotError: the snapshots in `out` are damaged, or gone though the run is finished.
        ValueError: stop="cycle_end", snapshots or at_cycle_end with a schedule that completes no cycle within
            total_steps; snapshots after it; patience or snapshots_by="best" without validation data.
        OSError: the disk is full or read-only.
        ProcessError: another process of this run stopped answering.
    """
    folder = Path(out)
    checks.rate("checkpoint_seconds", checkpoint_seconds)
    steps = checks.whole("total_steps", total_steps, least=1)
    ends = schedule.cycle_ends(steps)
    if at_cycle_end is not None and not ends:
        raise ValueError(NO_CYCLE)
    events = events_of(
        task, schedule, steps, stop=stop, seconds=seconds, patience=patience,
        snapshots=snapshots, snapshots_by=snapshots_by,
    )  # fmt: skip
    if stop == "cycle_end":
        steps = ends[-1]
    points = set(evaluate_at or ends or range(0, steps, max(1, steps // EVALUATIONS)))
    if events or at_cycle_end is not None:
        points |= {*ends, *(snapshots if isinstance(snapshots, Sequence) else ())}
    evaluations = sorted({point for point in points if 0 < point < steps} | {steps})
    config = {
        "task": task.name,
        "fingerprint": task.fingerprint(),
        "policy": policy,
        "schedule": schedule.to_dict(),
        "total_steps": steps,
        "cycle_ends": ends,
        "steps_per_epoch": task.steps_per_epoch,
        "batch_size": task.batch_size,
        "accumulation": checks.whole("accumulation", accumulation, least=1),
        "seed": checks.whole("seed", seed, least=0),
        "precision": precision or task.precision,
        "evaluate_at": evaluations,
        **events,
    }
    if (record := on_first(lambda: _finished(folder, config))) is not None:
        return record
    try:
        with computing_in(config["precision"]):
            try_out(task, precision)
            run = Run(task, schedule, folder, config)
            run.go(checkpoint_seconds, progress, at_cycle_end)
            return run.finish()
    except RuntimeError as error:
        if count() == 1 or not is_silence(error):
            raise
        raise ProcessError(
            "another process of this run stopped answering: it raised an error or died, look at its own output; "
            "the same command goes on from the last checkpoint"
        ) from error


def _finished(folder: Path, config: dict[str, Any]) -> Record | None:
    """The record of a run that was made, if its snapshots are there too."""
    record = find_record(folder, config)
    if record is not None and "snapshots" in config and record["result"]["status"] == "done":
        snapshots = folder / "snapshots" / record["run"]
        if not (snapshots / MANIFEST).exists():
            raise SnapshotError(
                f"the record of this run is in {folder}, but its snapshots are gone from {snapshots}; put them back, "
                "take its line out of records.jsonl to train it again, or choose another folder"
            )
    return record


def events_of(
    task: Task,
    schedule: Schedule,
    steps: int,
    *,
    stop: str,
    seconds: float | None,
    patience: int | None,
    snapshots: int | Sequence[int] | None,
    snapshots_by: str,
) -> dict[str, Any]:
    """What the configuration says of the cycles' ends; nothing where nothing is asked, as in older records.

    Raises:
        ValueError: what `train` says of these arguments.
    """
    checks.choice("stop", stop, ("budget", "cycle_end"))
    checks.choice("snapshots_by", snapshots_by, ("last", "best"))
    if stop == "budget" and (seconds, patience) != (None, None):
        raise ValueError('seconds and patience are looked at at the cycles\' ends; give stop="cycle_end" with them')
    if patience is not None and task.validation is None:
        raise ValueError(f"patience needs validation data, and task {task.name} has none; leave it out")
    if snapshots_by == "best" and task.validation is None:
        raise ValueError(f"the best snapshots need validation data, and task {task.name} has none; keep the last ones")
    if snapshots_by == "best" and (snapshots is None or isinstance(snapshots, Sequence)):
        raise ValueError('snapshots_by="best" chooses among the cycles\' ends; give snapshots=N, the number that stays')
    reason_to_stop((), seconds=seconds, patience=patience)
    events: dict[str, Any] = {} if stop == "budget" else {"stop": stop, "seconds": seconds, "patience": patience}
    if isinstance(snapshots, Sequence):
        events["snapshots"] = sorted({checks.whole("snapshots", step, least=1) for step in snapshots})
        most = max(schedule.cycle_ends(steps), default=steps) if stop == "cycle_end" else steps
        if not events["snapshots"] or events["snapshots"][-1] > most:
            raise ValueError(f"snapshots must be numbers of updates from 1 to {most}, got {list(snapshots)}")
    elif snapshots is not None:
        events["snapshots"] = checks.whole("snapshots", snapshots, least=1)
    if snapshots_by == "best":
        events["snapshots_by"] = snapshots_by
    if events and not schedule.cycle_ends(steps) and (stop == "cycle_end" or not isinstance(snapshots, Sequence)):
        raise ValueError(NO_CYCLE)
    return events
