"""Sweeps on Ray: many runs at once, on this machine or a cluster. Workers that are lost have their runs made again."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cyclr import checks

try:
    import ray
except ImportError:
    raise ImportError("a sweep on Ray needs one package more: pip install 'cyclr[ray]'") from None

RETRIES = 5  # of a run whose worker was lost
ANSWER_SECONDS = 5.0
OBJECT_STORE = 500 * 2**20  # bytes of shared memory that a cluster of our own takes
HOST = r"[^/\s:]+:\d+"
LOST = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,  # a result, with the node that held it
)


def spread(
    function: Callable[..., Any],
    shared: Any,
    jobs: Sequence[Mapping[str, Any]] | None,
    *,
    on: str = "ray",
    cpus: float = 1.0,
    gpus: float = 0.0,
) -> Iterator[tuple[int, Any]]:
    """`function(shared, **job)` for every job, placed where its CPUs and GPUs are free; (number, result) as they end.

    Args:
        function, jobs: what is done; None for as many jobs `{}` as the cluster has room for.
        shared: sent once to each machine, such as a task with its data.
        on: "ray" for a cluster of this machine's cores, or the one that RAY_ADDRESS names; "ray:HOST:PORT" for
            another, "ray:auto" for one that runs on this machine, "ray://HOST:PORT" through Ray's client.
        cpus, gpus: what one job needs. It has as many threads as CPUs.

    Raises:
        TypeError: cpus or gpus that are no numbers.
        ValueError: an unknown `on`, nobody answers there, no node has what one job needs, or none can: less than
            nothing, one and a half GPUs.
        Exception: what a job raised, once all others have ended.
    """
    cpus, gpus = checked_needs(cpus, gpus)
    with _cluster(on):
        room = _room(cpus, gpus)
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_job)
        if jobs is None:
            jobs = [{}] * room
        _send_task_files()
        kept = ray.put((function, shared))
        pending = {remote.remote(kept, max(1, int(cpus)), dict(job)): number for number, job in enumerate(jobs)}
        trouble: Exception | None = None
        while pending:
            (ended,), _ = ray.wait(list(pending), num_returns=1)
            number = pending.pop(ended)
            try:
                yield number, ray.get(ended)
            except ray.exceptions.RayError as error:
                trouble = trouble or _trouble(error)
        if trouble is not None:
            raise trouble


def checked_needs(cpus: float, gpus: float) -> tuple[float, float]:
    """CPUs and GPUs that Ray can give to a job."""
    cpus, gpus = checks.rate("cpus", cpus), checks.rate("gpus", gpus)
    if gpus > 1.0 and not gpus.is_integer():
        raise ValueError(f"gpus must be a whole number or a part of 1, got {gpus:g}; round it up")
    return cpus, gpus


def _job(kept: tuple[Callable[..., Any], Any], threads: int, job: Mapping[str, Any]) -> Any:
    """One job, in a worker of Ray's."""
    torch.set_num_threads(threads)
    function, shared = kept
    return function(shared, **job)


def _room(cpus: float, gpus: float) -> int:
    """How many jobs the cluster's nodes have room for at once; at least one, for Ray would wait for it for ever."""
    needs = {kind: need for kind, need in (("CPU", cpus), ("GPU", gpus)) if need}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = [min((int(node.get(kind, 0) / need + 1e-9) for kind, need in needs.items()), default=1) for node in nodes]
    if not any(room):
        most = ", ".join(f"{max((node.get(kind, 0) for node in nodes), default=0):g} {kind}" for kind in needs)
        needed = " and ".join(f"{need:g} {kind}" for kind, need in needs.items())
        raise ValueError(
            f"a run needs {needed}, but no node of this cluster has as many (the most that one has: {most}); "
            "let a run need less, or add such a node"
        )
    return sum(room)


def _trouble(error: Exception) -> Exception:
    """What a job raised; a sentence where its worker was lost; what else Ray says as it is."""
    if isinstance(error, LOST):
        reason = str(error).partition("\n")[0]
        return RuntimeError(f"a run's worker was lost {RETRIES + 1} times ({reason}); has it enough memory?")
    return getattr(error, "cause", None) or error


@contextmanager
def _cluster(on: str) -> Iterator[None]:
    """Connected to the cluster; one that was connected before stays so."""
    address = address_of(on)
    if ray.is_initialized():
        yield
        return
    own = [path for path in sys.path if path and not path.startswith((sys.prefix, sys.base_prefix))]
    quiet: dict[str, Any] = {
        "logging_level": "ERROR",
        "log_to_driver": False,
        "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(own)}},  # what is imported here can be there
    }
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
    else:
        _check_answers(address)
        try:
            ray.init(address=address, **quiet)
        except ConnectionError as error:
            where = "on this machine" if address == "auto" else f"at {address}"
            reason = re.split(r"\. |\n", str(error))[0]  # then it speaks of options that are not ours
            raise ValueError(
                f"cannot connect to a Ray cluster {where} ({reason}); is its head node running, and the only one there?"
            ) from None
    try:
        yield
    finally:
        ray.shutdown()  # only disconnects from a cluster that isn't ours; its jobs end then


def address_of(on: str) -> str | None:
    """Ray's address in `on`; None for a cluster of our own."""
    if on == "ray":
        address = os.environ.get("RAY_ADDRESS") or "local"
        if not re.fullmatch(f"local|auto|(ray://)?{HOST}", address):
            raise ValueError(f"RAY_ADDRESS must be local, auto, HOST:PORT or ray://HOST:PORT, got {address!r}")
        return None if address == "local" else address
    if re.fullmatch(f"ray:(auto|{HOST})", str(on)):
        return on.removeprefix("ray:")
    if re.fullmatch(f"ray://{HOST}", str(on)):
        return on
    raise ValueError(f"on must be local, ray, ray:auto, ray:HOST:PORT or ray://HOST:PORT, got {on!r}")


def _check_answers(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:  # auto
        return
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except OSError as error:
        raise ValueError(f"no Ray cluster answers at {host}:{port} ({error}); is its head node running?") from None


def _send_task_files() -> None:
    """Have the code of a user's task file, and of the files beside it, sent along: workers cannot import them."""
    files = {name: Path(str(getattr(module, "__file__", None))) for name, module in list(sys.modules.items())}
    folders = {path.parent for name, path in files.items() if name.startswith("cyclr_task_")}
    for name, path in files.items():
        if path.parent in folders:
            ray.cloudpickle.register_pickle_by_value(sys.modules[name])
