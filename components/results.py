"""Components: what the steps cost, the report for people, and the record in MLflow."""

from kfp import dsl

from components.face import component


@component
def sum_costs(
    generate_graphs: dsl.Input[dsl.Metrics],
    validate_graphs: dsl.Input[dsl.Metrics],
    solve_labels: dsl.Input[list[dsl.Metrics]],
    validate_labels: dsl.Input[dsl.Metrics],
    train_policy: dsl.Input[dsl.Metrics],
    evaluate_policy: dsl.Input[dsl.Metrics],
    judge_policy: dsl.Input[dsl.Metrics],
    build_model: dsl.Input[list[dsl.Metrics]],
    plan_and_partition: dsl.Input[list[dsl.Metrics]],
    compile_segments: dsl.Input[list[dsl.Metrics]],
    dispatch: dsl.Input[dsl.Metrics],
    validate_measurements: dsl.Input[dsl.Metrics],
    costs: dsl.Output[dsl.Artifact],
) -> None:
    """Put together what the steps used.

    KFP has no list of the outputs of different steps, so each has its name here.
    """
    from pathlib import Path

    from components.steps import write_costs

    several = [*solve_labels, *build_model, *plan_and_partition, *compile_segments]
    single = [
        *(generate_graphs, validate_graphs, validate_labels, train_policy, evaluate_policy),
        *(judge_policy, dispatch, validate_measurements),
    ]
    write_costs([Path(one.path) for one in (*single, *several)], Path(costs.path))


@component
def write_report(
    plans: dsl.Input[list[dsl.Artifact]],
    measurements: dsl.Input[dsl.Dataset],
    policy: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Metrics],
    verdict: dsl.Input[dsl.Artifact],
    costs: dsl.Input[dsl.Artifact],
    parameters: dict[str, str],
    execution: str,
    report: dsl.Output[dsl.HTML],
    figures: dsl.Output[dsl.Artifact],
    table: dsl.Output[dsl.Artifact],
    cost: dsl.Output[dsl.Metrics],
) -> None:
    """Write one self-contained HTML page and the table of results as JSON."""
    from pathlib import Path

    from components.reporting import Findings, write_report
    from components.steps import step

    with step("write-report", cost):
        found = Findings(
            [Path(artifact.path) for artifact in plans],
            Path(measurements.path),
            Path(policy.path) / "policy.npz",
            Path(evaluation.path),
            Path(verdict.path),
            Path(costs.path),
        )
        write_report(
            found,
            dict(parameters),
            execution,
            Path(report.path),
            Path(figures.path),
            Path(table.path),
        )


@component
def record(
    plans: dsl.Input[list[dsl.Artifact]],
    measurements: dsl.Input[dsl.Dataset],
    policy: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Metrics],
    verdict: dsl.Input[dsl.Artifact],
    costs: dsl.Input[dsl.Artifact],
    report: dsl.Input[dsl.HTML],
    figures: dsl.Input[dsl.Artifact],
    parameters: dict[str, str],
    execution: str,
    code_version: str,
    cost: dsl.Output[dsl.Metrics],
) -> str:
    """Record the whole execution in MLflow; returns the id of its parent run."""
    from pathlib import Path

    from components.reporting import Findings, record
    from components.steps import step

    with step("record", cost):
        found = Findings(
            [Path(artifact.path) for artifact in plans],
            Path(measurements.path),
            Path(policy.path) / "policy.npz",
            Path(evaluation.path),
            Path(verdict.path),
            Path(costs.path),
        )
        return record(
            found,
            Path(report.path),
            Path(figures.path),
            dict(parameters),
            execution,
            code_version,
        )
