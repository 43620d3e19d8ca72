"""Components: the report for people, and the record in MLflow."""

from kfp import dsl

from components.face import component


@component
def write_report(
    plans: dsl.Input[list[dsl.Artifact]],
    measurements: dsl.Input[dsl.Dataset],
    policy: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Metrics],
    parameters: dict[str, str],
    execution: str,
    report: dsl.Output[dsl.HTML],
    figures: dsl.Output[dsl.Artifact],
    table: dsl.Output[dsl.Artifact],
) -> None:
    """Write one self-contained HTML page and the table of results as JSON."""
    from pathlib import Path

    from components.reporting import Findings, write_report

    found = Findings(
        [Path(artifact.path) for artifact in plans],
        Path(measurements.path),
        Path(policy.path) / "policy.npz",
        Path(evaluation.path),
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
    report: dsl.Input[dsl.HTML],
    figures: dsl.Input[dsl.Artifact],
    parameters: dict[str, str],
    execution: str,
    code_version: str,
) -> str:
    """Record the whole execution in MLflow; returns the id of its parent run."""
    from pathlib import Path

    from components.reporting import Findings, record

    found = Findings(
        [Path(artifact.path) for artifact in plans],
        Path(measurements.path),
        Path(policy.path) / "policy.npz",
        Path(evaluation.path),
    )
    return record(
        found,
        Path(report.path),
        Path(figures.path),
        dict(parameters),
        execution,
        code_version,
    )
