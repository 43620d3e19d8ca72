"""What the charts of the lab's pages show, and where; `charts.html.j2` writes them as SVG.

A place is a share of the plotted area in percent, from its left and its top: a chart takes the
width that the page has, and its text keeps its size. Nothing has a style of its own, which the
pages' security policy forbids, but a class that the style sheet knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coralline.runtime.power import Trace
from coralline.runtime.statistics import WINDOW_S, Estimate

TICKS = 5
BINS = 60
POINTS = 240
"""A line has no more: there is no room for more on a phone."""
FEW = 400
"""So many samples are drawn one by one."""
MARGIN = 0.03
"""Of a range, on either side of it."""
HEADROOM = 5
"""As many margins above what is drawn, where windows have their names."""
TAIL = 99.5
"""The percentile beyond which samples may be left out, when they would squeeze all others."""

Floats = NDArray[np.float64]
Said = Literal["measured", "simulated"]


@dataclass(frozen=True)
class Text:
    """Words at a place along an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """A range of numbers, or of their logarithms, along one side of a chart."""

    low: float
    high: float
    label: str
    ticks: tuple[Text, ...]
    log: bool = False

    @staticmethod
    def over(low: float, high: float, label: str) -> Axis:
        """From one number to another that may be the same, with ticks at round ones."""
        if high - low <= 1e-6 * abs(low):
            margin = abs(low) * 0.05 or 1.0
            low, high = low - margin, high + margin
        rough = (high - low) / TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        return Axis(
            low,
            high,
            label,
            tuple(
                Text(100 * (i * step - low) / (high - low), f"{i * step + 0.0:,.{digits}f}")
                for i in range(first, last + 1)
            ),
        )

    def places(self, values: ArrayLike) -> Floats:
        """Percent of the way from low to high, cut off at both."""
        found = np.asarray(values, dtype=np.float64)
        low, high = self.low, self.high
        if self.log:
            found, low, high = np.log(found), math.log(low), math.log(high)
        return np.clip(100 * (found - low) / (high - low), 0, 100)

    def place(self, value: float) -> float:
        """Of one number."""
        return float(self.places(value))


@dataclass(frozen=True)
class Box:
    """A rectangle; `kind` is its class."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    label: str = ""


@dataclass(frozen=True)
class Line:
    """A path in a space of 100 x 100."""

    path: str
    kind: str


@dataclass(frozen=True)
class Dot:
    """A number with its interval.

    Attributes:
        ends: Of the interval, along the other axis than `of_x` says.
        of_x: Whether the number is on the axis of x, and the interval with it.
        title: What a pointer on it is told.
        href: Where a click leads.
    """

    x: float
    y: float
    kind: str
    ends: tuple[float, float] | None = None
    of_x: bool = False
    title: str = ""
    href: str = ""
    label: str = ""


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        caption: Stands under it.
        alt: What a person who cannot see it should know.
        legend: Classes and names of what is drawn, where there are several.
    """

    caption: str
    alt: str
    x: Axis
    y: Axis
    boxes: tuple[Box, ...] = ()
    lines: tuple[Line, ...] = ()
    dots: tuple[Dot, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Samples:
    """The latencies of one plan.

    Attributes:
        name: Of the plan; empty when there is only one.
        latency_ms: float64 (N,), N at least 1.
        at_s: float64 (N,), or empty when it is not known.
        told: As `Measurement.statistics` says.
    """

    name: str
    latency_ms: Floats
    at_s: Floats
    told: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class PowerTrace:
    """What a meter recorded, with name, begin and end of each window, on the trace's clock."""

    trace: Trace
    windows: Sequence[tuple[str, float, float]]


def histogram(plans: Sequence[Samples], said: Said) -> Chart:
    """How many inferences took how long."""
    x, left_out = _latency_axis(plans, said)
    most = max(len(plan.latency_ms) for plan in plans)
    bins = min(BINS, max(8, round(2 * math.sqrt(most))))
    edges = np.linspace(x.low, x.high, bins + 1)
    counts = [np.histogram(plan.latency_ms, edges)[0] for plan in plans]
    y = Axis.over(0, float(max(count.max() for count in counts)) * 1.05, "inferences")
    width = 100 / bins
    boxes = tuple(
        Box(i * width, 100 - y.place(n), width, y.place(n), f"bar {_kind(which)}")
        for which, count in enumerate(counts)
        for i, n in enumerate(count.tolist())
        if n
    )
    spans = "; ".join(
        f"{plan.name + ': ' if plan.name else ''}{len(plan.latency_ms):,} inferences, "
        f"{plan.latency_ms.min():.3f} to {plan.latency_ms.max():.3f} ms"
        for plan in plans
    )
    return Chart(
        f"How many inferences took how long ({said}).{left_out}",
        f"Histogram of the latency, {said}. {spans}.",
        x,
        y,
        boxes=boxes,
        legend=_legend(plans),
    )


def cumulative(plans: Sequence[Samples], said: Said) -> Chart:
    """Which share of the inferences took no longer than a time, with percentiles."""
    x, left_out = _latency_axis(plans, said)
    y = Axis(0, 100, "share", tuple(Text(p, f"{p} %") for p in (0, 25, 50, 75, 90, 99)))
    lines, dots, words = [], [], []
    for which, plan in enumerate(plans):
        found = np.sort(plan.latency_ms)
        ranks = np.unique(np.linspace(0, len(found) - 1, POINTS).astype(np.int64))
        shares = 100 * (ranks + 1) / len(found)
        lines.append(Line(_steps(x.places(found[ranks]), 100 - y.places(shares)), _kind(which)))
        for percent in (50, 90, 99):
            told = plan.told.get(f"p{percent}")
            if told is None:
                continue
            value, low, high = (float(told[key] or 0) for key in ("value", "low", "high"))
            text = f"p{percent} {value:.3f} ms, 95 % from {low:.3f} to {high:.3f}"
            words.append(f"{plan.name} {text}".strip())
            dots.append(
                Dot(
                    x.place(value),
                    100 - percent,
                    _kind(which),
                    ends=(x.place(low), x.place(high)),
                    of_x=True,
                    title=words[-1],
                )
            )
    return Chart(
        f"Share of inferences that took no longer than a time ({said}); dots at p50, p90 and p99 "
        f"with their 95 % intervals.{left_out}",
        f"Cumulative distribution of the latency, {said}: {'; '.join(words)}.",
        x,
        y,
        lines=tuple(lines),
        dots=tuple(dots),
        legend=_legend(plans),
    )


def over_time(plans: Sequence[Samples], said: Said) -> Chart | None:
    """Latency against when it was measured; the first and the last minute stand out.

    None where it is not known when.
    """
    if any(len(plan.at_s) < 2 for plan in plans):
        return None
    y, left_out = _latency_axis(plans, said, HEADROOM)
    last = max(float(plan.at_s[-1]) for plan in plans)
    x = Axis.over(0, last, "s since the first sample")
    window = min(WINDOW_S, last / 2)
    minute = "minute" if window == WINDOW_S else "half"
    width = x.place(window)
    boxes = (
        Box(0, 0, width, 100, "window", f"first {minute}"),
        Box(100 - width, 0, width, 100, "window other", f"last {minute}"),
    )
    lines: list[Line] = []
    for which, plan in enumerate(plans):
        lines += _band(x, y, plan.at_s, plan.latency_ms, _kind(which))
        for begin in (0.0, last - window):
            inside = (plan.at_s >= begin) & (plan.at_s <= begin + window)
            if inside.any():
                level = 100 - y.place(float(np.median(plan.latency_ms[inside])))
                ends = x.place(begin), x.place(begin + window)
                lines.append(
                    Line(f"M{ends[0]:.2f} {level:.2f}H{ends[1]:.2f}", f"level {_kind(which)}")
                )
    drifts = [
        f"{plan.name} {moved['value']:.3f} times, 95 % from {moved['low']:.3f} to "
        f"{moved['high']:.3f}".strip()
        for plan in plans
        if (moved := plan.told.get("drift"))
    ]
    says = f"Last {minute} over first, by their medians: {'; '.join(drifts)}." if drifts else ""
    many = any(len(plan.latency_ms) > FEW for plan in plans)
    return Chart(
        f"Latency over the run ({said}){', from least to most at each time' if many else ''}; "
        f"dashed: the medians of the first and the last {minute}. {says}{left_out}",
        f"Latency over the run, {said}, over {last:.1f} s. {says}",
        x,
        y,
        boxes=boxes,
        lines=tuple(lines),
        legend=_legend(plans),
    )


def power(traces: Sequence[PowerTrace], said: Said) -> Chart:
    """What a meter saw, and what the board did meanwhile.

    Args:
        traces: At least one, the first first.
    """
    t_s, power_w = (np.concatenate(rows) for rows in zip(*map(_power, traces), strict=True))
    begin = float(t_s[0])
    x = Axis.over(0, float(t_s[-1]) - begin, "s since the meter began")
    y = Axis.over(0, float(power_w.max()) * (1 + HEADROOM * MARGIN), f"W ({said})")
    windows = [window for trace in traces for window in trace.windows]
    boxes = tuple(
        Box(
            x.place(start - begin),
            0,
            x.place(stop - begin) - x.place(start - begin),
            100,
            "window other" if i % 2 else "window",
            label,
        )
        for i, (label, start, stop) in enumerate(windows)
    )
    seen: dict[str, list[Floats]] = {}
    for label, start, stop in windows:
        seen.setdefault(label, []).append(power_w[(t_s >= start) & (t_s <= stop)])
    means = ", ".join(
        f"{label} {np.concatenate(parts).mean():.3f} W"
        for label, parts in seen.items()
        if any(len(part) for part in parts)
    )
    return Chart(
        f"Power ({said}), {len(t_s):,} samples; bands: the windows that the markers bound. Means: "
        f"{means or 'no window'}.",
        f"Power over time ({said}). Means: {means or 'no window'}.",
        x,
        y,
        boxes=boxes,
        lines=tuple(_band(x, y, t_s - begin, power_w, _kind(0))),
    )


def _power(trace: PowerTrace) -> tuple[Floats, Floats]:
    """Times and power; between two samples of a counter it is the mean."""
    found = trace.trace
    if found.energy_j is None:
        assert found.power_w is not None
        return found.t_s, found.power_w
    return found.t_s[1:], np.diff(found.energy_j) / np.diff(found.t_s)


def ratio_axis(ratios: Sequence[Estimate]) -> Axis:
    """Holds all of these and 1, by their logarithms, and as far to either side of it."""
    ends = [abs(math.log(end)) for ratio in ratios for end in (ratio.low, ratio.high)]
    most = math.exp(min(max([*ends, math.log(1.05)]) * 1.08, math.log(1e6)))
    return Axis(1 / most, most, "B over A", (Text(50, "1"),), log=True)


def _latency_axis(plans: Sequence[Samples], said: str, headroom: float = 1) -> tuple[Axis, str]:
    """Over the samples, without a tail that would squeeze the others; and what it leaves out."""
    found = np.concatenate([plan.latency_ms for plan in plans])
    low, high = float(found.min()), float(found.max())
    tail = float(np.percentile(found, TAIL))
    left_out = ""
    if high - low > 2 * (tail - low) > 0:
        beyond = int((found > tail).sum())
        left_out = f" {beyond} of {len(found):,} lie beyond, up to {high:.3f} ms."
        high = tail
    margin = MARGIN * (high - low)
    axis = Axis.over(max(low - margin, 0.0), high + headroom * margin, f"latency, ms ({said})")
    return axis, left_out


def _band(x: Axis, y: Axis, at: Floats, values: Floats, kind: str) -> list[Line]:
    """Few samples as dots; many as the area from least to most, and the median, by time."""
    if len(at) <= FEW:
        places = zip(x.places(at), 100 - y.places(values), strict=True)
        return [Line("".join(f"M{a:.2f} {b:.2f}h0" for a, b in places), f"points {kind}")]
    edges = np.searchsorted(at, np.linspace(at[0], at[-1], POINTS + 1)[:-1])
    starts = np.unique(edges)
    parts = np.split(values, starts[1:])
    places_x = x.places([float(part.mean()) for part in np.split(at, starts[1:])])
    low, middle, high = (
        100 - y.places([float(f(part)) for part in parts]) for f in (np.min, np.median, np.max)
    )
    around = np.concatenate([places_x, places_x[::-1]]), np.concatenate([low, high[::-1]])
    return [
        Line(_path(*around) + "Z", f"area {kind}"),
        Line(_path(places_x, middle), kind),
    ]


def _path(x: Floats, y: Floats) -> str:
    return "M" + "L".join(f"{a:.2f} {b:.2f}" for a, b in zip(x, y, strict=True))


def _steps(x: Floats, y: Floats) -> str:
    """Straight to the right, then up."""
    return f"M{x[0]:.2f} 100" + "".join(
        f"H{a:.2f}V{b:.2f}" for a, b in zip(x.tolist(), y.tolist(), strict=True)
    )


def _kind(which: int) -> str:
    return f"series-{which}"


def _legend(plans: Sequence[Samples]) -> tuple[tuple[str, str], ...]:
    if len(plans) < 2:
        return ()
    return tuple((_kind(which), plan.name) for which, plan in enumerate(plans))
