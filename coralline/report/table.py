"""One row for each plan and what every board said of it: the table people compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from coralline.devices.model import load_device
from coralline.graph.compute_graph import ComputeGraph
from coralline.runtime.measurement import Measurement
from coralline.staging import Plan, StagingProblem, evaluate

HOST_MODEL = "host-cpu"


@dataclass(frozen=True)
class BoardResult:
    """What one board said of one plan.

    Attributes:
        predicted_over_measured: Bottleneck that the board's own device model predicts, over the
            measured one; None for a simulated board, where both are the same model.
    """

    board: str
    simulated: bool
    measurement_id: str
    latency_p50_ms: float
    latency_p90_ms: float
    latency_p99_ms: float
    throughput_fps: float
    measured_bottleneck_ms: float
    predicted_over_measured: float | None
    energy_mj_per_inference: float | None


@dataclass(frozen=True)
class Row:
    """One plan. The times up to `gap` are the device model's, hence simulated when it is."""

    model: str
    n_stages: int
    planner: str
    device: str
    simulated: bool
    objective: str
    bottleneck_ms: float
    peak_param_bytes: int
    lower_bound: float
    gap: float | None
    proven_optimal: bool
    solve_seconds: float
    boards: tuple[BoardResult, ...]

    def to_json(self) -> dict[str, Any]:
        """For results files."""
        return asdict(self)


def comparison_rows(
    plans: Sequence[Plan],
    measurements: Sequence[Measurement],
    graphs: Mapping[str, ComputeGraph],
) -> list[Row]:
    """A row a plan, in the order model, stages, bottleneck.

    Plans with the same stages were run once; they share the measurement.

    Args:
        graphs: By digest; needed to predict a host's time.
    """
    measured: dict[tuple[Any, ...], list[Measurement]] = {}
    for measurement in measurements:
        plan = measurement.plan
        key = (plan["graph_digest"], plan["n_stages"], tuple(plan["stage"]))
        measured.setdefault(key, []).append(measurement)
    rows = [
        Row(
            model=plan.graph_name,
            n_stages=plan.n_stages,
            planner=plan.planner,
            device=plan.device,
            simulated=plan.simulated,
            objective=plan.objective,
            bottleneck_ms=max(plan.stages["stage_ms"]),
            peak_param_bytes=max(plan.stages["param_bytes"]),
            lower_bound=plan.lower_bound,
            gap=plan.gap,
            proven_optimal=plan.proven_optimal,
            solve_seconds=plan.solve_seconds,
            boards=tuple(
                _board_result(plan, m, graphs.get(plan.graph_digest))
                for m in measured.get((plan.graph_digest, plan.n_stages, plan.stage), ())
            ),
        )
        for plan in plans
    ]
    return sorted(rows, key=lambda r: (r.model, r.n_stages, r.bottleneck_ms, r.planner))


def _board_result(plan: Plan, m: Measurement, graph: ComputeGraph | None) -> BoardResult:
    ratio = None
    if graph is not None and not m.simulated and m.board_kind == "host":
        problem = StagingProblem(graph, plan.n_stages, load_device(HOST_MODEL))
        predicted = evaluate(problem, plan.stage).value
        ratio = predicted / m.measured_bottleneck_ms
    return BoardResult(
        board=m.board,
        simulated=m.simulated,
        measurement_id=m.id,
        latency_p50_ms=m.latency_percentile_ms(50),
        latency_p90_ms=m.latency_percentile_ms(90),
        latency_p99_ms=m.latency_percentile_ms(99),
        throughput_fps=m.throughput_fps,
        measured_bottleneck_ms=m.measured_bottleneck_ms,
        predicted_over_measured=ratio,
        energy_mj_per_inference=m.energy_mj_per_inference,
    )
