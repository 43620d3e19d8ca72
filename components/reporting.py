"""What the reporting components do, as plain functions."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from components.planning import read_plans
from components.steps import read_costs
from components.validation import read_measurements
from coralline.devices.check import published_error
from coralline.devices.model import load_device
from coralline.errors import parse_json, read_text
from coralline.files import write_text
from coralline.graph.compute_graph import ComputeGraph
from coralline.graph.json_format import read_json
from coralline.report.page import write_report as write_page
from coralline.report.record import (
    PolicySummary,
    ReportInput,
    cases,
    predicted_over_measured,
)
from coralline.runtime.measurement import Measurement
from coralline.staging import Plan
from coralline.staging.policy import load_policy
from training.gate import Verdict

RESULTS_SCHEMA = "coralline.results/v1"


@dataclass(frozen=True)
class Findings:
    """What the steps of one execution left.

    Attributes:
        plans: Each folder as `plan_and_partition` wrote it.
        measurements: As `dispatch` wrote them.
        policy: The trained network, `.npz`.
        evaluation: Of `evaluate_policy`, JSON.
        verdict: Of `judge_policy`, JSON.
        costs: Of `sum_costs`, JSON.
    """

    plans: Sequence[Path]
    measurements: Path
    policy: Path
    evaluation: Path
    verdict: Path
    costs: Path

    def graphs(self) -> dict[str, ComputeGraph]:
        """The planned graphs, by digest."""
        files = [file for folder in self.plans for file in sorted(folder.glob("*.graph.json"))]
        return {graph.digest: graph for graph in map(read_json, files)}

    def all_plans(self) -> list[Plan]:
        """The plans of all models."""
        return [plan for folder in self.plans for plan in read_plans(folder)]

    def measurements_of_plans(self) -> list[Measurement]:
        """A measurement for each plan and board.

        Plans with the same stages were run once, and each gets that measurement; it keeps its
        id, which says so.
        """
        by_stages: dict[tuple[Any, ...], list[Measurement]] = {}
        for m in read_measurements(self.measurements):
            by_stages.setdefault((m.plan["graph_digest"], tuple(m.plan["stage"])), []).append(m)
        return [
            replace(m, plan=plan.to_json())
            for plan in self.all_plans()
            for m in by_stages.get((plan.graph_digest, plan.stage), ())
        ]

    def evaluated(self) -> dict[str, Any]:
        """What `evaluate_policy` found."""
        found: dict[str, Any] = json.loads(read_text(self.evaluation, "a policy evaluation"))
        return found

    def judged(self) -> Verdict:
        """What `judge_policy` decided."""
        text = read_text(self.verdict, "a verdict on a policy")
        return Verdict.from_json(parse_json(text, str(self.verdict)))


def write_report(
    found: Findings,
    parameters: Mapping[str, str],
    execution: str,
    report: Path,
    figures: Path,
    table: Path,
) -> None:
    """Write the page for people, its figures, and the numbers as `coralline.results/v1`."""
    graphs, plans, measurements = found.graphs(), found.all_plans(), found.measurements_of_plans()
    names = dict.fromkeys(
        [plan.device for plan in plans]
        + [m.environment["device"] for m in measurements if "device" in m.environment]
    )
    checks = [published_error(name) for name in names]
    trained, judged = load_policy(found.policy).metadata, found.judged()
    record = ReportInput(
        title="RESPECT: pipelines over Edge TPUs",
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        parameters=parameters,
        graphs=graphs,
        plans=plans,
        measurements=measurements,
        devices={name: load_device(name) for name in names},
        policy=PolicySummary(
            recipe=trained["config"],
            curve=_curve(trained),
            methods=found.evaluated()["methods"],
            verdict=f"{judged.word}: {judged.reason}",
        ),
        steps=read_costs(found.costs),
        device_checks=checks,
        provenance={
            "execution": execution,
            "machine": platform.platform(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("coralline", "ai-edge-litert", "ortools")},
        },
    )
    write_page(record, report, figures)
    write_text(table, json.dumps(_results(record, execution, report), allow_nan=False) + "\n")


def record(
    found: Findings,
    report: Path,
    figures: Path,
    parameters: Mapping[str, str],
    execution: str,
    code_version: str,
) -> str:
    """Record the execution in MLflow; returns the id of the parent run."""
    from components.tracking import Execution, PolicyRecord, tracking_uri
    from components.tracking import record as record_execution

    trained = load_policy(found.policy).metadata
    recorded = record_execution(
        Execution(
            id=execution,
            pipeline="respect",
            code_version=code_version,
            parameters=parameters,
            plans=found.all_plans(),
            measurements=found.measurements_of_plans(),
            graphs=found.graphs(),
            policy=PolicyRecord(
                file=found.policy,
                parameters=trained["config"],
                curve=_curve(trained),
                verdict=found.judged(),
            ),
            costs=read_costs(found.costs),
            artifacts={"report": report, "figures": figures, "evaluation": found.evaluation},
        ),
        tracking_uri(),
    )
    return recorded.parent


def _curve(trained: Mapping[str, Any]) -> list[dict[str, float]]:
    return [
        {key: float(epoch[key]) for key in ("epoch", "sampled_gap", "greedy_gap", "target_error")}
        for epoch in trained["metrics"]["curve"]
    ]


def _results(record: ReportInput, execution: str, report: Path) -> dict[str, Any]:
    rows = []
    for case in cases(record):
        for plan in case.plans:
            boards = []
            for board, m in case.measurements[plan.planner].items():
                summary: dict[str, Any] = dict(m.summary())
                boards.append(
                    {
                        "board": board,
                        "simulated": m.simulated,
                        "measurement": m.id,
                        **summary,
                        "predicted_over_measured": predicted_over_measured(
                            plan, m, record.graphs.get(plan.graph_digest)
                        ),
                    }
                )
            rows.append(
                {
                    "model": plan.graph_name,
                    "stages": plan.n_stages,
                    "planner": plan.planner,
                    "device": plan.device,
                    "simulated": plan.simulated,
                    "bottleneck_ms": max(plan.stages["stage_ms"]),
                    "peak_param_bytes": max(plan.stages["param_bytes"]),
                    "lower_bound": plan.lower_bound,
                    "unit": plan.unit,
                    "gap": plan.gap,
                    "proven_optimal": plan.proven_optimal,
                    "solve_seconds": plan.solve_seconds,
                    "boards": boards,
                }
            )
    return {
        "schema": RESULTS_SCHEMA,
        "execution": execution,
        "rows": rows,
        "simulators": [check.label for check in record.device_checks],
        "policy": list(record.policy.methods) if record.policy else None,
        "report": str(report),
    }
