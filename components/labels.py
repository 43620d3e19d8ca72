"""Components: exact labels, in shards, and their validation."""

from kfp import dsl

from components.face import component


@component
def solve_labels(
    graphs: dsl.Input[dsl.Dataset],
    shard: str,
    stages: int,
    device: str,
    time_limit_s: float,
    code_version: str,
    labels: dsl.Output[dsl.Dataset],
    cost: dsl.Output[dsl.Metrics],
) -> None:
    """Solve one shard of the graph set exactly.

    Args:
        shard: "i/n": the i-th, from 0, of n shards.
        stages: Pipeline stages of each label's problem.
        device: Name of the device model.
        time_limit_s: For one graph; a label without proof says so.
    """
    from pathlib import Path

    from components.steps import progress, step
    from coralline.staging import Effort
    from training.labels import LabelOptions, solve_labels

    with step("solve-labels", cost):
        index, of = (int(part) for part in shard.split("/"))
        solve_labels(
            Path(graphs.path),
            Path(labels.path),
            index,
            of,
            LabelOptions(n_stages=stages, device=device),
            Effort(time_limit_s=time_limit_s, workers=1),
            lambda done, total: progress(f"labels {shard}", done, total),
        )


@component
def validate_labels(
    graphs: dsl.Input[dsl.Dataset],
    shards: dsl.Input[list[dsl.Dataset]],
    labels: dsl.Output[dsl.Dataset],
    docs: dsl.Output[dsl.Artifact],
    cost: dsl.Output[dsl.Metrics],
) -> None:
    """Join the shards and stop the pipeline unless the labels meet their expectations."""
    import shutil
    from pathlib import Path

    from components.steps import step
    from components.validation import validate_labels

    with step("validate-labels", cost):
        folder = Path(labels.path)
        folder.mkdir(parents=True)
        for shard in shards:
            for file in sorted(Path(shard.path).glob("*.jsonl")):
                shutil.copy(file, folder / file.name)
        validate_labels(folder, Path(graphs.path), Path(docs.path))
