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


@component
def write_night(
    trends: dsl.Input[dsl.Artifact],
    parameters: dict[str, str],
    code_version: str,
    report: dsl.Output[dsl.HTML],
    table: dsl.Output[dsl.Artifact],
) -> None:
    """Write one self-contained HTML page about a night, and the table of its series as JSON."""
    from pathlib import Path

    from components.nightly import write_night

    write_night(
        Path(trends.path), dict(parameters), code_version, Path(report.path), Path(table.path)
    )


@component
def record_night(
    trends: dsl.Input[dsl.Artifact],
    measurements: dsl.Input[dsl.Dataset],
    report: dsl.Input[dsl.HTML],
    parameters: dict[str, str],
    code_version: str,
) -> str:
    """Record a night in MLflow; returns the id of its parent run."""
    from pathlib import Path

    from components.nightly import record_night

    return record_night(
        Path(trends.path),
        Path(measurements.path),
        Path(report.path),
        dict(parameters),
        code_version,
    )


@component
def alarm(table: dsl.Input[dsl.Artifact]) -> None:
    """End the pipeline red when a series is slower or missing."""
    from pathlib import Path

    from components.nightly import alarm

    alarm(Path(table.path))
