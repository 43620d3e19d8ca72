"""Traces whose integral is known, and what is said of how sure it is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coralline.errors import DeviceError
from coralline.runtime.energy import EnergyRecord, Identity, energy_record, mean_power
from coralline.runtime.power import Trace, Window, unwrapped

METER = Identity("m", "replay", "a test", "rail", accuracy_percent=0.5)
IDLE = Window("idle", 1.0, 11.0)
WORK = Window("alone", 15.0, 35.0, inferences=1000)


def trace(power: Any, hz: float = 1000.0, seconds: float = 40.0, **facts: Any) -> Trace:
    t_s = np.arange(0, seconds, 1 / hz)
    return Trace(t_s, power_w=np.broadcast_to(power(t_s), t_s.shape).astype(float), **facts)


def counter(found: Trace, **facts: Any) -> Trace:
    """The same power as a counter would tell it."""
    return Trace(found.t_s, energy_j=found.energy_until(found.t_s), **facts)


def square(t_s: np.ndarray) -> np.ndarray:
    """1 W idle; 3 W from 15 s to 35 s."""
    return np.where((t_s >= 15) & (t_s <= 35), 3.0, 1.0)


@pytest.mark.parametrize("as_counter", [False, True])
def test_constant_power(as_counter: bool) -> None:
    found = trace(lambda t: 2.5 + 0 * t)
    record = energy_record(counter(found) if as_counter else found, [IDLE, WORK], METER)
    spent = record.windows["alone"]
    assert spent.gross_mj == pytest.approx(1e3 * 2.5 * 20 / 1000)
    assert spent.net_mj == pytest.approx(0, abs=1e-9)
    assert record.idle_w == pytest.approx(2.5)
    # Nothing but the instrument is in doubt.
    assert spent.gross_uncertainty_mj["total"] == pytest.approx(0.005 * spent.gross_mj)
    assert spent.power_w == pytest.approx(2.5) and spent.lost_share == 0
    assert spent.rate_hz == pytest.approx(1000, rel=0.001)
    assert record.marks == ()


@pytest.mark.parametrize("as_counter", [False, True])
def test_a_ramp_is_integrated_without_error(as_counter: bool) -> None:
    found = trace(lambda t: 0.1 * t, hz=7.3)  # borders fall between samples
    record = energy_record(counter(found) if as_counter else found, [IDLE, WORK], METER)
    wanted = 0.1 * (35**2 - 15**2) / 2
    exact = 1e-3 if as_counter else 1e-12  # a counter is read as straight between its samples
    assert record.windows["alone"].gross_mj == pytest.approx(wanted, rel=exact)
    assert record.idle_w == pytest.approx(0.1 * 6, rel=exact)


@pytest.mark.parametrize("hz", [50.0, 400.0, 5000.0])
@pytest.mark.parametrize("as_counter", [False, True])
def test_square_wave_with_idle(hz: float, as_counter: bool) -> None:
    found = trace(square, hz=hz)
    record = energy_record(counter(found) if as_counter else found, [IDLE, WORK], METER)
    spent = record.whole
    assert spent.gross_mj == pytest.approx(60, rel=2 / hz)
    assert spent.net_mj == pytest.approx(40, rel=2 / hz)
    # The edges may lie anywhere between two samples, and the uncertainty covers that.
    for value, parts in (
        (spent.gross_mj - 60, spent.gross_uncertainty_mj),
        (spent.net_mj - 40, spent.net_uncertainty_mj),
    ):
        borders, total = parts["borders"], parts["total"]
        assert borders is not None and total is not None
        assert abs(value) <= borders + 1e-9 <= total + 1e-9


def test_dropped_samples_are_counted_and_bridged() -> None:
    whole = trace(square)
    keep = np.ones(len(whole.t_s), dtype=bool)
    keep[20000:20200] = False  # 200 of 20,000 in the window, in one gap
    assert whole.power_w is not None
    found = Trace(whole.t_s[keep], power_w=whole.power_w[keep])
    record = energy_record(found, [IDLE, WORK], METER)
    assert record.whole.lost_share == pytest.approx(0.01, rel=0.01)
    assert record.whole.gross_mj == pytest.approx(60, rel=1e-3)
    assert any("1.00% of the power samples were lost" in mark for mark in record.marks)
    as_counter = energy_record(counter(found), [IDLE, WORK], METER)
    assert as_counter.whole.lost_share == pytest.approx(0.01, rel=0.01)
    assert not any("lost" in mark for mark in as_counter.marks)  # it loses no energy


def test_a_counter_that_wraps() -> None:
    grown = np.cumsum(np.full(400, 700.0))
    limit = 65536.0
    assert unwrapped(np.mod(grown, limit), limit) == pytest.approx(grown)


@given(steps=st.lists(st.floats(0, 0.99), min_size=2, max_size=50), limit=st.floats(1.0, 1e9))
def test_unwrapping_gives_what_was_counted(steps: list[float], limit: float) -> None:
    grown = np.cumsum(np.array(steps) * limit)
    found = unwrapped(np.mod(grown, limit), limit)
    assert found - found[0] == pytest.approx(grown - grown[0], abs=1e-6 * limit)


@given(
    gaps=st.lists(st.floats(0.001, 0.9), min_size=60, max_size=200),
    slope=st.floats(-1, 1),
    level=st.floats(5, 50),
)
def test_uneven_rates_do_not_matter_to_a_ramp(
    gaps: list[float], slope: float, level: float
) -> None:
    t_s = np.concatenate([[0.0], np.cumsum(gaps)])
    span = t_s[-1]
    found = Trace(t_s, power_w=level + slope * t_s / span)
    windows = [Window("idle", 0.0, span / 4), Window("alone", span / 4, span, inferences=3)]
    try:
        record = energy_record(found, windows, METER)
    except DeviceError as error:
        assert "samples in window" in str(error)
        return
    wanted = (level + slope * 0.625) * 0.75 * span / 3 * 1e3
    assert record.whole.gross_mj == pytest.approx(wanted, rel=1e-9)


def test_clock_offset_within_its_bound_is_covered() -> None:
    found = trace(square, hz=5000)
    for offset in (-0.05, 0.05):
        windows = [
            replace(w, begin_s=w.begin_s + offset, end_s=w.end_s + offset, bound_s=0.06)
            for w in (IDLE, WORK)
        ]
        spent = energy_record(found, windows, METER).whole
        borders = spent.gross_uncertainty_mj["borders"]
        assert borders is not None
        assert 0.05 < abs(spent.gross_mj - 60) <= borders < 0.5
        told = energy_record(replace(found, bound_s=0.06), [IDLE, WORK], METER).whole
        assert told.gross_uncertainty_mj["borders"] == pytest.approx(borders, abs=0.02)


def test_noise_widens_the_interval_as_other_windows_differ() -> None:
    rng = np.random.default_rng(1)
    misses = 0
    for _ in range(100):
        noisy = trace(lambda t: 2 + rng.normal(0, 0.5, t.shape), hz=400)
        spent = energy_record(noisy, [IDLE, WORK], METER).whole
        sampling = spent.gross_uncertainty_mj["sampling"]
        assert sampling is not None and sampling < 0.01 * spent.gross_mj
        misses += abs(spent.gross_mj - 40) > sampling
    assert misses <= 12  # about 5 are due


def test_marks_of_what_speaks_against_it() -> None:
    slow = energy_record(trace(square, hz=4), [IDLE, WORK], METER)
    assert not slow.rate_adequate
    assert any("sampled at 4 Hz; power needs 350 Hz" in mark for mark in slow.marks)
    as_counter = energy_record(counter(trace(square, hz=4)), [IDLE, WORK], METER)
    assert as_counter.rate_adequate
    unknown = energy_record(trace(square), [IDLE, WORK], replace(METER, accuracy_percent=None))
    assert unknown.whole.gross_uncertainty_mj["total"] is None
    assert unknown.whole.gross_uncertainty_mj["borders"] is not None
    assert any("accuracy of meter m is not known" in mark for mark in unknown.marks)
    coarse = energy_record(trace(square), [IDLE, WORK], replace(METER, accuracy_percent=2.0))
    assert any("known to 2.0% only (alone)" in mark for mark in coarse.marks)
    short = energy_record(trace(square), [IDLE, Window("alone", 20, 29, 9)], METER)
    assert any("measured over 9 s and 9 inferences only" in mark for mark in short.marks)
    noted = energy_record(trace(square, notes=("it was charging",)), [IDLE, WORK], METER)
    assert noted.marks == ("energy: it was charging",)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ([WORK], "no idle window"),
        ([IDLE], "no window with inferences"),
        ([IDLE, replace(WORK, inferences=0)], "no inference ended in window 'alone'"),
        ([IDLE, replace(WORK, end_s=41.0)], "not record the whole of window 'alone'"),
        ([replace(IDLE, begin_s=-1.0), WORK], "not record the whole of window 'idle'"),
        ([IDLE, replace(WORK, end_s=15.0025)], "3 samples in window 'alone'; at least 4"),
    ],
)
def test_windows_that_cannot_be_integrated(windows: list[Window], message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        energy_record(trace(square), windows, METER)


def test_traces_that_are_none() -> None:
    t_s = np.arange(5.0)
    for facts, message in (
        ({"power_w": np.ones(4)}, "different lengths"),
        ({"power_w": np.array([1, 1, np.nan, 1, 1])}, "no numbers"),
        ({"energy_j": np.array([0.0, 2, 1, 3, 4])}, "ran backwards"),
    ):
        with pytest.raises(DeviceError, match=message):
            Trace(t_s, **facts)
    with pytest.raises(DeviceError, match="stood still"):
        Trace(np.zeros(5), power_w=np.ones(5))


def test_turns_are_put_together() -> None:
    parts = [
        energy_record(trace(lambda t, p=p: p + 0 * t), [IDLE, replace(WORK, inferences=n)], METER)
        for p, n in ((2.0, 100), (4.0, 300))
    ]
    merged = EnergyRecord.merged(parts)
    spent = merged.whole
    assert spent.inferences == 400 and spent.seconds == pytest.approx(40)
    assert spent.gross_mj == pytest.approx(1e3 * (2 * 20 + 4 * 20) / 400)
    assert spent.power_w == pytest.approx(3) and merged.idle_w == pytest.approx(3)
    # The instrument is off the same way in both; the turns differ, and that counts.
    assert spent.gross_uncertainty_mj["accuracy"] == pytest.approx(0.005 * spent.gross_mj)
    sampling = spent.gross_uncertainty_mj["sampling"]
    assert sampling is not None and sampling > 100
    same = EnergyRecord.merged([parts[0], parts[0]])
    assert same.whole.gross_uncertainty_mj == pytest.approx(parts[0].whole.gross_uncertainty_mj)


def test_json_and_back() -> None:
    record = energy_record(trace(square, notes=("a note",)), [IDLE, WORK], METER)
    data = json.loads(json.dumps(record.to_json()))
    assert data["schema"] == "coralline.energy/v1" and data["rate_adequate"]
    assert EnergyRecord.from_json(data) == record


def test_mean_power() -> None:
    found = mean_power(trace(lambda t: 2 + 0 * t, hz=100, seconds=10))
    assert found["power_w"] == pytest.approx(2) and found["rate_hz"] == pytest.approx(100)
    with pytest.raises(DeviceError, match="3 samples"):
        mean_power(Trace(np.arange(3.0), power_w=np.ones(3)))
