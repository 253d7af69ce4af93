"""What the torch range test refuses, each with a sentence and with nothing changed."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import cyclr
from cyclr.torch import range_test

RAMP = cyclr.ramp(0.0, 0.1, 12)
X, Y = torch.randn(32, 4), torch.randint(3, (32,))


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def bits(net):
    return {name: tensor.numpy().tobytes() for name, tensor in net.state_dict().items()}


class Once:
    """Can be read a single time without being an iterator."""

    def __init__(self, batches):
        self.batches = iter(batches)

    def __iter__(self):
        return self.batches


REFUSED = {
    "metric": ([[(X, Y)]], {"metric": "acc"}, "unknown metric without batch_loss 'acc'; choose from loss, accuracy"),
    "empty": ([[]], {}, "loader yielded no batch; is the data set empty, or smaller than a dropped last batch?"),
    "iterator": ([iter([(X, Y)])], {}, r"loader can be read only once \(it is an iterator\); give the list, loader or"),
    "read once": ([Once([(X, Y)])], {}, "loader can be read only once"),
    "no pair": (
        [[(X, Y, Y)]],
        {},
        r"a batch must be a pair \(x, y\), got tuple; for any other structure give batch_loss=",
    ),
    "dict": ([[{"x": X}]], {}, r"a batch must be a pair \(x, y\), got dict"),
    "accumulation": ([[(X, Y)]], {"accumulation": 0}, "accumulation must be at least 1, got 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_data_is_refused_with_a_sentence(case):
    (loader,), options, sentence = REFUSED[case]
    net = network()
    before = bits(net)
    with pytest.raises(ValueError, match=sentence):
        range_test(net, sgd(net.parameters()), cross_entropy, loader, ramp=RAMP, **options)
    assert bits(net) == before


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (lambda output, y: output.sum(1), r"the loss must be one number, got a tensor of shape \(32,\); take its mean"),
        (lambda output, y: 0.5, "the loss must be one number, got float 0.5"),
        (
            lambda output, y: output.detach().sum(),
            "the loss does not depend on any trainable parameter; is it detached",
        ),
        (None, r"give loss_fn for batches \(x, y\), or batch_loss\(model, batch\) for any other batch"),
    ],
)
def test_a_loss_that_is_none_is_refused(loss, sentence):
    net = network()
    with pytest.raises(ValueError, match=sentence):
        range_test(net, sgd(net.parameters()), loss, [(X, Y)], ramp=RAMP)


def test_models_and_optimisers_that_cannot_be_trained_are_refused():
    net, lazy = network(), nn.LazyLinear(3)
    own = sgd(net.parameters())
    for model, optimizer, kind, sentence in [
        (
            network().requires_grad_(False),
            own,
            ValueError,
            "every parameter of the model is frozen; set requires_grad",
        ),
        (
            network(),
            own,
            ValueError,
            "optimizer holds no trainable parameter of this model; build it from",
        ),
        (net, [own, sgd(network().parameters())], ValueError, "optimizer holds no trainable parameter"),
        (net, [], ValueError, "optimizer is an empty list; give at least one torch optimiser"),
        (net, "sgd", TypeError, "optimizer must be a torch optimiser or a list of them, got str"),
        (net, torch.optim.LBFGS(net.parameters()), ValueError, "LBFGS makes several steps of its own choice"),
        (lazy, sgd(lazy.parameters()), ValueError, "lazy parameters without a shape yet; run one batch"),
    ]:
        with pytest.raises(kind, match=sentence):
            range_test(model, optimizer, cross_entropy, [(X, Y)], ramp=RAMP)
