"""ScheduleLR: every update uses exactly the schedule's rate, whatever happens to optimiser and scheduler on the way."""

import pytest
import torch

import cyclr
from cyclr.torch import ScheduleLR, range_test

CYCLES = cyclr.triangular2(base_lr=1e-3, max_lr=6e-3, stepsize=5)
STEPS = 3 * 10 + 1  # three cycles
ONE_CYCLE = cyclr.one_cycle(max_lr=0.1, total_steps=12)


def parameters(count=1):
    return [torch.nn.Parameter(torch.ones(3)) for _ in range(count)]


def train(optimizer, scheduler, steps, read=lambda group: group["lr"]):
    """What each group held at the moment of each update."""
    used = []
    hook = optimizer.register_step_pre_hook(lambda *_: used.append([read(group) for group in optimizer.param_groups]))
    for _ in range(steps):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        scheduler.step()
    hook.remove()
    return used


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.Rprop])
def test_every_update_uses_exactly_the_schedules_rate(make):
    optimizer = make(parameters(), lr=0.5)
    scheduler = ScheduleLR(optimizer, lr=CYCLES)
    assert train(optimizer, scheduler, STEPS) == [[CYCLES(step)] for step in range(STEPS)]
    assert scheduler.get_last_lr() == scheduler.get_lr() == [CYCLES(STEPS)]


def test_the_weights_are_those_of_a_hand_written_loop():
    (ours,), (theirs,) = parameters(), parameters()
    optimizer = torch.optim.SGD([ours], lr=9.0, momentum=0.9)
    train(optimizer, ScheduleLR(optimizer, lr=CYCLES), 20)
    by_hand = torch.optim.SGD([theirs], lr=9.0, momentum=0.9)
    for step in range(20):
        by_hand.param_groups[0]["lr"] = CYCLES(step)
        theirs.grad = torch.ones_like(theirs)
        by_hand.step()
    assert torch.equal(ours, theirs)


def test_it_is_a_torch_scheduler_and_leaves_the_optimisers_step_alone():
    optimizer = torch.optim.SGD(parameters(), lr=0.1)
    before = optimizer.step
    scheduler = ScheduleLR(optimizer, lr=CYCLES)
    assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
    assert "step" not in vars(optimizer)
    assert optimizer.step == before
    assert scheduler.base_lrs == [0.1]
    scheduler.step()  # before the first update, and with an optimiser patched later: no warning
    scheduler._step_count += 1  # Accelerate does, while gradients accumulate


def groups_of(*extras):
    return [{"params": parameters(), **extra} for extra in extras]


def test_one_schedule_per_group_none_leaves_a_group_alone_and_multipliers_scale():
    other = cyclr.fixed(0.25)
    optimizer = torch.optim.SGD(groups_of({}, {"lr": 7.0}, {"lr_multiplier": 0.1}), lr=0.5)
    scheduler = ScheduleLR(optimizer, lr=[CYCLES, None, other])
    assert train(optimizer, scheduler, 12) == [[CYCLES(step), 7.0, 0.25 * 0.1] for step in range(12)]

    optimizer = torch.optim.SGD(groups_of({}, {"lr_multiplier": 0.1}), lr=0.5)
    scheduler = ScheduleLR(optimizer, lr=CYCLES)
    assert train(optimizer, scheduler, 12) == [[CYCLES(step), 0.1 * CYCLES(step)] for step in range(12)]


@pytest.mark.parametrize("lr", [CYCLES, [cyclr.fixed(0.25), CYCLES]])
def test_a_group_added_on_the_way_follows_from_the_next_update(lr):
    optimizer = torch.optim.SGD(groups_of({}, {})[: 2 if isinstance(lr, list) else 1], lr=0.5)
    scheduler = ScheduleLR(optimizer, lr=lr)
    train(optimizer, scheduler, 3)
    optimizer.add_param_group({"params": parameters(), "lr_multiplier": 2.0})
    used = train(optimizer, scheduler, 10)
    assert [rates[-1] for rates in used] == [2.0 * CYCLES(step) for step in range(3, 13)]
    assert [rates[-2] for rates in used] == [CYCLES(step) for step in range(3, 13)]


def test_steps_without_an_update_do_not_count():
    """Accelerate's prepared schedulers step once per process; a loop that accumulates may step after every batch."""
    optimizer = torch.optim.SGD(parameters(), lr=0.1)
    scheduler = ScheduleLR(optimizer, lr=CYCLES)
    for made in range(1, 12):
        optimizer.step()
        for _ in range(4):
            scheduler.step()
            assert scheduler.last_epoch == made
            assert scheduler.get_last_lr() == [CYCLES(made)]


def test_a_look_ahead_without_an_optimisers_update_is_taken_back_by_the_first_one():
    optimizer = torch.optim.SGD(parameters(), lr=0.1)
    scheduler = ScheduleLR(optimizer, lr=CYCLES)
    for start in (0, 4):  # at the start of a run, and of one that goes on
        scheduler.load_state_dict({"last_epoch": start})
        for step in range(start, start + 12):
            assert scheduler.get_last_lr() == [CYCLES(step)]
            scheduler.step()
    assert train(optimizer, scheduler, STEPS) == [[CYCLES(step)] for step in range(4, 4 + STEPS)]


@pytest.mark.parametrize("accumulation", [2, 5])
def test_batches_that_accumulate_before_the_first_update_do_not_count(accumulation):
    optimizer = torch.optim.SGD(parameters(), lr=0.1)
    scheduler, used = ScheduleLR(optimizer, lr=CYCLES), []
    optimizer.register_step_pre_hook(lambda *_: used.append(optimizer.param_groups[0]["lr"]))
    for batch in range(1, 20 * accumulation + 1):
        if batch % accumulation == 0:
            optimizer.step()
        scheduler.step()
    assert used == [CYCLES(step) for step in range(20)]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("first", [True, False])
def test_updates_that_a_scaler_skips_do_not_count(first, fused):
    (weight,) = parameters()
    optimizer = torch.optim.SGD([weight], lr=0.1, fused=fused)
    scheduler, used = ScheduleLR(optimizer, lr=CYCLES), []
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for overflow in (first, True, False, True, True, False, True, False):
        optimizer.zero_grad()
        before = weight.detach().clone()
        scaler.scale(weight.sum() * (float("inf") if overflow else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        if not overflow:
            used.append(float((before - weight.detach())[0]))
    assert used == pytest.approx([CYCLES(step) for step in range(len(used))], rel=1e-3)
    assert scheduler.last_epoch == len(used)


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_range_tests_updates_are_not_the_trainings(ahead):
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler, used = ScheduleLR(optimizer, lr=CYCLES), []
    for _ in range(ahead):  # batches that accumulate, say
        scheduler.step()
    hook = optimizer.register_step_pre_hook(lambda *_: used.append(optimizer.param_groups[0]["lr"]))
    before = scheduler.last_epoch, scheduler._due
    curve = range_test(model, optimizer, lambda x, y: x.sum(), [(torch.ones(2, 3),) * 2], ramp=cyclr.ramp(0.1, 0.2, 5))
    hook.remove()
    assert used == list(curve.lrs)
    assert (scheduler.last_epoch, scheduler._due) == before
    for batch in range(2, 41):  # one was seen before
        if batch % 2 == 0:
            used += train(optimizer, scheduler, 1)[0]
        else:
            scheduler.step()
    assert used[5:] == [CYCLES(step) for step in range(20)]


def test_it_follows_the_optimiser_inside_accelerates_wrapper():
    optimizer = torch.optim.SGD(parameters(), lr=0.1)
    wrapped = pytest.importorskip("accelerate").Accelerator(cpu=True).prepare(optimizer)
    scheduler = ScheduleLR(wrapped, lr=CYCLES)
    for made in range(5):
        assert wrapped.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == CYCLES(made)
        wrapped.step()
        scheduler.step()
        scheduler.step()


def test_weight_decay_follows_too_but_not_where_it_is_0_and_a_schedule_through_0_comes_back():
    schedule = cyclr.triangular(0.0, 1e-2, stepsize=3)

    def make():
        return torch.optim.AdamW(groups_of({}, {"weight_decay": 0.0}), lr=0.1, weight_decay=0.05)

    optimizer = make()
    scheduler = ScheduleLR(optimizer, lr=CYCLES, weight_decay=schedule)
    used = train(optimizer, scheduler, 6, lambda group: group["weight_decay"])  # the schedule is at 0 again
    state = optimizer.state_dict()
    optimizer = make()
    optimizer.load_state_dict(state)
    resumed = ScheduleLR(optimizer, lr=CYCLES, weight_decay=schedule)
    resumed.load_state_dict(scheduler.state_dict())
    used += train(optimizer, resumed, 6, lambda group: group["weight_decay"])
    assert used == [[schedule(step), 0.0] for step in range(12)]


class Compilations:
    """A torch.compile backend that counts."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


def test_tensors_are_filled_in_place_so_a_compiled_step_is_compiled_once():
    torch._dynamo.reset()
    weight = torch.nn.Parameter(torch.ones(3))
    rate, betas = torch.tensor(0.5, dtype=torch.float64), torch.tensor([0.9, 0.99], dtype=torch.float64).split(1)
    optimizer = torch.optim.Adam([weight], lr=rate, betas=tuple(betas), foreach=False)
    beta = optimizer.param_groups[0]["betas"][0]
    scheduler = ScheduleLR(optimizer, lr=CYCLES, momentum=CYCLES.opposite(0.85, 0.95))
    backend, used = Compilations(), []
    step = torch.compile(optimizer.step, backend=backend)
    weight.grad = torch.ones_like(weight)
    counts = []
    for _ in range(8):
        used.append((float(rate), float(beta)))
        step()
        scheduler.step()
        counts.append(backend.count)
    torch._dynamo.reset()
    assert optimizer.param_groups[0]["lr"] is rate
    assert optimizer.param_groups[0]["betas"][0] is beta
    assert used == [(CYCLES(step), CYCLES.opposite(0.85, 0.95)(step)) for step in range(8)]
    assert counts[0] > 0
    assert counts[-1] == counts[1]  # the first update makes the state, the second is compiled with it


@pytest.mark.parametrize("enabled", [False, True])
def test_works_under_a_grad_scaler(enabled):
    (weight,) = parameters()
    optimizer = torch.optim.SGD([weight], lr=0.5)
    scheduler = ScheduleLR(optimizer, lr=CYCLES)
    scaler = torch.amp.GradScaler("cpu", enabled=enabled, init_scale=8.0)
    used = []
    for _ in range(6):
        optimizer.zero_grad()
        before = weight.detach().clone()
        scaler.scale(weight.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        used.append(float((before - weight.detach())[0]))
    torch.testing.assert_close(torch.tensor(used), torch.tensor([CYCLES(step) for step in range(6)]), rtol=1e-3, atol=0)


def test_wrong_input_is_refused_with_a_sentence():
    sgd = torch.optim.SGD(groups_of({}, {}), lr=0.1)
    for arguments, kind, sentence in [
        ((None, CYCLES), TypeError, "optimizer must be a torch optimiser, got NoneType"),
        ((sgd, 0.1), TypeError, r"lr must be a schedule such as cyclr.triangular\(...\), or one per group, got 0.1"),
        ((sgd, None), TypeError, "lr must be a schedule"),
        ((sgd, [CYCLES] * 3), ValueError, "lr must be one schedule or one for each of the 2 groups, got 3"),
        ((sgd, []), ValueError, "for each of the 2 groups, got 0"),
        ((sgd, CYCLES, 0.9), TypeError, "momentum must be a schedule"),
        ((torch.optim.Adagrad(parameters()), CYCLES, CYCLES), ValueError, "Adagrad has neither momentum nor betas"),
        ((torch.optim.Rprop(parameters()), CYCLES, None, CYCLES), ValueError, "Rprop has no weight decay"),
    ]:
        with pytest.raises(kind, match=sentence):
            ScheduleLR(*arguments)
    scheduler = ScheduleLR(sgd, lr=CYCLES)
    with pytest.raises(ValueError, match=r"step\(\) takes no argument, it counts by itself; got 3"):
        scheduler.step(3)
    for state in ({}, {"last_epoch": -1}, {"last_epoch": 2.0}):
        with pytest.raises(ValueError, match=r"the state of a ScheduleLR is \{'last_epoch': steps made\}, got \{"):
            scheduler.load_state_dict(state)


def test_groups_that_share_one_tensor_rate_get_each_their_own():
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr_multiplier": factor} for factor in (1.0, 10.0)]
    optimizer = torch.optim.SGD(groups, lr=torch.tensor(0.1))
    ScheduleLR(optimizer, cyclr.fixed(0.1))
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.1, 1.0])


def test_a_momentum_of_stages_goes_on_past_their_length():
    schedule = cyclr.stages((cyclr.fixed(0.95), 4), (cyclr.triangular(0.1, 1.0, 2).opposite(0.85, 0.95), 4))
    optimizer = torch.optim.SGD(parameters(), lr=0.1, momentum=0.5)
    scheduler = ScheduleLR(optimizer, lr=CYCLES, momentum=schedule)
    used = train(optimizer, scheduler, 16, lambda group: group["momentum"])
    assert used == [[schedule(step)] for step in range(16)]


def test_some_group_must_have_a_schedule():
    optimizer = torch.optim.SGD([{"params": each} for each in parameters(2)], lr=0.1)
    with pytest.raises(ValueError, match=r"lr must be a schedule for one group at least, got \[None, None\]"):
        ScheduleLR(optimizer, lr=[None, None])
