"""Charts draw what the samples say, in their place."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coralline.runtime.power import Trace
from coralline.runtime.statistics import Estimate
from hardware_lab.service.charts import (
    BINS,
    FEW,
    POINTS,
    Axis,
    PowerTrace,
    Samples,
    cumulative,
    histogram,
    over_time,
    power,
    ratio_axis,
)

SIZES = st.floats(1e-9, 1e9)


def samples(latency_ms: np.ndarray, seconds: float = 150.0, name: str = "") -> Samples:
    return Samples(name, latency_ms, np.linspace(0, seconds, len(latency_ms)))


def points(path: str) -> np.ndarray:
    return np.array(re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path), dtype=float)


@given(SIZES, SIZES)
def test_ticks_are_round_few_and_in_their_place(a: float, b: float) -> None:
    axis = Axis.over(min(a, b), max(a, b), "")
    assert 1 <= len(axis.ticks) <= 12
    assert len({tick.text for tick in axis.ticks}) == len(axis.ticks)
    for tick in axis.ticks:
        assert -1e-6 <= tick.at <= 100 + 1e-6
        shown = float(tick.text.replace(",", ""))
        assert axis.place(shown) == pytest.approx(tick.at, abs=1)


@pytest.mark.parametrize("value", [0.0, 1e-12, 43.93, 5e9])
def test_numbers_that_are_all_the_same_lie_in_the_middle(value: float) -> None:
    axis = Axis.over(value, value * (1 + 1e-12), "")
    assert axis.place(value) == pytest.approx(50, abs=1e-3)


@given(st.lists(st.floats(0.01, 1000), min_size=1, max_size=300))
def test_a_histogram_holds_every_sample_that_it_says(values: list[float]) -> None:
    chart = histogram([samples(np.array(values))], "measured")
    counts = [round(box.height / 100 * chart.y.high) for box in chart.boxes]
    left_out = re.search(r"(\d+) of [\d,]+ lie beyond", chart.caption)
    assert sum(counts) + (int(left_out[1]) if left_out else 0) == len(values)
    assert all(box.x + box.width <= 100 + 1e-9 and box.y >= 0 for box in chart.boxes)


def test_a_long_tail_does_not_squeeze_the_others() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(10, 0.1, 5000), [900.0, 1000.0]])
    chart = histogram([samples(values)], "measured")
    assert chart.x.high < 12
    assert "up to 1000.000 ms" in chart.caption
    assert len(chart.boxes) > BINS / 3


def test_a_distribution_rises_to_all_of_the_samples() -> None:
    values = np.random.default_rng(0).lognormal(1, 0.2, 24_576)
    told = {"p50": {"value": 2.7, "low": 2.6, "high": 2.8}}
    plan = Samples("A", values, np.zeros(0), told)
    chart = cumulative([plan], "simulated")
    steps = np.array(re.findall(r"H([\d.]+)V([\d.]+)", chart.lines[0].path), dtype=float)
    assert len(steps) <= POINTS
    assert (np.diff(steps[:, 0]) >= 0).all() and (np.diff(steps[:, 1]) <= 0).all()
    assert steps[-1, 1] == 0
    # Where the line is half way up, half of the samples are less.
    half = steps[np.argmin(np.abs(steps[:, 1] - 50)), 0]
    assert half == pytest.approx(chart.x.place(float(np.median(values))), abs=1)
    assert [dot.x for dot in chart.dots] == [chart.x.place(2.7)]
    assert "p50 2.700 ms, 95 % from 2.600 to 2.800" in chart.alt
    assert "simulated" in chart.caption


def test_many_samples_over_time_are_an_area_that_holds_them() -> None:
    values = np.random.default_rng(0).lognormal(1, 0.1, 24_576)
    values[20_000] = 4.5
    chart = over_time([samples(values)], "measured")
    assert chart is not None
    area = points(next(line.path for line in chart.lines if line.kind.startswith("area")))
    assert len(area) <= 2 * POINTS
    assert area[:, 1].min() <= 100 - chart.y.place(4.4)
    assert [box.label for box in chart.boxes] == ["first minute", "last minute"]
    assert [round(box.x + box.width) for box in chart.boxes] == [40, 100]


def test_few_samples_are_dots_and_short_runs_have_halves() -> None:
    chart = over_time([samples(np.linspace(1, 2, FEW), seconds=10)], "measured")
    assert chart is not None
    dots = next(line for line in chart.lines if line.kind.startswith("points"))
    assert dots.path.count("h0") == FEW
    assert [box.label for box in chart.boxes] == ["first half", "last half"]
    assert over_time([Samples("", np.ones(5), np.zeros(0))], "measured") is None


def test_power_is_drawn_for_both_kinds_of_meter() -> None:
    t_s = np.linspace(50, 60, 2001)
    watts = np.where(t_s < 55, 1.0, 4.0)
    windows = [("idle", 50.5, 54.5), ("full", 55.5, 59.5)]
    energy_j = np.concatenate([[0], np.cumsum(watts[1:] * np.diff(t_s))])
    for trace in (Trace(t_s, watts), Trace(t_s, energy_j=energy_j)):
        chart = power([PowerTrace(trace, windows)], "measured")
        assert "Means: idle 1.000 W, full 4.000 W" in chart.caption
        assert [(round(box.x), round(box.width)) for box in chart.boxes] == [(5, 40), (55, 40)]
        assert points(chart.lines[-1].path)[-1, 1] == pytest.approx(100 - chart.y.place(4), abs=0.1)


def test_turns_of_a_comparison_are_one_chart() -> None:
    def turn(begin: float, watts: float) -> PowerTrace:
        t_s = np.linspace(begin, begin + 5, 500)
        trace = Trace(t_s, np.full(500, watts))
        return PowerTrace(trace, [("A full" if watts > 2 else "B full", begin, begin + 5)])

    chart = power([turn(0, 3), turn(6, 1), turn(12, 1), turn(18, 3)], "measured")
    assert "Means: A full 3.000 W, B full 1.000 W" in chart.caption
    assert len(chart.boxes) == 4


@given(st.floats(0.01, 100), st.floats(1, 2))
def test_no_difference_is_in_the_middle_of_ratios(value: float, width: float) -> None:
    axis = ratio_axis([Estimate(value, value / width, value * width)])
    assert axis.place(1) == pytest.approx(50)
    assert 0 <= axis.place(value / width) <= axis.place(value * width) <= 100
