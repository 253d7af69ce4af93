"""ScheduleLR saved, loaded, copied and replaced: the rates that follow are those of a run that was not."""

import copy
import itertools
import pickle

import pytest
import torch

import cyclr
from cyclr.torch import ScheduleLR
from test_torch_scheduler import CYCLES, ONE_CYCLE, parameters, train


@pytest.mark.parametrize("again", [copy.deepcopy, lambda scheduler: pickle.loads(pickle.dumps(scheduler))])
def test_a_copy_counts_the_updates_of_its_own_optimiser(again):
    original = ScheduleLR(torch.optim.SGD(parameters(), lr=0.1), lr=CYCLES)
    train(original.optimizer, original, 3)
    copied = again(original)
    assert train(copied.optimizer, copied, 5) == [[CYCLES(step)] for step in range(3, 8)]
    copied.step()
    assert (copied.last_epoch, original.last_epoch) == (8, 3)


def test_the_state_is_one_integer_and_can_be_loaded_twice():
    optimizer = torch.optim.SGD(parameters(), lr=0.1, momentum=0.9)
    scheduler = ScheduleLR(optimizer, lr=CYCLES, momentum=CYCLES.opposite(0.8, 0.9))
    train(optimizer, scheduler, 7)
    state = scheduler.state_dict()
    assert state == pickle.loads(pickle.dumps(state)) == {"last_epoch": 7}
    scheduler.step()
    for _ in range(2):
        scheduler.load_state_dict(state)
        assert optimizer.param_groups[0]["lr"] == CYCLES(7)
    assert state == {"last_epoch": 7}
    for kept in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert train(kept.optimizer, kept, 5) == [[CYCLES(step)] for step in range(7, 12)]
    assert optimizer.param_groups[0]["lr"] == CYCLES(7)


def resumed(order, make, state, lr, momentum):
    """A new process: construct the scheduler, load its state and the optimiser's, in the order given."""
    optimizer = make()
    schedulers = []
    for action in order:
        if action == "construct":
            schedulers.append(ScheduleLR(optimizer, lr=lr, momentum=momentum))
        elif action == "optimizer":
            optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        else:
            schedulers[0].load_state_dict(state["scheduler"])
    return optimizer, schedulers[0]


ORDERS = [
    order
    for order in itertools.permutations(["construct", "optimizer", "scheduler"])
    if order.index("construct") < order.index("scheduler")
]


def own_momentum(group):
    return group["lr"], group["betas"][0] if "betas" in group else group["momentum"]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize("longer", [False, True], ids=["same", "longer"])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_resumed_run_uses_the_same_rates_in_every_order_of_loading(order, longer, kind):
    def make():
        if kind == "sgd":
            return torch.optim.SGD(parameters(), lr=0.3, momentum=0.93)
        return torch.optim.Adam(parameters(), lr=0.3, betas=(0.93, 0.98))

    momentum = ONE_CYCLE.opposite(0.85, 0.95)
    optimizer = make()
    scheduler = ScheduleLR(optimizer, lr=ONE_CYCLE, momentum=momentum)
    train(optimizer, scheduler, 5)
    state = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    lr = cyclr.one_cycle(max_lr=0.1, total_steps=30) if longer else ONE_CYCLE
    momentum = lr.opposite(0.85, 0.95)
    optimizer, scheduler = resumed(order, make, state, lr, momentum)
    used = [rates for (rates,) in train(optimizer, scheduler, lr.end, own_momentum)]
    assert used == [(lr(step), 0.93 if step >= lr.end else momentum(step)) for step in range(5, 5 + lr.end)]
    if kind == "adam":
        assert optimizer.param_groups[0]["betas"] == (0.93, 0.98)


def test_the_optimiser_does_not_keep_a_scheduler_alive():
    optimizer = torch.optim.SGD(parameters(), lr=0.5)
    scheduler = ScheduleLR(optimizer, lr=CYCLES)
    state = copy.deepcopy(optimizer.state_dict())
    del scheduler
    state["param_groups"][0]["lr"] = 0.125
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_a_new_scheduler_takes_over_and_the_old_one_says_so_before_it_changes_anything():
    optimizer = torch.optim.SGD(parameters(), lr=0.1)
    old = ScheduleLR(optimizer, lr=CYCLES)
    train(optimizer, old, 3)
    state = copy.deepcopy(optimizer.state_dict())
    new = ScheduleLR(optimizer, lr=ONE_CYCLE)
    assert train(optimizer, new, 3) == [[ONE_CYCLE(step)] for step in range(3)]
    for _ in range(2):
        with pytest.raises(ValueError, match="has a newer ScheduleLR"):
            old.step()
    assert (old.last_epoch, new.last_epoch) == (3, 3)
    again, *_ = copy.deepcopy((optimizer, old, new))
    again.load_state_dict(optimizer.state_dict())  # the old one's copy hears of nothing either
    assert optimizer.param_groups[0]["lr"] == ONE_CYCLE(3)
    optimizer.load_state_dict(state)  # told to the new one alone
    assert optimizer.param_groups[0]["lr"] == ONE_CYCLE(3)


def test_an_optimiser_with_a_scheduler_of_torchs_is_refused_and_left_alone():
    optimizer = torch.optim.SGD(parameters(), lr=0.1)
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    before = repr(optimizer.param_groups)
    with pytest.raises(ValueError, match=r"SGD already has a torch scheduler.*make the optimiser anew"):
        ScheduleLR(optimizer, lr=CYCLES)
    assert repr(optimizer.param_groups) == before
    optimizer.step()
    theirs.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_a_copy_made_between_an_update_and_its_step_counts_that_update():
    original = ScheduleLR(torch.optim.SGD(parameters(), lr=0.1), lr=CYCLES)
    train(original.optimizer, original, 3)
    for parameter in original.optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    original.optimizer.step()
    copied = copy.deepcopy(original)
    copied.step()
    assert train(copied.optimizer, copied, 3) == [[CYCLES(step)] for step in range(4, 7)]
