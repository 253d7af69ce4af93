"""Captured updates: computed ones' bits on a CPU, close to them as a graph on a GPU; the capture leaves no trace."""

import copy
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

import cyclr
from cyclr.lab import train
from cyclr.lab.captured import OPTIMIZERS, CapturedUpdates, _on_the_device, _undone, can_be_captured
from cyclr.lab.checkpoint import load_checkpoint, save_checkpoint
from cyclr.lab.run import Run
from cyclr.lab.tasks.cifar10_caffe import CaffeNet, caffe_sgd
from tiny_task import make, net, points, sgd

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="a graph needs a GPU")
SCHEDULE = cyclr.triangular(0.02, 0.2, stepsize=30)


def groups(model):
    """As in the paper's net: the biases have twice the rate."""
    weights = [each for each in model.parameters() if each.ndim == 2]
    biases = [each for each in model.parameters() if each.ndim == 1]
    return torch.optim.SGD(
        [{"params": weights, "weight_decay": 0.01}, {"params": biases, "lr_multiplier": 2.0}], lr=0.1, momentum=0.9
    )


def weights(folder):
    (path,) = (folder / "weights").iterdir()
    return load_file(path)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.1)


class Stopped(Exception):
    pass


def stop(done, *_):
    if done >= 90:
        raise Stopped


@pytest.mark.parametrize("optimizer", [sgd, groups, adamw])
def test_captured_updates_have_the_bits_of_computed_ones(optimizer, tmp_path, monkeypatch):
    task = make(optimizer=optimizer, capturable=True)
    computed = train(task, SCHEDULE, 130, tmp_path / "computed")
    monkeypatch.setattr(Run, "_capturable", lambda run: True)
    # Stopped on its way, it goes on with the same bits too.
    with pytest.raises(Stopped):
        train(task, SCHEDULE, 130, tmp_path / "captured", checkpoint_seconds=0, progress=stop)
    captured = train(task, SCHEDULE, 130, tmp_path / "captured")
    losses = [[point["loss"] for point in record["result"]["history"]] for record in (captured, computed)]
    assert losses[0] == pytest.approx(losses[1])
    before, after = weights(tmp_path / "computed"), weights(tmp_path / "captured")
    if optimizer is adamw:  # which corrects its bias in the rate's precision, here single
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    else:
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_loss_that_comes_back_is_the_mean_of_these_updates():
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def backward(x, y):
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        return loss

    batches = [(torch.full((4, 2), float(k)), torch.zeros(4, 1)) for k in range(3)]
    captured = CapturedUpdates(model, optimizer, backward, batches[0], 10)
    expected = sum(float(((model(x) - y) ** 2).mean().detach()) for x, y in batches) / 3
    assert captured(batches, [[0.0]] * 3) == pytest.approx(expected)
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_what_came_before_the_capture_is_undone_in_place():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def update():
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()

    before = copy.deepcopy(model.state_dict())
    with _undone(model, optimizer):
        update()
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    buffers = [state["momentum_buffer"] for state in optimizer.state.values()]
    assert len(buffers) == 4
    assert not any(each.any() for each in buffers)  # as new
    update()
    kept = [each.clone() for each in buffers]
    with _undone(model, optimizer):
        update()
    assert all(map(torch.equal, kept, buffers))
    assert kept[0].any()


def test_a_checkpoint_s_state_gets_the_memory_format_of_its_weights():
    weight = torch.nn.Parameter(torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    state = optimizer.state[weight]
    before = {name: each.clone() for name, each in state.items()}
    state["exp_avg"] = state["exp_avg"].contiguous()
    _on_the_device(optimizer)
    assert state["exp_avg"].stride() == weight.stride()
    assert all(torch.equal(state[name], each) for name, each in before.items())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimiser_that_is_captured_begins_as_if_nothing_had_come_before(kind):
    changed = []
    for undone in (False, True):
        torch.manual_seed(0)
        model = net()[0]
        optimizer = kind(model.parameters(), lr=0.01)

        def update(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            model(torch.ones(4, 6)).square().mean().backward()
            optimizer.step()

        assert can_be_captured(optimizer)
        if undone:
            with _undone(model, optimizer):
                update()
        for _ in range(3):
            update()
        changed.append(model.weight.detach())
    assert torch.equal(*changed)


def test_no_other_optimiser_is_captured():
    """The new state of these is more than zeros, or their update needs the rate's value."""
    parameters = list(net().parameters())
    for kind in (torch.optim.NAdam, torch.optim.ASGD, torch.optim.Rprop, torch.optim.Adagrad):
        assert not can_be_captured(kind(parameters, lr=0.1))
    assert not can_be_captured(torch.optim.SGD(parameters, lr=0.1, momentum=0.9, dampening=0.5))


@pytest.mark.parametrize(
    ("changes", "config"),
    [
        ({}, {"accumulation": 2}),
        ({}, {"precision": "fp16"}),
        ({"capturable": False}, {}),
        ({"train": TensorDataset(*points())}, {}),
        ({"optimizer": lambda model: torch.optim.Adagrad(model.parameters(), lr=0.1)}, {}),
    ],
)
def test_what_cannot_be_replayed_is_computed(changes, config):
    def capturable(changes, config):
        run = Run.__new__(Run)
        run.task = make(**{"capturable": True, **changes})
        run.config = {"accumulation": 1, "precision": "no", **config}
        run.machine = SimpleNamespace(device=torch.device("cuda"))
        _, run.plain_optimizer = run.task.build(0)
        return run._capturable()

    assert capturable({}, {})
    assert not capturable(changes, config)


def test_a_run_that_has_ended_holds_no_memory(tmp_path, monkeypatch):
    ended = []
    finish = Run.finish
    monkeypatch.setattr(Run, "_capturable", lambda run: True)
    monkeypatch.setattr(Run, "finish", lambda run: (ended.append(weakref.ref(run.captured)), finish(run))[1])
    train(make(capturable=True), SCHEDULE, 60, tmp_path, seed=0)  # in a process's first run torch makes a cycle
    gc.collect()
    gc.disable()
    try:
        train(make(capturable=True), SCHEDULE, 60, tmp_path, seed=2)
        assert ended[-1]() is None
    finally:
        gc.enable()


def test_a_run_captured_elsewhere_goes_on_where_nothing_can_be(tmp_path):
    """How an optimiser computes is the machine's, and stays out of what a checkpoint brings."""
    task = make(optimizer=lambda model: torch.optim.RMSprop(model.parameters(), lr=0.01))
    model, optimizer = task.build(0)
    _on_the_device(optimizer)
    path, config = tmp_path / "a.safetensors", {"task": "tiny"}
    save_checkpoint(path, config, {"step": 1}, model, optimizer)
    model, optimizer = task.build(0)
    load_checkpoint(path, config, model, optimizer)
    task.loss(model(task.train[0][:20]), task.train[1][:20]).backward()
    optimizer.step()
    assert not optimizer.param_groups[0]["capturable"]


@GPU
@pytest.mark.parametrize("optimizer", [sgd, groups, adamw])
def test_a_graph_trains_as_computed_updates_do(optimizer, tmp_path):
    # Without a bias before the normalisation: its gradient is nothing but rounding, which AdamW makes as large as any.
    first, last = torch.nn.Linear(6, 16, bias=False), torch.nn.Linear(16, 2)
    plain = torch.nn.Sequential(first, torch.nn.BatchNorm1d(16), torch.nn.ReLU(), last)
    found = []
    for capturable in (False, True):
        task = make(optimizer=optimizer, model=lambda: copy.deepcopy(plain), capturable=capturable)
        with pytest.raises(Stopped):
            train(task, SCHEDULE, 130, tmp_path / str(capturable), checkpoint_seconds=0, progress=stop)
        train(task, SCHEDULE, 130, tmp_path / str(capturable))
        found.append(weights(tmp_path / str(capturable)))
    for name, each in found[0].items():
        torch.testing.assert_close(found[1][name], each, rtol=1e-4, atol=1e-5)


@GPU
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in what torch's compiler imports
def test_the_papers_net_in_bf16_is_trained_by_a_graph_as_without(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x, y = 60.0 * torch.randn(500, 3, 32, 32, generator=generator), torch.randint(10, (500,), generator=generator)
    losses = []
    for capturable in (False, True):
        task = make(
            model=CaffeNet, optimizer=caffe_sgd, train=(x, y), validation=None, test=(x[:100], y[:100]),
            batch_size=100, precision="bf16", capturable=capturable,
        )  # fmt: skip
        record = train(task, cyclr.fixed(0.001), 120, tmp_path / str(capturable), evaluate_at=[60, 120])
        losses.append([point["loss"] for point in record["result"]["history"]])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@GPU
def test_a_graph_draws_new_dropout_in_each_update(tmp_path):
    model = torch.nn.Dropout(0.5).cuda()
    weight = torch.nn.Parameter(torch.ones(1, device="cuda"))
    seen = torch.zeros(50, 64, device="cuda")

    def backward(x, y):
        dropped = model(x) * weight
        seen.index_copy_(0, captured_row(), dropped.detach()[:1])
        loss = dropped.mean()
        loss.backward()
        return loss

    row = torch.zeros(1, dtype=torch.int64, device="cuda")

    def captured_row():
        row.add_(1).remainder_(50)
        return row

    ones = torch.ones(1, 64, device="cuda"), torch.zeros(1, device="cuda")
    captured = CapturedUpdates(model, torch.optim.SGD([weight], lr=0.0), backward, ones, 10)
    captured([ones] * 10, [[0.0]] * 10)
    drawn = seen[(seen != 0).any(1)]
    assert len(drawn) >= 10
    assert len(drawn.unique(dim=0)) >= 10
