"""Layer-wise learning rates: a net's parameters in groups by depth, each with its own multiple of the rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias

from torch import nn

from cyclr import checks
from cyclr.torch.scheduler import MULTIPLIER, Group

Prefixes: TypeAlias = str | Sequence[str]
Division: TypeAlias = int | Sequence[Prefixes] | Callable[[str], str]
Named: TypeAlias = dict[str, nn.Parameter]


def groups_by_depth(
    model: nn.Module,
    groups: Division,
    *,
    multiplier: float | Sequence[float] = 1.0,
    weight_decay: float | None = None,
) -> list[Group]:
    """A net's parameters as an optimiser's groups, from the input to the head: for rates that differ by layer.

        rate of group i = schedule(step) * lr_multiplier,    lr_multiplier = multiplier ** (last group - i)

    `ScheduleLR` and `range_test` follow the multipliers. Every parameter is in one group; one that is frozen
    (requires_grad False) has its place too and follows from the moment it is unfrozen. To unfreeze a whole group in
    mid-run, give it to the optimiser then: `optimizer.add_param_group(group)`.

    Args:
        model: its layers are taken in the order in which they were made.
        groups: the number of groups: the head, which is the last layer, and the other layers divided as evenly as can
            be, normalisation with the layer before it. Or for each group the name of a module ("layer1"), or several of
            them; or a function from a parameter's name to its group's name.
        multiplier: of each group's rate, relative to the next one's: above 0, 1 / 2.6 is usual in fine-tuning. Or one
            number for each group, at least 0.
        weight_decay: if given, of all weights; biases and normalisation layers (one dimension or none) get 0, in a
            group of their own.

    Returns:
        Dicts with "params", "name", "lr_multiplier" and, if wanted, "weight_decay".

    Raises:
        TypeError: groups is none of the three, or a name is no string.
        ValueError: an empty group; fewer layers than groups; a net without named layers; names that overlap, that are
            no module's, or that leave parameters out.

    Example:
        >>> import torch
        >>> from cyclr.torch import groups_by_depth
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> [(group["name"], group["lr_multiplier"]) for group in groups_by_depth(net, 2, multiplier=0.5)]
        [('0', 0.5), ('2', 1.0)]
        >>> optimizer = torch.optim.SGD(groups_by_depth(net, ["0", "2"], multiplier=0.5), lr=0.1)

    Reference: Howard and Ruder, arXiv 1801.06146, 3.2 (discriminative fine-tuning).
    """
    parameters = dict(model.named_parameters())
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no parameters to put into groups")
    if isinstance(groups, int) and not isinstance(groups, bool):
        divided = _evenly(model, parameters, checks.whole("groups", groups, least=1))
    elif callable(groups):
        divided = _by_function(parameters, groups)
    elif isinstance(groups, Sequence) and not isinstance(groups, str):
        divided = _by_names(parameters, groups)
    else:
        raise TypeError(f"groups must be a number, a list of modules' names or a function of a name, got {groups!r}")
    found = []
    for (name, members), factor in zip(divided.items(), _multipliers(multiplier, len(divided)), strict=True):
        for decay, chosen in _decayed(members, weight_decay):
            found.append({"params": chosen, "name": name, MULTIPLIER: factor, **decay})
    return found


def _evenly(model: nn.Module, parameters: Named, count: int) -> dict[str, Named]:
    """So many groups of consecutive layers; a group has the name of its first layer."""
    if bare := [name for name in parameters if "." not in name]:
        raise ValueError(
            f"{type(model).__name__} has parameters outside of named layers ({', '.join(bare[:3])}); give groups as a "
            "function from a parameter's name to its group's name"
        )
    layers = _layers(model, parameters, count)
    if len(layers) < count:
        raise ValueError(
            f"groups must be at most {len(layers)}, the layers of {type(model).__name__} that have parameters, "
            f"got {count}"
        )
    head = len(layers) - 1
    starts = [head * index // (count - 1) for index in range(count)] if count > 1 else [0]
    parts = [layers[start:stop] for start, stop in pairwise([*starts, len(layers)])]
    return {part[0][0]: {name: each for _, members in part for name, each in members.items()} for part in parts}


def _layers(model: nn.Module, parameters: Named, enough: int) -> list[tuple[str, Named]]:
    """The net's modules; what is inside them, and so on, until there are enough or nothing is left to unfold."""
    layers: dict[str, Named] = {}
    for depth in range(1, max(name.count(".") for name in parameters) + 1):
        layers, latest = {}, ""
        for name, parameter in parameters.items():
            module = ".".join(name.split(".")[:-1][:depth])
            if not (latest and _normalises(model.get_submodule(module))):
                latest = module
            layers.setdefault(latest, {})[name] = parameter
        if len(layers) >= enough:
            break
    return list(layers.items())


def _normalises(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and all(each.ndim <= 1 for each in module.parameters())


def _by_function(parameters: Named, function: Callable[[str], str]) -> dict[str, Named]:
    divided: dict[str, Named] = {}
    for name, parameter in parameters.items():
        group = function(name)
        if not isinstance(group, str):
            raise TypeError(
                f"the function must return the name of a group for each parameter, got {group!r} for {name}; freeze "
                "what is not to be trained"
            )
        divided.setdefault(group, {})[name] = parameter
    return divided


def _by_names(parameters: Named, groups: Iterable[Prefixes]) -> dict[str, Named]:
    divided: dict[str, Named] = {}
    owner: dict[str, str] = {}
    for each in groups:
        prefixes = [each] if isinstance(each, str) else each
        if not (isinstance(prefixes, list | tuple) and all(isinstance(prefix, str) for prefix in prefixes)):
            raise TypeError(f"a group is the name of a module or a list of names, got {each!r}")
        if not prefixes:
            raise ValueError("a group of groups is empty; name at least one module in each")
        members = divided.setdefault(prefixes[0], {})
        for prefix in prefixes:
            inside = [name for name in parameters if name == prefix or name.startswith(f"{prefix}.")]
            if not inside:
                tops = dict.fromkeys(name.partition(".")[0] for name in parameters)
                raise ValueError(f"no parameter's name begins with {prefix!r}; the net's modules are {', '.join(tops)}")
            for name in inside:
                if name in owner:
                    raise ValueError(f"groups overlap: {name} belongs to {owner[name]!r} and to {prefix!r}")
                owner[name] = prefix
                members[name] = parameters[name]
    if left := [name for name in parameters if name not in owner]:
        raise ValueError(
            f"groups leave out {len(left)} parameter{'s' * (len(left) > 1)}: {', '.join(left[:3])}"
            f"{', ...' * (len(left) > 3)}; name their modules too"
        )
    return divided


def _multipliers(given: float | Sequence[float], count: int) -> list[float]:
    if isinstance(given, Sequence):
        if len(given) != count:
            raise ValueError(f"multiplier must be one number or one for each of the {count} groups, got {len(given)}")
        return [checks.rate("multiplier", each) for each in given]
    factor = checks.rate("multiplier", given, above=True)
    return [factor ** (count - 1 - index) for index in range(count)]


def _decayed(members: Named, weight_decay: float | None) -> list[tuple[Mapping[str, float], list[nn.Parameter]]]:
    """The group as it is, or in two parts: what decays and what does not."""
    if weight_decay is None:
        return [({}, list(members.values()))]
    decay = checks.rate("weight_decay", weight_decay)
    weights = [each for each in members.values() if each.ndim > 1]
    others = [each for each in members.values() if each.ndim <= 1]
    parts = [({"weight_decay": decay}, weights), ({"weight_decay": 0.0}, others)]
    return [part for part in parts if part[1]]
