"""The picture of a range test: everything that was tried is in sight, and the legend says what it is."""

import numpy as np
import pytest
from matplotlib.figure import Figure

import cyclr
from cyclr.pictures import draw_range_test, readable_range

RAMP = np.linspace(0.0, 0.1, 101)
PEAKS = 10.0 ** np.arange(-3.5, -0.2, 0.25)  # the lowest below the ramp's first rate, the highest above its last
INTERVAL = "90 % interval of max_lr"


def a_curve(after=None, low=0.5):
    loss = cyclr.Curve("loss", range(101), RAMP, 2.0 - 10.0 * RAMP)
    accuracy = cyclr.Curve("accuracy", range(101), RAMP, 5.0 * RAMP, goal="max")
    peaks = PEAKS if after is None else PEAKS[:after]
    losses = low + np.abs(np.log10(peaks) + 2.0)
    cycles = cyclr.Curve(
        "loss after a short cycle", [128] * len(peaks), peaks, losses, measured="after", meta={"level": 2.0}
    )
    return cyclr.Curve(
        "validation accuracy", range(101), RAMP, 5.0 * RAMP, goal="max", companions=(loss, accuracy, cycles)
    )


@pytest.fixture
def left(tmp_path, monkeypatch):
    """Draw, and return the axes with the curves."""
    figures, save = [], Figure.savefig

    def remember(self, *words, **settings):
        figures.append(self)
        save(self, *words, **settings)

    monkeypatch.setattr(Figure, "savefig", remember)

    def draw(curves, metric="loss", base=0.01, top=0.04, interval=(0.02, 0.08)):
        status = "ok" if base else "flat"
        bounds = cyclr.Bounds(base, top, interval, None, status, "seen")
        draw_range_test(curves, bounds, metric, tmp_path / "range_test.png")
        assert (tmp_path / "range_test.png").read_bytes().startswith(b"\x89PNG")
        return figures[-1].axes[0]

    return draw


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def dots(axes):
    return [line for line in axes.lines if line.get_marker() == "o"]


def test_the_short_cycles_of_each_seed_are_dots_on_the_loss_axis_and_one_line_of_the_legend(left):
    axes = left([a_curve(), a_curve()])
    assert legend(axes) == [
        "loss, the rate rising",
        "loss after a short cycle, at its peak rate",
        "validation accuracy, the rate rising",
        INTERVAL,
    ]
    assert len(dots(axes)) == 2
    for line in dots(axes):
        assert line.get_xdata() == pytest.approx(PEAKS)
        assert line.get_ydata() == pytest.approx(a_curve().of("loss after a short cycle").values)


@pytest.mark.parametrize("found", [(0.01, 0.04, (0.02, 0.08)), (1e-5, 0.04, (1e-4, 3.0)), (None, None, None)])
def test_every_rate_that_was_tried_or_found_is_in_sight(left, found):
    axes = left([a_curve(low=-1.0)], "loss", *found)
    rates = [RAMP[1], RAMP[-1], *PEAKS, *(found[:2] if found[0] else ()), *(found[2] or ())]
    low, high = axes.get_xlim()
    assert low < min(rates) < max(rates) < high
    assert (high / low) < 2 * max(rates) / min(rates)
    assert axes.get_ylim()[0] < -1.0  # a short cycle may get further than the ramp did
    assert axes.get_xscale() == "log"


@pytest.mark.parametrize("metric", ["accuracy", "validation accuracy"])
def test_short_cycles_that_measured_another_metric_are_left_out(left, metric):
    axes = left([a_curve()], metric)
    assert not dots(axes)
    assert not [label for label in legend(axes) if "short cycle" in label]
    assert axes.get_xlim()[0] > PEAKS[0]


def test_without_a_short_cycle_that_came_through_there_is_the_ramp(left):
    axes = left([a_curve(after=0)])
    assert legend(axes) == ["loss, the rate rising", "validation accuracy, the rate rising", INTERVAL]
    assert len(dots(left([a_curve(after=0), a_curve()]))) == 1


def test_without_bounds_the_legend_names_no_interval(left):
    assert INTERVAL not in legend(left([a_curve()], "loss", None, None, None))


def test_an_axis_on_which_higher_is_better_reaches_up_to_the_best_short_cycle():
    cycles = cyclr.Curve("accuracy after a short cycle", [128], [0.05], [0.9], goal="max", meta={"level": 0.0})
    curve = cyclr.Curve("accuracy", range(101), RAMP, 5.0 * RAMP, goal="max", companions=(cycles,))
    assert 0.9 < readable_range([curve], "accuracy")[1] < 1.0


def test_a_loss_that_only_got_worse_is_in_sight():
    losses = np.linspace(1.0, 50.0, 300) ** 2
    low, high = readable_range([cyclr.Curve("loss", range(300), np.linspace(0, 1, 300), losses)], "loss")
    assert low < losses[0]
    assert high > losses[250]
