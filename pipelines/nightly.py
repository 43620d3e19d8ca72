"""The pipeline `nightly`: models on boards, compared with the last good nights.

for each model: build_model -> plan_and_partition -> compile_segments
                                                            |
          measure_night -> write_night -> sum_costs -> record_night -> alarm

It ends red, after all else is written, when a series is slower than before or missing. A model
that cannot be built, planned or split is missing; the others are measured.
"""

from kfp import dsl

from components.lab import measure_night
from components.models import build_model, compile_segments, plan_and_partition
from components.results import alarm, record_night, sum_costs, write_night
from pipelines.cluster import may_retry, near_boards, needs, with_lab


@dsl.pipeline(
    name="nightly",
    description="Bench models on boards every night and tell what has become slower, since when",
)
def nightly(
    name: str = "nightly",
    models: list[str] = ["mobilenet_v2", "resnet50", "densenet121"],  # noqa: B006  # KFP reads it
    stages: list[int] = [2],  # noqa: B006
    planner: str = "exact",
    device: str = "edgetpu-usb",
    plan_time_limit_s: float = 10.0,
    boards: list[str] = ["host", "edgetpu-usb-sim"],  # noqa: B006
    inventory: str = "",
    repetitions: int = 1024,
    seed: int = 0,
    commit: str = "",
    code_version: str = "",
) -> dsl.Artifact:
    """Bench once; returns the table of the series.

    Args:
        name: Nights of the same name are compared with each other.
        models: Names in the zoo, paths of .tflite files, or FILE.tflite@sha256:... of the lab.
        stages: Numbers of pipeline stages to bench.
        planner: That splits the models.
        device: Device model to plan for.
        plan_time_limit_s: For one plan.
        boards: Names in the lab's inventory; one that is not there makes the run red.
        inventory: Path of that inventory; empty for the one in the package.
        repetitions: Inferences measured on each board.
        seed: Of the planner.
        commit: Of the code; empty to ask git, or $CORALLINE_COMMIT in an image.
        code_version: Of the project.
    """
    parameters = {"planner": planner, "device": device, "repetitions": repetitions, "seed": seed}
    with dsl.ParallelFor(models) as model_name:
        model = build_model(name=model_name, code_version=code_version, missing_as=model_name)
        needs(with_lab(may_retry(model), required=False), cpu="2", memory="4Gi", minutes=60)
        planned = plan_and_partition(
            model=model.outputs["model"],
            stages=stages,
            planners=[planner],
            device=device,
            time_limit_s=plan_time_limit_s,
            seed=seed,
            code_version=code_version,
            missing_as=model_name,
        )
        needs(may_retry(planned), cpu="2", memory="4Gi", minutes=360)
        compiled = compile_segments(segments=planned.outputs["segments"], missing_as=model_name)
        needs(may_retry(compiled), cpu="1", memory="2Gi", minutes=120)
    # The same again would be no second night, and must not be taken from the first.
    measured = measure_night(
        compiled=dsl.Collected(compiled.outputs["compiled"]),
        boards=boards,
        repetitions=repetitions,
        inventory=inventory,
        name=name,
        night=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        commit=commit,
    ).set_caching_options(False)
    needs(near_boards(with_lab(may_retry(measured))), cpu="2", memory="4Gi", minutes=240)
    written = write_night(
        trends=measured.outputs["trends"], parameters=parameters, code_version=code_version
    ).set_caching_options(False)
    needs(written, cpu="500m", memory="2Gi", minutes=30)
    costs = sum_costs(
        build_model=dsl.Collected(model.outputs["cost"]),
        plan_and_partition=dsl.Collected(planned.outputs["cost"]),
        compile_segments=dsl.Collected(compiled.outputs["cost"]),
        measure=measured.outputs["cost"],
        write_night=written.outputs["cost"],
    )
    needs(costs, cpu="100m", memory="512Mi", minutes=30)
    recorded = record_night(
        trends=measured.outputs["trends"],
        measurements=measured.outputs["measurements"],
        report=written.outputs["report"],
        costs=costs.outputs["costs"],
        parameters=parameters,
        code_version=code_version,
    ).set_caching_options(False)
    needs(may_retry(recorded), cpu="500m", memory="2Gi", minutes=30, tracking=True)
    ended = alarm(table=written.outputs["table"]).after(recorded).set_caching_options(False)
    needs(ended, cpu="250m", memory="1Gi", minutes=10)
    return written.outputs["table"]
