"""The figures of a report, as SVG to be put into the page itself.

Text and lines take the page's own colour, so that one figure serves the light and the dark page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from io import StringIO
from itertools import cycle, islice
from typing import TYPE_CHECKING

import numpy as np

from coralline.devices.model import MIB, DeviceModel
from coralline.graph.compute_graph import ComputeGraph
from coralline.report.record import Case
from coralline.runtime.measurement import Measurement
from coralline.staging.problem import Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.path import Path

# Nobody draws in this colour: it stands for the page's text colour until the SVG is written.
_INK = "#010203"
_STAGE_COLOURS = (
    "#4e79a7",
    "#f28e2b",
    "#59a14f",
    "#b07aa1",
    "#76b7b2",
    "#e15759",
    "#9c755f",
    "#edc948",
)
_PLANNER_COLOURS = (
    "#4e79a7",
    "#f28e2b",
    "#59a14f",
    "#b07aa1",
    "#9c755f",
    "#17a2a2",
    "#d37295",
    "#8a8fa3",
)
_CUT = "#e15759"
_PARTS = {
    "compute": "#4e79a7",
    "in": "#76b7b2",
    "out": "#a0cbe8",
    "streaming": _CUT,
    "overhead": "#9a9a9a",
}
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def planner_colours(planners: Sequence[str]) -> dict[str, str]:
    """One colour a planner, the same in every figure of a page."""
    return dict(zip(planners, islice(cycle(_PLANNER_COLOURS), len(planners)), strict=True))


def stage_bars(case: Case, device: DeviceModel | None, alt: str) -> str:
    """Time and parameters of every stage, one column of panels a planner.

    Args:
        device: Gives the cache limit; without it no limit is drawn.
        alt: What a person who cannot see the figure should know.
    """
    plans = case.plans
    k = plans[0].n_stages
    with _figure(min(12, max(7.0, 1.0 + len(plans) * (1.1 + 0.14 * k))), 4.4) as figure:
        grid = figure.subplots(2, len(plans), sharex=True, sharey="row", squeeze=False)
        _margins(figure, left=0.65, right=0.1, top=0.6, bottom=0.5, between_columns=0.15)
        simulated = " (simulated)" if plans[0].simulated else ""
        x = np.arange(k)
        for column, plan in enumerate(plans):
            times, memory = grid[:, column]
            below = np.zeros(k)
            for part, values in _time_parts(plan).items():
                times.bar(x, values, 0.72, below, color=_PARTS[part], label=part)
                below += values
            slowest = int(np.argmax(below))
            times.annotate(
                f"{below[slowest]:.2f}",
                (slowest, below[slowest]),
                (0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
            times.set_title(plan.planner)
            params = np.array(plan.stages["param_bytes"]) / MIB
            limit = np.inf if device is None else device.parameter_cache_bytes / MIB
            memory.bar(x, params, 0.72, color=np.where(params > limit, _CUT, "#8a8fa3"))
            memory.set_xticks(x, [str(s + 1) for s in x])
            memory.set_xlabel("stage")
            if device is not None:
                memory.axhline(limit, color=_INK, lw=0.9, ls=(0, (4, 3)))
        grid[0, 0].set_ylabel(f"time, ms{simulated}")
        grid[1, 0].set_ylabel("parameters, MiB")
        grid[0, 0].margins(y=0.12)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        if device is not None:
            grid[1, 0].set_ylim(0, max(grid[1, 0].get_ylim()[1], 1.1 * limit))
            handles.append(grid[1, 0].lines[0])
            labels.append(f"parameter cache, {limit:.1f} MiB")
        figure.legend(handles, labels, loc="upper center", ncols=len(labels))
        return _svg(figure, alt)


def graph_cut(graph: ComputeGraph, plan: Plan, node_ms: np.ndarray, alt: str) -> str:
    """Every operator in a row, stage by stage; tensors are arcs, those that are cut stand out.

    Ordered by stage and then topologically, which is again a topological order, so all arcs
    run from left to right.

    Args:
        node_ms: float64 (V,): height of the operators' bars.
    """
    from matplotlib.patches import PathPatch

    n = graph.n_nodes
    stage = np.array(plan.stage)
    rank = np.empty(n, np.int64)
    rank[graph.topological_order] = np.arange(n)
    order = np.lexsort((rank, stage))
    place = np.empty(n, np.int64)
    place[order] = np.arange(n)
    colours = list(islice(cycle(_STAGE_COLOURS), plan.n_stages))
    sizes = np.bincount(stage, minlength=plan.n_stages)
    producers, consumers = graph.edges.T
    cut = stage[producers] < stage[consumers]
    with _figure(12, 3.8) as figure:
        bars, arcs = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.2])
        _margins(figure, left=0.7, right=0.1, top=0.3, bottom=0.35, between_rows=0.0)
        for s, (end, size) in enumerate(zip(np.cumsum(sizes), sizes, strict=True)):
            start = end - size
            bars.stairs(
                node_ms[order[start:end]], np.arange(start, end + 1), fill=True, color=colours[s]
            )
            for axes in (bars, arcs):
                axes.axvspan(start, end, color=colours[s], alpha=0.1, lw=0)
            bars.annotate(
                f"stage {s + 1}: {size} operators" if size > n / 9 else f"{s + 1}: {size}",
                ((start + end) / 2, 1),
                (0, 4),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                color=colours[s],
                fontweight="bold",
            )
        bars.set_ylabel("operator, ms" + ("\n(simulated)" if plan.simulated else ""))
        bars.set_ylim(bottom=0)
        bars.spines["bottom"].set_visible(False)
        for axes in (bars, arcs):
            axes.tick_params(axis="x", length=0, labelbottom=False)
        left, right = place[producers] + 0.5, place[consumers] + 0.5
        # Neighbours are told apart by the bars; square roots keep the arcs of blocks visible
        # beside the longest one.
        beyond = right - left - 1
        depth = -0.1 - 0.9 * np.sqrt(beyond / max(beyond.max(initial=0), 1))
        depth[cut] = np.minimum(depth[cut], -0.35)
        for chosen, style in (
            (~cut, {"ec": _INK, "lw": 0.6, "alpha": 0.5}),
            (cut, {"ec": _CUT, "lw": 1.4}),
        ):
            path = _arcs(left[chosen], right[chosen], depth[chosen])
            arcs.add_patch(PathPatch(path, fc="none", **style))
        arcs.set_ylim(-1.05, 0)
        arcs.set_xlim(0, n)
        arcs.set_yticks([])
        arcs.set_ylabel("tensors")
        for spine in arcs.spines.values():
            spine.set_visible(False)
        note = f"red: {int(cut.sum())} of {len(cut)} edges cross from stage to stage"
        arcs.set_xlabel(note, color=_CUT, loc="right")
        return _svg(figure, alt)


def _arcs(left: np.ndarray, right: np.ndarray, depth: np.ndarray) -> Path:
    """One path of half ellipses below the line, from `left` to `right`, `depth` deep."""
    from matplotlib.path import Path

    # A cubic whose control points lie at 4/3 of the depth passes through the depth.
    control = 4 / 3 * depth
    zero = np.zeros_like(depth)
    points = [(left, zero), (left, control), (right, control), (right, zero)]
    vertices = np.array([np.stack(point, axis=1) for point in points]).transpose(1, 0, 2)
    codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4] * len(left)
    return Path(vertices.reshape(-1, 2), codes)


def latency_curves(case: Case, colours: Mapping[str, str], alt: str) -> str:
    """Share of inferences that took no longer than a time, one panel a board."""
    boards = case.boards
    width = min(12, 1 + 5.2 * len(boards))
    # An entry of the legend takes about 1.5 inches.
    in_a_row = max(1, int(width / 1.5))
    legend_rows = math.ceil(len(case.plans) / in_a_row)
    with _figure(width, 2.9 + 0.2 * legend_rows) as figure:
        grid = figure.subplots(1, len(boards), sharey=True, squeeze=False)[0]
        _margins(figure, left=0.65, right=0.15, top=0.4 + 0.2 * legend_rows, bottom=0.5)
        for axes, board in zip(grid, boards, strict=True):
            found = {p: m[board] for p, m in case.measurements.items() if board in m}
            for planner, measurement in sorted(found.items()):
                axes.ecdf(measurement.latency_ms, color=colours[planner], lw=1.6, label=planner)
                p50, p90, p99 = (measurement.latency_percentile_ms(p) for p in (50, 90, 99))
                axes.plot([p50, p90, p99], [0.5, 0.9, 0.99], ".", color=colours[planner], ms=6)
            axes.set_title(board + (" (simulated)" if _any_simulated(found) else ""))
            simulated = " (simulated)" if _any_simulated(found) else ""
            axes.set_xlabel(f"latency, ms{simulated}")
            axes.margins(x=0.06)
            axes.grid(axis="y", lw=0.3, color=_INK, alpha=0.3)
        grid[0].set_ylabel("share of inferences")
        grid[0].set_yticks([0, 0.5, 0.9, 0.99], ["0", "50 %", "90 %", "99 %"])
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", ncols=min(len(labels), in_a_row))
        return _svg(figure, alt)


def planner_strips(found: Sequence[Case], colours: Mapping[str, str], alt: str) -> str:
    """Gap and solve time of every plan, one row a planner."""
    plans: dict[str, list[Plan]] = {}
    for case in found:
        for plan in case.plans:
            plans.setdefault(plan.planner, []).append(plan)
    with _figure(10, 1.1 + 0.38 * len(plans)) as figure:
        gaps, times = figure.subplots(1, 2, sharey=True)
        _margins(figure, left=1.35, right=0.2, top=0.15, bottom=0.5)
        for row, (planner, own) in enumerate(plans.items()):
            percent = [100 * plan.gap for plan in own if plan.gap is not None]
            seconds = [plan.solve_seconds for plan in own]
            for axes, values in ((gaps, percent), (times, seconds)):
                style = {"color": colours[planner], "lw": 0, "alpha": 0.75, "clip_on": False}
                axes.scatter(values, [row] * len(values), s=34, zorder=3, **style)
        gaps.set_yticks(range(len(plans)), list(plans))
        gaps.invert_yaxis()
        # Most gaps are near 0 and one bad plan can be far off.
        gaps.set_xscale("symlog", linthresh=10)
        gaps.xaxis.set_major_formatter(lambda percent, _: f"{percent:g}")
        gaps.set_xlim(left=0)
        gaps.margins(y=0.12)
        gaps.set_xlabel("proven gap to the optimum, % at most")
        times.set_xscale("log")
        times.set_xlabel("solve time, s")
        for axes in (gaps, times):
            axes.grid(axis="both", lw=0.3, color=_INK, alpha=0.3)
            axes.tick_params(axis="y", length=0)
        return _svg(figure, alt)


def learning_curve(curve: Sequence[Mapping[str, float]], alt: str) -> str:
    """The policy's gaps to the labels over the epochs.

    Args:
        curve: One mapping an epoch: `epoch` and gaps, whose names end in `gap`, as shares.
    """
    with _figure(9, 3.1) as figure:
        axes = figure.subplots()
        _margins(figure, left=0.65, right=0.15, top=0.15, bottom=0.5)
        epochs = [row["epoch"] for row in curve]
        for name, colour in zip(gap_names(curve), cycle(_PLANNER_COLOURS), strict=False):
            percent = [100 * row[name] for row in curve]
            mark = "o" if len(curve) < 40 else ""
            axes.plot(epochs, percent, marker=mark, ls="-", color=colour, lw=1.6, ms=3)
        axes.set_xlabel("epoch")
        axes.set_ylabel("mean gap to the labels, %")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", lw=0.3, color=_INK, alpha=0.3)
        axes.legend([name.replace("_", " ") for name in gap_names(curve)])
        return _svg(figure, alt)


def gap_names(curve: Sequence[Mapping[str, float]]) -> list[str]:
    """The metrics of a learning curve that are drawn."""
    return [name for name in (curve[0] if curve else ()) if name.endswith("gap")]


def _time_parts(plan: Plan) -> dict[str, np.ndarray]:
    stages = plan.stages
    named = {"compute": "compute_ms", "in": "in_ms", "out": "out_ms", "streaming": "stream_ms"}
    parts = {part: np.array(stages[key], float) for part, key in named.items()}
    return {**parts, "overhead": np.array(stages["stage_ms"]) - sum(parts.values())}


def _any_simulated(found: Mapping[str, Measurement]) -> bool:
    return any(measurement.simulated for measurement in found.values())


@contextmanager
def _figure(width_in: float, height_in: float) -> Iterator[Figure]:
    """A figure in the report's style, drawn without a display."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):  # type: ignore[arg-type]  # typed for literal keys
        yield Figure(figsize=(width_in, height_in))


def _margins(
    figure: Figure,
    *,
    left: float,
    right: float,
    top: float,
    bottom: float,
    between_rows: float = 0.25,
    between_columns: float = 0.25,
) -> None:
    """Set the margins in inches; several times faster than having them worked out."""
    width, height = figure.get_size_inches()
    grid = figure.axes[0].get_gridspec()
    assert grid is not None
    row = (height - top - bottom - between_rows * (grid.nrows - 1)) / grid.nrows
    column = (width - left - right - between_columns * (grid.ncols - 1)) / grid.ncols
    figure.subplots_adjust(
        left / width,
        bottom / height,
        1 - right / width,
        1 - top / height,
        wspace=between_columns / column,
        hspace=between_rows / row,
    )


def _svg(figure: Figure, alt: str) -> str:
    """The figure as an <svg> element for the page, in the page's colour, without ids in common."""
    from matplotlib import rc_context

    out = StringIO()
    # The salt makes the ids of clip paths differ from figure to figure.
    with rc_context({"svg.hashsalt": alt}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    used = set(re.findall(r"(?:url\(|href=\")#([^\")]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", text)
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(xmlns(:xlink)?|version|width|height)="[^"]*" ?', "", text.split(">", 1)[0]) + (
        ">" + text.split(">", 1)[1]
    )
    text = text.replace(_INK, "currentColor").replace("xlink:href", "href")
    width = figure.get_figwidth()
    head = f'<svg role="img" aria-label="{escape(alt)}" style="--width: {width * 96:.0f}px"'
    return text.replace("<svg", head, 1)
