"""The trends of the lab's nightlies as pages show them, judged anew when a night has ended.

To judge many nights takes seconds: it is done beside the requests, which show meanwhile what was
known before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Lock
from typing import Any

from hardware_lab.nights import ACCEPTED, NAME, read_trends
from hardware_lab.service.charts import Axis, Chart, Dot, Line, Text
from hardware_lab.store import Store
from hardware_lab.trend_page import METRICS
from hardware_lab.trends import CONFIDENCE, SLOWER

PATIENCE_S = 0.15
"""How long a request waits for what is not known yet."""
LABELS = 5
"""So many nights are named below a chart."""

Trend = Mapping[str, Any]
"""A `coralline.trend/v1` object."""


@dataclass
class _Known:
    """What is known of a nightly.

    Attributes:
        of: Which jobs it is known from.
        work: What is being judged, and from which jobs.
    """

    of: object = None
    trends: Sequence[Trend] = ()
    work: tuple[object, Future[list[dict[str, Any]]]] | None = None

    def take(self) -> None:
        """Know what has been judged meanwhile."""
        if self.work is not None and self.work[1].done():
            (of, judged), self.work = self.work, None
            self.of, self.trends = of, judged.result()


class Trends:
    """The trends of one lab."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, _Known] = {}
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="trends")

    def nightlies(self) -> list[str]:
        """Their names."""
        return self._store.glance.labelled(NAME)

    def read(self, name: str) -> tuple[Sequence[Trend], bool]:
        """The trends of a nightly, those that somebody must look at first.

        Returns:
            Also whether newer ones are being judged.
        """
        if name not in self.nightlies():
            return (), False
        now = self._store.glance.ended_like(NAME, name, ACCEPTED)
        with self._lock:
            known = self._known.setdefault(name, _Known())
            known.take()
            if known.of != now and known.work is None:
                known.work = now, self._pool.submit(self._judge, name)
            work = known.work
        if work is not None:
            wait([work[1]], PATIENCE_S)
        with self._lock:
            known.take()
            return known.trends, known.work is not None

    def of_board(self, board: str) -> dict[str, list[Trend]]:
        """The trends of one board, as far as they are known, by nightly."""
        return {
            name: [trend for trend in self.read(name)[0] if trend["board"] == board]
            for name in self.nightlies()
        }

    def _judge(self, name: str) -> list[dict[str, Any]]:
        return [trend.to_json() for trend in read_trends(self._store, name)]


def charts(trend: Trend) -> list[Chart]:
    """A chart a metric: the nights of a series."""
    return [_chart(trend, metric) for metric in metrics(trend)]


def metrics(trend: Trend) -> list[str]:
    """What was measured in any night."""
    return [m for m in METRICS if any(m in night["values"] for night in trend["nights"])]


def times(change: Mapping[str, float]) -> str:
    """A ratio with its interval."""
    return f"{change['value']:.3f} ({change['low']:.3f} to {change['high']:.3f})"


def _chart(trend: Trend, metric: str) -> Chart:
    nights = trend["nights"]
    shown = [(i, night) for i, night in enumerate(nights) if metric in night["values"]]
    simulated = any(night["simulated"] for night in nights)
    said = "simulated" if simulated else "measured"
    bounds = [bound for _, night in shown for bound in night["intervals"][metric]]
    low, high = min(bounds), max(bounds)
    # A tenth at least, or else noise would fill the chart.
    margin = max(0.05 * high, 0.1 * (high - low))
    unit = "mJ" if metric.endswith("_mj") else "ms"
    y = Axis.over(max(0.0, low - margin), high + margin, f"{unit} ({said})")
    width = 100 / len(nights)

    def place(i: int) -> float:
        return width * (i + 0.5)

    named = range(0, len(nights), max(1, -(-len(nights) // LABELS)))
    x = Axis(
        0,
        100,
        "night",
        tuple(Text(place(i), nights[i]["at"][5:10]) for i in named),
    )
    dots = []
    for i, night in shown:
        value, (least, most) = night["values"][metric], night["intervals"][metric]
        change = night["creep" if night["verdict"] == "crept" else "changes"].get(metric)
        dots.append(
            Dot(
                place(i),
                100 - y.place(value),
                _kind(night),
                ends=(100 - y.place(least), 100 - y.place(most)),
                title=f"{night['at'][:10]}: {value:.4g} {unit} {said}, {night['verdict']}"
                + (f", {change['value']:.3f} times" if change else "")
                + (f", commit {night['commit'][:10]}" if night["commit"] else ""),
                href=f"/jobs/{night['job']}",
            )
        )
    lines = [
        Line(f"M{place(i):.2f} 97v3", "gone") for i, night in enumerate(nights) if night["fault"]
    ]
    lines += [
        Line(f"M{place(i):.2f} 0V100", "accepted")
        for i, night in enumerate(nights)
        if night["accepted"] is not None
    ]
    slower = [night["at"][:10] for _, night in shown if night["verdict"] in SLOWER]
    return Chart(
        f"{METRICS[metric].capitalize()} ({said}), a dot a night with the "
        f"{100 * CONFIDENCE:.0f} % interval of its samples. Large and red: slower; hollow: does "
        "not count; a tick below: no measurement; a line: a level that was accepted.",
        f"{METRICS[metric].capitalize()} of {trend['series']}, {said}, over {len(nights)} nights: "
        f"from {low:.4g} to {high:.4g} {unit}. Slower: {', '.join(slower) or 'none'}.",
        x,
        y,
        lines=tuple(lines),
        dots=tuple(dots),
    )


def _kind(night: Mapping[str, Any]) -> str:
    verdict = night["verdict"]
    if verdict in SLOWER:
        return "slower"
    return "aside" if verdict in ("disturbed", "stale", "missing") else str(verdict)
