"""Components: what the steps cost, the report for people, and the record in MLflow."""

from kfp import dsl

from components.face import component


@component
def sum_costs(
    build_model: dsl.Input[list[dsl.Metrics]],
    plan_and_partition: dsl.Input[list[dsl.Metrics]],
    compile_segments: dsl.Input[list[dsl.Metrics]],
    measure: dsl.Input[dsl.Metrics],
    costs: dsl.Output[dsl.Artifact],
    cut_shards: dsl.Input[dsl.Metrics] = None,
    generate_graphs: dsl.Input[list[dsl.Metrics]] = None,
    solve_labels: dsl.Input[list[dsl.Metrics]] = None,
    join_shards: dsl.Input[dsl.Metrics] = None,
    train_policy: dsl.Input[dsl.Metrics] = None,
    evaluate_policy: dsl.Input[dsl.Metrics] = None,
    judge_policy: dsl.Input[dsl.Metrics] = None,
    validate_measurements: dsl.Input[dsl.Metrics] = None,
    write_night: dsl.Input[dsl.Metrics] = None,
) -> None:
    """Put together what the steps used.

    KFP has no list of the outputs of different steps, so each has its name here.
    """
    from pathlib import Path

    from components.steps import step, write_costs

    several = [
        *(generate_graphs or ()),
        *(solve_labels or ()),
        *build_model,
        *plan_and_partition,
        *compile_segments,
    ]
    single = [
        *(cut_shards, join_shards, train_policy, evaluate_policy, judge_policy),
        *(measure, validate_measurements, write_night),
    ]
    found = [*several, *(one for one in single if one)]
    with step("sum-costs"):
        write_costs([Path(one.path) for one in found], Path(costs.path))


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
    from components.steps import step, whole_numbers

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
            whole_numbers(parameters),
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
    from components.steps import step, whole_numbers

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
            whole_numbers(parameters),
            execution,
            code_version,
        )


@component
def write_night(
    trends: dsl.Input[dsl.Artifact],
    parameters: dict[str, str],
    code_version: str,
    report: dsl.Output[dsl.HTML],
    table: dsl.Output[dsl.Artifact],
    cost: dsl.Output[dsl.Metrics],
) -> None:
    """Write one self-contained HTML page about a night, and the table of its series as JSON."""
    from pathlib import Path

    from components.nightly import write_night
    from components.steps import step, whole_numbers

    with step("write-night", cost):
        write_night(
            Path(trends.path),
            whole_numbers(parameters),
            code_version,
            Path(report.path),
            Path(table.path),
        )


@component
def record_night(
    trends: dsl.Input[dsl.Artifact],
    measurements: dsl.Input[dsl.Dataset],
    report: dsl.Input[dsl.HTML],
    costs: dsl.Input[dsl.Artifact],
    parameters: dict[str, str],
    code_version: str,
    cost: dsl.Output[dsl.Metrics],
) -> str:
    """Record a night in MLflow; returns the id of its parent run."""
    from pathlib import Path

    from components.nightly import record_night
    from components.steps import step, whole_numbers

    with step("record-night", cost):
        return record_night(
            Path(trends.path),
            Path(measurements.path),
            Path(report.path),
            Path(costs.path),
            whole_numbers(parameters),
            code_version,
        )


@component
def alarm(table: dsl.Input[dsl.Artifact], cost: dsl.Output[dsl.Metrics]) -> None:
    """End the pipeline red when a series is slower or missing."""
    from pathlib import Path

    from components.nightly import alarm
    from components.steps import step

    with step("alarm", cost):
        alarm(Path(table.path))
