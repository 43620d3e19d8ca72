"""Statistics of latency samples, held to brute force and to published numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from coralline.runtime import statistics


@pytest.mark.parametrize(("percent", "fewest"), [(90, 64), (99, 662), (99.9, 6636)])
def test_mlperfs_numbers_of_samples(percent: float, fewest: int) -> None:
    assert statistics.fewest_samples(percent) == fewest


@given(
    n=st.integers(1, 5000),
    percent=st.floats(50, 99.9),
    confidence=st.sampled_from([0.9, 0.95, 0.99]),
)
def test_early_stopping_is_the_binomial_bound(n: int, percent: float, confidence: float) -> None:
    t = statistics.allowed_over(n, percent, confidence)
    over = 1 - percent / 100
    assert 0 <= t <= n
    assert binom.cdf(t + 1, n, over) >= 1 - confidence
    assert t == 0 or binom.cdf(t, n, over) < 1 - confidence


def test_early_stopping_holds_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    true = float(np.exp(0.3 * 1.2815515655))  # the 90th percentile of lognormal(0, 0.3)
    below = sum(
        (statistics.early_stopping_ms(rng.lognormal(0, 0.3, 200), 90) or 0) < true
        for _ in range(2000)
    )
    assert below / 2000 < 0.01 + 3 * np.sqrt(0.01 * 0.99 / 2000)
    assert statistics.early_stopping_ms(rng.lognormal(0, 0.3, 63), 90) is None


@pytest.mark.parametrize("percent", [50, 90, 99])
def test_the_interval_is_where_resampling_tends_to(percent: float) -> None:
    rng = np.random.default_rng(1)
    samples = rng.lognormal(0, 0.2, 400)
    found = statistics.percentile(samples, percent)
    rank = int(np.ceil(percent / 100 * 400)) - 1
    resampled = np.sort(rng.choice(samples, (20_000, 400)), axis=1)[:, rank]
    ordered = np.sort(samples)
    for end, level in ((found.low, 0.025), (found.high, 0.975)):
        # The same sample, or its neighbour where the level falls on an edge between two.
        wanted = np.searchsorted(ordered, np.quantile(resampled, level, method="inverted_cdf"))
        assert abs(int(np.searchsorted(ordered, end)) - int(wanted)) <= 1
    assert found.low <= found.value <= found.high


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(1000):
        found = statistics.percentile(rng.exponential(1.0, 300), 50)
        covered += found.low <= np.log(2) <= found.high
    assert 0.92 <= covered / 1000 <= 0.98


@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=50), st.floats(1, 99))
def test_any_samples_have_a_percentile(samples: list[float], percent: float) -> None:
    found = statistics.percentile(samples, percent)
    assert min(samples) <= found.low <= found.value <= found.high <= max(samples)


def test_drift_compares_the_ends() -> None:
    rng = np.random.default_rng(3)
    at = np.linspace(0, 600, 6000)
    steady = rng.normal(10, 0.5, 6000)
    found = statistics.drift(at, steady)
    assert found is not None and found.low < 1 < found.high
    # MegaDetector on a phone: twice as slow after half an hour.
    slower = statistics.drift(at, steady * np.where(at > 500, 2.0, 1.0))
    assert slower is not None and slower.value == pytest.approx(2, rel=0.02)
    assert slower.low < 2 < slower.high
    # Only the first and the last minute count.
    middle = statistics.drift(at, steady * np.where(abs(at - 300) < 200, 2.0, 1.0))
    assert middle is not None and middle.high < 1.02
    assert statistics.drift([0.0, 1.0], [1.0, 1.0]) is None


def test_a_ratio_of_blocks_is_free_of_what_both_share() -> None:
    rng = np.random.default_rng(4)
    inside = 0
    for _ in range(500):
        shared = np.exp(np.cumsum(rng.normal(0, 0.3, 8)))  # the board speeds up and slows down
        a = shared * np.exp(rng.normal(0, 0.02, 8))
        b = 1.1 * shared * np.exp(rng.normal(0, 0.02, 8))
        found = statistics.ratio_of_blocks(a, b)
        inside += found.low <= 1.1 <= found.high
        assert found.high / found.low < 1.25
    assert 0.92 <= inside / 500 <= 0.98


def test_marks() -> None:
    at, steady = np.arange(200.0), np.full(200, 5.0)
    moved = statistics.drift(at, steady)
    assert statistics.marks(moved, {"cores_busy_with_others": 0.1}) == ()
    moved = statistics.drift(at, np.where(at > 150, 6.0, 5.0) + 0.01 * (at % 7))
    found = statistics.marks(
        moved, {"cores_busy_with_others": 0.5, "throttle_events": 3, "lost_samples": 2.0}
    )
    assert [mark.split(":")[0] for mark in found] == [
        "loaded",
        "throttled",
        "slower",
        "lost samples",
    ]
