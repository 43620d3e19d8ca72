"""Components: synthetic graphs, and the validation of the set."""

from kfp import dsl

from components.face import component


@component
def generate_graphs(
    family: str,
    count: int,
    nodes: int,
    seed: int,
    code_version: str,
    graphs: dsl.Output[dsl.Dataset],
    cost: dsl.Output[dsl.Metrics],
) -> None:
    """Generate a seeded set of synthetic graphs.

    Args:
        family: Of coralline.graph.synthetic.
        count: Number of graphs.
        nodes: Operators in each.
        code_version: Of the project; part of what a cached result depends on.
    """
    from pathlib import Path

    from components.steps import step
    from coralline.graph.graph_set import write_graph_set
    from coralline.graph.synthetic import generate

    with step("generate-graphs", cost):
        write_graph_set(Path(graphs.path), generate(family, count, nodes, seed))
        graphs.metadata.update(family=family, count=count, nodes=nodes, seed=seed)


@component
def validate_graphs(
    graphs: dsl.Input[dsl.Dataset],
    docs: dsl.Output[dsl.Artifact],
    cost: dsl.Output[dsl.Metrics],
) -> None:
    """Stop the pipeline unless the graph set meets its expectations; writes Data Docs."""
    from pathlib import Path

    from components.steps import step
    from components.validation import validate_graphs

    with step("validate-graphs", cost):
        validate_graphs(Path(graphs.path), Path(docs.path))
