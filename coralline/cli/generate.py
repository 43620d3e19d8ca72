"""`coralline generate`: a set of synthetic graphs."""

from __future__ import annotations

from pathlib import Path

import typer

from coralline.cli import output


def add(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(
        "generate",
        epilog="Example: coralline generate --family respect --count 256 --out graphs.jsonl",
    )(generate)


def generate(
    out: Path = typer.Option(..., "--out", "-o", help="Write the graphs to this file."),
    family: str = typer.Option(
        "respect",
        "--family",
        "-f",
        help="respect, branch, skip, cell, window, tower, pyramid or unetpp; several with commas.",
    ),
    count: int = typer.Option(256, "--count", "-n", help="Number of graphs of each family."),
    nodes: int = typer.Option(30, "--nodes", "-v", help="Number of operators of each graph."),
    seed: int = typer.Option(0, "--seed", min=0, help="The same seed gives the same graphs."),
    max_in_degree: int | None = typer.Option(
        None, "--max-in-degree", help="Most inputs of an operator, 2 to 6."
    ),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Generate seeded synthetic graphs, one JSON object on each line of a file."""
    from time import perf_counter

    from coralline.graph import synthetic
    from coralline.graph.graph_set import write_graph_set

    options = {} if max_in_degree is None else {"max_in_degree": max_in_degree}
    start = perf_counter()
    graphs = [
        graph
        for name in family.split(",")
        for graph in synthetic.generate(name.strip(), count, nodes, seed, **options)
    ]
    seconds = perf_counter() - start
    n = write_graph_set(out, graphs)
    if json:
        output.print_json(
            {
                "graphs": n,
                "family": family,
                "nodes": nodes,
                "seed": seed,
                "generate_seconds": seconds,
                "out": str(out),
            }
        )
        return
    typer.echo(f"{n} graphs of {nodes} operators ({family}) written to {out}")
