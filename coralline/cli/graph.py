"""`coralline graph`: what a model is made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from coralline.cli import output

if TYPE_CHECKING:
    from coralline.graph import ComputeGraph
    from coralline.tflite.edgetpu import Unmapped


def add(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("graph", epilog="Example: coralline graph model.tflite --out graph.json")(graph)


def graph(
    model: Path = typer.Argument(..., help="A .tflite model or a graph JSON file."),
    out: Path | None = typer.Option(None, "--out", "-o", help="Write the graph as JSON."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Show a model's operators, parameters and work, and what an Edge TPU cannot run of it."""
    from coralline.graph import read_graph
    from coralline.graph.json_format import write_json
    from coralline.graph.tflite_file import is_tflite
    from coralline.tflite.edgetpu import unmapped_operators

    read = read_graph(model)
    unmapped = unmapped_operators(model) if is_tflite(model) else None
    if out is not None:
        write_json(read, out)
    summary = _summary(read, unmapped)
    if json:
        output.print_json(summary)
        return
    _print(summary, out)


def _summary(graph: ComputeGraph, unmapped: tuple[Unmapped, ...] | None) -> dict[str, Any]:
    from dataclasses import asdict

    import numpy as np

    kinds: dict[str, dict[str, int]] = {}
    for op, macs, params in zip(
        graph.ops, graph.macs.tolist(), graph.param_bytes.tolist(), strict=True
    ):
        row = kinds.setdefault(op, {"count": 0, "macs": 0, "param_bytes": 0})
        row["count"] += 1
        row["macs"] += macs
        row["param_bytes"] += params
    from_caller = graph.tensor_producer < 0
    return {
        "name": graph.name,
        "digest": graph.digest,
        "nodes": graph.n_nodes,
        "edges": len(graph.edges),
        "depth": int(graph.level.max()) + 1,
        "param_bytes": int(graph.param_bytes.sum()),
        "macs": int(graph.macs.sum()),
        "input_bytes": int(graph.tensor_bytes[from_caller].sum()),
        "output_bytes": int(graph.tensor_bytes[graph.tensor_is_output].sum()),
        "largest_tensor_bytes": int(np.max(graph.tensor_bytes)),
        "operators": dict(sorted(kinds.items(), key=lambda item: -item[1]["count"])),
        "edgetpu_unmapped": None if unmapped is None else [asdict(u) for u in unmapped],
    }


def _print(summary: dict[str, Any], out: Path | None) -> None:
    from collections import Counter

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.print(
        f"[bold]{escape(summary['name'])}[/bold]: {summary['nodes']} operators, "
        f"{summary['edges']} edges, depth {summary['depth']}; "
        f"{summary['param_bytes']:,} bytes of parameters, {summary['macs']:,} MACs",
        highlight=False,
    )
    table = Table()
    table.add_column("operator")
    for column in ("count", "MACs", "parameter bytes"):
        table.add_column(column, justify="right")
    for op, row in summary["operators"].items():
        amounts = (f"{row[k]:,}" for k in ("count", "macs", "param_bytes"))
        table.add_row(escape(op) or "(unknown)", *amounts)
    console.print(table)
    unmapped = summary["edgetpu_unmapped"]
    if unmapped is None:
        console.print("a graph JSON has no types, so what an Edge TPU can run is not known")
    elif not unmapped:
        console.print("an Edge TPU can run every operator, by the documented rules")
    else:
        console.print(f"an Edge TPU cannot run {len(unmapped)} of {summary['nodes']} operators:")
        for (op, reason), count in Counter((u["op"], u["reason"]) for u in unmapped).items():
            console.print(f"  {count} x {op}: {reason}", markup=False)
    if out is not None:
        console.print(f"written to {out}", markup=False)
