"""How often a nightly cries wolf, and what it misses: our verdict beside the usual rules.

Nights are simulated, since only then is the truth known: a mood a night, the same for all its
samples, and 1,024 samples whose neighbours are alike, with spikes. Each rule sees the same nights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import process_time

import numpy as np
from numpy.typing import NDArray

from benchmarks.frame import BenchResult
from hardware_lab.trends import (
    BASELINE_NIGHTS,
    CONFIDENCE,
    SLOWER,
    THRESHOLD,
    Level,
    Night,
    Series,
    grew,
    judge,
    ratio,
)

SAMPLES = 1024
ALIKE = 0.8
"""Correlation of neighbours within a night."""
WITHIN = 0.05
SHIFTS = (1.0, 1.05, 1.1, 1.2)
SERIES = 20
"""Of a lab, for the alarms a year."""

Logs = NDArray[np.float64]


@dataclass(frozen=True)
class Board:
    """How a board's nights differ when nothing has changed.

    Attributes:
        spread: Standard deviation of the logarithm between nights.
        odd: Share of nights that are slower by ODD, and unmarked.
    """

    name: str
    spread: float
    odd: float = 0.0


ODD = 0.08
BOARDS = (
    Board("calm, nights differ by 1 %", 0.01),
    Board("usual, by 2 %", 0.02),
    Board("restless, by 4 %", 0.04),
    Board("1 %, one night of 20 is 8 % slower", 0.01, 0.05),
)


@dataclass(frozen=True)
class History:
    """The nights that a rule sees; the last is tonight.

    Attributes:
        logs: Of the samples, float64 (nights, SAMPLES).
        levels: Medians with their draws.
        shift: Tonight's samples are this many times as slow as in `logs` and `levels`.
    """

    logs: Logs
    levels: Sequence[Level]
    shift: float

    @property
    def means(self) -> Logs:
        """Of the samples, float64 (nights,)."""
        found: Logs = np.exp(self.logs).mean(axis=1)
        found[-1] *= self.shift
        return found

    @property
    def tonight(self) -> Level:
        """With the shift."""
        level = self.levels[-1]
        return Level(level.value * self.shift, level.logs + np.log(self.shift))


def ours(history: History) -> bool:
    """The verdict of `hardware_lab.trends`."""
    return grew(ratio([history.tonight], history.levels[:-1]))


def of_nights(history: History) -> bool:
    """The textbook's bootstrap: nights drawn with replacement, blocks of samples in them."""
    before = np.array([level.logs for level in history.levels[:-1]])
    rng = np.random.default_rng(0)
    n, draws = before.shape
    chosen = rng.integers(n, size=(n, draws))
    drawn = history.tonight.logs - before[chosen, np.arange(draws)].mean(axis=0)
    values = np.log([level.value for level in history.levels[:-1]])
    change = np.log(history.tonight.value) - values.mean()
    return bool(np.quantile(drawn, (1 - CONFIDENCE) / 2) > 0 and change > np.log(THRESHOLD))


def mean_of_nights(history: History) -> bool:
    """Tonight's mean is more than 5 % above that of the last nights."""
    return bool(history.means[-1] > THRESHOLD * history.means[:-1].mean())


def last_night(history: History) -> bool:
    """Tonight's mean is more than 5 % above last night's."""
    return bool(history.means[-1] > THRESHOLD * history.means[-2])


def test_of_samples(history: History) -> bool:
    """Welch's t-test of tonight's samples against last night's, at 0.5 %."""
    a, b = history.logs[-2], history.logs[-1]
    error = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / SAMPLES)
    return bool((b.mean() + np.log(history.shift) - a.mean()) / error > 2.58)


RULES: dict[str, Callable[[History], bool]] = {
    "Coralline": ours,
    "bootstrap of nights and blocks": of_nights,
    "mean > 5 % above 7 nights": mean_of_nights,
    "mean > 5 % above last night": last_night,
    "t-test against last night": test_of_samples,
}


def run(quick: bool) -> BenchResult:
    """Rates of alarms by board, rule and true slowdown; then creeps; then the cost."""
    n = 40 if quick else 2000
    rng = np.random.default_rng(7)
    rows = []
    for board in BOARDS:
        alarms = dict.fromkeys(((r, s) for r in RULES for s in SHIFTS), 0)
        for _ in range(n):
            logs = nights(board, BASELINE_NIGHTS + 1, rng)
            levels = [Level.percentile(np.exp(night), 50) for night in logs]
            for shift in SHIFTS:
                history = History(logs, levels, shift)
                for rule, says in RULES.items():
                    alarms[rule, shift] += says(history)
        for rule in RULES:
            rates = [alarms[rule, shift] / n for shift in SHIFTS]
            year = rates[0] * SERIES * 365
            rows.append((board.name, rule, *(100 * rate for rate in rates), year))
    return BenchResult(
        title="Is tonight slower than the 7 nights before? Alarms in 100 nights",
        columns=(
            "board",
            "rule",
            "nothing changed: false, %",
            "5 % slower: seen, %",
            "10 %: seen, %",
            "20 %: seen, %",
            f"false alarms a year, {SERIES} series",
        ),
        rows=tuple(rows),
        note=f"{n} simulated histories a board. A rate of 1 % is known to "
        f"{196 * (0.01 * 0.99 / n) ** 0.5:.1f} points. A slowdown of 5 % is the least that counts "
        "at all: half of them are measured as less. One night alone does not tell an odd one from "
        "a slowdown: those alarms are gone the next night.",
        environment={"samples a night": SAMPLES, "neighbours alike": ALIKE, "within": WITHIN},
        more=(_creeps(quick, rng), _lasting(quick, rng), _cost(rng)),
    )


def nights(board: Board, n: int, rng: np.random.Generator) -> Logs:
    """Logarithms of samples, float64 (n, SAMPLES)."""
    from scipy.signal import lfilter

    moods = board.spread * rng.normal(size=n) + np.log1p(ODD) * (rng.random(n) < board.odd)
    shocks = rng.normal(size=(n, SAMPLES + 100)) * np.sqrt(1 - ALIKE**2)
    walks = lfilter([1], [1, -ALIKE], shocks, axis=1)[:, 100:]
    spikes = np.log1p(rng.exponential(0.5, (n, SAMPLES))) * (rng.random((n, SAMPLES)) < 0.01)
    found: Logs = moods[:, None] + WITHIN * walks + spikes
    return found


def _creeps(quick: bool, rng: np.random.Generator) -> BenchResult:
    n, length = (3, 30) if quick else (60, 90)
    rows = []
    for board in BOARDS[:2]:
        for percent in (0.0, 0.15, 0.3):
            ups = np.log1p(percent / 100) * np.arange(length)
            found: dict[str, list[int]] = {"Coralline": [], "5 % above 7 nights": []}
            for _ in range(n):
                logs = nights(board, length, rng) + ups[:, None]
                first = _first(logs)
                if first is not None:
                    found["Coralline"].append(first)
                means = np.exp(logs).mean(axis=1)
                before = np.convolve(means, np.ones(7) / 7, "valid")[:-1]
                over = np.flatnonzero(means[7:] > THRESHOLD * before)
                if len(over):
                    found["5 % above 7 nights"].append(int(over[0]) + 7)
            for rule, at in found.items():
                middle = float(np.exp(ups[int(np.median(at))])) if at else None
                rows.append(
                    (
                        board.name,
                        f"{percent:g} % a night",
                        rule,
                        100 * len(at) / n,
                        float(np.median(at)) if at else None,
                        None if middle is None else 100 * (middle - 1),
                    )
                )
    return BenchResult(
        title=f"A slow creep over {length} nights",
        columns=(
            "board",
            "creep",
            "rule",
            "alarm within these nights, %",
            "median night of the first",
            "slower by then, %",
        ),
        rows=tuple(rows),
        note=f"{n} simulated histories each. Without a creep every alarm is a false one, in "
        f"{length} nights. The naive rule moves its baseline with the creep: what it sees of it is "
        "its own false alarms.",
    )


def _lasting(quick: bool, rng: np.random.Generator) -> BenchResult:
    n = 3 if quick else 200
    rows = []
    for board in BOARDS:
        for shift in SHIFTS[1:]:
            seen = []
            for _ in range(n):
                logs = nights(board, 21, rng)
                logs[14:] += np.log(shift)
                first = _first(logs, skip=14)
                seen.append(99 if first is None else first - 13)
            rows.append(
                (
                    board.name,
                    f"{100 * (shift - 1):.0f} %",
                    *(100 * float(np.mean(np.array(seen) <= k)) for k in (1, 3, 7)),
                )
            )
    return BenchResult(
        title="A slowdown that stays: seen by Coralline within so many nights",
        columns=("board", "slower by", "1 night, %", "3 nights, %", "7 nights, %"),
        rows=tuple(rows),
        note=f"{n} simulated histories each, 14 nights before the slowdown; the median alone.",
    )


def _first(logs: Logs, skip: int = 0) -> int | None:
    """The first night, from `skip` on, that `judge` calls slower."""
    days = [
        Night(f"{i}", f"{i}", levels={"p50_ms": Level.percentile(np.exp(night), 50)})
        for i, night in enumerate(logs)
    ]
    judged = judge(Series("model", 2, "board"), days).nights
    return next((i for i in range(skip, len(judged)) if judged[i].verdict in SLOWER), None)


def _cost(rng: np.random.Generator) -> BenchResult:
    rows = []
    for samples in (1_000, 10_000, 100_000):
        values = np.exp(WITHIN * rng.normal(size=samples))
        start = process_time()
        for _ in range(20):
            Level.percentile(values, 50)
        ours_ms = 50 * (process_time() - start)
        start = process_time()
        _by_sorting(values[:samples], 50, rng)
        rows.append((samples, ours_ms, 1e3 * (process_time() - start)))
    return BenchResult(
        title="Drawing a median 2,000 times by blocks",
        columns=("samples", "by ranks, CPU ms", "by sorting every draw, CPU ms"),
        rows=tuple(rows),
        note="A page of 20 series needs 2 percentiles of 60 nights of each: 2,400 of these.",
    )


def _by_sorting(values: Logs, percent: float, rng: np.random.Generator) -> Logs:
    n = len(values)
    length = int(np.ceil(np.sqrt(n)))
    around = np.concatenate([values, values[: length - 1]])
    found = np.empty(2000)
    for i in range(2000):
        starts = rng.integers(n, size=round(n / length))
        blocks = around[starts[:, None] + np.arange(length)]
        found[i] = np.percentile(blocks, percent)
    return found
