"""The torch range test: real updates at the ramp's rates, and afterwards a run that never had one."""

import math
import random
from collections import UserDict

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import cyclr
from cyclr.torch import RestoreError, range_test
from cyclr.torch.batches import on_device

RAMP = cyclr.ramp(0.0, 0.1, 12)
LOG = cyclr.ramp(1e-5, 1.0, 30, "log")

torch.manual_seed(0)
X, Y = torch.randn(32, 4), torch.randint(3, (32,))


@pytest.fixture(autouse=True)
def _one_thread_and_the_same_start():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def shuffled(**options):
    return DataLoader(TensorDataset(X, Y), 8, shuffle=True, generator=torch.Generator().manual_seed(3), **options)


def bits(thing):
    """Everything in a state_dict as text."""
    torch.set_printoptions(profile="full", precision=20)
    text = repr(thing.state_dict())
    torch.set_printoptions(profile="default")
    return text


def train(net, optimizer, loader, epochs=2):
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            optimizer.step()
    return bits(net)


def used_rates(optimizer):
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append([float(group["lr"]) for group in optimizer.param_groups]))
    return seen


def failing(error, after):
    calls = []

    def loss(output, y):
        calls.append(1)
        if len(calls) > after:
            raise error
        return cross_entropy(output, y)

    return loss


def nan_after(updates):
    calls = []

    def loss(output, y):
        calls.append(1)
        return cross_entropy(output, y) * (math.nan if len(calls) > updates else 1.0)

    return loss


MAKERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
}
ENDS = {
    "normal": lambda: cross_entropy,
    "exception": lambda: failing(OSError("disk full"), 5),
    "ctrl-c": lambda: failing(KeyboardInterrupt(), 5),
    "nan": lambda: nan_after(5),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("warm", [0, 1], ids=["fresh", "warm"])
@pytest.mark.parametrize("kind", MAKERS)
def test_training_afterwards_is_bit_for_bit_that_of_a_run_without_a_range_test(kind, warm, end):
    weights = []
    for tested in (True, False):
        torch.manual_seed(1)
        net, loader = network(), shuffled()
        optimizer = MAKERS[kind](net.parameters())
        train(net, optimizer, loader, warm)
        before = bits(net) + bits(optimizer)
        if tested:
            try:
                range_test(net, optimizer, ENDS[end](), loader, ramp=LOG)
            except (OSError, KeyboardInterrupt):
                assert end in ("exception", "ctrl-c")
            assert bits(net) + bits(optimizer) == before
            assert all((p.grad is None) == (warm == 0) for p in net.parameters())
        weights.append(train(net, optimizer, loader))
    assert weights[0] == weights[1]


def test_exceptions_are_passed_on():
    for error in (OSError("disk full"), KeyboardInterrupt()):
        net = network()
        with pytest.raises(type(error)):
            range_test(net, MAKERS["sgd"](net.parameters()), failing(error, 3), shuffled(), ramp=RAMP)


def test_every_update_is_made_at_the_ramps_rate_with_each_groups_multiplier():
    net = network()
    tensor_rate = torch.tensor(0.5, dtype=torch.float64)
    groups = [{"params": net[0].parameters()}, {"params": net[4].parameters(), "lr_multiplier": 0.1}]
    first = torch.optim.SGD(groups, lr=0.05)
    second = torch.optim.Adam(net[1].parameters(), lr=tensor_rate)
    seen = [used_rates(first), used_rates(second)]
    curve = range_test(net, [first, second], cross_entropy, shuffled(), ramp=RAMP)
    assert seen[0] == [[RAMP(step), 0.1 * RAMP(step)] for step in range(12)]
    assert seen[1] == [[RAMP(step)] for step in range(12)]
    assert curve.lrs.tolist() == [RAMP(step) for step in range(12)]
    assert [group["lr"] for group in first.param_groups] == [0.05, 0.05]
    assert second.param_groups[0]["lr"] is tensor_rate
    assert float(tensor_rate) == 0.5


def test_a_value_is_the_loss_on_the_updates_own_batch_before_it():
    net = nn.Linear(4, 3)
    by_hand = nn.Linear(4, 3)
    by_hand.load_state_dict(net.state_dict())
    batches = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 32, 8)]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
    curve = range_test(net, optimizer, cross_entropy, batches, ramp=RAMP, metric="accuracy", meta={"batch": 8})
    theirs = torch.optim.SGD(by_hand.parameters(), lr=0.3, momentum=0.9)
    for step in range(12):
        x, y = batches[step % 4]
        output = by_hand(x)
        loss = cross_entropy(output, y)
        assert curve.of("loss").values[step] == loss.item()
        assert curve.values[step] == pytest.approx((output.argmax(1) == y).float().mean().item(), rel=1e-6)
        theirs.param_groups[0]["lr"] = RAMP(step)
        theirs.zero_grad()
        loss.backward()
        theirs.step()
    assert (curve.metric, curve.goal, curve.measured) == ("accuracy", "max", "before")
    assert curve.meta["batch"] == 8
    assert len(curve.meta["state_checksum"]) == 64


def test_with_accumulation_a_point_is_a_real_update_over_the_mean_of_its_batches():
    whole, parts = nn.Linear(4, 3), nn.Linear(4, 3)
    parts.load_state_dict(whole.state_dict())
    curves, updates = [], []
    for net, size, accumulation in ((whole, 32, 1), (parts, 8, 4)):
        batches = [(X[i : i + size], Y[i : i + size]) for i in range(0, 32, size)]
        optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
        updates.append(used_rates(optimizer))
        curves.append(range_test(net, optimizer, cross_entropy, batches, ramp=RAMP, accumulation=accumulation))
    assert len(updates[0]) == len(updates[1]) == len(curves[1]) == 12
    assert curves[1].values == pytest.approx(curves[0].values, rel=1e-5)


def test_batch_loss_serves_any_batch_and_any_metric():
    net = network()
    loader = [{"input": (X[:8], None), "target": Y[:8]}, {"input": (X[8:], None), "target": Y[8:]}]

    def batch_loss(model, batch):
        loss = cross_entropy(model(batch["input"][0]), batch["target"])
        return loss, {"perplexity": loss.detach().exp()}

    optimizer = MAKERS["adam"](net.parameters())
    curve = range_test(net, optimizer, None, loader, batch_loss=batch_loss, ramp=RAMP, metric="perplexity")
    assert curve.values == pytest.approx([math.exp(value) for value in curve.of("loss").values], rel=1e-5)
    assert [each.metric for each in curve.companions] == ["loss"]


@pytest.mark.parametrize("scaler", [None, torch.amp.GradScaler("cpu", init_scale=1024.0)])
def test_gradients_are_clipped_as_the_user_clips_them(scaler):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    norms = []

    def norm():
        return torch.cat([parameter.grad.reshape(-1) for parameter in net.parameters()]).norm().item()

    def clip():
        assert norm() < 100  # unscaled
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1e-3)

    optimizer.register_step_pre_hook(lambda *_: norms.append(norm()))
    range_test(net, optimizer, cross_entropy, shuffled(), ramp=RAMP, clip=clip, scaler=scaler)
    assert norms == pytest.approx([1e-3] * RAMP.steps, rel=1e-3)


def test_updates_that_a_scaler_skips_are_no_points_and_the_scaler_is_as_it_was():
    net = network()
    optimizer = MAKERS["sgd"](net.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    made, before, calls = used_rates(optimizer), scaler.state_dict(), []

    def overflowing(output, y):
        calls.append(1)
        return cross_entropy(output, y) * (math.inf if len(calls) % 4 == 2 else 1.0)

    curve = range_test(net, optimizer, overflowing, shuffled(), ramp=RAMP, scaler=scaler)
    assert made == [[RAMP(step)] for step in range(12)]
    assert (len(curve), curve.stopped) == (12, None)
    assert len(calls) == 16
    assert max(curve.values) < 100
    assert scaler.state_dict() == before

    curve = range_test(net, optimizer, lambda output, y: output.sum() * math.inf, shuffled(), ramp=RAMP, scaler=scaler)
    assert (len(curve), curve.stopped) == (0, "non-finite")
    assert scaler.state_dict() == before


def test_nan_ends_the_curve_before_it_and_inf_does():
    net = network()
    for factor in (math.nan, math.inf):
        calls = []

        def loss(output, y, calls=calls, factor=factor):
            calls.append(1)
            return cross_entropy(output, y) * (factor if len(calls) == 6 else 1.0)

        curve = range_test(net, MAKERS["sgd"](net.parameters()), loss, shuffled(), ramp=RAMP)
        assert (len(curve), curve.stopped, curve.stopped_at) == (5, "non-finite", RAMP(5))


def test_validation_is_the_curve_it_is_measured_in_eval_mode_and_modes_stay():
    net = network()
    net[1].eval()
    modes, seen = [module.training for module in net.modules()], []

    def validate():
        seen.append((any(module.training for module in net.modules()), torch.is_grad_enabled()))
        return float((net(X).argmax(1) == Y).float().mean())

    def batch_loss(model, batch):  # with no accuracy of its own
        assert [module.training for module in model.modules()] == modes
        return cross_entropy(model(batch[0]), batch[1])

    optimizer = MAKERS["sgd"](net.parameters())
    curve = range_test(
        net, optimizer, None, shuffled(), batch_loss=batch_loss, ramp=RAMP, validate=validate, validate_every=3
    )
    assert (curve.metric, curve.measured, curve.steps.tolist()) == ("validation accuracy", "after", [2, 5, 8, 11])
    assert seen == [(False, False)] * 4
    assert [module.training for module in net.modules()] == modes
    assert len(curve.of("loss")) == 12


def test_the_default_ramp_starts_every_pass_from_the_same_state_and_data():
    net = network()
    optimizer, loader = MAKERS["sgd"](net.parameters()), shuffled()
    first = range_test(net, optimizer, cross_entropy, loader, steps=40)
    again = range_test(net, optimizer, cross_entropy, loader, steps=40)
    assert first == again
    direct = range_test(net, optimizer, cross_entropy, loader, ramp=cyclr.ramp(0.0, first.ramp["end_lr"], 40))
    assert direct.values.tolist() == first.values.tolist()


def test_what_batches_change_elsewhere_is_restored_where_it_is_named():
    net, own = network(), random.Random(7)
    average = torch.optim.swa_utils.AveragedModel(net)
    before = (own.getstate(), bits(average), random.getstate())

    def batch_loss(model, batch):
        own.random()
        random.random()
        average.update_parameters(model)
        return cross_entropy(model(batch[0]), batch[1])

    optimizer = MAKERS["sgd"](net.parameters())
    range_test(net, optimizer, None, shuffled(), batch_loss=batch_loss, ramp=RAMP, also=[own, average])
    assert (own.getstate(), bits(average), random.getstate()) == before


def test_a_scheduler_on_the_same_optimiser_goes_on_where_it_was():
    net = network()
    optimizer = MAKERS["sgd"](net.parameters())
    schedule = cyclr.triangular(0.1, 0.5, stepsize=4)
    scheduler = cyclr.torch.ScheduleLR(optimizer, lr=schedule)
    scheduler.step()
    range_test(net, optimizer, cross_entropy, shuffled(), ramp=RAMP)
    assert optimizer.param_groups[0]["lr"] == schedule(1)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == schedule(2)


def test_workers_that_persist_stay_those_of_the_user_who_is_in_the_middle_of_an_epoch():
    seen = []
    for tested in (True, False):
        net = nn.Linear(4, 3)
        # Spawned, since another test of this process may have loaded JAX, whose threads don't bear a fork.
        loader = shuffled(num_workers=1, persistent_workers=True, multiprocessing_context="spawn")
        epoch = iter(loader)
        batches = [next(epoch)[1].tolist()]
        workers = epoch._workers
        if tested:
            range_test(net, MAKERS["sgd"](net.parameters()), cross_entropy, loader, ramp=RAMP)
        batches += [y.tolist() for _, y in epoch]
        assert loader._iterator._workers is workers
        assert workers[0].is_alive()
        seen.append(batches + [y.tolist() for _, y in loader])
    assert len(seen[1]) == 8
    assert seen[0] == seen[1]


def test_what_could_not_be_put_back_is_an_error():
    class Forgetful:
        n = 0

        def state_dict(self):
            return {"n": self.n}

        def load_state_dict(self, state):
            self.n = -1

    net = network()
    with pytest.raises(RestoreError, match="the state before had checksum"):
        range_test(net, MAKERS["sgd"](net.parameters()), cross_entropy, [(X, Y)], ramp=RAMP, also=[Forgetful()])


def test_groups_that_share_one_tensor_rate_get_each_their_own_and_the_tensor_back():
    net = torch.nn.Linear(1, 1)
    rate = torch.tensor(0.1)
    groups = [{"params": [net.weight]}, {"params": [net.bias], "lr_multiplier": 10.0}]
    optimizer = torch.optim.SGD(groups, lr=rate)
    seen = []

    def batch_loss(model, batch):
        seen.append([float(group["lr"]) for group in optimizer.param_groups])
        return model(batch).mean()

    range_test(net, optimizer, None, [torch.ones(2, 1)], batch_loss=batch_loss, ramp=cyclr.ramp(0.1, 0.2, 2))
    assert seen == [pytest.approx([0.1, 1.0]), pytest.approx([0.2, 2.0])]
    assert all(group["lr"] is rate for group in optimizer.param_groups)
    assert float(rate) == pytest.approx(0.1)


def test_what_accelerate_has_prepared_is_tested_and_left_in_the_midst_of_its_epoch():
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True)
    net = network()
    prepared = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), shuffled())
    model, optimizer, loader = prepared
    before = bits(net)
    for _ in loader:
        curve = range_test(model, optimizer, cross_entropy, loader, ramp=RAMP)
        assert accelerator.gradient_state.active_dataloader is loader
        break
    assert len(curve.values) == RAMP.steps
    assert bits(net) == before


def test_a_batch_that_is_a_mapping_of_its_own_kind_stays_one():
    class Encoding(UserDict):
        @property
        def rows(self):
            return self["rows"]

    batch = Encoding(rows=torch.ones(2, 3), name="kept")
    moved = on_device(batch, torch.device("meta"))
    assert type(moved) is Encoding
    assert (moved.rows.device.type, moved["name"]) == ("meta", "kept")
    assert batch.rows.device.type == "cpu"
