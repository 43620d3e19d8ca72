"""Components: real models, their plans, their segments, compiled."""

from kfp import dsl

from components.face import component


@component
def build_model(
    name: str,
    code_version: str,
    model: dsl.Output[dsl.Model],
    cost: dsl.Output[dsl.Metrics],
    missing_as: str = "",
) -> None:
    """Build and quantise one model of the zoo, or take a .tflite that is there.

    Args:
        name: As components.model_source takes it.
        missing_as: Name under which a model that cannot be had is left as missing to the steps
            after this; empty to end the run. Likewise in the other steps of this file.
    """
    from pathlib import Path

    from components.missing import noted
    from components.model_source import get_model
    from components.steps import step

    with step("build-model", cost), noted(folder := Path(model.path), missing_as):
        get_model(name, folder)
        model.metadata["name"] = name


@component
def plan_and_partition(
    model: dsl.Input[dsl.Model],
    stages: list[int],
    planners: list[str],
    device: str,
    time_limit_s: float,
    seed: int,
    code_version: str,
    plans: dsl.Output[dsl.Artifact],
    segments: dsl.Output[dsl.Artifact],
    cost: dsl.Output[dsl.Metrics],
    policy: dsl.Input[dsl.Model] = None,
    missing_as: str = "",
) -> None:
    """Plan a model with every planner and split it by every distinct plan.

    Args:
        policy: A trained one for the planner of that name; else the one in the package.
    """
    from pathlib import Path

    from components.missing import noted, unless_missing
    from components.planning import plan_and_partition
    from components.steps import progress, step

    with step("plan-and-partition", cost), noted(Path(segments.path), missing_as):
        plan_and_partition(
            unless_missing(Path(model.path)),
            Path(policy.path) / "policy.npz" if policy else None,
            [int(k) for k in stages],
            planners,
            device,
            time_limit_s,
            int(seed),
            Path(plans.path),
            Path(segments.path),
            progress,
        )


@component
def compile_segments(
    segments: dsl.Input[dsl.Artifact],
    compiled: dsl.Output[dsl.Artifact],
    cost: dsl.Output[dsl.Metrics],
    missing_as: str = "",
) -> None:
    """Compile every segment with edgetpu_compiler, where it is installed."""
    from pathlib import Path

    from components.missing import noted, unless_missing
    from components.planning import compile_all
    from components.steps import step

    with step("compile-segments", cost), noted(Path(compiled.path), missing_as):
        compiled.metadata["compiler"] = compile_all(
            unless_missing(Path(segments.path)), Path(compiled.path)
        )
