"""ScheduleLR: hands a schedule's values to an optimiser's parameter groups. It carries numbers and computes none."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cyclr.arrays import Scalars
from cyclr.schedules import Schedule

Schedules: TypeAlias = Schedule | Sequence[Schedule | None]
Group: TypeAlias = dict[str, Any]

MULTIPLIER = "lr_multiplier"  # a parameter group's own factor on the rate; absent means 1
OWN = {"lr": "initial_lr", "momentum": "initial_momentum", "weight_decay": "initial_weight_decay"}


class ScheduleLR(LRScheduler):
    """A torch scheduler that follows a cyclr schedule for the rate and, if wanted, momentum and weight decay.

    The rate that update `step` uses is exactly `lr(step)`, from step 0. Call `step()` after each real update. Called
    again before the optimiser has made another one it changes nothing: so it counts updates where Accelerate's prepared
    schedulers call it once per process, in loops that call it after every batch while gradients accumulate, and where
    a GradScaler skipped an update. (With an optimiser that makes no update at all, each call counts: a look ahead, from
    which the first update takes it back. To begin elsewhere, use `load_state_dict({"last_epoch": step})`.)

    Args:
        optimizer: any torch optimiser.
        lr: a schedule for all groups, or one per group (None leaves a group alone). A group with an entry
            "lr_multiplier" (`{"params": ..., "lr_multiplier": 0.1}`) gets that multiple of the rate. It must be there
            before the scheduler is made.
        momentum: the same for momentum, or beta1 where the optimiser has betas. Where this schedule ends, the
            user's own momentum comes back.
        weight_decay: the same for weight decay. Groups whose own weight decay is 0 keep it.

    State: `state_dict()` is one integer, the number of steps made. It can be loaded before or after the optimiser's
    state, and into a scheduler with a longer schedule: the rate in force is this schedule's at once. A group added
    later with `add_param_group` follows the one schedule, or the last one where each group has its own, from the next
    update on. Rates that are tensors are filled in place, so `torch.compile` does not compile again.

    An optimiser has one scheduler: a new ScheduleLR takes over from an older one, whose `step()` then raises.

    Raises:
        TypeError: lr is no schedule.
        ValueError: more schedules than groups or fewer; a momentum schedule for an optimiser without momentum; an
            optimiser that already has a scheduler of torch's.

    Example:
        >>> import cyclr, torch
        >>> from cyclr.torch import ScheduleLR
        >>> w = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([w], lr=0.1)
        >>> scheduler = ScheduleLR(optimizer, lr=cyclr.triangular(0.1, 0.5, stepsize=2))
        >>> for _ in range(3):
        ...     print(optimizer.param_groups[0]["lr"])
        ...     optimizer.step()
        ...     scheduler.step()
        0.1
        0.3
        0.5

    Reference: Smith, arXiv 1506.01186, 3.1.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr: Schedules,
        momentum: Schedules | None = None,
        weight_decay: Schedules | None = None,
    ) -> None:
        # The base class's constructor wraps optimizer.step and makes a first step; neither is wanted here.
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch optimiser, got {type(optimizer).__name__}")
        self.optimizer = innermost(optimizer)
        if hasattr(self.optimizer.step, "_wrapped_by_lr_sched"):
            raise ValueError(
                f"this {type(optimizer).__name__} already has a torch scheduler, and each would overwrite the other's "
                "rates; make the optimiser anew, its load_state_dict takes the old one's state"
            )
        self.last_epoch = 0  # torch's name for the step
        self._hyper = {"lr": _checked("lr", lr, optimizer)}
        for name, given in (("momentum", momentum), ("weight_decay", weight_decay)):
            if given is not None:
                self._hyper[name] = _checked(name, given, optimizer)
        for hook in _hooks(self.optimizer):
            hook.retire()
        self._replaced = False
        self._due: bool | None = None  # an update to count; None while the optimiser has made none
        self._first = self.last_epoch  # the step of the first update
        self._deliver()
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self._step_count = 1  # not used here; Accelerate counts in it
        self._watch()

    def _watch(self) -> None:
        """Learn of the optimiser's updates, and of states that are loaded into it."""
        if self._replaced:  # a copy of one that was replaced is replaced too
            return
        self.optimizer.register_step_pre_hook(_Begin(self))
        self.optimizer.register_step_post_hook(_Due(self))
        self.optimizer.register_load_state_dict_post_hook(_Redeliver(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._watch()  # a copied optimiser comes without hooks

    def step(self, epoch: None = None) -> None:  # type: ignore[override]
        """Move on by one update; the rate stays as it is if the optimiser has made none since the last call."""
        if epoch is not None:
            raise ValueError(f"step() takes no argument, it counts by itself; got {epoch!r} (load_state_dict sets it)")
        if self._due is False:
            return self._deliver()  # to groups that came since
        if self._due:
            self._due = False
        self.last_epoch = step = self.last_epoch + 1
        groups = self.optimizer.param_groups
        if groups is not self._seen or len(groups) != self._count:
            self._deliver()
        elif self._same is not None:
            rate = self._same(step, Scalars)
            for group in groups:
                group["lr"] = rate
        else:
            self._write(step)

    @property
    def schedule(self) -> Schedule | None:
        """The rate's schedule, or the last group's where each has its own: that of groups that come later."""
        return self._hyper["lr"][-1]

    def get_lr(self) -> list[Any]:
        """The rates in force, one per group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def get_last_lr(self) -> list[Any]:
        """The rates in force, one per group, as numbers."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """One integer: the steps made."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at a saved step; the rate in force is the schedule's at that step, at once."""
        step = state_dict.get("last_epoch")
        if not isinstance(step, int) or step < 0:
            raise ValueError(f"the state of a ScheduleLR is {{'last_epoch': steps made}}, got {state_dict!r}")
        self.last_epoch = self._first = step
        self._deliver()

    def _begin(self) -> None:
        """Before an update: the first one has the rate of its own step, and groups that are new have theirs."""
        if self._due is None and self.last_epoch != self._first:
            self.last_epoch = self._first
            self._deliver()
        elif len(self.optimizer.param_groups) != self._count:
            self._deliver()

    def _deliver(self) -> None:
        """Look at the groups as they are now, note who follows what, and write this step's values."""
        if self._replaced:
            raise ValueError("this optimiser has a newer ScheduleLR, which took over from this one; step that one only")
        groups = self._seen = self.optimizer.param_groups
        self._count = len(groups)
        self._followers: list[tuple[str, Schedule, list[Group]]] = []
        seen: set[int] = set()
        for group in groups:
            group.setdefault(OWN["lr"], float(group["lr"]))
            if id(group["lr"]) in seen and torch.is_tensor(group["lr"]):
                group["lr"] = group["lr"].clone()  # lr=torch.tensor(...) is one tensor for all groups
            seen.add(id(group["lr"]))
        for name, schedules in self._hyper.items():
            followers: dict[Schedule, list[Group]] = {}
            for index, group in enumerate(groups):
                schedule = schedules[min(index, len(schedules) - 1)]
                if schedule is not None and _follows(name, group):
                    followers.setdefault(schedule, []).append(group)
            self._followers += [(name, schedule, members) for schedule, members in followers.items()]
        plain = all(MULTIPLIER not in group and not torch.is_tensor(group["lr"]) for group in groups)
        alike = plain and len(self._hyper) == 1 and len(set(self._hyper["lr"])) == 1
        # The hot path: one number for every group, from the formula itself since the step is known to be right.
        self._same = self._hyper["lr"][0].formula if alike else None  # type: ignore[union-attr]
        self._write(self.last_epoch)

    def _write(self, step: int) -> None:
        for name, schedule, groups in self._followers:
            value = schedule(step)
            ended = name == "momentum" and schedule.end is not None and step >= schedule.end
            for group in groups:
                _put(name, group, group[OWN[name]] if ended else value)


class _Hook:
    """What an optimiser keeps of its scheduler: a weak reference, so that it does not keep the scheduler alive."""

    def __init__(self, scheduler: ScheduleLR) -> None:
        self._scheduler: Callable[[], ScheduleLR | None] = weakref.ref(scheduler)

    def retire(self) -> None:
        """Another ScheduleLR takes over: the old one hears of nothing more, writes nothing more, and says so."""
        scheduler = self._scheduler()
        if scheduler is not None:
            scheduler._replaced, scheduler._due = True, False  # with nothing due step() goes by way of _deliver
        self._scheduler = _nobody


def _nobody() -> None:
    """The reference of a hook that has served."""


class _Begin(_Hook):
    """Before the optimiser's update."""

    def __call__(self, *_: Any) -> None:
        scheduler = self._scheduler()
        if scheduler is not None:
            scheduler._begin()


class _Due(_Hook):
    """After the optimiser's update there is one to count."""

    def __call__(self, optimizer: Any, *_: Any) -> None:
        scheduler = self._scheduler()
        # A fused optimiser is called by a GradScaler in any case, and skips the update itself.
        if scheduler is not None and not getattr(optimizer, "found_inf", False):
            scheduler._due = True


class _Redeliver(_Hook):
    """After the optimiser's state was loaded, the rate in force is the schedule's again and not the saved one."""

    def __call__(self, optimizer: Optimizer) -> None:
        scheduler = self._scheduler()
        if scheduler is not None:
            scheduler._deliver()


def _hooks(optimizer: Optimizer) -> list[_Hook]:
    """By which an optimiser tells its ScheduleLR of what it does."""
    everything: tuple[Any, ...] = (
        *optimizer._optimizer_step_pre_hooks.values(),
        *optimizer._optimizer_step_post_hooks.values(),
        *optimizer._optimizer_load_state_dict_post_hooks.values(),
    )
    return [hook for hook in everything if isinstance(hook, _Hook)]


@contextmanager
def unheard(optimizers: Iterable[Optimizer]) -> Iterator[None]:
    """Their ScheduleLRs hear of no update meanwhile: those of a range test are not the training's."""
    kept = [(hook, hook._scheduler) for optimizer in optimizers for hook in _hooks(optimizer)]
    for hook, _ in kept:
        hook._scheduler = _nobody
    try:
        yield
    finally:
        for hook, scheduler in kept:
            hook._scheduler = scheduler


def set_rate(groups: Iterable[Group], lr: float) -> None:
    """A range test's rate, times each group's multiplier."""
    for group in groups:
        rate = lr * group.get(MULTIPLIER, 1.0)
        # Not in place: groups may share one tensor, and each has a multiplier of its own.
        group["lr"] = torch.full_like(group["lr"], rate) if torch.is_tensor(group["lr"]) else rate


def innermost(optimizer: Any) -> Any:
    """The optimiser that makes the updates, out of Accelerate's wrapper around it."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def _checked(name: str, given: Schedules, optimizer: Optimizer) -> list[Schedule | None]:
    """One schedule, or one per group."""
    schedules: list[Schedule | None] = list(given) if isinstance(given, Sequence) else [given]
    for schedule in schedules:
        if not (isinstance(schedule, Schedule) or (schedule is None and len(schedules) > 1)):
            raise TypeError(
                f"{name} must be a schedule such as cyclr.triangular(...), or one per group, got {schedule!r}"
            )
    groups = optimizer.param_groups
    if len(schedules) not in (1, len(groups)):
        raise ValueError(
            f"{name} must be one schedule or one for each of the {len(groups)} groups, got {len(schedules)}"
        )
    if not any(schedules):
        raise ValueError(f"{name} must be a schedule for one group at least, got {given!r}")
    if name == "momentum" and not any("momentum" in group or "betas" in group for group in groups):
        raise ValueError(f"{type(optimizer).__name__} has neither momentum nor betas; leave momentum=None")
    if name == "weight_decay" and not any("weight_decay" in group for group in groups):
        raise ValueError(f"{type(optimizer).__name__} has no weight decay; leave weight_decay=None")
    return schedules


def _follows(name: str, group: Group) -> bool:
    """Whether this group takes part; its own value is kept in the group, as torch keeps initial_lr: so it is known
    after a resume in mid-schedule."""
    if name == "momentum":
        group.setdefault(OWN[name], float(group["betas"][0] if "betas" in group else group["momentum"]))
    if name == "weight_decay":
        return bool(group.setdefault(OWN[name], float(group[name])))
    return True


def _put(name: str, group: Group, value: float) -> None:
    """Put a value into one group, in place where the group holds a tensor."""
    if name == "lr":
        value *= group.get(MULTIPLIER, 1.0)
    if name == "momentum" and "betas" in group:
        if torch.is_tensor(group["betas"][0]):
            group["betas"][0].fill_(value)
        else:
            group["betas"] = (value, *group["betas"][1:])
    elif torch.is_tensor(group[name]):
        group[name].fill_(value)
    else:
        group[name] = value
