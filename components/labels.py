"""Components: synthetic graphs and their exact labels, in shards, and the whole set of them."""

from kfp import dsl

from components.face import component


@component
def cut_shards(count: int, shard_size: int, cost: dsl.Output[dsl.Metrics]) -> list[str]:
    """Name the shards of a graph set.

    Args:
        count: Number of graphs.
        shard_size: Graphs in each shard; the last may have fewer.

    Returns:
        "START-STOP" each, in the order of the graphs.
    """
    from components.shards import cut
    from components.steps import step

    with step("cut-shards", cost):
        return cut(int(count), int(shard_size))


@component
def generate_graphs(
    family: str,
    nodes: int,
    seed: int,
    shard: str,
    code_version: str,
    graphs: dsl.Output[dsl.Dataset],
    cost: dsl.Output[dsl.Metrics],
) -> None:
    """Generate one shard of a seeded set of synthetic graphs.

    Args:
        family: Of coralline.graph.synthetic.
        nodes: Operators in each.
        shard: Of `cut_shards`.
        code_version: Of the project; part of what a cached result depends on.
    """
    from pathlib import Path

    from components.shards import generate_shard
    from components.steps import step

    with step("generate-graphs", cost):
        generate_shard(family, int(nodes), int(seed), shard, Path(graphs.path))
        graphs.metadata.update(family=family, shard=shard, nodes=nodes, seed=seed)


@component
def solve_labels(
    graphs: dsl.Input[dsl.Dataset],
    stages: int,
    device: str,
    time_limit_s: float,
    code_version: str,
    labels: dsl.Output[dsl.Dataset],
    cost: dsl.Output[dsl.Metrics],
) -> None:
    """Solve the graphs of one shard exactly.

    Args:
        graphs: Of `generate_graphs`.
        stages: Pipeline stages of each label's problem.
        device: Name of the device model.
        time_limit_s: For one graph; a label without proof says so.
    """
    from pathlib import Path

    from components.shards import shard_file
    from components.steps import progress, step
    from coralline.graph.graph_set import read_graph_set
    from coralline.staging import Effort
    from training.labels import LabelOptions, label_graphs

    with step("solve-labels", cost):
        file = shard_file(Path(graphs.path))
        label_graphs(
            read_graph_set(file),
            Path(labels.path) / file.name,
            LabelOptions(n_stages=stages, device=device),
            Effort(time_limit_s=time_limit_s, workers=1),
            lambda done, total: progress(f"labels {file.stem}", done, total),
        )


@component
def join_shards(
    graph_shards: dsl.Input[list[dsl.Dataset]],
    label_shards: dsl.Input[list[dsl.Dataset]],
    graphs: dsl.Output[dsl.Dataset],
    labels: dsl.Output[dsl.Dataset],
    docs: dsl.Output[dsl.Artifact],
    cost: dsl.Output[dsl.Metrics],
) -> None:
    """Join the shards, and stop the pipeline unless graphs and labels meet their expectations.

    Args:
        docs: Data Docs, in the folders `graphs` and `labels`.
    """
    from pathlib import Path

    from components.shards import join
    from components.steps import step
    from components.validation import validate_graphs, validate_labels

    with step("join-shards", cost):
        join(
            [Path(shard.path) for shard in graph_shards],
            [Path(shard.path) for shard in label_shards],
            Path(graphs.path),
            Path(labels.path),
        )
        validate_graphs(Path(graphs.path), Path(docs.path) / "graphs")
        validate_labels(Path(labels.path), Path(graphs.path), Path(docs.path) / "labels")
