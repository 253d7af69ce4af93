"""Results in, one self-contained HTML page out. It returns a string; it reads and writes no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from cyclr.curve import Curve
from cyclr.lab import table, verdict
from cyclr.lab.comparing import COLUMNS
from cyclr.lab.records import Record
from cyclr.pictures import readable_range, short_cycles
from cyclr.stages import schedule_from_dict

COLOURS = ("#1f6fb2", "#c8442d", "#2e8b57", "#8a5fb5", "#b8860b", "#5f6b7a")
POINTS = 1500  # of a line, enough for any screen


def render(records: Sequence[Record], curves: Sequence[Curve] = (), bounds: Mapping[str, Any] | None = None) -> str:
    """The page: range test with its bounds, schedules, accuracy against updates with cycle ends marked, table.

    Args:
        records: of one task, at least one.
        curves: its range tests.
        bounds: what was read off them, as in bounds.json.
    """
    from jinja2 import Environment
    from plotly.io import to_html
    from plotly.offline import get_plotlyjs

    rows = table(records)
    figures = [("Accuracy against updates", _training(records)), ("Schedules", _schedules(records))]
    if curves:
        figures.insert(0, ("LR range test", _range_tests(curves, bounds)))
    template = Environment(autoescape=True).from_string(
        resources.files("cyclr").joinpath("report.html").read_text(encoding="utf-8")
    )
    return template.render(
        task=records[0]["config"]["task"],
        verdict=verdict(rows),
        columns=COLUMNS,
        rows=[row.cells() for row in rows],
        bounds=bounds,
        figures=[
            (title, to_html(figure, full_html=False, include_plotlyjs=False, config={"responsive": True}))
            for title, figure in figures
        ],
        plotly=get_plotlyjs(),
        machine=_machine(records[-1]),
    )


def _machine(record: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    hardware = record["hardware"]
    return f"{hardware['gpu'] or hardware['cpu']}, {hardware['threads']} threads; {versions}; {record['finished']}"


def _figure(x_title: str, y_title: str) -> Any:
    from plotly.graph_objects import Figure

    figure = Figure()
    figure.update_layout(
        template="plotly_white",
        margin={"l": 60, "r": 60, "t": 40, "b": 90},
        height=420,
        xaxis_title=x_title,
        yaxis_title=y_title,
        legend={"orientation": "h", "y": -0.2},
    )
    return figure


def _thinned(count: int) -> Any:
    return np.unique(np.linspace(0, count - 1, min(count, POINTS)).astype(int))


def _range_tests(curves: Sequence[Curve], bounds: Mapping[str, Any] | None) -> Any:
    figure = _figure("learning rate", "training loss")
    figure.update_xaxes(type="log")
    figure.update_yaxes(range=readable_range(curves, _loss(curves[0]).metric))
    figure.update_layout(yaxis2={"title": curves[0].metric, "overlaying": "y", "side": "right", "showgrid": False})
    for number, curve in enumerate(curves):
        for each, axis, colour in ((_loss(curve), "y", COLOURS[0]), (curve, "y2", COLOURS[1])):
            if axis == "y2" and each is _loss(curve):
                continue
            keep = _thinned(len(each))
            keep = keep[each.lrs[keep] > 0]
            figure.add_scatter(
                x=each.lrs[keep], y=each.values[keep], yaxis=axis, name=each.metric, showlegend=number == 0,
                line={"color": colour, "width": 1 if axis == "y" else 2}, opacity=0.8,
            )  # fmt: skip
        if cycles := short_cycles(curve, _loss(curve).metric):
            figure.add_scatter(
                x=cycles.lrs, y=cycles.values, name=cycles.metric, showlegend=number == 0, mode="lines+markers",
                line={"color": COLOURS[2], "width": 1}, marker={"size": 8},
            )  # fmt: skip
    if bounds is not None and bounds["status"] == "ok":
        for name in ("base_lr", "max_lr"):
            figure.add_vline(x=bounds[name], line_dash="dash")
            figure.add_annotation(  # on a logarithmic axis an annotation's place is the logarithm
                x=float(np.log10(bounds[name])), y=1.0, yref="paper", yanchor="bottom", showarrow=False,
                text=f"{name} {bounds[name]:.2g}",
            )  # fmt: skip
        figure.add_vrect(*bounds["interval"], fillcolor="grey", opacity=0.15, line_width=0)
    return figure


def _loss(curve: Curve) -> Curve:
    return next((each for each in curve.companions if each.metric == "loss"), curve)


def _by_policy(records: Sequence[Record]) -> dict[str, list[Record]]:
    policies: dict[str, list[Record]] = {}
    for record in records:
        policies.setdefault(record["config"]["policy"], []).append(record)
    return policies


def _schedules(records: Sequence[Record]) -> Any:
    figure = _figure("updates", "learning rate")
    for colour, (policy, runs) in zip(COLOURS * 9, _by_policy(records).items(), strict=False):
        config = runs[0]["config"]
        steps = _thinned(config["total_steps"] + 1)
        rates = schedule_from_dict(config["schedule"])(steps)
        figure.add_scatter(x=steps, y=rates, name=policy, line={"color": colour})
    return figure


def _training(records: Sequence[Record]) -> Any:
    figure = _figure("updates", "metric")
    for colour, (policy, runs) in zip(COLOURS * 9, _by_policy(records).items(), strict=False):
        ends = set(runs[0]["config"]["cycle_ends"])
        for number, run in enumerate(runs):
            history = run["result"]["history"]
            steps = [point["step"] for point in history]
            values = [point.get("validation", point.get("test")) for point in history]
            figure.add_scatter(
                x=steps, y=values, name=policy, legendgroup=policy, showlegend=number == 0, mode="lines+markers",
                line={"color": colour, "width": 1.5},
                marker={"size": [9 if step in ends else 4 for step in steps],
                        "symbol": ["diamond" if step in ends else "circle" for step in steps]},
            )  # fmt: skip
    return figure
