"""What a person reads first of a run in MLflow: its description, in Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby

from coralline.runtime.measurement import Measurement
from coralline.staging.problem import Plan

MOST = 40
"""Lines of fastest plans; MLflow cuts a description off at 8,000 characters."""

_FAILED = "**Failed"
_MARKUP = str.maketrans({letter: f"\\{letter}" for letter in "\\`*_[]<>|#"})


def describe(pairs: Sequence[tuple[Plan, Measurement | None]], findings: Sequence[str]) -> str:
    """The findings, and the fastest plan of each model and number of stages on each board.

    Args:
        pairs: Plans with their measurements.
        findings: One sentence each, the most urgent first.
    """
    parts = [finding.translate(_MARKUP) for finding in findings]
    best = list(_fastest(pairs))
    if best:
        # MLflow shows tables without any space between their columns.
        more = [f"- and {len(best) - MOST} more: see the child runs"] if len(best) > MOST else []
        parts.append("\n".join(["Fastest plans:\n", *best[:MOST], *more]))
    return "\n\n".join(parts)


def describe_failure(step: str, message: str, found: str) -> str:
    """Which step failed, and why, before what was found until then.

    Args:
        step: Empty where that is not known.
        found: By `describe`, or by this of a try before, of which the failure is left out.
    """
    where = f" in {step}" if step else ""
    failure = f"{_FAILED}{where.translate(_MARKUP)}:** {message.translate(_MARKUP)}"
    parts = [part for part in found.split("\n\n") if part and not part.startswith(_FAILED)]
    return "\n\n".join([failure, *parts])


def _fastest(pairs: Sequence[tuple[Plan, Measurement | None]]) -> Iterator[str]:
    plans: dict[str, list[Plan]] = defaultdict(list)
    measurements: dict[str, Measurement] = {}
    for plan, measurement in pairs:
        # Boards that give summaries alone have no throughput.
        if measurement is not None and "throughput_fps" in measurement.summary():
            plans[measurement.id].append(plan)  # the same stages, so the same measurement
            measurements[measurement.id] = measurement

    def question(m: Measurement) -> tuple[str, int, str]:
        plan = plans[m.id][0]
        return plan.graph_name, plan.n_stages, m.board

    for (model, stages, board), group in groupby(
        sorted(measurements.values(), key=question), key=question
    ):
        best = max(group, key=lambda m: m.throughput_fps)
        planners = ", ".join(sorted(plan.planner for plan in plans[best.id]))
        gaps = [plan.gap for plan in plans[best.id] if plan.gap is not None]
        facts = [
            f"{best.throughput_fps:.1f} inferences/s",
            f"p50 {best.latency_percentile_ms(50):.2f} ms",
            *([f"at most {min(gaps):.1%} above the optimum"] if gaps else []),
            *(["simulated"] if best.simulated else []),
        ]
        where = f"{model}, {stages} stage{'s' * (stages > 1)} on {board}".translate(_MARKUP)
        yield f"- **{where}:** {planners.translate(_MARKUP)}: {', '.join(facts)}"
