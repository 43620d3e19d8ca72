"""Verdicts on nights whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import chain, measure, measure_on_host, plan_of
from hypothesis import given
from hypothesis import strategies as st

from hardware_lab import trends
from hardware_lab.trends import Judged, Level, Night, Series, Trend, judge

SERIES = Series("model", 2, "host")


def series_of(*values: float, **changes: Any) -> list[Night]:
    """A night a value, exact, a day apart."""
    return [
        Night(
            job=f"job{i}",
            at=f"2026-11-{i + 1:02}T02:00:00+00:00",
            commit=f"c{i}",
            levels={"p50_ms": Level.exact(value)},
            **changes,
        )
        for i, value in enumerate(values)
    ]


def verdicts(trend: Trend) -> list[str]:
    return [judged.verdict for judged in trend.nights]


def walk(n: int, rng: np.random.Generator, rho: float) -> np.ndarray:
    """Latencies of which neighbours are alike, float64 (n,)."""
    found = np.empty(n)
    found[0] = rng.normal()
    shocks = rng.normal(size=n) * np.sqrt(1 - rho**2)
    for i in range(1, n):
        found[i] = rho * found[i - 1] + shocks[i]
    return 10 * np.exp(0.05 * found)


@pytest.mark.parametrize("percent", [50, 90])
def test_the_draws_spread_as_other_nights_of_the_same_distribution_do(percent: int) -> None:
    rng = np.random.default_rng(5)
    nights = [Level.percentile(walk(600, rng, 0.7), percent) for _ in range(150)]
    truth = np.std([np.log(level.value) for level in nights])
    drawn = np.mean([np.std(level.logs) for level in nights])
    assert drawn == pytest.approx(truth, rel=0.3)
    # Samples taken as independent would promise far more than they hold.
    shuffled = [Level.percentile(rng.permutation(walk(600, rng, 0.7)), percent) for _ in range(50)]
    assert np.mean([np.std(level.logs) for level in shuffled]) < 0.75 * truth


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=80), st.floats(1, 99))
def test_draws_lie_among_the_samples(samples: list[float], percent: float) -> None:
    level = Level.percentile(samples, percent)
    assert level.value == pytest.approx(np.percentile(samples, percent))
    assert np.log(min(samples)) - 1e-9 <= level.logs.min()
    assert level.logs.max() <= np.log(max(samples)) + 1e-9
    low, high = trends.interval(level)
    assert min(samples) * 0.999 <= low <= high <= max(samples) * 1.001


@given(st.lists(st.floats(0.1, 1e3), min_size=1, max_size=9), st.floats(0.1, 1e3), st.booleans())
def test_a_ratio_does_not_depend_on_the_unit(
    before: list[float], now: float, simulated: bool
) -> None:
    def ratio(unit: float) -> list[float]:
        found = trends.ratio(
            [Level.exact(now * unit)],
            [Level.exact(value * unit) for value in before],
            simulated=simulated,
        )
        return [found.low, found.value, found.high]

    low, value, high = ratio(1.0)
    assert low <= value <= high
    assert value == pytest.approx(now / np.exp(np.mean(np.log(before))))
    assert ratio(1e3) == pytest.approx([low, value, high])


def test_the_interval_between_nights_is_the_prediction_interval() -> None:
    logs = np.array([0.01, -0.02, 0.0, 0.015, -0.005, 0.02, -0.02])
    found = trends.ratio([Level.exact(1.0)], [Level.exact(float(np.exp(x))) for x in logs])
    n, prior = len(logs), trends.PRIOR_NIGHTS
    squares = prior * trends.PRIOR_SPREAD**2 + ((logs - logs.mean()) ** 2).sum()
    spread = np.sqrt(squares / (prior + n - 1))
    # 3.250 is the 99.5 % quantile of Student's t with 9 degrees of freedom.
    half = 3.250 * spread * np.sqrt(1 + 1 / n)
    assert np.log(found.high) - np.log(found.value) == pytest.approx(half, rel=0.03)
    assert np.log(found.value) - np.log(found.low) == pytest.approx(half, rel=0.03)


def test_nights_that_differ_widen_the_interval_and_more_nights_narrow_it() -> None:
    calm, wild = ([10, 10.1] * 4, [9, 11] * 4)
    widths = []
    for values in (calm, wild, calm[:2]):
        found = trends.ratio([Level.exact(10)], [Level.exact(v) for v in values])
        widths.append(found.high - found.low)
    assert widths[0] < widths[1]
    assert widths[0] < widths[2]


def test_few_samples_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    before = [Level.percentile(rng.normal(10, 3, 1000), 50) for _ in range(7)]
    many, few = (
        trends.ratio([Level.percentile(rng.normal(10, 3, n), 50)], before) for n in (1000, 12)
    )
    assert few.high - few.low > 2 * (many.high - many.low)


def test_the_first_night_is_compared_with_nothing() -> None:
    trend = judge(SERIES, series_of(10))
    assert verdicts(trend) == ["first"]
    assert trend.since is None
    assert not trend.latest.red


def test_a_slower_night_stays_out_of_what_the_next_are_compared_with() -> None:
    trend = judge(SERIES, series_of(10, 10.1, 9.9, 10, 10, 12, 12.1, 12, 12, 12, 12, 12, 12, 12))
    assert verdicts(trend) == ["first"] + ["level"] * 4 + ["slower"] * 9
    assert trend.latest.against == ("job0", "job1", "job2", "job3", "job4")
    ratio = trend.latest.changes["p50_ms"]
    assert ratio.value == pytest.approx(1.2, rel=1e-3)
    assert 1 < ratio.low < 1.2 < ratio.high
    assert trend.since is not None
    good, bad = trend.since
    assert good is not None
    assert (good.night.commit, bad.night.commit) == ("c4", "c5")


def test_a_sure_change_below_the_threshold_is_level() -> None:
    trend = judge(SERIES, series_of(*[10] * 7, 10.4, simulated=True))
    assert trend.latest.verdict == "level"
    assert trend.latest.changes["p50_ms"].low > 1


def test_a_large_change_that_is_not_sure_is_level() -> None:
    trend = judge(SERIES, series_of(8, 12, 9, 11, 8, 12, 10, 11.5))
    assert trend.latest.changes["p50_ms"].value > trends.THRESHOLD
    assert trend.latest.verdict == "level"


def test_marked_and_missing_nights_count_for_nothing() -> None:
    nights = series_of(10, 10, 15, 10, 10)
    nights[2] = replace(nights[2], marks=("loaded: other processes kept 2.00 cores busy",))
    nights[3] = replace(nights[3], levels={}, fault="failed")
    trend = judge(SERIES, nights)
    assert verdicts(trend) == ["first", "level", "disturbed", "missing", "level"]
    assert trend.latest.against == ("job0", "job1")
    assert [judged.red for judged in trend.nights] == [False, False, False, True, False]
    # What it measured is shown all the same.
    assert trend.nights[2].changes["p50_ms"].value == pytest.approx(1.5)


def test_nights_that_never_count_become_red() -> None:
    marked = replace(series_of(10)[0], marks=("throttled: it was hot",))
    trend = judge(SERIES, [*series_of(10), *[marked] * 3])
    assert verdicts(trend) == ["first", "disturbed", "disturbed", "stale"]
    assert trend.latest.red


def test_a_missing_night_does_not_hide_since_when() -> None:
    nights = series_of(10, 10, 10, 13, 13, 13, 13)
    nights[4] = replace(nights[4], levels={}, fault="its board was away")
    trend = judge(SERIES, nights)
    assert trend.since is not None
    assert [judged and judged.night.commit for judged in trend.since] == ["c2", "c3"]


def test_a_slow_creep_is_found_against_the_anchor() -> None:
    values = [10 * 1.008**i for i in range(30)]
    trend = judge(SERIES, series_of(*values))
    assert "slower" not in verdicts(trend)[:10]
    assert trend.latest.verdict in ("crept", "slower")
    first = verdicts(trend).index("crept")
    assert values[first] / 10 < 1.15
    assert trend.nights[first].worst is not None
    assert trend.nights[first].worst[1].value > trends.THRESHOLD
    # From then on the level is frozen: it ends only when somebody accepts it.
    assert all(judged.red for judged in trend.nights[first:])


def test_a_faster_level_becomes_what_the_next_are_compared_with() -> None:
    trend = judge(SERIES, series_of(*[10] * 8, 8, 8, 8, 8.8, simulated=True))
    assert verdicts(trend)[8:] == ["faster", "faster", "level", "slower"]
    assert trend.latest.against == ("job8", "job9", "job10")


def test_one_faster_night_moves_nothing() -> None:
    trend = judge(SERIES, series_of(*[10] * 8, 8, 10, 10))
    assert verdicts(trend)[8:] == ["faster", "level", "level"]


def test_the_anchor_follows_a_faster_level() -> None:
    # Faster by a fifth, and then back by steps that no night shows.
    values = [10.0] * 8 + [8.0] * 9 + [8 * 1.01**i for i in range(12)]
    trend = judge(SERIES, series_of(*values))
    assert "crept" in verdicts(trend)
    assert trend.latest.red


def test_an_accepted_level_is_the_new_normal() -> None:
    nights = series_of(*[10] * 7, 12, 12, 12, 12, 12.1, 14.5)
    nights[9] = replace(nights[9], accepted="the new kernels are worth it")
    trend = judge(SERIES, nights)
    assert verdicts(trend)[7:] == ["slower", "slower", "accepted", "level", "level", "slower"]
    assert trend.latest.against == ("job7", "job8", "job9", "job10", "job11")
    assert trend.since is not None
    assert [judged and judged.night.job for judged in trend.since] == ["job11", "job12"]


def test_each_metric_can_be_slower() -> None:
    nights = [
        replace(night, levels={**night.levels, "energy_mj": Level.exact(5.0)})
        for night in series_of(*[10] * 7)
    ]
    nights[-1] = replace(nights[-1], levels={**nights[-1].levels, "energy_mj": Level.exact(7.0)})
    trend = judge(SERIES, nights)
    assert trend.latest.verdict == "slower"
    assert trend.latest.worst is not None
    assert trend.latest.worst[0] == "energy_mj"
    # A metric that has no past is no change.
    assert judge(SERIES, [*series_of(10), nights[-1]]).latest.verdict == "level"


def test_levels_of_a_measurement() -> None:
    host = measure_on_host(plan_of(chain("small", 12)))
    found = trends.levels(host)
    assert set(found) == {"p50_ms", "p90_ms", "full_ms"}
    assert found["p50_ms"].value == pytest.approx(host.latency_percentile_ms(50))
    assert found["full_ms"].value == pytest.approx(1000 / host.throughput_fps)
    simulated = measure(plan_of(chain("small", 12)))
    assert trends.levels(simulated)["energy_mj"].value == simulated.energy_mj_per_inference
    reported = {"count": 50.0, "mean": 4.0, "p50": 3.9, "std": 0.1}
    summary = replace(host, latency_ms=(), full_latency_ms=(), latency_reported_ms=reported)
    assert {n: x.value for n, x in trends.levels(summary).items()} == pytest.approx(
        {"p50_ms": 3.9, "mean_ms": 4.0}
    )


def test_what_else_changed_is_told() -> None:
    host = measure_on_host(plan_of(chain("small", 12)))
    other = replace(
        host,
        model_digest="cd" * 32,
        environment={"kernel": "Linux 6.9", "versions": {"numpy": "3.0"}},
    )
    before = replace(
        host, environment={"kernel": "Linux 6.8", "versions": {"numpy": "3.0"}, "load_1min": 0.3}
    )
    nights = [
        Night.of_measurement(m, job=f"j{i}", at="2026-11-21T02:00:00+00:00")
        for i, m in enumerate((before, other))
    ]
    differs = judge(SERIES, nights).latest.differs
    assert differs["kernel"] == ("Linux 6.8", "Linux 6.9")
    assert set(differs) == {"kernel", "model file"}


def test_a_trend_is_plain_json() -> None:
    import json

    nights = series_of(*[10] * 3, 12, simulated=True)
    data = json.loads(json.dumps(judge(SERIES, nights).to_json(), allow_nan=False))
    assert data["series"] == "model/2/host"
    assert data["verdict"] == "slower"
    assert data["since"]["last_good"]["commit"] == "c2"
    assert data["since"]["first_bad"] == {"at": nights[3].at, "commit": "c3"}
    assert data["nights"][3]["changes"]["p50_ms"]["value"] == pytest.approx(1.2)


def test_alarms_are_rare_without_a_change_and_a_tenth_is_seen() -> None:
    rng = np.random.default_rng(11)

    def latest(shift: float) -> Judged:
        moods = np.exp(0.015 * rng.normal(size=8))
        moods[-1] *= shift
        nights = [
            replace(night, levels={"p50_ms": Level.percentile(mood * walk(200, rng, 0.6), 50)})
            for night, mood in zip(series_of(*moods), moods, strict=True)
        ]
        return judge(SERIES, nights).latest

    quiet = [latest(1.0).verdict == "slower" for _ in range(150)]
    loud = [latest(1.1).verdict == "slower" for _ in range(60)]
    assert np.mean(quiet) < 0.03
    assert np.mean(loud) > 0.8
