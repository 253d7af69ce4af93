"""Caffe's CIFAR-10 net, against the facts of its definition."""

import pytest
import torch

import cyclr
from cyclr.lab.tasks.cifar10_caffe import STAGES, CaffeNet, caffe_sgd, normalised
from cyclr.torch import ScheduleLR

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="what is compiled there needs a GPU")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return CaffeNet()


def test_pools_round_up_to_16_8_and_4(net):
    shapes = []
    hooks = [pool.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape))) for pool in pools(net)]
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    for hook in hooks:
        hook.remove()
    assert shapes == [(2, 32, 16, 16), (2, 32, 8, 8), (2, 64, 4, 4)]


def pools(net):
    return net.max_pool, net.mean_pool


def test_forward_is_the_definition_written_out(net):
    x = 60.0 * torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    functional = torch.nn.functional
    with torch.no_grad():
        y = functional.conv2d(x, 1000 * net.conv1.weight, net.conv1.bias, padding=2)
        y = naive_normalised(functional.relu(functional.max_pool2d(y, 3, 2, ceil_mode=True)))
        y = functional.relu(functional.conv2d(y, net.conv2.weight, net.conv2.bias, padding=2))
        y = naive_normalised(functional.avg_pool2d(y, 3, 2, ceil_mode=True))
        y = functional.relu(functional.conv2d(y, net.conv3.weight, net.conv3.bias, padding=2))
        y = functional.avg_pool2d(y, 3, 2, ceil_mode=True).flatten(1)
        wanted = functional.linear(y, net.linear.weight, net.linear.bias)
        net.conv1.weight.mul_(1000)  # or the normalisation has next to nothing to do
        got = net(x)
        net.conv1.weight.div_(1000)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in what torch's compiler imports
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_by_stages_the_net_and_its_gradient_are_the_same(device):
    """On a GPU with the compiled ones, which the net uses there by itself in training."""
    torch.manual_seed(0)
    made = CaffeNet()
    for parameter in made.parameters():
        parameter.data.normal_(0.0, 0.02)
    x, y = 60.0 * torch.randn(8, 3, 32, 32), torch.randint(10, (8,))

    def found(output, target):
        loss = torch.nn.functional.cross_entropy(output, target)
        made.zero_grad()
        loss.backward()
        return [loss.detach().cpu(), *(parameter.grad.cpu() for parameter in made.parameters())]

    wanted = found(made(x), y)
    made.to(device)
    x, y = x.to(device), y.to(device)
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    got = found(made(x) if device == "cuda" else made.by_stages(x, STAGES), y)
    torch.backends.cudnn.allow_tf32 = tf32
    for each, other in zip(got, wanted, strict=True):
        assert (each - other).norm() <= 1e-4 * other.norm()


def test_it_has_caffes_89578_weights(net):
    counted = {name: parameter.numel() for name, parameter in net.named_parameters()}
    assert counted == {
        "conv1.weight": 2400, "conv1.bias": 32, "conv2.weight": 25600, "conv2.bias": 32,
        "conv3.weight": 51200, "conv3.bias": 64, "linear.weight": 10240, "linear.bias": 10,
    }  # fmt: skip
    assert sum(counted.values()) == 89_578


def test_weights_start_gaussian_and_biases_at_zero(net):
    stds = {"conv1": 1e-4, "conv2": 1e-2, "conv3": 1e-2, "linear": 1e-2}
    for name, std in stds.items():
        weight, bias = (getattr(getattr(net, name), part).detach() for part in ("weight", "bias"))
        assert weight.std().item() == pytest.approx(std, rel=0.1)
        assert abs(weight.mean().item()) < 5 * std / weight.numel() ** 0.5
        assert (weight.abs() > 2 * std).float().mean().item() == pytest.approx(0.0455, abs=0.015)  # a normal's tails
        assert not bias.any()


def naive_normalised(x):
    """x * (1 + 5e-5 * mean of x squared over the 3 x 3 window) ** -0.75, one pixel at a time."""
    height, width = x.shape[-2:]
    result = torch.empty_like(x)
    for row in range(height):
        for column in range(width):
            squares = torch.zeros(x.shape[:2], dtype=x.dtype)
            for i in range(max(0, row - 1), min(height, row + 2)):
                for j in range(max(0, column - 1), min(width, column + 2)):
                    squares += x[..., i, j] ** 2
            result[..., row, column] = x[..., row, column] * (1 + 5e-5 * squares / 9) ** -0.75
    return result


@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (1, 1, 1, 1), (1, 2, 2, 7)])
def test_normalisation_is_the_formula_inside_and_at_the_borders(shape):
    x = 300.0 * torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(normalised(x), naive_normalised(x), rtol=1e-12, atol=0.0)


def test_gradient_of_the_normalisation_by_hand_is_the_true_one():
    x = 100.0 * torch.randn(2, 2, 4, 3, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(normalised, x.requires_grad_(), eps=1e-4, atol=0.0, rtol=1e-6)


def test_biases_get_twice_the_rate_and_decay_is_caffes(net):
    optimizer = caffe_sgd(net)
    names = {parameter: name for name, parameter in net.named_parameters()}
    ScheduleLR(optimizer, cyclr.triangular(0.001, 0.005, 2000)).step()
    rate = 0.001 + 0.004 / 2000
    seen = {
        names[parameter]: (group["lr"], group["weight_decay"], group["momentum"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    wanted = {f"conv{number}.weight": (rate, 0.004, 0.9) for number in (1, 2, 3)}
    wanted |= {f"conv{number}.bias": (2 * rate, 0.004, 0.9) for number in (1, 2, 3)}
    wanted |= {"linear.weight": (rate, 250 * 0.004, 0.9), "linear.bias": (2 * rate, 0.0, 0.9)}
    assert seen == {name: pytest.approx(values, rel=1e-12) for name, values in wanted.items()}
