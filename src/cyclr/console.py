"""How the command talks: text and JSON on stdout, progress and errors on stderr, exit codes."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import typer
from rich.console import Console

if TYPE_CHECKING:
    from cyclr.bounds import Bounds

FAILED, WRONG_INPUT = 1, 2
INTERRUPTED = 130  # Typer's word for Ctrl-C

# As torchrun and accelerate launch number the processes, of all nodes and of this one. The first of all talks.
RANK, LOCAL_RANK = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))

notes = Console(stderr=True, highlight=False, emoji=False, quiet=RANK > 0)
_result: ContextVar[TextIO | None] = ContextVar("_result", default=None)  # where JSON goes


def run(app: typer.Typer) -> None:
    """Run the command; every error is one sentence on stderr and an exit code: 1 the run failed, 2 wrong input."""
    arguments = sys.argv[1:] or ["--help"]
    silence = io.StringIO()
    _result.set(silence if RANK else sys.stdout)
    try:
        # What a task prints by itself must not mix with the one JSON object.
        with redirect_stdout(silence if RANK else sys.stderr) if RANK or "--json" in arguments else nullcontext():
            code = app(arguments, prog_name="cyclr", standalone_mode=False) or 0
        if code == INTERRUPTED:
            raise KeyboardInterrupt
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("CYCLR_DEBUG"):
            raise
        code, sentence = _told(error)
        _tell(code, sentence)
    if code:
        sys.exit(code)


def _told(error: BaseException) -> tuple[int, str]:
    """Exit code and sentence for an error."""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return FAILED, "stopped; the same command goes on from its last checkpoint"
    if hasattr(error, "format_message"):  # Typer's own: an unknown option, a word where a number belongs
        return WRONG_INPUT, f"{error.format_message()} (cyclr --help says more)"
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, ValueError | TypeError | ImportError):  # the last: an extra that isn't installed
        return WRONG_INPUT, first_line
    if isinstance(error, OSError):
        return FAILED, f"cannot read or write {error.filename or 'a file'}: {error.strerror or error}"
    if type(error).__name__ == "ProcessError":  # torch is not loaded for its sake
        return FAILED, first_line
    return FAILED, f"the run failed: {type(error).__name__}: {first_line}"


def _tell(code: int, sentence: str) -> None:
    """Say why the command ends.

    Input that is wrong for one process of a node is wrong for all of that node, so its first one says it. The nodes
    may differ: a folder that is there on one is missing on another.
    """
    if not RANK:
        notes.print(f"cyclr: {sentence}", markup=False, soft_wrap=True)
    elif not LOCAL_RANK or code == FAILED:
        sys.stderr.write(f"cyclr, process {RANK}: {sentence}\n")


def stop(code: int, sentence: str) -> NoReturn:
    """End the command with a sentence."""
    _tell(code, sentence)
    raise typer.Exit(code)


@contextmanager
def bar(*, quiet: bool) -> Iterator[Any]:
    """A function that opens a progress bar under a title and returns what moves it on."""
    if quiet or notes.quiet or not notes.is_terminal:
        yield lambda title: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}"))
    with Progress(*columns, TimeRemainingColumn(), console=notes, transient=True, refresh_per_second=4) as bars:

        def open_bar(title: str) -> Any:
            bar = bars.add_task(title, total=None, now="")
            passes, last = 1, 0

            def move(done: int, total: int, lr: float, value: float) -> None:
                nonlocal passes, last
                if done < last:  # a range test makes several passes, each with its own number of updates
                    passes += 1
                    bars.reset(bar, description=f"{title}, pass {passes}")
                last = done
                bars.update(bar, completed=done, total=total, now=f"lr {lr:.2g}  {value:.3g}", visible=done < total)

            return move

        yield open_bar


def say_bounds(bounds: Bounds) -> None:
    """The bounds and what their interval means, or why there are none."""
    if bounds.base_lr is None or bounds.max_lr is None or bounds.interval is None:
        typer.echo(f"no bounds: {bounds.status}\n{bounds.reason}")
        return
    low, high = bounds.interval
    typer.echo(f"base_lr  {bounds.base_lr:.3g}\nmax_lr   {bounds.max_lr:.3g}   (90 % interval {low:.3g} to {high:.3g})")
    typer.echo(bounds.reason)
    typer.echo("the interval: how far such advice was off on the tasks of a study, or the curves' noise if more")


def print_table(rows: list[Any]) -> None:
    """The comparison's rows."""
    from rich.table import Table

    from cyclr.lab.comparing import COLUMNS

    grid = Table(title="metric at the end of training")
    for heading in COLUMNS:
        grid.add_column(heading, justify="left" if heading == COLUMNS[0] else "right")
    for row in rows:
        grid.add_row(*row.cells())
    Console(highlight=False).print(grid)


def print_ensemble(found: list[Any]) -> None:
    """Members, ensembles and average, with what they gain over the last member and what they cost."""
    from rich.table import Table

    single = [each for each in found if each.kind == "member"][-1]
    grid = Table(title=f"the task's metric on the {'validation' if single.test is None else 'test'} data")
    for heading in ("model", "validation", "test", "gain", "time to predict"):
        grid.add_column(heading, justify="left" if heading == "model" else "right")
    for each in found:
        count = len(each.steps)
        title = {
            "member": f"update {each.steps[-1]:,}",
            "ensemble": f"ensemble of {count}, from update {each.steps[0]:,}",
        }
        grid.add_row(
            title.get(each.kind, f"average of {count} weights"),
            *("" if value is None else f"{value:.4f}" for value in (each.validation, each.test)),
            f"{each.score - single.score:+.4f}",
            f"{each.cost:.2f} x",
        )
    Console(highlight=False).print(grid)


def print_json(result: dict[str, Any]) -> None:
    """The one object of --json."""
    from cyclr.lab.records import plain

    print(json.dumps(plain(result), allow_nan=False), file=_result.get() or sys.stdout)
