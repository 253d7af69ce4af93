"""Task: what a user trains. A `file.py` of theirs has a function that returns one."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cyclr import checks
from cyclr.lab.captured import ONE_AT_A_TIME
from cyclr.lab.data import Augment, Source, size_of

Measure: TypeAlias = Callable[[Any, Any], Tensor]
Score: TypeAlias = Callable[[Any, Any], float]


class TaskError(ValueError):
    """A task that cannot be loaded or does not fit together; its text is one sentence for the user."""


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Share of examples whose largest output is the target's class, in 0 to 1."""
    return (output.argmax(-1) == target).float().mean()


@dataclass(frozen=True)
class Task:
    """What a user trains: model, optimiser, loss, data, metric.

    Args:
        name: how records and pages call it.
        model: builds the net; called after seeding, so that a seed determines the weights.
        optimizer: builds the optimiser for a net. Its rate is overwritten by the schedule; a group's
            "lr_multiplier" scales it.
        loss: `loss(output, target)`, one number.
        train, validation, test: pairs of tensors (x, y) held in memory, or torch Datasets of such pairs. Without
            `validation` the range test holds out a part of `train`, and training is judged on `test`. The test set is
            never used to choose anything.
        batch_size: examples in an update.
        metric: `metric(output, target)` in 0 to 1, higher is better; a batch's mean. Accuracy by default.
        scores: more to measure at each evaluation, by name: `score(outputs, targets)` sees a whole data source at
            once, on the CPU, for what is no mean over batches, such as balanced accuracy or AUC. NaN where an output
            is not finite.
        start: what tells the weights it starts from, if these are more than the seed's: a checksum of pretrained ones.
        augment: `augment(x, generator)`, a whole training batch at once.
        precision: "no", "bf16" or "fp16": the mixed precision it is meant for; the command can say otherwise.
        workers: processes that load the examples of torch Datasets; what they load must not be random.
        capturable: net and loss compute the same at every update (nothing depends on a value, nothing random is drawn
            on the CPU), so that a CUDA GPU may replay updates as a graph. Small nets gain several times the speed. What
            an optimiser of your own class keeps in Python's numbers stays what it was in the first update.

    Example:
        >>> import torch
        >>> from cyclr.lab import Task
        >>> x, y = torch.randn(256, 4), torch.randint(2, (256,))
        >>> task = Task(
        ...     name="coin",
        ...     model=lambda: torch.nn.Linear(4, 2),
        ...     optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        ...     loss=torch.nn.functional.cross_entropy,
        ...     train=(x, y), validation=(x, y), batch_size=32,
        ... )
        >>> task.steps_per_epoch
        8
    """

    name: str
    model: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], Optimizer]
    loss: Measure
    train: Source
    validation: Source | None = None
    test: Source | None = None
    batch_size: int = 64
    metric: Measure = accuracy
    augment: Augment | None = None
    precision: str = "no"
    workers: int = 0
    scores: Mapping[str, Score] = field(default_factory=dict)
    start: str = ""
    capturable: bool = False

    def __post_init__(self) -> None:
        checks.whole("batch_size", self.batch_size, least=1)
        checks.choice("precision", self.precision, ("no", "bf16", "fp16"))
        checks.whole("workers", self.workers, least=0)
        for name in ("train", "validation", "test"):
            self._check_source(name, getattr(self, name))
        if size_of(self.train) < self.batch_size:
            raise TaskError(
                f"task {self.name} has {size_of(self.train)} training examples, fewer than one batch of "
                f"{self.batch_size}; check its data"
            )
        if self.validation is None and self.test is None:
            raise TaskError(f"task {self.name} has neither validation nor test data; give one of them")

    def _check_source(self, name: str, source: Any) -> None:
        if source is None and name != "train":
            return
        pair = isinstance(source, tuple) and len(source) == 2 and all(map(torch.is_tensor, source))
        if not pair and (isinstance(source, tuple | list) or not hasattr(source, "__len__")):
            raise TaskError(
                f"{name} of task {self.name} must be a pair of tensors (x, y) or a torch Dataset with a length, "
                f"got {type(source).__name__}"
            )
        if pair and len(source[0]) != len(source[1]):
            raise TaskError(
                f"{name} of task {self.name} must have one target an example, got {len(source[0])} inputs and "
                f"{len(source[1])} targets"
            )
        if not size_of(source):
            raise TaskError(f"{name} of task {self.name} has no examples; check its data")

    @property
    def steps_per_epoch(self) -> int:
        """Updates in an epoch; the last, smaller batch is left out."""
        return size_of(self.train) // self.batch_size

    def updates_per_epoch(self, accumulation: int) -> int:
        """The same where several batches make an update; at least 1."""
        return max(1, self.steps_per_epoch // checks.whole("accumulation", accumulation, least=1))

    def build(self, seed: int) -> tuple[nn.Module, Optimizer]:
        """A net and its optimiser, determined by the seed."""
        with ONE_AT_A_TIME:
            torch.manual_seed(seed)
            model = self._built("model()", "module", nn.Module, self.model)
            return model, self._built("optimizer(model)", "optimiser", Optimizer, self.optimizer, model)

    def _built(self, call: str, kind: str, wanted: type, build: Callable[..., Any], *arguments: Any) -> Any:
        try:
            built = build(*arguments)
        except Exception as error:
            raise TaskError(f"{call} of task {self.name} failed: {type(error).__name__}: {error}") from error
        if not isinstance(built, wanted):
            raise TaskError(f"{call} of task {self.name} must return a torch {kind}, got {type(built).__name__}")
        return built

    def fingerprint(self) -> str:
        """A short checksum of what is trained on what: net and its start, optimiser, loss, scores, data, batch size.

        A checkpoint or record of another task is told by it. Functions are known by their names only.
        """
        model, optimizer = self.build(seed=0)
        digest = hashlib.sha256(f"{self.name} {self.batch_size} {type(optimizer).__name__}".encode())
        digest.update(re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model)).encode())
        digest.update(" ".join(map(_name_of, (self.loss, self.metric, self.augment))).encode())
        digest.update(repr([(name, tuple(p.shape)) for name, p in model.named_parameters()]).encode())
        for group in optimizer.param_groups:
            digest.update(repr(sorted((k, v) for k, v in group.items() if isinstance(v, int | float | str))).encode())
        for source in (self.train, self.validation, self.test):
            digest.update(_data_fingerprint(source))
        # What older fingerprints did not know counts only where it is not the usual: theirs stay valid.
        if self.start or self.scores:
            digest.update(f"{self.start} {sorted(self.scores)}".encode())
        if unusual := _unusual_tuples(optimizer):
            digest.update(repr(unusual).encode())
        return digest.hexdigest()[:16]


def _unusual_tuples(optimizer: Optimizer) -> list[tuple[str, Any]]:
    """Settings such as betas, where they are not the optimiser's own defaults."""
    defaults = {name: each.default for name, each in inspect.signature(type(optimizer)).parameters.items()}
    return [
        (name, value)
        for group in optimizer.param_groups
        for name, value in sorted(group.items())
        if isinstance(value, tuple) and repr(value) != repr(defaults.get(name))
    ]


def _name_of(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))


def _data_fingerprint(source: Source | None) -> bytes:
    if source is None:
        return b"-"
    if not isinstance(source, tuple):
        return f"{type(source).__name__} {size_of(source)}".encode()
    x, y = source
    sums = (each.sum(dtype=torch.float64) for each in (x, y))
    return " ".join([str(tuple(x.shape)), *(f"{each:.9g}" for each in sums)]).encode()


def load_task(spec: str, built_in: Mapping[str, Callable[..., Task]], data_dir: str | None = None) -> Task:
    """The task that a user names: a built-in name, or `file.py[:function]` (the function is `task` by default).

    Raises:
        TaskError: no such task, no such file, no such function, an error inside it, or something else returned.
    """
    if spec in built_in:
        function: Any = built_in[spec]
    elif ".py" in spec:
        path, _, name = spec.partition(":")
        function = _function_from(Path(path), name or "task")
    else:
        try:
            checks.choice("task", spec, built_in)
        except ValueError as error:
            raise TaskError(f"{error}; or give file.py[:function]") from None
    takes_data = "data_dir" in inspect.signature(function).parameters
    try:
        task = function(data_dir=data_dir) if takes_data else function()
    except TaskError:
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(f"task {spec} failed while it was being built: {type(error).__name__}: {error}") from error
    if not isinstance(task, Task):
        raise TaskError(f"{spec} must return a cyclr.lab.Task, got {type(task).__name__}")
    return task


def _function_from(path: Path, name: str) -> Any:
    if not path.is_file():
        raise TaskError(f"there is no task file {path}; give a path to a Python file")
    spec = importlib.util.spec_from_file_location(f"cyclr_task_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise TaskError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, os.fspath(path.parent.resolve()))  # its own neighbours can be imported
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise TaskError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise TaskError(f"{path} has no function {name!r} that returns a Task; it has {', '.join(names) or 'none'}")
    return function
