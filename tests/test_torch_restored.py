"""`restored` leaves no trace: bit for bit, whatever happened inside and however it ended."""

import copy
import random
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from cyclr.torch import RestoreError, SavedState, restored


class Net(nn.Module):
    """Dropout, batch norm, tied weights, half precision, odd shapes, a buffer not saved and one that is replaced."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 8), nn.Linear(8, 3))
        self.body[3].weight = nn.Parameter(self.body[3].weight.detach().clone())
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = self.body[3].weight
        self.coarse = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        self.scalar = nn.Parameter(torch.tensor(0.5))
        self.nothing = nn.Parameter(torch.empty(0, 3))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("average", torch.zeros(3))
        self.register_buffer("view", torch.arange(3.0).expand(2, 3))
        self.calls, self.step = 0, 7

    def forward(self, x):
        self.seen += 1
        self.calls += 1
        output = self.body(x) * self.scalar + self.coarse.float() + self.view[0] + self.nothing.sum()
        self.average = 0.9 * self.average + 0.1 * output.detach().mean(0)
        return output


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3, history_size=4),
}


class World:
    """All that training touches, and the training."""

    def __init__(self, kind, warm=0):
        torch.set_num_threads(1)
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(1)
        self.net = Net()
        self.net.body[1].eval()  # a frozen batch norm: modes differ between modules
        self.net.body[0].bias.requires_grad_(False)
        x, y = torch.randn(24, 4), torch.randint(3, (24,))
        self.generator = torch.Generator().manual_seed(5)
        self.sampler = RandomSampler(range(24), generator=torch.Generator().manual_seed(6))
        self.loader = DataLoader(TensorDataset(x, y), 8, sampler=self.sampler, generator=self.generator)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        self.optimizer = OPTIMIZERS[kind]([p for p in self.net.parameters() if p.requires_grad])
        self.optimizer.param_groups[0]["lr_multiplier"] = 1.0
        self.private = [random.Random(3), np.random.default_rng(4)]
        self.things = [self.net, self.optimizer, self.loader, self.scaler, *self.private]
        self.train(warm)

    def train(self, epochs):
        for _ in range(epochs):
            for x, y in self.loader:
                noise = random.random() + np.random.rand() + self.private[0].random() + self.private[1].random()

                def closure(x=x, y=y, noise=noise):
                    self.optimizer.zero_grad()
                    loss = nn.functional.cross_entropy(self.net(x + 0.01 * noise), y)
                    self.scaler.scale(loss).backward()
                    return loss

                if isinstance(self.optimizer, torch.optim.LBFGS):
                    self.optimizer.step(closure)
                else:
                    closure()
                    self.scaler.step(self.optimizer)
                    self.scaler.update()

    def bits(self):
        """An account that owes nothing to the code under test."""
        net = {**dict(self.net.named_parameters()), **dict(self.net.named_buffers())}
        slots = [self.optimizer.state.get(p) for g in self.optimizer.param_groups for p in g["params"]]
        account = [
            {name: raw(tensor) for name, tensor in net.items()},
            {name: None if p.grad is None else raw(p.grad) for name, p in self.net.named_parameters()},
            [(m.training, len(m._forward_hooks), sorted(vars(m))) for m in self.net.modules()],
            [p.requires_grad for p in self.net.parameters()],
            (self.net.calls, self.net.step, id(self.net.coarse), id(self.net.average)),
            raw(slots),
            [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups],
            sorted(vars(self.optimizer)),
            len(self.optimizer._optimizer_step_pre_hooks),
            self.scaler.state_dict(),
            raw([self.generator.get_state(), self.sampler.generator.get_state(), torch.get_rng_state()]),
            (random.getstate(), str(np.random.get_state()), self.private[0].getstate()),
            str(self.private[1].bit_generator.state),
        ]
        return copy.deepcopy(account)


def raw(value):
    """Nested values with tensors as bytes."""
    if torch.is_tensor(value):
        flat = value.detach().contiguous().reshape(-1)
        return (str(value.dtype), tuple(value.shape), flat.view(torch.uint8).tolist() if flat.numel() else [])
    if isinstance(value, dict):
        return {key: raw(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [raw(each) for each in value]
    return value


def disturb(world):
    """Training, and everything a careless user does on the way."""
    world.train(1)
    net, optimizer = world.net, world.optimizer
    net.train()
    net.body[2].eval()
    net.scalar.requires_grad_(False)
    net.register_forward_hook(lambda *_: None)
    net.body[0].forward = lambda x: x
    net.body[4] = nn.Linear(8, 3)
    net.coarse = nn.Parameter(torch.zeros(5))
    net.extra = 1
    optimizer.register_step_pre_hook(lambda *_: None)
    torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)  # patches optimizer.step, writes initial_lr
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    optimizer.param_groups[0]["lr"] = torch.tensor(3.0)
    optimizer.param_groups[0]["params"].reverse()


def nan_loss(world):
    world.optimizer.zero_grad()
    (world.net(torch.full((8, 4), float("nan"))).sum()).backward()
    if not isinstance(world.optimizer, torch.optim.LBFGS):
        world.optimizer.step()
    disturb(world)


def raising(error):
    def end(world):
        disturb(world)
        raise error

    return end


def half_way_through_a_scaled_update(world):
    world.net(torch.ones(8, 4)).sum().backward()
    world.scaler.scale(torch.ones(()))
    world.scaler.unscale_(world.optimizer)
    raise KeyboardInterrupt


ENDS = {
    "normal": disturb,
    "exception": raising(OSError("disk full")),
    "ctrl-c": raising(KeyboardInterrupt()),
    "nan": nan_loss,
    "half an update": half_way_through_a_scaled_update,
    "replaced state": lambda world: world.optimizer.load_state_dict(copy.deepcopy(world.optimizer.state_dict())),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("warm", [0, 1], ids=["fresh", "warm"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_everything_is_as_it_was_and_training_goes_on_as_if_nothing_had_happened(kind, warm, end):
    world = World(kind, warm)
    before = world.bits()
    try:
        with restored(*world.things):
            ENDS[end](world)
    except (OSError, KeyboardInterrupt):
        pass
    assert world.bits() == before
    world.train(2)
    untouched = World(kind, warm)
    untouched.train(2)
    assert raw(world.net.state_dict()) == raw(untouched.net.state_dict())


def test_a_gradient_keeps_its_bits_none_stays_none_and_one_held_by_others_stays_their_object():
    net = torch.nn.Linear(2, 1)
    net.weight.grad = gradient = torch.tensor([[float("nan"), -0.0]])
    with restored(net):
        net.zero_grad()
        net.bias.grad = torch.ones(1)
        gradient.zero_()
    assert net.weight.grad is gradient
    assert raw(gradient) == raw(torch.tensor([[float("nan"), -0.0]]))
    assert net.bias.grad is None


def test_a_gradient_is_not_kept_twice():
    """Training puts a new gradient in its place: holding the old one beside its copy would take memory."""
    net = torch.nn.Linear(2, 1)
    net.weight.grad = torch.tensor([[3.0, 4.0]])
    held = weakref.ref(net.weight.grad)
    with restored(net):
        net.zero_grad()
        assert held() is None
    assert net.weight.grad.tolist() == [[3.0, 4.0]]


def test_tensors_that_changed_their_kind_are_put_back():
    net = nn.Linear(2, 1)
    before = raw(net.weight)
    with restored(net):
        net.half()
        net.bias.data = torch.zeros(7)
    assert raw(net.weight) == before
    assert (net.weight.dtype, net.bias.shape) == (torch.float32, (1,))


def test_a_tensor_rate_stays_the_same_tensor():
    net = nn.Linear(2, 1)
    rate = torch.tensor(0.5)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    with restored(net, optimizer):
        rate.fill_(9.0)
        optimizer.param_groups[0]["lr"] = 3.0
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == 0.5


def test_schedulers_and_averages_go_back_too():
    world = World("sgd", warm=1)
    average = torch.optim.swa_utils.AveragedModel(world.net.body)
    cyclic = torch.optim.lr_scheduler.CyclicLR(world.optimizer, 0.1, 0.5, step_size_up=3)
    before = (raw(average.state_dict()), cyclic.state_dict(), world.bits())
    for _ in range(2):
        with restored(*world.things, average, cyclic):
            world.train(1)
            average.update_parameters(world.net.body)
            cyclic.step()
        assert (raw(average.state_dict()), cyclic.state_dict(), world.bits()) == before


class Drawn:
    """A batch sampler with a generator of its own."""

    def __init__(self, generator):
        self.generator = generator

    def __iter__(self):
        return iter(torch.randperm(8, generator=self.generator).split(4))


@pytest.mark.parametrize(
    "make",
    [
        lambda data, g: DataLoader(data, 4, shuffle=True, generator=g),
        lambda data, g: DataLoader(data, 4, sampler=RandomSampler(data, generator=g)),
        lambda data, g: DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data, generator=g), 4, False)),
        lambda data, g: DataLoader(data, batch_sampler=Drawn(g)),
    ],
)
def test_a_loaders_generator_goes_back_wherever_it_is_kept(make):
    generator = torch.Generator().manual_seed(1)
    loader = make(TensorDataset(torch.arange(8)), generator)
    before = raw(generator.get_state())
    with restored(loader) as snapshot:
        list(loader)
        assert snapshot.current_checksum() != snapshot.checksum
    assert raw(generator.get_state()) == before


def test_a_snapshot_goes_back_again_and_again():
    world = World("adam", warm=1)
    before = world.bits()
    with restored(*world.things) as snapshot:
        for _ in range(3):
            disturb(world)
            assert snapshot.current_checksum() != snapshot.checksum
            snapshot.restore()
            assert snapshot.current_checksum() == snapshot.checksum
            assert world.bits() == before


def flipped(tensor, bit):
    view = tensor.detach().view(-1).view(torch.uint8)
    view[bit // 8] ^= 1 << bit % 8


def test_the_checksum_sees_every_single_bit():
    world = World("adamw", warm=1)
    snapshot = SavedState(world.things)
    slots = [t for p in world.net.parameters() for t in world.optimizer.state.get(p, {}).values() if torch.is_tensor(t)]
    covered = [*world.net.parameters(), *(b for n, b in world.net.named_buffers() if n != "view"), *slots]
    covered += [p.grad for p in world.net.parameters() if p.grad is not None]
    pick = random.Random(0)
    for tensor in covered:
        bits = range(8 * tensor.numel() * tensor.element_size())
        for bit in pick.sample(bits, min(len(bits), 8)):
            flipped(tensor, bit)
            assert snapshot.current_checksum() != snapshot.checksum
            flipped(tensor, bit)
    assert snapshot.current_checksum() == snapshot.checksum


@pytest.mark.parametrize(
    "change",
    [
        lambda w: setattr(w.net.scalar, "grad", None),
        lambda w: w.net.body[2].eval(),
        lambda w: w.net.coarse.requires_grad_(False),
        lambda w: w.net.register_forward_hook(lambda *_: None),
        lambda w: w.optimizer.param_groups[0].update(lr=0.010000000000000002),
        lambda w: w.optimizer.param_groups[0].update(betas=(0.9, 0.99)),
        lambda w: w.optimizer.param_groups[0].update(betas=(0.99, 0.9)),
        lambda w: setattr(w.optimizer, "step", None),
        lambda w: w.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(()))]}),
        lambda w: w.optimizer.state.clear(),
        lambda w: w.generator.manual_seed(0),
        lambda w: w.sampler.generator.manual_seed(0),
        lambda w: w.scaler.update(3.0),
        lambda w: w.private[0].random(),
        lambda w: w.private[1].random(),
        lambda w: random.random(),
        lambda w: np.random.rand(),
        lambda w: torch.rand(()),
    ],
)
def test_the_checksum_sees_what_is_not_a_weight(change):
    world = World("adam", warm=1)
    snapshot = SavedState(world.things)
    assert snapshot.current_checksum() == snapshot.checksum
    change(world)
    assert snapshot.current_checksum() != snapshot.checksum
    snapshot.restore()
    assert snapshot.current_checksum() == snapshot.checksum


class Forgetful:
    """Its load_state_dict brings nothing back, or fails."""

    def __init__(self, error=None):
        self.n, self.error = 0, error

    def state_dict(self):
        return {"n": self.n}

    def load_state_dict(self, state):
        if self.error:
            raise self.error


def spoil(net, thing, **options):
    with restored(net, thing, **options):
        thing.n = 1
        nn.init.zeros_(net.weight)


def test_what_cannot_be_restored_is_an_error_and_the_rest_is_restored():
    net = nn.Linear(2, 1)
    before = raw(net.weight)
    with pytest.raises(RestoreError, match=r"the state before had checksum [0-9a-f]{12}, now it is [0-9a-f]{12}"):
        spoil(net, Forgetful())
    assert raw(net.weight) == before
    with pytest.raises(OSError, match="no disk"):
        spoil(net, Forgetful(OSError("no disk")))
    assert raw(net.weight) == before
    spoil(net, Forgetful(), verify=False)
    with pytest.raises(TypeError, match="cannot restore a int: give modules, optimisers, loaders, generators"):
        spoil(net, 3)


def test_an_optimiser_that_was_loaded_from_a_checkpoint_keeps_its_groups_order():
    (weight,) = nn.Linear(2, 1, bias=False).parameters()
    optimizer = torch.optim.SGD([weight], lr=0.1)
    optimizer.load_state_dict(optimizer.state_dict())  # torch then has "params" last in each group
    names = list(optimizer.param_groups[0])
    with restored(optimizer):
        optimizer.param_groups[0]["lr"] = 0.5
    assert list(optimizer.param_groups[0]) == names
    assert optimizer.param_groups[0]["lr"] == 0.1
