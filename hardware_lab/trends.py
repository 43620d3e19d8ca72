"""Whether tonight is slower than the last good nights, and since when.

What varies is the night: a machine's mood lasts longer than a measurement, so that a thousand
samples of one night are worth little more than one number (Kuensch 1989 for what samples in a row
are worth; Davison and Hinkley 1997, p. 100, for data in clusters). For each metric the ratio of
tonight to the mean of the good nights before (of logarithms) has an interval from two levels:

- Within a night, circular blocks of consecutive samples are drawn with replacement, which keeps
  what ties neighbours together (Politis and Romano 1991). A block is as long as the square root
  of the samples' number.
- Between nights, tonight is one more draw of a normal distribution of logarithms of which n
  nights were seen, so that it lies sqrt(1 + 1/n) spreads times Student's t from their mean (the
  usual prediction interval; the mean of m nights lies sqrt(1/m + 1/n) from it). Drawing the few
  nights themselves with replacement would miss tails that n nights cannot show: with 7 nights the
  eighth is the slowest in one case of eight. The spread is theirs, moderated by PRIOR_NIGHTS
  nights' worth of PRIOR_SPREAD (Smyth 2004), which lets a second night be judged at all. A device
  model has no moods: its spread is 0.

Sources: Kuensch, The jackknife and the bootstrap for general stationary observations, Annals of
Statistics 17, 1989. Davison and Hinkley, Bootstrap Methods and their Application, 1997. Politis
and Romano, A circular block-resampling procedure for stationary data, 1991. Smyth, Linear models
and empirical Bayes methods for assessing differential expression, 2004.
`benchmarks/bench_trends.py` measures how often the verdicts are wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, Literal
from zlib import crc32

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coralline.runtime.measurement import Measurement
from coralline.runtime.statistics import Estimate

SCHEMA = "coralline.trend/v1"
THRESHOLD = 1.05
"""A change by less is none that anybody would act on, however sure it is."""
CONFIDENCE = 0.99
"""Of the intervals: a lab of 20 series looks at thousands of nights a year."""
BASELINE_NIGHTS = 7
PRIOR_SPREAD = 0.02
"""Standard deviation of the logarithm between nights of a calm board."""
PRIOR_NIGHTS = 3
FASTER_NIGHTS = 2
"""So many in a row, and the faster level is the one to compare with."""
STALE_NIGHTS = 3
"""So many in a row without a night that counts are as bad as a missing board."""
_DRAWS = 2000
_FACTS = ("cpu", "governor", "kernel", "versions", "device_digest", "threads_per_stage")
"""Of a measurement's environment: what may explain a change, and stays when nothing changed."""

Verdict = Literal[
    "first", "level", "faster", "slower", "crept", "accepted", "disturbed", "stale", "missing"
]
SLOWER: tuple[Verdict, ...] = ("slower", "crept")
RED: tuple[Verdict, ...] = (*SLOWER, "stale", "missing")
"""Verdicts that somebody must look at, the worst first."""


@dataclass(frozen=True, order=True)
class Series:
    """What is compared from night to night."""

    model: str
    stages: int
    board: str

    def __str__(self) -> str:
        return f"{self.model}/{self.stages}/{self.board}"


@dataclass(frozen=True)
class Level:
    """A metric of one night.

    Attributes:
        value: Above 0; the more, the worse.
        logs: Logarithms of what the night's samples could as well have given, float64 (_DRAWS,),
            in no order.
    """

    value: float
    logs: NDArray[np.float64]

    @staticmethod
    def exact(value: float) -> Level:
        """A number that comes without samples."""
        return Level(value, np.full(_DRAWS, np.log(value)))

    @staticmethod
    def percentile(samples: ArrayLike, percent: float) -> Level:
        """A percentile of samples in the order in which they were taken, all above 0.

        Where a share of the drawn samples more lies below the percentile, the drawn percentile is
        by that share lower in rank (Bahadur, A note on quantiles in large samples, 1966): no draw
        has to be sorted.
        """
        values = np.asarray(samples, dtype=np.float64)
        n = len(values)
        found = float(np.percentile(values, percent))
        length = int(np.ceil(np.sqrt(n)))
        below = values <= found
        ends = np.concatenate([[0], np.cumsum(np.concatenate([below, below[: length - 1]]))])
        in_blocks = ends[length:] - ends[:-length]
        # Repeatable, and yet not the same draws for two nights.
        rng = np.random.default_rng(crc32(values.tobytes()))
        starts = rng.integers(n, size=(_DRAWS, max(1, round(n / length))))
        share = in_blocks[starts].mean(axis=1) / length
        rank = np.clip(percent / 100 + below.mean() - share, 0, 1) * (n - 1)
        drawn = np.interp(rank, np.arange(n), np.sort(values))
        return Level(found, np.log(drawn))


@dataclass(frozen=True)
class Night:
    """What one night said of a series.

    Attributes:
        job: Id in the lab.
        at: ISO 8601, UTC.
        night: Name of the execution that wanted it.
        commit: Of the code that ran; None where it was not told.
        levels: Metrics by name; empty when there is no measurement. `p50_ms` and `p90_ms` of the
            latency with one inference in flight (`mean_ms` where a board reports no more),
            `full_ms`, the time per inference with the pipeline full, and `energy_mj`.
        simulated: Whether they come from a device model.
        marks: What speaks against the measurement: such a night is shown and does not count.
        fault: Why there is no measurement, or one that another processor made.
        facts: What may explain a change, by name.
        accepted: Why its level is the normal one from now on; None unless a person said so.
    """

    job: str
    at: str
    night: str = ""
    commit: str | None = None
    levels: Mapping[str, Level] = field(default_factory=dict)
    simulated: bool = False
    marks: tuple[str, ...] = ()
    fault: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    accepted: str | None = None

    @staticmethod
    def of_measurement(measurement: Measurement, **facts: Any) -> Night:
        """A night that measured; `facts` are the other fields."""
        found = levels(measurement)
        # A meter's faults are the same every night, and say nothing against the times.
        of_energy = () if measurement.energy is None else measurement.energy.marks
        return Night(
            levels=found,
            fault=None if found else "the board reports nothing that nights are compared by",
            simulated=measurement.simulated,
            marks=tuple(mark for mark in measurement.marks if mark not in of_energy),
            facts=_facts(measurement),
            **facts,
        )


@dataclass(frozen=True)
class Judged:
    """A night and what is said of it.

    Attributes:
        changes: By metric, how many times as much as in the last good nights, with its interval.
        against: The jobs of these nights.
        creep: The same of the last good nights with this one, against the series' anchor: its
            first good nights, or the first after it became faster or was accepted.
        differs: What else is not as it was in the last of these nights: before and now, by name.
    """

    night: Night
    verdict: Verdict
    changes: Mapping[str, Estimate] = field(default_factory=dict)
    against: tuple[str, ...] = ()
    creep: Mapping[str, Estimate] = field(default_factory=dict)
    differs: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def red(self) -> bool:
        """Whether somebody must look at it."""
        return self.verdict in RED

    @property
    def counts(self) -> bool:
        """Whether it measured, and nothing speaks against that."""
        return self.verdict not in ("disturbed", "stale", "missing")

    @property
    def worst(self) -> tuple[str, Estimate] | None:
        """The metric that grew most among those that decided, or else among all."""
        found = self.creep if self.verdict == "crept" else self.changes
        chosen = {name: ratio for name, ratio in found.items() if grew(ratio)} or found
        return max(chosen.items(), key=lambda item: item[1].value, default=None)

    def to_json(self) -> dict[str, Any]:
        """Plain values; the draws are left out."""
        night = self.night
        return {
            "job": night.job,
            "at": night.at,
            "night": night.night,
            "commit": night.commit,
            "verdict": self.verdict,
            "red": self.red,
            "values": {name: level.value for name, level in night.levels.items()},
            "intervals": {name: list(interval(level)) for name, level in night.levels.items()},
            "changes": {name: ratio.to_json() for name, ratio in self.changes.items()},
            "worst": self.worst and self.worst[0],
            "creep": {name: ratio.to_json() for name, ratio in self.creep.items()},
            "against": list(self.against),
            "differs": {name: list(pair) for name, pair in self.differs.items()},
            "simulated": night.simulated,
            "marks": list(night.marks),
            "fault": night.fault,
            "accepted": night.accepted,
        }


@dataclass(frozen=True)
class Trend:
    """The nights of a series, judged, in their order; at least one."""

    series: Series
    nights: tuple[Judged, ...]

    @property
    def latest(self) -> Judged:
        """Tonight."""
        return self.nights[-1]

    @property
    def since(self) -> tuple[Judged | None, Judged] | None:
        """The last good night and the first of the slower ones that last until tonight.

        None when tonight is not slower. A night that was missing or disturbed ends nothing.
        """
        if self.latest.verdict not in SLOWER:
            return None
        first = self.latest
        for judged in reversed(self.nights):
            if judged.verdict in SLOWER:
                first = judged
            elif judged.counts:
                return judged, first
        return None, first

    def to_json(self) -> dict[str, Any]:
        """A `coralline.trend/v1` object."""
        since = self.since
        return {
            "schema": SCHEMA,
            **asdict(self.series),
            "series": str(self.series),
            "verdict": self.latest.verdict,
            "red": self.latest.red,
            "since": since
            and dict(zip(("last_good", "first_bad"), map(_when, since), strict=True)),
            "nights": [judged.to_json() for judged in self.nights],
        }


def levels(measurement: Measurement) -> dict[str, Level]:
    """The metrics of a measurement that nights are compared by; see `Night.levels`."""
    found = {}
    if measurement.latency_ms:
        for percent in (50, 90):
            found[f"p{percent}_ms"] = Level.percentile(measurement.latency_ms, percent)
    else:
        for name, value in (measurement.latency_reported_ms or {}).items():
            if name in ("p50", "p90", "mean") and value > 0:
                found[f"{name}_ms"] = Level.exact(value)
    if measurement.full_latency_ms and measurement.wall_s > 0:
        found["full_ms"] = Level.exact(1e3 / measurement.throughput_fps)
    energy = measurement.energy_mj_per_inference
    if energy is not None and energy > 0:
        found["energy_mj"] = Level.exact(energy)
    return found


def interval(level: Level) -> tuple[float, float]:
    """Within what the night's own samples place its level."""
    low, high = np.exp(np.quantile(level.logs, _tails()))
    return float(low), float(high)


def ratio(now: Sequence[Level], before: Sequence[Level], *, simulated: bool = False) -> Estimate:
    """Nights over the nights before, with its interval; see the head of this module.

    Args:
        now, before: At least one each.
        simulated: The nights come from a device model.
    """
    groups = [np.log([level.value for level in nights]) for nights in (now, before)]
    means = [float(logs.mean()) for logs in groups]
    drawn = [np.mean([level.logs for level in nights], axis=0) for nights in (now, before)]
    change = drawn[0] - drawn[1]
    if not simulated:
        freedom = PRIOR_NIGHTS + sum(len(logs) - 1 for logs in groups)
        squares = PRIOR_NIGHTS * PRIOR_SPREAD**2
        squares += sum(((logs - mean) ** 2).sum() for logs, mean in zip(groups, means, strict=True))
        weight = sum(1 / len(logs) for logs in groups)
        change = change + np.sqrt(squares / freedom * weight) * _student(freedom)
    low, high = np.exp(np.quantile(change, _tails()))
    value = float(np.exp(means[0] - means[1]))
    return Estimate(value, min(float(low), value), max(float(high), value))


def grew(change: Estimate) -> bool:
    """Whether a ratio is above 1 surely, and above THRESHOLD at all."""
    return change.value > THRESHOLD and change.low > 1


def shrank(change: Estimate) -> bool:
    """Whether a ratio is below 1 surely, and below 1 / THRESHOLD at all."""
    return change.value < 1 / THRESHOLD and change.high < 1


def judge(series: Series, nights: Iterable[Night], baseline_nights: int = BASELINE_NIGHTS) -> Trend:
    """Judge each night by the good ones before it.

    A night is good when it measured, nothing speaks against it, and it is not slower. A slower one
    joins those that the next are compared with only when a person has accepted it, and then with
    all nights of its level: or else a board that becomes slower step by step would never be so.
    Steps too small to be seen from night to night are found against the anchor. A faster night
    stays apart too, until the next one says that it was no accident.

    Args:
        nights: In their order, at least one.
    """
    good: list[Night] = []
    slow: list[Night] = []  # those that last until now
    fast: list[Night] = []
    anchor: list[Night] = []
    without = 0  # nights in a row that do not count
    found: list[Judged] = []
    for night in nights:
        missing = night.fault is not None or not night.levels
        if missing or (night.marks and night.accepted is None):
            without += 1
            stale = without >= STALE_NIGHTS
            verdict: Verdict = "missing" if missing else "stale" if stale else "disturbed"
            base = good[-baseline_nights:]
            found.append(Judged(night, verdict, _changes([night], base), _jobs(base)))
            continue
        without = 0
        if night.accepted is not None:
            good, slow, fast, anchor = [*slow, night], [], [], []
            found.append(Judged(night, "accepted"))
            continue
        base = good[-baseline_nights:]
        if not anchor and len(base) == baseline_nights:
            anchor = base
        changes = _changes([night], base)
        # Nights of the anchor itself cannot tell how far the level has gone from it.
        apart = len(good) >= 2 * baseline_nights - 1
        creep = _changes([*base[1:], night], anchor) if apart else {}
        if not base:
            verdict = "first"
        elif any(map(grew, changes.values())):
            verdict = "slower"
        elif any(map(grew, creep.values())):
            verdict = "crept"
        else:
            verdict = "faster" if any(map(shrank, changes.values())) else "level"
        differs = _differs(base[-1], night) if base else {}
        found.append(Judged(night, verdict, changes, _jobs(base), creep, differs))
        slow = [*slow, night] if verdict in SLOWER else []
        fast = [*fast, night] if verdict == "faster" else []
        if len(fast) == FASTER_NIGHTS:
            good, fast, anchor = fast, [], []
        elif verdict in ("first", "level"):
            good.append(night)
    return Trend(series, tuple(found))


def _when(judged: Judged | None) -> dict[str, str | None] | None:
    return {"at": judged.night.at, "commit": judged.night.commit} if judged else None


def _changes(now: list[Night], before: list[Night]) -> dict[str, Estimate]:
    found = {}
    for name in now[-1].levels:
        groups = [[n.levels[name] for n in nights if name in n.levels] for nights in (now, before)]
        if all(groups):
            found[name] = ratio(*groups, simulated=now[-1].simulated)
    return found


def _jobs(nights: Iterable[Night]) -> tuple[str, ...]:
    return tuple(night.job for night in nights)


def _differs(before: Night, now: Night) -> dict[str, tuple[str, str]]:
    both = before.facts.keys() & now.facts.keys()
    return {
        name: (before.facts[name], now.facts[name])
        for name in sorted(both)
        if before.facts[name] != now.facts[name]
    }


def _facts(measurement: Measurement) -> dict[str, str]:
    found: dict[str, Any] = {
        "model file": measurement.model_digest[:12],
        "processor": measurement.processor,
    }
    if "stage" in measurement.plan:
        stages = json.dumps(measurement.plan["stage"]).encode()
        found["stages of the operators"] = hashlib.sha256(stages).hexdigest()[:12]
    for name in _FACTS:
        value = measurement.environment.get(name)
        if isinstance(value, dict):
            found |= {key: text for key, text in value.items() if text is not None}
        elif value is not None:
            found[name.replace("_", " ")] = value
    return {name: str(value) for name, value in found.items()}


def _tails() -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    return tail, 1 - tail


@cache
def _student(freedom: int) -> NDArray[np.float64]:
    """Student's t in _DRAWS equally likely parts, shuffled: steadier than random draws."""
    from scipy.special import stdtrit

    parts = (np.arange(_DRAWS) + 0.5) / _DRAWS
    drawn: NDArray[np.float64] = np.random.default_rng(freedom).permutation(stdtrit(freedom, parts))
    return drawn
