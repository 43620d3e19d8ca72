"""Figures, as SVG texts by name."""

from __future__ import annotations

import io
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from benchmarks.staging.processes import SCALED, Started
from benchmarks.staging.sets import TIMED, WIDE
from benchmarks.staging.tables import Cases

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def gap_against_time(cases: Cases) -> dict[str, str]:
    """Of the searching planners on the wide models; nothing without those."""
    from matplotlib.figure import Figure

    group = cases(WIDE)
    if not group:
        return {}
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    times_s = group[0].times_s
    for planner in TIMED:
        gaps = [fmean(c.gap(c.of(planner, seconds)) for c in group) for seconds in times_s]
        axes.plot(times_s, gaps, marker="o", label=planner)
    axes.set(xscale="log", xlabel="time of each planner (s)", ylabel="mean gap to best known (%)")
    axes.set_ylim(bottom=0)
    axes.set_title(WIDE, loc="left")
    axes.legend(frameon=False)
    return {"time": _svg(figure)}


def growth(scaled: Sequence[Started]) -> dict[str, str]:
    """Time and memory against nodes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for planner in SCALED:
        runs = [s for s in scaled if s.planner == planner]
        nodes = [s.nodes for s in runs]
        (line,) = time.plot(nodes, [1000 * s.solve_s for s in runs], marker="o", label=planner)
        linear = [1000 * runs[0].solve_s * n / nodes[0] for n in nodes]
        time.plot(nodes, linear, ":", color=line.get_color())
        memory.plot(nodes, [s.memory_mib for s in runs], marker="o")
    time.set(xscale="log", yscale="log", xlabel="nodes", ylabel="solve time (ms); dotted: linear")
    memory.set(xscale="log", xlabel="nodes", ylabel="most memory of the process (MiB)")
    memory.set_ylim(bottom=0)
    time.legend(frameon=False)
    return {"growth": _svg(figure)}


def _svg(figure: Figure) -> str:
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.hashsalt": "staging", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
