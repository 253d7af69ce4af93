"""Records: what a run leaves behind, one JSON object a line, enough to redo it."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

from cyclr.lab.processes import count

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT, VERSION = "cyclr-record", 1
FILE = "records.jsonl"
Record: TypeAlias = dict[str, Any]


def run_name(config: Mapping[str, Any]) -> str:
    """A name for the run of this configuration; another configuration has another name."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    return f"{config['policy']}-seed{config['seed']}-{digest[:8]}".replace("/", "_")


def new_record(config: Mapping[str, Any], result: Mapping[str, Any]) -> Record:
    """Configuration and result with what else is needed to believe them: versions, hardware, time."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "run": run_name(config),
        "config": dict(config),
        "result": plain(result),
        "versions": versions(),
        "hardware": hardware(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def plain(value: Any) -> Any:
    """The value with None for numbers that JSON has no word for: NaN and the infinities."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append_record(folder: Path, record: Record) -> None:
    """Add one line, whole: what a crash left half written is cut off first, and nothing stays if the disk is full."""
    folder.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    # Unbuffered: closing must not write the rest of a line that has been taken back.
    with (folder / FILE).open("ab+", buffering=0) as file:
        if fcntl is not None:  # processes that share a folder write one after the other, until the file is closed
            fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        whole = file.read(size).rfind(b"\n") + 1
        file.truncate(whole)
        try:
            written = 0
            while written < len(line):  # a disk that is nearly full takes a part
                written += file.write(line[written:])
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(whole)
            raise


def read_records(folder: Path) -> list[Record]:
    """The records in a folder, oldest first; a half-written last line is not one.

    Raises:
        ValueError: a line is damaged, or comes from another version.
    """
    path = folder / FILE
    if not path.exists():
        return []
    *lines, _unfinished = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        damaged = ValueError(f"{path}, line {number} is damaged; remove that line to go on without that run")
        try:
            record = json.loads(line)
        except ValueError:
            raise damaged from None
        if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") != VERSION:
            raise ValueError(
                f"{path}, line {number} is no record of version {VERSION}; remove that line, or update cyclr"
            )
        if not all(isinstance(record.get(part), dict) for part in ("config", "result", "versions", "hardware")):
            raise damaged
        records.append(record)
    return records


def find_record(folder: Path, config: Mapping[str, Any]) -> Record | None:
    """The record of the run with exactly this configuration, if it has been made."""
    name = run_name(config)
    return next((record for record in read_records(folder) if record["run"] == name), None)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a number depends on."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("cyclr", "torch", "accelerate", "numpy")},
    }


def hardware() -> dict[str, Any]:
    """Processor with what torch uses of it, cores, processes at this run, threads in each, GPU if there is one."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    threads = torch.get_num_threads()
    cpu = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}"  # one name, AVX2 or AVX512: very unequal
    return {"cpu": cpu, "cores": os.cpu_count(), "processes": count(), "threads": threads, "gpu": gpu}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
