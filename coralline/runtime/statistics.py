"""What samples of latency allow to say, and how surely.

Samples are taken as independent draws; inferences on one machine are not quite. The intervals are
therefore those of one run on one machine in one state: runs of another hour differ by more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
"""Of the intervals."""
STOPPING_CONFIDENCE = 0.99
"""Of early stopping, as MLPerf has it."""
WINDOW_S = 60.0
"""What the beginning of a run and its end are, at most."""
DRIFT = 0.05
"""An end slower than the beginning by this share is called so."""
CLOCK_FALL = 0.1
"""A clock that is lower at the end of a phase by this share has fallen."""
FEWEST_LOOKS = 6
"""At the clock, in a phase that is judged."""
USB3_MBIT_S = 5000
LOADED_CORES = 0.25
"""More cores busy with other processes than this, on average, and the board was loaded."""
_DRAWS = 4000


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """`value`, `low`, `high`."""
        return asdict(self)


def fewest_samples(percent: float, confidence: float = STOPPING_CONFIDENCE) -> int:
    """How many samples early stopping needs before it can bound a percentile at all.

    64 for the 90th percentile at 99 %, 662 for the 99th.

    Args:
        percent: Above 0 and below 100.
        confidence: Above 0 and below 1.
    """
    low, high = 1, 2
    while allowed_over(high, percent, confidence) < 1:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if allowed_over(middle, percent, confidence) < 1:
            low = middle
        else:
            high = middle
    return high


def allowed_over(n: int, percent: float, confidence: float = STOPPING_CONFIDENCE) -> int:
    """The largest t for which at most t of n samples above a bound prove it, or 0.

    MLPerf's early stopping (github.com/mlcommons/inference, loadgen/early_stopping.cc; tolerance
    0): were the bound below the percentile, each sample would lie above it with a probability of
    more than 1 - percent / 100, and no more than t of n would do so with one below 1 - confidence.
    """
    from scipy.special import bdtr

    over = 1 - percent / 100
    t = 0
    step = 1
    # The chance of t or fewer grows with t: gallop up, then halve.
    while bdtr(t + step, n, over) < 1 - confidence:
        t += step
        step *= 2
    while step:
        if t + step <= n and bdtr(t + step, n, over) < 1 - confidence:
            t += step
        step //= 2
    return t


def early_stopping_ms(
    samples_ms: ArrayLike, percent: float, confidence: float = STOPPING_CONFIDENCE
) -> float | None:
    """A value that the percentile does not exceed, with this confidence; None: too few samples.

    It is the t-th highest sample, t being `allowed_over`: t - 1 are above it.
    """
    found = np.sort(np.asarray(samples_ms, dtype=np.float64))
    t = allowed_over(len(found), percent, confidence)
    return float(found[-t]) if t else None


def percentile(samples_ms: ArrayLike, percent: float, confidence: float = CONFIDENCE) -> Estimate:
    """A percentile (linear interpolation) with its bootstrap interval.

    The k-th smallest of n draws from the n samples has the rank of the k-th smallest of n uniform
    numbers, which is Beta(k, n + 1 - k) distributed: the ends to which the bootstrap's percentile
    interval tends with ever more resamples are known without any (Efron 1979, section 3).
    """
    found = np.sort(np.asarray(samples_ms, dtype=np.float64))
    tail = (1 - confidence) / 2
    low, high = found[_ranks(len(found), percent, np.array([tail, 1 - tail]))]
    value = float(np.percentile(found, percent))
    return Estimate(value, min(float(low), value), max(float(high), value))


def drift(
    at_s: ArrayLike, samples_ms: ArrayLike, confidence: float = CONFIDENCE
) -> Estimate | None:
    """Median of the last minute over that of the first; of halves where a run is shorter.

    Args:
        at_s: When each sample began, float (n,), growing.
        samples_ms: float (n,).

    Returns:
        None for fewer than two samples in either window.
    """
    at, samples = (np.asarray(values, dtype=np.float64) for values in (at_s, samples_ms))
    if len(at) < 4:
        return None
    window = min(WINDOW_S, (at[-1] - at[0]) / 2)
    first, last = samples[at <= at[0] + window], samples[at >= at[-1] - window]
    if min(len(first), len(last)) < 2:
        return None
    return ratio_of_medians(first, last, confidence)


def ratio_of_medians(a: ArrayLike, b: ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """Median of b over median of a, with its bootstrap interval.

    Args:
        a, b: Samples above 0, two at least of each.
    """
    before, after = (np.asarray(values, dtype=np.float64) for values in (a, b))
    rng = np.random.default_rng(0)
    ratios = _medians(after, rng) / _medians(before, rng)
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Estimate(float(np.median(after) / np.median(before)), float(low), float(high))


def ratio_of_blocks(
    a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE
) -> Estimate:
    """b over a, from pairs measured in the same blocks: what slows both alike drops out.

    The geometric mean of the blocks' ratios, with Student's interval on their logarithms: blocks
    differ by more than samples within a block, and there are few of them.

    Args:
        a, b: One number above 0 a block, two blocks at least.
    """
    from scipy.stats import t

    logs = np.log(np.asarray(b, dtype=np.float64) / np.asarray(a, dtype=np.float64))
    mean = logs.mean()
    half = t.ppf((1 + confidence) / 2, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    return Estimate(float(np.exp(mean)), float(np.exp(mean - half)), float(np.exp(mean + half)))


def marks(moved: Estimate | None, environment: Mapping[str, Any]) -> tuple[str, ...]:
    """What speaks against a measurement, one line each.

    Args:
        moved: What `drift` says of its samples.
        environment: Of the measurement: `cores_busy_with_others`, `throttle_events`,
            `lost_samples`, `meter_failure`, `cooldown`, `cpu_clock` and `usb` are read where they
            are there.
    """
    found = []
    busy = environment.get("cores_busy_with_others")
    if busy is not None and busy > LOADED_CORES:
        found.append(f"loaded: other processes kept {busy:.2f} cores busy")
    if environment.get("throttle_events"):
        found.append("throttled: the processor lowered its clock to stay cool or powered")
    clock = environment.get("cpu_clock") or {}
    for high, low in clock_falls(clock):
        found.append(f"throttled: its clock fell from {high / 1e6:.2f} to {low / 1e6:.2f} GHz")
    slow = [usb["mbit_s"] for usb in environment.get("usb", ()) if usb["mbit_s"] is not None]
    if slow and min(slow) < USB3_MBIT_S:
        found.append(
            f"usb2: a Coral accelerator is linked at {min(slow):g} Mbit/s, not {USB3_MBIT_S}"
        )
    cooldown = environment.get("cooldown", {})
    if cooldown.get("reason") == "gave up":
        found.append(
            f"warm: it began at {cooldown['celsius_after']:.0f} °C after "
            f"{cooldown['waited_s']:.0f} s of cooling down; {cooldown['limit_celsius']:.0f} °C and "
            "at rest were wanted"
        )
    if moved is not None and moved.value > 1 + DRIFT and moved.low > 1:
        found.append(f"slower: its end took {moved.value:.2f} times as long as its beginning")
    if environment.get("lost_samples"):
        found.append(f"lost samples: {environment['lost_samples']:.0f} of those asked for")
    if environment.get("meter_failure"):
        found.append(f"no energy: {environment['meter_failure']}")
    return tuple(found)


def clock_falls(clock: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Where a CPU's clock fell, as a board looked at it: from and to, in kHz, the worst first.

    What it was allowed at most was lowered, or it was lower at the end of a phase than at its
    beginning; phases are not compared, since more busy cores share less of a turbo.

    Args:
        clock: As `hardware_lab.boards.payload.Clocks.told`, or empty.
    """
    pairs = [
        (phase["first_khz"], phase["last_khz"])
        for phase in clock.get("phases", {}).values()
        if phase["samples"] >= FEWEST_LOOKS
        and phase["last_khz"] < (1 - CLOCK_FALL) * phase["first_khz"]
    ]
    if clock and clock["limit_least_khz"] < clock["limit_before_khz"]:
        pairs.append((clock["limit_before_khz"], clock["limit_least_khz"]))
    return sorted(pairs, key=lambda pair: pair[1] / pair[0])


def clock_kept(clock: Mapping[str, Any]) -> float:
    """Which share of its clock a CPU kept where it fell most; 1 when it did not fall."""
    falls = clock_falls(clock)
    return falls[0][1] / falls[0][0] if falls else 1.0


def _ranks(n: int, percent: float, levels: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ranks, from 0, in n sorted samples below which a bootstrap percentile lies so likely."""
    from scipy.special import betaincinv

    k = min(max(int(np.ceil(percent / 100 * n)), 1), n)
    return np.minimum((n * betaincinv(k, n + 1 - k, levels)).astype(np.int64), n - 1)


def _medians(samples: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Medians of bootstrap resamples, float64 (_DRAWS,)."""
    n = len(samples)
    k = (n + 1) // 2
    ranks = (n * rng.beta(k, n + 1 - k, _DRAWS)).astype(np.int64)
    return np.sort(samples)[np.minimum(ranks, n - 1)]
