"""Layer-wise rates: every parameter in one group, in the order of depth, at its own multiple; groups added later."""

import copy
import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import cyclr
from cyclr.torch import ScheduleLR, groups_by_depth, range_test

CYCLES = cyclr.triangular(0.01, 0.1, stepsize=4)


def chain(layers=6):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(3, 3) for _ in range(layers)))


def bert():
    config = BertConfig(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8, vocab_size=20)
    return BertForSequenceClassification(config)


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))
        self.layer = nn.Linear(3, 2)


def resnet():
    return pytest.importorskip("torchvision").models.resnet18(num_classes=3)


@functools.cache
def built(make):
    return make()


def names_of(model, groups):
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[known[id(parameter)] for parameter in group["params"]] for group in groups]


@pytest.mark.parametrize("make", [chain, bert, resnet])
@given(count=st.integers(1, 6), factor=st.floats(0.1, 2.0), decay=st.sampled_from([None, 0.0, 0.01]))
def test_every_parameter_is_in_one_group_and_deeper_ones_come_first(make, count, factor, decay):
    model = built(make)
    groups = groups_by_depth(model, count, multiplier=factor, weight_decay=decay)
    names = [name for group in names_of(model, groups) for name in group]
    order = [name for name, _ in model.named_parameters()]
    assert sorted(names) == sorted(order)
    if decay is None:
        assert names == order
        assert [group["lr_multiplier"] for group in groups] == [factor ** (count - 1 - index) for index in range(count)]
    else:
        assert {group["weight_decay"] for group in groups} <= {0.0, decay}
        for group in groups:
            assert all((each.ndim > 1) == (group["weight_decay"] > 0) or decay == 0 for each in group["params"])
    assert len({group["name"] for group in groups}) == count


@given(layers=st.integers(1, 12), count=st.integers(1, 12))
def test_the_head_is_a_group_and_the_layers_before_it_are_divided_as_evenly_as_can_be(layers, count):
    if count > layers:
        with pytest.raises(ValueError, match=f"groups must be at most {layers}, .* got {count}"):
            groups_by_depth(chain(layers), count)
        return
    sizes = [len(group["params"]) // 2 for group in groups_by_depth(chain(layers), count)]
    assert sum(sizes) == layers
    if count > 1:
        assert sizes.pop() == 1
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("make", "want"),
    [
        (resnet, [["conv1", "bn1", "layer1"], ["layer2", "layer3", "layer4"], ["fc"]]),
        (resnet, [["conv1", "bn1"], ["layer1"], ["layer2"], ["layer3"], ["layer4"], ["fc"]]),
        (bert, [["bert.embeddings"], ["bert.encoder", "bert.pooler"], ["classifier"]]),
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2)), [["0", "1"], ["2"]]),
        (lambda: nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3), nn.Linear(3, 2)), [["0"], ["1"], ["2"]]),
    ],
)
def test_common_nets_are_divided_as_one_would_by_hand(make, want):
    model = make()
    by_hand = names_of(model, groups_by_depth(model, want))
    assert names_of(model, groups_by_depth(model, len(want))) == by_hand


def test_groups_by_name_and_by_function_are_what_they_say():
    model = chain(3)
    want = [["0.weight", "0.bias"], ["1.weight", "1.bias", "2.weight", "2.bias"]]
    for groups in (["0", ("1", "2")], lambda name: "first" if name.startswith("0.") else "rest"):
        assert names_of(model, groups_by_depth(model, groups)) == want
    model = chain(11)  # "1" is not the beginning of "10"
    named = groups_by_depth(model, ["0", "1", [str(each) for each in range(2, 11)]])
    assert names_of(model, named)[1] == ["1.weight", "1.bias"]


def test_a_shared_parameter_comes_once():
    model = chain(2)
    model[1].weight = model[0].weight
    groups = groups_by_depth(model, 2)
    assert names_of(model, groups) == [["0.weight", "0.bias"], ["1.bias"]]
    torch.optim.SGD(groups, lr=0.1)  # which refuses one that is in two groups


def test_each_update_uses_the_schedules_rate_times_the_multiplier():
    model = chain(3)
    optimizer = torch.optim.SGD(groups_by_depth(model, 3, multiplier=[0.0, 0.25, 1.0]), lr=9.0)
    scheduler = ScheduleLR(optimizer, CYCLES)
    before = copy.deepcopy(model.state_dict())
    for step in range(25):
        want = [CYCLES(step) * factor for factor in (0.0, 0.25, 1.0)]
        assert [group["lr"] for group in optimizer.param_groups] == want
        update(model, optimizer, scheduler)
    changed = {
        name.partition(".")[0] for name, each in model.state_dict().items() if not torch.equal(each, before[name])
    }
    assert changed == {"1", "2"}


def update(model, optimizer, scheduler):
    optimizer.zero_grad()
    model(torch.ones(2, 3)).square().mean().backward()
    optimizer.step()
    scheduler.step()


def unfreezing(total, saved_at=None):
    """Train the head, then add the body in mid-run; stop and go on in between if asked."""

    def start(unfrozen):
        model = chain(2)
        body, head = groups_by_depth(model, 2, multiplier=0.5)
        model[0].requires_grad_(unfrozen)
        optimizer = torch.optim.SGD([head], lr=0.1, momentum=0.9)
        if unfrozen:
            optimizer.add_param_group(body)
        return model, body, optimizer, ScheduleLR(optimizer, CYCLES)

    model, body, optimizer, scheduler = start(unfrozen=False)
    rates = []
    for step in range(total):
        if step == 5:
            model[0].requires_grad_(True)
            optimizer.add_param_group(body)
        if step == saved_at:
            kept = copy.deepcopy((model.state_dict(), optimizer.state_dict(), scheduler.state_dict()))
            model, body, optimizer, scheduler = start(unfrozen=step >= 5)
            for thing, state in zip((model, optimizer, scheduler), kept, strict=True):
                thing.load_state_dict(state)
        hook = optimizer.register_step_pre_hook(
            lambda optimizer, *_: rates.append([group["lr"] for group in optimizer.param_groups])
        )
        update(model, optimizer, scheduler)
        hook.remove()
    return model.state_dict(), rates


def test_a_group_that_is_unfrozen_in_mid_run_follows_from_then_on():
    weights, rates = unfreezing(12)
    first = chain(2).state_dict()
    assert all(len(row) == (1 if step < 5 else 2) for step, row in enumerate(rates))
    assert rates[5:] == [[CYCLES(step), CYCLES(step) * 0.5] for step in range(5, 12)]
    assert not torch.equal(weights["0.weight"], first["0.weight"])


@pytest.mark.parametrize("saved_at", [3, 8])
def test_a_run_with_unfrozen_groups_goes_on_to_the_same_bits(saved_at):
    whole, again = unfreezing(12), unfreezing(12, saved_at)
    assert whole[1] == again[1]
    assert all(torch.equal(each, again[0][name]) for name, each in whole[0].items())


@pytest.mark.parametrize("group", ["2", "0"])
def test_a_range_test_of_one_group_moves_it_alone_and_leaves_no_trace(group):
    model = chain(3)
    optimizer = torch.optim.SGD(groups_by_depth(model, 3, multiplier=0.5), lr=0.3, momentum=0.9, weight_decay=0.1)
    before, groups = copy.deepcopy(model.state_dict()), repr(optimizer.param_groups)
    moved, rates = set(), []

    def loss(output, y):
        moved.update(name[0] for name, each in model.state_dict().items() if not torch.equal(each, before[name]))
        rates.append([each["lr"] for each in optimizer.param_groups])
        return (output - y).square().mean()

    x = torch.randn(8, 3)
    curve = range_test(model, optimizer, loss, [(x, x)], ramp=cyclr.ramp(0.0, 0.1, 12), group=group)
    assert moved == {group}
    multiplier = next(each["lr_multiplier"] for each in optimizer.param_groups if each["name"] == group)
    assert [max(row) for row in rates] == [lr * multiplier for lr in curve.lrs]  # as under ScheduleLR
    assert all(sorted(row)[:2] == [0.0, 0.0] for row in rates)
    assert curve.meta["group"] == group
    assert repr(optimizer.param_groups) == groups
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_bounds_by_group_without_a_ramp_hold_the_others_in_every_pass():
    model = chain(3)
    optimizer = torch.optim.SGD(groups_by_depth(model, 3), lr=0.3)
    before, moved = copy.deepcopy(model.state_dict()), set()

    def loss(output, y):
        moved.update(name[0] for name, each in model.state_dict().items() if not torch.equal(each, before[name]))
        return (output - y).square().mean()

    range_test(model, optimizer, loss, [(torch.randn(8, 3), torch.randn(8, 3))], steps=40, group="1")
    assert moved == {"1"}


@pytest.mark.parametrize(
    ("make", "groups", "settings", "sentence"),
    [
        (chain, ["0", "1"], {}, r"groups leave out 8 parameters: 2\.weight, 2\.bias, 3\.weight, \.\.\.; name their"),
        (chain, ["0", "0"], {}, r"groups overlap: 0\.weight belongs to '0' and to '0'"),
        (chain, ["0", "head"], {}, "no parameter's name begins with 'head'; the net's modules are 0, 1, 2"),
        (chain, 0, {}, "groups must be at least 1, got 0"),
        (chain, ["0", []], {}, "a group of groups is empty; name at least one module in each"),
        (chain, 7, {}, "groups must be at most 6, the layers of Sequential that have parameters, got 7"),
        (Bare, 2, {}, r"Bare has parameters outside of named layers \(weight\); give groups as a function"),
        (lambda: nn.Linear(2, 2), 1, {}, "Linear has parameters outside of named layers"),
        (nn.ReLU, 1, {}, "ReLU has no parameters"),
        (chain, 3, {"multiplier": [1.0, 2.0]}, "one number or one for each of the 3 groups, got 2"),
        (chain, 3, {"multiplier": 0.0}, "multiplier must be finite and above 0, got 0"),
        (chain, 3, {"weight_decay": -1.0}, "weight_decay must be finite and at least 0, got -1"),
    ],
)
def test_groups_that_do_not_fit_are_told_in_a_sentence(make, groups, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        groups_by_depth(make(), groups, **settings)


@pytest.mark.parametrize("groups", [[1, 2], ["0", [1]], ["0", None]])
def test_what_is_no_modules_name_is_told(groups):
    with pytest.raises(TypeError, match="a group is the name of a module or a list of names, got"):
        groups_by_depth(chain(), groups)


@pytest.mark.parametrize("groups", [1.5, "0", None, True])
def test_what_is_no_division_into_groups_is_told(groups):
    with pytest.raises(TypeError, match=r"groups must be a number, a list of modules' names or a function"):
        groups_by_depth(chain(), groups)


def test_multiples_of_0_hold_the_other_groups_as_group_does():
    def curve(multiplier, group):
        model = chain(3)
        optimizer = torch.optim.SGD(groups_by_depth(model, 3, multiplier=multiplier), lr=0.1)
        torch.manual_seed(1)
        batches = [(torch.randn(8, 3), torch.randn(8, 3)) for _ in range(5)]
        return range_test(model, optimizer, nn.functional.mse_loss, batches, ramp=cyclr.ramp(0, 1, 20), group=group)

    alone = curve(1.0, "2").values.tolist()
    assert curve([0.0, 0.0, 1.0], None).values.tolist() == alone
    assert curve(1.0, None).values.tolist() != alone


@pytest.mark.parametrize(
    ("group", "sentence"),
    [("head", "group must be one of '0', '1', got 'head'"), ("0", "group '0' is frozen, so its rate changes nothing")],
)
def test_a_group_that_cannot_be_tested_is_told_before_anything_is_trained(group, sentence):
    model = chain(2)
    optimizer = torch.optim.SGD(groups_by_depth(model, 2), lr=0.1)
    model[0].requires_grad_(False)
    with pytest.raises(ValueError, match=sentence):
        range_test(model, optimizer, nn.functional.mse_loss, [(torch.ones(2, 3),) * 2], group=group)


def test_a_function_that_leaves_a_parameter_out_is_told_which():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    groups = {"0.weight": "body", "0.bias": "body", "1.weight": "head"}
    with pytest.raises(TypeError, match=r"the name of a group for each parameter, got None for 1\.bias"):
        groups_by_depth(net, groups.get)
