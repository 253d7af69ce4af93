"""The tables and the figure of benchmarks/regret/README.md, and those of docs/trust.md, from the records alone.

    python benchmarks/regret/tables.py [--check]
    python benchmarks/regret/tables.py --only NAME    # print the lines of one task, which may be your own

What they say is put together in findings.py.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from advice import CYCLR, LENGTHS, SCHEDULES
from figure import draw
from findings import Findings, PerTask, finder_of
from rule import read, right_rates, share_from
from tuning_free import METHODS

from cyclr.files import write_atomically
from cyclr.lab.pages import says_the_same, with_part
from records import SEEDS, Records

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
README, TRUST, FRONT = HERE / "README.md", ROOT / "docs" / "trust.md", ROOT / "README.md"
POLICIES = ("fixed", *CYCLR)
NO_ADVICE = "none"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def points(value: float | None) -> str:
    return NO_ADVICE if value is None else f"{value:.1f}"


def factor(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


def summary(per_task: PerTask) -> list[str]:
    if not per_task:
        return ["not yet"] * 3
    worst = max(per_task, key=lambda task: per_task[task])
    values = list(per_task.values())
    mean, median = statistics.fmean(values), statistics.median(values)
    return [f"{mean:.2f}", f"{median:.2f}", f"{per_task[worst]:.1f} ({worst})"]


def spreads(several: Iterable[Sequence[float]]) -> str:
    """Largest over smallest rate, the median over tasks and the worst."""
    found = [max(rates) / min(rates) for rates in several if len(rates) > 1]
    return f"{factor(statistics.median(found))}, {factor(max(found))}" if found else "not yet"


def silences(curves: dict[str, list[str]]) -> str:
    """How many range tests gave no advice."""
    return str(sum(read(curve, "triangular").max_lr is None for several in curves.values() for curve in several))


def advisers_text(study: Findings) -> str:
    """Every finder: regret under its schedule, spread of its rates, cost."""
    tasks, swept = study.tasks, study.records.swept
    own = [
        spreads(study.cyclr_rates(task, [study.usual(task)]) for task in tasks),
        spreads(study.cyclr_rates(task, LENGTHS) for task in tasks),
        f"{study.cost('cyclr', study.usual):,.0f}",
        silences(study.curves()),
    ]
    lines = []
    for policy in CYCLR:
        per_task = study.cyclr(policy)
        lines.append(["**cyclr**", policy, str(len(per_task)), *summary(per_task), *own])
    others = {
        f"cyclr, steps={LENGTHS[0]}*": (study.short(), f"{study.cost('cyclr', lambda _: LENGTHS[0]):,.0f}"),
        "cyclr, ramp alone*": (study.curves(ramp_alone=True), ""),
    }
    for name, (curves, cost) in others.items():
        for policy in CYCLR:
            per_task = study.interpolated(curves, policy)
            lines.append([name, policy, str(len(per_task)), *summary(per_task), "", "", cost, silences(curves)])
    for adviser, policy in SCHEDULES.items():
        per_task = study.peer(adviser)
        made = sum((task, finder_of(adviser), LENGTHS[0], seed) in swept for task in tasks for seed in SEEDS)
        silent = made - sum(len(study.said(adviser, task, LENGTHS[0])) for task in tasks)
        lines.append(
            [
                adviser, policy, str(len(per_task)), *summary(per_task),
                spreads(study.peer_rates(adviser, task, LENGTHS[:1]) for task in tasks),
                spreads(study.peer_rates(adviser, task, LENGTHS) for task in tasks),
                f"{study.cost(finder_of(adviser), lambda _: LENGTHS[0]):,.0f}", str(silent),
            ]
        )  # fmt: skip
    head = ["advice", "schedule", "tasks", "mean", "median", "worst"]
    return table([*head, "over seeds", "and lengths", "updates", "no advice"], lines)


def summary_text(study: Findings) -> str:
    """The whole in one sentence."""
    own = [study.cyclr(policy) for policy in CYCLR]
    peers = {adviser: statistics.fmean(lost.values()) for adviser in SCHEDULES if (lost := study.peer(adviser))}
    if not all(own) or not peers:
        return "not yet"
    means, medians = (sorted(of(lost.values()) for lost in own) for of in (statistics.fmean, statistics.median))
    worst = max(max(lost.values()) for lost in own)
    best = min(peers, key=lambda adviser: peers[adviser])
    return (
        f"On {len(study.tasks)} tasks, training inside the bounds of one range test lost {means[0]:.2f} to "
        f"{means[-1]:.2f} points against the best rate of a grid under the same policy, in the mean over tasks "
        f"(median {medians[0]:.2f} to {medians[-1]:.2f}, worst {worst:.1f}). The best "
        f"of the other finders, {best}, lost {peers[best]:.1f} under its schedule."
    )


def tasks_text(study: Findings) -> str:
    """Regret of each finder on each task."""
    columns = [*(("cyclr", policy) for policy in CYCLR), *SCHEDULES.items()]
    cells = {("cyclr", policy): study.cyclr(policy) for policy in CYCLR}
    cells |= {(adviser, policy): study.peer(adviser) for adviser, policy in SCHEDULES.items()}
    lines = [[task, *(points(cells[column].get(task)) for column in columns)] for task in study.tasks]
    return table(["task", *(f"{adviser}, {policy}" for adviser, policy in columns)], lines)


def ahead(study: Findings) -> str:
    """The tasks on which a peer is better by more than half a point."""
    own, sentences = study.cyclr("one_cycle"), []
    for adviser in (adviser for adviser, policy in SCHEDULES.items() if policy == "one_cycle"):
        other = study.peer(adviser)
        better = [task for task in own if task in other and other[task] < own[task] - 0.5]
        named = ", ".join(f"{task} ({other[task]:.1f} against {own[task]:.1f})" for task in better)
        sentences.append(f"{adviser}: {named or 'on no task'}")
    return "Better than cyclr by more than half a point, under one_cycle: " + "; ".join(sentences) + "."


def fixed_text(study: Findings) -> str:
    """CLR inside the found bounds against the best of the grid of fixed rates."""
    best = {task: found[1] for task in study.tasks if (found := study.records.best(task, "fixed"))}
    lines = []
    for policy in CYCLR:
        got = study.inside(policy)
        gain = {task: statistics.fmean(got[task]) - best[task] for task in best if got[task]}
        if gain:
            worst = min(gain, key=lambda task: gain[task])
            equal = sum(each >= 0 for each in gain.values())
            median = f"{statistics.median(gain.values()):+.2f}"
            worst_gain = f"{gain[worst]:+.1f} ({worst})"
            lines.append([policy, str(len(gain)), median, worst_gain, f"{equal} of {len(gain)}"])
    rates = [len(study.records.grid(task, "fixed")) for task in best]
    costs = [
        1 + result["updates"] / study.records.updates[task]
        for (task, who, steps, _), result in study.records.swept.items()
        if who == "cyclr" and steps == study.usual(task)
    ]
    return (
        f"{table(['policy', 'tasks', 'median gain', 'worst', 'at least equal'], lines)}\n\n"
        f"A range test and one training cost {min(costs):.1f} to {max(costs):.1f} trainings, "
        f"{statistics.median(costs):.1f} in the median; a grid of fixed rates had {min(rates)} to {max(rates)} rates."
    )


def methods_text(study: Findings) -> str:
    """Training without a rate, against the best of all grids."""
    best = {
        task: max(found[1] for policy in POLICIES if (found := study.records.best(task, policy)))
        for task in study.tasks
    }
    lines = [[f"cyclr's bounds, {policy}", *methods_line(best, study.inside(policy))] for policy in CYCLR]
    for method in METHODS:
        got = {task: list(study.records.trained.get((task, method, None, None), {}).values()) for task in study.tasks}
        lines.append([method, *methods_line(best, got)])
    return table(["method", "tasks", "trainings", "mean", "median", "worst"], lines)


def methods_line(best: PerTask, got: dict[str, list[float]]) -> list[str]:
    per_task = {task: best[task] - statistics.fmean(metrics) for task, metrics in got.items() if metrics}
    return [str(len(per_task)), str(sum(map(len, got.values()))), *summary(per_task)]


def rates_text(study: Findings, start: str = "") -> str:
    """What was found, what was right, and what the difference cost, for tasks whose names start so."""
    lines = []
    for task in (task for task in study.tasks if task.startswith(start)):
        for policy in CYCLR:
            best, inside = study.records.best(task, policy), study.records.inside[task, policy]
            if best is None:
                continue
            low, high = (10.0**log for log in right_rates(study.records.grid(task, policy)))
            found = ", ".join(f"{max_lr:.2g}" for _, max_lr, _ in inside.values())
            lost = study.lost(task, policy, [metric for *_, metric in inside.values()])
            reached = f"{best[1]:.1f} at {best[0]:.2g}"
            lines.append([task, policy, found or NO_ADVICE, f"{low:.2g} to {high:.2g}", reached, points(lost)])
    return table(["task", "policy", "found max_lr", "within half a point", "best of the grid", "regret"], lines)


def interval_text(study: Findings) -> str:
    """How often an interval, made without the task it is judged on, held what was right."""
    held = [miss <= math.log10(study.interval_factor(task)) for task, miss in study.misses]
    if not held:
        return "not yet"
    return (
        f"A factor of {study.interval_factor(None):.1f} both ways holds a rate within half a point of the best in "
        f"{100 * statistics.fmean(held):.0f} % of {len(held)} cases (task, policy, seed), with a factor that was taken "
        "from the other tasks."
    )


def shares_text(study: Findings) -> str:
    """The shares from all tasks: the package's constants."""
    lines = []
    for name, ramp_alone in (("short cycles", False), ("ramp alone", True)):
        curves = study.curves(ramp_alone=ramp_alone)
        shares = [share_from(curves, study.grids(policy), policy, without=None) for policy in CYCLR]
        lines.append([name, *("" if share is None else f"{share:.2f}" for share in shares)])
    return table(["read from", *CYCLR], lines)


def grid_text(study: Findings) -> str:
    """The oracle: the best rate of each policy's grid and the metric that it reaches."""
    lines = []
    for task in study.tasks:
        found = [study.records.best(task, policy) for policy in POLICIES]
        cells = ["not yet" if best is None else f"{best[1]:.1f} at {best[0]:.2g}" for best in found]
        lines.append([task, f"{study.records.updates[task]:,}", *cells])
    count = sum(len(seeds) for seeds in study.records.trained.values())
    count += sum(len(seeds) for seeds in study.records.inside.values())
    holes = [f"Failed, {cells} times: {error}" for error, cells in study.records.errors.items()]
    note = f"{count:,} trainings; best of means over {len(SEEDS)} seeds."
    return "\n".join([table(["task", "updates", *POLICIES], lines), "", note, *holes])


PARTS: dict[str, Callable[[Findings], str]] = {
    "trust": summary_text,
    "advisers": advisers_text,
    "ahead": ahead,
    "fixed": fixed_text,
    "methods": methods_text,
    "fine-tuning": functools.partial(rates_text, start="finetune"),
    "interval": interval_text,
    "shares": shares_text,
    "tasks": tasks_text,
    "grid": grid_text,
}


def pages(study: Findings) -> dict[Path, str]:
    """All pages, with every part that they have markers for renewed."""
    found = {}
    for path in (README, TRUST, FRONT):
        page = path.read_text()
        for name, text_of in PARTS.items():
            if f"<!-- {name} -->" in page:
                page = with_part(page, name, text_of(study))
        found[path] = page
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is not the records'")
    parser.add_argument("--only", metavar="NAME", help="print the lines of one task")
    parser.add_argument("--records", type=Path, default=HERE / "records")
    options = parser.parse_args()
    try:
        study = Findings(Records(options.records), options.only)
    except ValueError as error:
        sys.exit(str(error))
    if options.only is not None:
        print("\n\n".join(text_of(study) for text_of in (tasks_text, rates_text, grid_text)))
        return
    for path, text in pages(study).items():
        if not options.check:
            write_atomically(path, text.encode())
        elif not says_the_same(text, path.read_text()):
            sys.exit(f"{path.name} is not what the records say; run python benchmarks/regret/tables.py")
    if not options.check:
        draw(study, HERE / "regret.png")


if __name__ == "__main__":
    main()
