"""What a report is made from, and what it says about it in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coralline.cost import StepCost
from coralline.devices.check import PublishedError
from coralline.devices.model import DeviceModel, load_device
from coralline.graph.compute_graph import ComputeGraph
from coralline.runtime.measurement import Measurement
from coralline.staging.problem import (
    OPTIMALITY_TOLERANCE,
    Plan,
    StagingProblem,
    evaluate,
)

HOST_MODEL = "host-cpu"
"""The device model that stands for the machine of a board of kind `host`."""

RULE = "edgetpu-compiler"
"""The planner that the headline compares with: what people have without Coralline."""


@dataclass(frozen=True)
class PolicySummary:
    """How the policy was trained.

    Attributes:
        recipe: Its configuration.
        curve: One mapping an epoch: `epoch`, and gaps under names that end in `gap`.
        methods: On graphs it has not seen, it and others: `method`, `seconds` a graph and, in
            `all`, the `mean`, `median` and `p90` of the gap to the labels, as shares.
        verdict: What was decided about its use, in a sentence; empty for nothing.
    """

    recipe: Mapping[str, Any]
    curve: Sequence[Mapping[str, float]]
    methods: Sequence[Mapping[str, Any]] = ()
    verdict: str = ""


@dataclass(frozen=True)
class ReportInput:
    """One pipeline run.

    Attributes:
        title: Of the page.
        created_at: ISO 8601, UTC.
        parameters: Of the pipeline.
        graphs: By digest; a plan whose graph is absent is shown without a drawing.
        plans: All that were made; those of the measurements need not be among them.
        devices: By name; gives the cache limit and the sources of the constants.
        device_checks: How far the device models are from published figures.
        provenance: Versions, machine, seeds: name and value.
        steps: What the steps before the report used.
    """

    title: str
    created_at: str
    parameters: Mapping[str, Any]
    graphs: Mapping[str, ComputeGraph]
    plans: Sequence[Plan]
    measurements: Sequence[Measurement] = ()
    devices: Mapping[str, DeviceModel] = field(default_factory=dict)
    policy: PolicySummary | None = None
    device_checks: Sequence[PublishedError] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    steps: Sequence[StepCost] = ()


Key = tuple[str, str, int, str, str, bool]


@dataclass(frozen=True)
class Case:
    """One question that several planners answered.

    Attributes:
        plans: One a planner, the best first.
        measurements: Of these plans, by planner and then by board.
    """

    plans: tuple[Plan, ...]
    measurements: Mapping[str, Mapping[str, Measurement]]

    @property
    def best(self) -> Plan:
        """The plan with the smallest value; among equals a proven, then a quickly found one."""
        return self.plans[0]

    @property
    def equals(self) -> tuple[str, ...]:
        """Other planners that found the same value."""
        limit = self.best.value * (1 + OPTIMALITY_TOLERANCE)
        return tuple(plan.planner for plan in self.plans[1:] if plan.value <= limit)

    @property
    def rule(self) -> Plan | None:
        """The plan of the rule that the headline compares with."""
        return next((plan for plan in self.plans if plan.planner == RULE), None)

    @property
    def boards(self) -> tuple[str, ...]:
        """Names of the boards that ran one of the plans, in the order of the measurements."""
        return tuple(dict.fromkeys(b for found in self.measurements.values() for b in found))


def cases(record: ReportInput) -> list[Case]:
    """The plans grouped by question, in the order of their first appearance and of stages."""
    plans: dict[Key, dict[str, Plan]] = {}
    measured: dict[tuple[Key, str], dict[str, Measurement]] = {}
    for plan in record.plans:
        plans.setdefault(_key(plan), {})[plan.planner] = plan
    for measurement in record.measurements:
        plan = Plan.from_json(measurement.plan)
        plans.setdefault(_key(plan), {}).setdefault(plan.planner, plan)
        measured.setdefault((_key(plan), plan.planner), {})[measurement.board] = measurement
    first = {key[0]: rank for rank, key in reversed(list(enumerate(plans)))}
    found = []
    for key in sorted(plans, key=lambda key: (first[key[0]], key)):
        ranked = sorted(with_shared_bounds(list(plans[key].values())), key=_rank)
        # Within the solvers' tolerance values are equal, and proof and speed decide.
        limit = ranked[0].value * (1 + OPTIMALITY_TOLERANCE)
        best = min(
            (plan for plan in ranked if plan.value <= limit),
            key=lambda plan: (not plan.proven_optimal, plan.solve_seconds),
        )
        ranked.remove(best)
        found.append(
            Case(
                plans=(best, *ranked),
                measurements={
                    p.planner: measured.get((key, p.planner), {}) for p in [*ranked, best]
                },
            )
        )
    return found


def with_shared_bounds(plans: Sequence[Plan]) -> list[Plan]:
    """The plans, each with the best bound that any of them proves for its question."""
    bounds: dict[Key, float] = {}
    for plan in plans:
        bounds[_key(plan)] = max(bounds.get(_key(plan), 0.0), plan.lower_bound)
    return [plan.with_bound(bounds[_key(plan)]) for plan in plans]


def predicted_over_measured(
    plan: Plan, measurement: Measurement, graph: ComputeGraph | None = None
) -> float | None:
    """The bottleneck that the board's own device model predicts over the measured one.

    A simulated board names its model in the measurement's environment; a host's model is
    `host-cpu`, whatever device the plan was made for, and pricing the plan on it needs the
    graph. None where there is no such model or no graph.
    """
    if measurement.environment.get("device_digest") == plan.device_digest:
        predicted = float(max(plan.stages["stage_ms"]))
    elif graph is not None and measurement.board_kind == "host":
        problem = StagingProblem(graph, plan.n_stages, load_device(HOST_MODEL))
        predicted = evaluate(problem, plan.stage).value
    else:
        return None
    return predicted / measurement.measured_bottleneck_ms


def _key(plan: Plan) -> Key:
    return (
        plan.graph_name,
        plan.graph_digest,
        plan.n_stages,
        plan.device_digest,
        plan.objective,
        plan.children_together,
    )


def _rank(plan: Plan) -> tuple[float, bool, float]:
    return plan.value, not plan.proven_optimal, plan.solve_seconds
