"""Components: send split models to the device lab, and validate what came back."""

from kfp import dsl

from components.face import component


@component
def dispatch(
    compiled: dsl.Input[list[dsl.Artifact]],
    boards: list[str],
    repetitions: int,
    inventory: str,
    measurements: dsl.Output[dsl.Dataset],
    cost: dsl.Output[dsl.Metrics],
) -> None:
    """Measure every split model on every board.

    Args:
        boards: Names in the lab's inventory.
        repetitions: Inferences measured after warm-up.
        inventory: Path of the lab's inventory; empty for the one in the package.
    """
    from pathlib import Path

    from components.measuring import dispatch
    from components.steps import progress, step

    with step("dispatch", cost):
        folders = [
            split for artifact in compiled for split in sorted(Path(artifact.path).iterdir())
        ]
        dispatch(folders, boards, int(repetitions), inventory, Path(measurements.path), progress)


@component
def validate_measurements(
    measurements: dsl.Input[dsl.Dataset],
    docs: dsl.Output[dsl.Artifact],
    cost: dsl.Output[dsl.Metrics],
) -> None:
    """Stop the pipeline unless the measurements meet their expectations."""
    from pathlib import Path

    from components.steps import step
    from components.validation import validate_measurements

    with step("validate-measurements", cost):
        validate_measurements(Path(measurements.path), Path(docs.path))


@component
def measure_night(
    compiled: dsl.Input[list[dsl.Artifact]],
    boards: list[str],
    repetitions: int,
    inventory: str,
    name: str,
    night: str,
    commit: str,
    measurements: dsl.Output[dsl.Dataset],
    trends: dsl.Output[dsl.Artifact],
    cost: dsl.Output[dsl.Metrics],
) -> None:
    """Measure every split model on every board, and judge each by its nights before.

    Args:
        compiled: Of `compile_segments`; one that says why its model is missing is reported so.
        boards: Names in the lab's inventory; one that is not there is reported as missing.
        repetitions: Inferences measured after warm-up.
        inventory: Path of the lab's inventory; empty for the one in the package.
        name: Of the nightly; its nights are compared with each other.
        night: Names this execution.
        commit: Of the code that is measured; empty to ask git.
    """
    from pathlib import Path

    from components.nightly import measure_night
    from components.steps import progress, step

    with step("measure-night", cost):
        measure_night(
            [Path(artifact.path) for artifact in compiled],
            boards,
            int(repetitions),
            inventory,
            name,
            night,
            commit,
            Path(measurements.path),
            Path(trends.path),
            progress,
        )
