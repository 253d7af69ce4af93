"""Snapshots: the weights at the ends of cycles, in a folder; and the ensemble that they make (arXiv 1704.00109).

A folder holds one safetensors file for each member and `manifest.json`, which says what they are. A member is listed
once it is wholly written, and removed after it is no longer listed: whenever a process dies, what is listed is there.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from cyclr import checks
from cyclr.files import write_atomically
from cyclr.schedules import Schedule, check_cycles

FORMAT = "cyclr-snapshots-1"
MANIFEST = "manifest.json"


class SnapshotError(ValueError):
    """Snapshots that cannot be used as they are; the files are left where they are."""


@dataclass(frozen=True)
class Member:
    """One snapshot.

    Attributes:
        file: its name in the folder.
        step: updates made when it was taken.
        metric: what it was judged by then, or None.
        sha256: of the file.
    """

    file: str
    step: int
    metric: float | None
    sha256: str


class Snapshots:
    """Keeps the weights at the ends of cycles: call it after each update, it acts at a cycle's end only.

    Args:
        folder: where members and manifest lie, of one run; made if it isn't there. A run that was stopped and begins
            again at an earlier step takes the later ones anew, and each stays until then. As soon as one comes out
            differently, those after it go: they are another run's.
        at: a schedule with cycles, or the numbers of updates after which a snapshot is wanted.
        keep: the most members of a run that stay on disk, at least 1; None keeps all. Later ones that an earlier start
            has left lie beside them until their steps are taken again.
        by: which stay: the "last", or the "best", with the highest metric.
        task: anything short that tells this training from another one, such as `Task.fingerprint()`.

    Attributes:
        members: what is on disk, in the order of the steps.

    Raises:
        SnapshotError: the folder holds snapshots of something else, or its manifest is damaged or edited.
        ImportError: safetensors is missing.
        TypeError, ValueError: a schedule without cycles, or what are no numbers of updates.

    Example:
        >>> import cyclr, tempfile, torch
        >>> from cyclr.torch import Snapshots
        >>> net, schedule = torch.nn.Linear(2, 1), cyclr.triangular(0.01, 0.1, stepsize=2)
        >>> folder = tempfile.TemporaryDirectory()
        >>> snapshots = Snapshots(folder.name, schedule, keep=2)
        >>> for step in range(1, 13):  # updates made
        ...     _ = snapshots(step, net)
        >>> [member.step for member in snapshots.members]
        [8, 12]
        >>> folder.cleanup()

    Reference: Huang et al., arXiv 1704.00109; the paper, 3.2: accuracy peaks at a cycle's end.
    """

    def __init__(
        self,
        folder: str | Path,
        at: Schedule | Collection[int],
        *,
        keep: int | None = None,
        by: Literal["last", "best"] = "last",
        task: str | None = None,
    ) -> None:
        _safetensors()  # a missing package is told now, not at the first cycle's end
        self.folder = Path(folder)
        self._keep = None if keep is None else checks.whole("keep", keep, least=1)
        self._by = checks.choice("by", by, ("last", "best"))
        self._due, described = _moments(at)
        self._about: dict[str, Any] = json.loads(json.dumps({"at": described, "task": task, "net": None}))
        self.members: list[Member] = []
        if (self.folder / MANIFEST).exists():
            self._go_on()
        elif any(self.folder.glob("step-*.safetensors")):
            raise SnapshotError(f"{self.folder} holds snapshots but no {MANIFEST}; choose another folder")

    def __call__(self, step: int, model: nn.Module, metric: float | None = None) -> bool:
        """Take a snapshot if a cycle is complete after `step` updates; whether it did.

        Under DDP or FSDP2 call it in every process; the first one writes.

        Args:
            step: updates made so far.
            model: whose parameters and buffers are kept.
            metric: what the member is judged by, higher is better.

        Raises:
            SnapshotError: `model` is another net than that of the members in the folder.
            ValueError: by="best" without a metric.
            OSError: the disk is full or read-only; the members that are there stay.
        """
        if not self._due(checks.whole("step", step, least=0)):
            return False
        if metric is None and self._by == "best":
            raise ValueError('by="best" needs a metric: call snapshots(step, model, metric)')
        tensors = weights(model)
        if dist.is_available() and dist.is_initialized() and dist.get_rank():
            return True
        net = fingerprint(tensors)
        if self._about["net"] not in (None, net):
            raise SnapshotError(
                f"{self.folder} holds snapshots of another net than {type(model).__name__} is now; "
                "choose another folder"
            )
        self._about["net"] = net
        if not (self.folder / MANIFEST).exists():
            self._write_manifest([])
        # A name of its own: where a run takes a step again, the old file is whole until the new one is listed.
        path = self.folder / f"step-{step:08d}-{uuid.uuid4().hex[:8]}.safetensors"
        content = _in_bytes(tensors)
        write_atomically(path, content)
        metric = None if metric is None or not math.isfinite(metric) else float(metric)
        taken = Member(path.name, step, metric, hashlib.sha256(content).hexdigest())
        earlier, later = self._others(taken)
        self._write_manifest([*self._kept([*earlier, taken]), *later])
        self._remove_unlisted()
        return True

    def _go_on(self) -> None:
        about, members = read_manifest(self.folder)
        for name, what in (("at", "schedule"), ("task", "task")):
            if about[name] != self._about[name]:
                raise SnapshotError(f"{self.folder} holds snapshots of another {what}; choose another folder")
        check_there(self.folder, members)
        self._about, self.members = about, members

    def _others(self, taken: Member) -> tuple[list[Member], list[Member]]:
        """The members before and after this one; if its step had another net, what came after it is another run's."""
        same_run = all(member.sha256 == taken.sha256 for member in self.members if member.step == taken.step)
        earlier = [member for member in self.members if member.step < taken.step]
        return earlier, [member for member in self.members if same_run and member.step > taken.step]

    def _kept(self, members: list[Member]) -> list[Member]:
        if self._keep is None or len(members) <= self._keep:
            return members
        if self._by == "last":
            return members[-self._keep :]
        return best(members, self._keep)

    def _write_manifest(self, members: list[Member]) -> None:
        content = {"format": FORMAT, **self._about, "members": [asdict(member) for member in members]}
        content["checksum"] = _checksum(content)
        write_atomically(self.folder / MANIFEST, (json.dumps(content, indent=2) + "\n").encode())
        self.members = members

    def _remove_unlisted(self) -> None:
        """Members that are not kept, and what a kill in mid-write has left."""
        listed = {member.file for member in self.members}
        for pattern in ("step-*.safetensors", ".step-*.safetensors.*.part", f".{MANIFEST}.*.part"):
            for path in self.folder.glob(pattern):
                if path.name not in listed:
                    path.unlink(missing_ok=True)


def best(members: list[Member], count: int) -> list[Member]:
    """The `count` members with the highest metric, in the order of their steps; one without a metric is the worst."""

    def rank(member: Member) -> tuple[float, int]:
        return -math.inf if member.metric is None else member.metric, member.step

    return sorted(sorted(members, key=rank, reverse=True)[:count], key=lambda member: member.step)


def _moments(at: Schedule | Collection[int]) -> tuple[Callable[[int], bool], Any]:
    """Whether a snapshot is due after so many updates, and what the manifest says of that."""
    if isinstance(at, Schedule):
        check_cycles("a snapshot is taken", at, "give at=[updates, ...]")
        return at.ends_cycle, at.to_dict()
    if isinstance(at, str) or not isinstance(at, Collection):
        raise TypeError(f"at must be a schedule or the numbers of updates, such as [1000, 2000], got {at!r}")
    updates = sorted({checks.whole("at", each, least=1) for each in at})
    if not updates:
        raise ValueError("at names no number of updates, so no snapshot would ever be taken")
    return frozenset(updates).__contains__, updates


def read_manifest(folder: Path) -> tuple[dict[str, Any], list[Member]]:
    """What a folder's snapshots are of, and its members.

    Raises:
        SnapshotError: there is none, or it is damaged or was edited.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise SnapshotError(f"{folder} holds no {MANIFEST}; give a folder that Snapshots has written")
    try:
        content = json.loads(path.read_bytes())
        known = content.get("format") == FORMAT
    except (ValueError, AttributeError):
        raise SnapshotError(f"{path} is damaged; the members beside it are as they were") from None
    if not known:
        raise SnapshotError(f"{path} is no manifest of this version of cyclr")
    if content.pop("checksum", None) != _checksum(content):
        raise SnapshotError(f"{path} was edited, its checksum is another; put the original back")
    try:
        members = [Member(**each) for each in content["members"]]
        return {name: content[name] for name in ("at", "task", "net")}, members
    except (KeyError, TypeError):
        raise SnapshotError(f"{path} is no manifest of this version of cyclr") from None


def check_there(folder: Path, members: Collection[Member]) -> None:
    """Every member has its file.

    Raises:
        SnapshotError: one has none.
    """
    for member in members:
        if not (folder / member.file).is_file():
            raise SnapshotError(f"the snapshot {folder / member.file} is missing; put it back, or choose other members")


def read_member(folder: Path, member: Member, net: str) -> dict[str, Tensor]:
    """A member's tensors by name.

    Raises:
        SnapshotError: its file is missing, damaged, or another one.
    """
    safetensors = _safetensors()
    check_there(folder, [member])
    path = folder / member.file
    if _sha256(path) != member.sha256:
        raise SnapshotError(f"the snapshot {path} is damaged or another one; put the original back")
    tensors: dict[str, Tensor] = safetensors.load_file(path)
    if fingerprint(tensors) != net:
        raise SnapshotError(f"the snapshot {path} is of another net than the others; choose other members")
    return tensors


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, as the net has them that DDP, FSDP2 or torch.compile wraps; shared ones once."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in plain(model).state_dict(keep_vars=True).items():
        if torch.is_tensor(tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            tensors[name] = whole.detach()
    return tensors


def plain(model: nn.Module) -> nn.Module:
    """The net inside DDP and torch.compile."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A short checksum of names, shapes and types: two nets with the same one take each other's weights."""
    described = sorted((name, tuple(each.shape), str(each.dtype)) for name, each in tensors.items())
    return hashlib.sha256(repr(described).encode()).hexdigest()[:16]


def _in_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    # Views of one storage are refused by safetensors, and a copy on the CPU is what is written anyway. Its own
    # save_file leaves a file behind, under a name of its choice, when it is killed.
    copies = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    return bytes(_safetensors().save(copies))


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ImportError("snapshots are safetensors files: pip install safetensors") from None
    return safetensors.torch


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
