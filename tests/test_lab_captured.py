"""Captured updates: the same bits as computed ones; what the capture itself did is undone. The graph needs a GPU."""

import copy

import pytest
import torch
from safetensors.torch import load_file

import cyclr
from cyclr.lab import train
from cyclr.lab.captured import CapturedUpdates, _on_the_device, _undone, can_be_captured
from cyclr.lab.run import Run
from tiny_task import make, net, sgd

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


def test_only_what_torch_can_capture_is():
    parameters = list(net().parameters())
    assert can_be_captured(torch.optim.SGD(parameters, lr=0.1))
    assert can_be_captured(torch.optim.Adam(parameters))
    assert not can_be_captured(torch.optim.Adagrad(parameters))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a graph needs a GPU")
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
