"""Ensembles of snapshots: the mean of the members' probabilities, or one net with the mean of their weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from cyclr import checks
from cyclr.torch.snapshots import (
    Member,
    SnapshotError,
    best,
    check_there,
    fingerprint,
    plain,
    read_manifest,
    read_member,
    weights,
)

Predict: TypeAlias = Callable[[Callable[..., Any], Any], Tensor]


def softmax(output: Tensor) -> Tensor:
    """Probabilities from a net's scores, over the last axis.

    Raises:
        ValueError: one score an example, whose softmax is 1 whatever it is.
    """
    if output.ndim < 2 or output.shape[-1] == 1:
        raise ValueError(
            f"the net's output has shape {tuple(output.shape)}, which are no scores of several classes; give "
            "probability=torch.sigmoid, or another function from an output to probabilities"
        )
    return output.float().softmax(-1)


def first_input(model: Callable[..., Any], batch: Any) -> Tensor:
    """The net's output for a batch that is the input, or a tuple or list that begins with it."""
    return model(batch[0] if isinstance(batch, tuple | list) else batch)  # type: ignore[no-any-return]


class Ensemble:
    """The members in a folder of snapshots, as one classifier.

    It holds one member at a time beside `model`, which stays as it is.

        probabilities = mean over the members of probability(member(x))

    Args:
        folder: as `Snapshots` wrote it.
        model: a net of the same architecture; its own weights are not used.
        last: only so many, the latest ones.
        best: only so many, those with the highest metric.
        task: what `Snapshots` was given as such; snapshots of another one are refused, those of none are not.

    Attributes:
        members: who takes part, in the order of their steps.

    Raises:
        SnapshotError: no members; a manifest that is missing, damaged or edited; another net than `model`, or another
            task.

    Example:
        >>> import cyclr, tempfile, torch
        >>> from cyclr.torch import Ensemble, Snapshots
        >>> net, x = torch.nn.Linear(2, 3), torch.randn(5, 2)
        >>> folder = tempfile.TemporaryDirectory()
        >>> _ = Snapshots(folder.name, at=[10, 20])(10, net)
        >>> ensemble = Ensemble(folder.name, net)
        >>> bool(torch.allclose(ensemble.probabilities([x]), net(x).softmax(-1)))
        True
        >>> folder.cleanup()

    Reference: Huang et al., arXiv 1704.00109.
    """

    def __init__(
        self,
        folder: str | Path,
        model: nn.Module,
        *,
        last: int | None = None,
        best: int | None = None,
        task: str | None = None,
    ) -> None:
        self.folder, self._model = Path(folder), plain(model)
        about, members = read_manifest(self.folder)
        if None not in (task, about["task"]) and task != about["task"]:
            raise SnapshotError(f"{self.folder} holds snapshots of {about['task']}, not of {task}")
        if not members:
            raise SnapshotError(f"{self.folder} holds no snapshots yet; an ensemble needs at least one")
        self._net = about["net"]
        own = weights(self._model)
        if fingerprint(own) != self._net:
            first = read_member(self.folder, members[0], self._net)
            raise SnapshotError(
                f"{self.folder} holds snapshots of another net than {type(model).__name__}: {_difference(first, own)}"
            )
        self.members = _chosen(members, last, best)
        check_there(self.folder, self.members)

    def probabilities(
        self,
        batches: Iterable[Any] | Callable[[], Iterable[Any]],
        *,
        probability: Callable[[Tensor], Tensor] = softmax,
        predict: Predict = first_input,
    ) -> Tensor:
        """The members' mean probabilities, of shape (examples, classes), in single precision on the CPU.

        Args:
            batches: what each member sees from the first batch on, in one order: a DataLoader that does not shuffle,
                a list, or a function that returns an iterable anew. Tensors must lie on the model's device.
            probability: from a net's output to probabilities.
            predict: `predict(model, batch)`, the output for a batch; by default `model(batch[0])`. For a Hugging Face
                model: `lambda model, batch: model(**batch).logits`.

        Raises:
            SnapshotError: a member's file is missing, damaged or another one.
            ValueError: no batches, an iterator that can be read only once, or a DataLoader that shuffles.
        """
        each = self.each(batches, probability=probability, predict=predict)
        total = next(each).clone()
        for probabilities in each:
            total += probabilities
        return total / len(self.members)

    def each(
        self,
        batches: Iterable[Any] | Callable[[], Iterable[Any]],
        *,
        probability: Callable[[Tensor], Tensor] = softmax,
        predict: Predict = first_input,
    ) -> Iterator[Tensor]:
        """The probabilities of one member after the other; arguments and errors as for `probabilities`."""
        _check_rereadable(batches)
        for member in self.members:
            with _acting_as(self._model, self._tensors(member)) as model, torch.no_grad():
                outputs = [
                    probability(predict(model, batch)).float().cpu()
                    for batch in (batches() if callable(batches) else batches)
                ]
            if not outputs:
                raise ValueError("batches gave no batch; an ensemble needs data to predict")
            yield torch.cat(outputs)

    def average(self, batches: Iterable[Any] | None = None, *, predict: Predict = first_input) -> nn.Module:
        """A new net with the mean of the members' weights, in eval mode: stochastic weight averaging.

        Args:
            batches: training data, for the running statistics of its BatchNorm layers, which are measured anew; needed
                where there are such layers; each batch needs two examples at least.
            predict: as for `probabilities`.

        Raises:
            ValueError: BatchNorm layers and no batches, or none in them.

        Reference: Izmailov et al., arXiv 1803.05407.
        """
        average = copy.deepcopy(self._model)
        normalising = any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in average.modules())
        if normalising and batches is None:
            raise ValueError("the net has BatchNorm layers, whose statistics must be measured: average(training_data)")
        own = weights(average)
        with torch.no_grad():
            for count, member in enumerate(self.members, start=1):
                for name, tensor in self._tensors(member).items():
                    if count > 1 and tensor.is_floating_point():
                        own[name] += (tensor - own[name]) / count
                    else:  # whole numbers, such as a count of batches, are the latest member's
                        own[name].copy_(tensor)
        if normalising and batches is not None:
            update_bn(_some(batches), _Predicting(average, predict))
        return average.eval()

    def _tensors(self, member: Member) -> dict[str, Tensor]:
        """On the model's device and in its memory format, without which convolutions may take several times as long."""
        kept, own = read_member(self.folder, member, self._net), weights(self._model)
        return {name: torch.empty_like(own[name]).copy_(tensor) for name, tensor in kept.items()}


class _Predicting(nn.Module):
    """The net as `update_bn` calls it, with one batch."""

    def __init__(self, net: nn.Module, predict: Predict) -> None:
        super().__init__()
        self.net, self.predict = net, predict

    def forward(self, batch: Any) -> Tensor:
        return self.predict(self.net, batch)


def _some(batches: Iterable[Any]) -> Iterator[Any]:
    """These batches, as `update_bn` takes them; statistics of none would be mean 0 and variance 1."""
    empty = True
    for batch in batches:
        empty = False
        yield (batch,)
    if empty:
        raise ValueError("batches gave no batch; BatchNorm's statistics need data")


def _check_rereadable(batches: Any) -> None:
    """Every member must see the same examples in the same order."""
    if isinstance(batches, Iterator):
        raise ValueError("batches is an iterator, which only the first member could read; give a DataLoader or a list")
    if isinstance(batches, DataLoader) and any(
        isinstance(sampler, RandomSampler | WeightedRandomSampler | SubsetRandomSampler)
        for sampler in (batches.sampler, getattr(batches.batch_sampler, "sampler", None))
    ):
        raise ValueError(
            "the DataLoader shuffles, so that the members' probabilities would be of different examples; give one with "
            "shuffle=False"
        )


@contextmanager
def _acting_as(model: nn.Module, tensors: dict[str, Tensor]) -> Iterator[nn.Module]:
    """The net in eval mode, its parameters and buffers showing to a member's data; its own are not touched."""
    modes = [(module, module.training) for module in model.modules()]
    own = model.state_dict(keep_vars=True)
    kept = [(own[name], own[name].data) for name in tensors]
    model.eval()
    try:
        for name, tensor in tensors.items():
            own[name].data = tensor
        yield model
    finally:
        for each, data in kept:
            each.data = data
        for module, training in modes:
            module.training = training


def _chosen(members: list[Member], last: int | None, number: int | None) -> list[Member]:
    if last is not None and number is not None:
        raise ValueError("an ensemble is of the last members or of the best, not of both; give one of the two")
    for name, wanted in (("last", last), ("best", number)):
        if wanted is not None and not 1 <= checks.whole(name, wanted, least=1) <= len(members):
            raise ValueError(f"{name} must be at most {len(members)}, the snapshots that there are, got {wanted}")
    if number is not None:
        if all(member.metric is None for member in members):
            raise SnapshotError("these snapshots have no metric to choose by; choose the last ones")
        return best(members, number)
    return members if last is None else members[-last:]


def _difference(kept: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """The first thing in which two nets differ."""
    for name in [*own, *kept]:
        if name not in kept or name not in own:
            return f"{name} is in {'this net' if name in own else 'the snapshots'} only"
        there, here = (f"shape {tuple(each[name].shape)} ({each[name].dtype})" for each in (kept, own))
        if there != here:
            return f"{name} has {there} there and {here} here"
    return "they have the same layers, but its manifest says otherwise"
