"""The page about the series of a nightly: what is slower, since when, and how the nights were.

It is made of `coralline.trend/v1` objects (`hardware_lab.trends.Trend.to_json`), so that it can be
written where the lab itself is out of reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from coralline.files import write_text
from coralline.report.page import Cell, Table, number, templates
from hardware_lab.trends import CONFIDENCE, RED, THRESHOLD

METRICS = {
    "p50_ms": "median latency",
    "p90_ms": "p90 latency",
    "mean_ms": "mean latency",
    "full_ms": "time per inference, pipeline full",
    "energy_mj": "energy per inference",
}
_WIDTH, _HEIGHT = 340, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 24, 24
_SHOWN_NIGHTS = 45
"""In a figure: more would touch each other."""


def write_page(
    title: str,
    created_at: str,
    trends: Sequence[Mapping[str, Any]],
    facts: Mapping[str, str],
    out: Path,
    missing: Sequence[Mapping[str, str]] = (),
) -> Path:
    """Write the page, whole or not at all; returns its path.

    Args:
        created_at: ISO 8601, UTC.
        trends: `coralline.trend/v1` objects, in the order of the page; `commits`, a line a commit
            since the last good night, may be added to each.
        facts: Where the numbers come from: name and value.
        missing: `model`, the `step` that failed for it, its `message`, and when (`at`) of each
            model that there is no series of.

    Raises:
        UserError: The file cannot be written.
    """
    text = (
        templates("hardware_lab", "coralline.report")
        .get_template("trends.html.j2")
        .render(
            title=title,
            created_at=created_at,
            red=[_card(trend) for trend in trends if trend["red"]],
            others=[_card(trend) for trend in trends if not trend["red"]],
            missing=missing,
            simulated=any(night["simulated"] for trend in trends for night in trend["nights"]),
            table=_table(trends),
            facts=list(facts.items()),
            confidence=f"{100 * CONFIDENCE:.0f} %",
            threshold=f"{100 * (THRESHOLD - 1):.0f} %",
        )
    )
    write_text(out, text.lstrip() + "\n")
    return out


def sentence(trend: Mapping[str, Any]) -> str:
    """What is to be said of the latest night of a series, without its name."""
    night = trend["nights"][-1]
    verdict = trend["verdict"]
    if verdict == "missing":
        return str(night["fault"])
    if verdict in ("stale", "disturbed"):
        return "; ".join(night["marks"])
    if verdict == "accepted":
        return f"the normal from now on: {night['accepted']}"
    if verdict == "first":
        return "no good night before to compare with"
    changes = night["creep" if verdict == "crept" else "changes"]
    if not changes:
        return "no metric in common with the nights before"
    change = changes[night["worst"]]
    metric, times = METRICS[night["worst"]], f"is {change['value']:.3f} times that of"
    said = (
        f"{metric} of the last nights {times} the first good nights"
        if verdict == "crept"
        else f"{metric} {times} the last good nights"
    )
    said += f" ({100 * CONFIDENCE:.0f} % interval {change['low']:.3f} to {change['high']:.3f})"
    simulated = ", simulated" if night["simulated"] else ""
    if trend["since"] is None:
        return said + simulated
    return f"{said}{simulated}, since {_since(trend['since'])}"


def _since(since: Mapping[str, Any]) -> str:
    bad, good = since["first_bad"], since["last_good"]
    said = f"the night of {_day(bad['at'])}"
    if bad["commit"]:
        said += f" at commit {short(bad['commit'])}"
    if good is not None:
        before = f" at commit {short(good['commit'])}" if good["commit"] else ""
        said += f" (last good: {_day(good['at'])}{before})"
    return said


def short(commit: str) -> str:
    """As people write it; what is no hash stays whole."""
    digits = commit.split("-")[0]
    is_hash = len(digits) == 40 and set(digits) <= set("0123456789abcdef")
    return commit.replace(digits, digits[:10]) if is_hash else commit


def figure(trend: Mapping[str, Any]) -> str:
    """The nights of a series as a small SVG, in the page's own colours.

    A point a night with the interval of its own samples: full and blue for good ones, red for
    slower ones, hollow for those that do not count, a cross for those without a measurement. The
    line is the mean of the nights that the latest is compared with.
    """
    nights = trend["nights"][-_SHOWN_NIGHTS:]
    metric = nights[-1]["worst"] or next((m for night in nights for m in night["values"]), "p50_ms")
    values = [night["values"].get(metric) for night in nights]
    known = [value for value in values if value is not None]
    bounds = [bound for night in nights for bound in night["intervals"].get(metric, ())]
    simulated = ", simulated" if any(night["simulated"] for night in nights) else ""
    what = f"{METRICS[metric]}, {_unit(metric)}{simulated}"
    alt = f"{trend['series']}: {what}, over {len(nights)} nights"
    head = (
        f'<svg class="nights" role="img" aria-label="{escape(alt)}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}">'
    )
    if not known:
        return f"{head}{_text(_WIDTH / 2, _HEIGHT / 2, 'nothing measured yet', 'middle')}</svg>"
    low, high = min(*known, *bounds), max(*known, *bounds)
    # A tenth at least, or else noise would fill the figure.
    margin = max(0.05 * high, 0.15 * (high - low))
    low, high = low - margin, high + margin

    def x(i: int) -> float:
        step = (_WIDTH - _LEFT - _RIGHT) / max(len(nights) - 1, 1)
        return _LEFT + i * step if len(nights) > 1 else _WIDTH / 2

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [head, _text(_LEFT, 10, what, "start")]
    for value in (min(known), max(known)) if max(known) > min(known) else known[:1]:
        parts.append(_text(_LEFT - 8, y(value) + 3, number(value), "end"))
    parts.append(_text(_LEFT, _HEIGHT - 6, _day(nights[0]["at"]), "start"))
    if len(nights) > 1:
        parts.append(_text(_WIDTH - _RIGHT, _HEIGHT - 6, _day(nights[-1]["at"]), "end"))
    against = set(nights[-1]["against"])
    base = [v for night, v in zip(nights, values, strict=True) if night["job"] in against and v]
    if base:
        mean = y(sum(base) / len(base))
        parts.append(f'<line class="base" x1="{_LEFT}" x2="{x(len(nights) - 1):.1f}" ')
        parts.append(f'y1="{mean:.1f}" y2="{mean:.1f}"/>')
    for i, (night, value) in enumerate(zip(nights, values, strict=True)):
        parts.append(_point(x(i), y, night, metric, value))
    return "".join([*parts, "</svg>"])


def _point(x: float, y: Any, night: Mapping[str, Any], metric: str, value: float | None) -> str:
    commit = f", commit {short(night['commit'])}" if night["commit"] else ""
    if value is None:
        said = f"{_day(night['at'])}: {night['fault'] or 'not measured'}{commit}"
        bottom = _HEIGHT - _BOTTOM
        cross = f"M{x - 3:.1f} {bottom - 3}l6 6m0 -6l-6 6"
        return f'<path class="none" d="{cross}"><title>{escape(said)}</title></path>'
    simulated = " simulated" if night["simulated"] else ""
    shown = f"{number(value)} {_unit(metric)}{simulated}"
    said = f"{_day(night['at'])}: {shown}, {night['verdict']}{commit}"
    low, high = (y(bound) for bound in night["intervals"][metric])
    kind = night["verdict"]
    if kind in ("disturbed", "stale", "missing"):
        kind = "idle"
    elif night["red"]:
        kind = "red"
    return (
        f'<g class="{kind}"><line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
        f'<circle cx="{x:.1f}" cy="{y(value):.1f}" r="3.2"/><title>{escape(said)}</title></g>'
    )


def _text(x: float, y: float, said: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(said)}</text>'


def _unit(metric: str) -> str:
    return {"ms": "ms", "mj": "mJ"}[metric.rpartition("_")[2]]


def _day(at: str) -> str:
    return at[:10]


def _card(trend: Mapping[str, Any]) -> dict[str, Any]:
    latest = trend["nights"][-1]
    name = latest["worst"]
    changes = latest["creep" if trend["verdict"] == "crept" else "changes"]
    change = changes.get(name) if name else None
    return {
        "trend": trend,
        "verdict": trend["verdict"],
        "sentence": sentence(trend),
        "times": f"{change['value']:.2f}" if change else None,
        "interval": f"{change['low']:.2f} to {change['high']:.2f}" if change else None,
        "metric": METRICS[name] if name else None,
        "simulated": latest["simulated"],
        "differs": latest["differs"],
        "since": trend["since"] and _since(trend["since"]),
        "commits": trend.get("commits", []),
        "figure": figure(trend),
    }


def _table(trends: Sequence[Mapping[str, Any]]) -> Table:
    shown = [m for m in METRICS if any(m in t["nights"][-1]["values"] for t in trends)]
    rows = []
    for trend in trends:
        night = trend["nights"][-1]
        cells = [
            Cell(trend["model"], trend["model"], number=False),
            Cell(str(trend["stages"]), trend["stages"]),
            Cell(trend["board"], trend["board"], number=False),
            Cell(trend["verdict"], _rank(trend["verdict"]), number=False),
        ]
        for metric in shown:
            value, change = night["values"].get(metric), night["changes"].get(metric)
            cells.append(
                Cell("–", -1.0)
                if value is None
                else Cell(f"{number(value)} {_unit(metric)}", value, night["simulated"])
            )
            cells.append(
                Cell("–", -1.0)
                if change is None
                else Cell(
                    f"{change['value']:.3f} ({change['low']:.3f} to {change['high']:.3f})",
                    change["value"],
                )
            )
        rows.append(tuple(cells))
    columns = [part for metric in shown for part in (METRICS[metric], "times as before")]
    return Table(
        f"Tonight, and how many times the last good nights ({100 * CONFIDENCE:.0f} % interval)",
        ("model", "stages", "board", "verdict", *columns),
        tuple(rows),
    )


def _rank(verdict: str) -> int:
    order: tuple[str, ...] = (*RED, "disturbed", "faster", "level", "first", "accepted")
    return order.index(verdict)
