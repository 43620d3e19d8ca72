"""The pipeline `respect`: from synthetic graphs to measured plans of real models.

cut_shards -> for each shard: generate_graphs -> solve_labels
                                                      |
          evaluate, judge <- train_policy <- join_shards
                                  |
for each model: build_model -> plan_and_partition -> compile_segments
                                                            |
             dispatch -> validate -> sum_costs -> write_report -> record
"""

from kfp import dsl

from components.lab import dispatch, validate_measurements
from components.labels import cut_shards, generate_graphs, join_shards, solve_labels
from components.models import build_model, compile_segments, plan_and_partition
from components.policy import evaluate_policy, judge_policy, train_policy
from components.results import record, sum_costs, write_report
from pipelines.cluster import may_retry, near_boards, needs, with_lab


@dsl.pipeline(
    name="respect",
    description="Plan, split, run and measure models as pipelines over Edge TPUs (RESPECT)",
)
def respect(
    graph_family: str = "respect",
    graph_count: int = 320,
    graph_nodes: int = 30,
    shard_size: int = 160,
    label_time_limit_s: float = 10.0,
    label_stages: int = 4,
    training_share: float = 0.8,
    training_epochs: int = 60,
    training_time_limit_s: float = 60.0,
    models: list[str] = ["mobilenet_v2", "resnet50", "densenet121"],  # noqa: B006  # KFP reads it
    stages: list[int] = [2, 4],  # noqa: B006
    planners: list[str] = [  # noqa: B006
        "exact",
        "exact-cpsat",
        "exact-milp",
        "policy",
        "topo-dp",
        "edgetpu-compiler",
        "uniform",
    ],
    device: str = "edgetpu-usb",
    plan_time_limit_s: float = 10.0,
    boards: list[str] = ["host", "edgetpu-usb-sim"],  # noqa: B006
    inventory: str = "",
    repetitions: int = 200,
    seed: int = 0,
    code_version: str = "",
) -> dsl.Artifact:
    """Run the whole way once; returns the table of results.

    Args:
        graph_family: Of the synthetic training graphs.
        graph_count: How many.
        graph_nodes: Operators in each.
        shard_size: Graphs that are generated and solved apart, at once with the other shards.
        label_time_limit_s: For one label.
        label_stages: Pipeline stages of the labels' problems.
        training_share: Share of the graphs to train on; the rest measures the policy.
        training_epochs: Passes over the training graphs, at most.
        training_time_limit_s: For the policy.
        models: Names in the zoo, paths of .tflite files, or FILE.tflite@sha256:... of the lab.
        stages: Numbers of pipeline stages to plan for.
        planners: Names of planners.
        device: Device model to plan for.
        plan_time_limit_s: For one plan.
        boards: Names in the lab's inventory.
        inventory: Path of that inventory; empty for the one in the package.
        repetitions: Inferences measured on each board.
        seed: Of the graphs and the planners.
        code_version: Of the project.
    """
    # Names this execution in the lab and in MLflow.
    execution = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    # Not the lists: what is recorded of each model says them.
    parameters = {
        "graph_family": graph_family,
        "graph_count": graph_count,
        "graph_nodes": graph_nodes,
        "label_stages": label_stages,
        "device": device,
        "plan_time_limit_s": plan_time_limit_s,
        "seed": seed,
        "repetitions": repetitions,
        "code_version": code_version,
    }
    shards = cut_shards(count=graph_count, shard_size=shard_size)
    needs(shards, cpu="100m", memory="512Mi", minutes=10)
    with dsl.ParallelFor(shards.outputs["Output"]) as shard:
        generated = generate_graphs(
            family=graph_family,
            nodes=graph_nodes,
            seed=seed,
            shard=shard,
            code_version=code_version,
        )
        needs(may_retry(generated), cpu="250m", memory="1Gi", minutes=30)
        solved = solve_labels(
            graphs=generated.outputs["graphs"],
            stages=label_stages,
            device=device,
            time_limit_s=label_time_limit_s,
            code_version=code_version,
        )
        needs(may_retry(solved), cpu="1", memory="2Gi", minutes=720)
    joined = join_shards(
        graph_shards=dsl.Collected(generated.outputs["graphs"]),
        label_shards=dsl.Collected(solved.outputs["labels"]),
    )
    needs(joined, cpu="500m", memory="2Gi", minutes=30)
    policy = train_policy(
        graphs=joined.outputs["graphs"],
        labels=joined.outputs["labels"],
        training_share=training_share,
        epochs=training_epochs,
        time_limit_s=training_time_limit_s,
        seed=seed,
        code_version=code_version,
    )
    needs(policy, cpu="2", memory="4Gi", minutes=720)
    evaluation = evaluate_policy(
        graphs=joined.outputs["graphs"],
        labels=joined.outputs["labels"],
        policy=policy.outputs["policy"],
        training_share=training_share,
    )
    needs(evaluation, cpu="1", memory="2Gi", minutes=60)
    # Asked anew on every execution: the champion may be another one.
    judged = judge_policy(
        graphs=joined.outputs["graphs"],
        labels=joined.outputs["labels"],
        policy=policy.outputs["policy"],
        training_share=training_share,
    ).set_caching_options(False)
    needs(may_retry(judged), cpu="1", memory="2Gi", minutes=60, tracking=True)
    with dsl.ParallelFor(models) as name:
        model = build_model(name=name, code_version=code_version)
        needs(with_lab(may_retry(model), required=False), cpu="2", memory="4Gi", minutes=60)
        planned = plan_and_partition(
            model=model.outputs["model"],
            policy=policy.outputs["policy"],
            stages=stages,
            planners=planners,
            device=device,
            time_limit_s=plan_time_limit_s,
            seed=seed,
            code_version=code_version,
        )
        needs(may_retry(planned), cpu="2", memory="4Gi", minutes=360)
        compiled = compile_segments(segments=planned.outputs["segments"])
        needs(may_retry(compiled), cpu="1", memory="2Gi", minutes=120)
    # Measured anew on every execution: a number from the cache says nothing of today's board.
    measured = dispatch(
        compiled=dsl.Collected(compiled.outputs["compiled"]),
        boards=boards,
        repetitions=repetitions,
        inventory=inventory,
    ).set_caching_options(False)
    needs(
        near_boards(with_lab(may_retry(measured), required=False)),
        cpu="2",
        memory="4Gi",
        minutes=240,
    )
    checked = validate_measurements(measurements=measured.outputs["measurements"])
    needs(checked, cpu="500m", memory="2Gi", minutes=30)
    costs = sum_costs(
        cut_shards=shards.outputs["cost"],
        generate_graphs=dsl.Collected(generated.outputs["cost"]),
        solve_labels=dsl.Collected(solved.outputs["cost"]),
        join_shards=joined.outputs["cost"],
        train_policy=policy.outputs["cost"],
        evaluate_policy=evaluation.outputs["cost"],
        judge_policy=judged.outputs["cost"],
        build_model=dsl.Collected(model.outputs["cost"]),
        plan_and_partition=dsl.Collected(planned.outputs["cost"]),
        compile_segments=dsl.Collected(compiled.outputs["cost"]),
        measure=measured.outputs["cost"],
        validate_measurements=checked.outputs["cost"],
    )
    needs(costs, cpu="100m", memory="512Mi", minutes=30)
    report = write_report(
        plans=dsl.Collected(planned.outputs["plans"]),
        measurements=measured.outputs["measurements"],
        policy=policy.outputs["policy"],
        evaluation=evaluation.outputs["evaluation"],
        verdict=judged.outputs["verdict"],
        costs=costs.outputs["costs"],
        parameters=parameters,
        execution=execution,
    )
    needs(report, cpu="1", memory="2Gi", minutes=30)
    recorded = record(
        plans=dsl.Collected(planned.outputs["plans"]),
        measurements=measured.outputs["measurements"],
        policy=policy.outputs["policy"],
        evaluation=evaluation.outputs["evaluation"],
        verdict=judged.outputs["verdict"],
        costs=costs.outputs["costs"],
        report=report.outputs["report"],
        figures=report.outputs["figures"],
        parameters=parameters,
        execution=execution,
        code_version=code_version,
    ).set_caching_options(False)
    needs(may_retry(recorded), cpu="500m", memory="2Gi", minutes=30, tracking=True)
    return report.outputs["table"]
