"""`coralline split`: one .tflite segment a stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from coralline.cli import output

if TYPE_CHECKING:
    from coralline.tflite.segments import SegmentSet


def add(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(
        "split",
        epilog="Example: coralline split model.tflite --plan plan.json --out segments",
    )(split)


def split(
    model: Path = typer.Argument(..., help="A .tflite model."),
    plan: Path = typer.Option(..., "--plan", help="A plan that `coralline schedule` wrote."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder to write the segments into."),
    verify_inputs: int = typer.Option(
        3, "--verify-inputs", min=0, help="Random inputs to compare with the whole model on."
    ),
    seed: int = typer.Option(0, "--seed", min=0, help="Seed of the random inputs."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Cut a model into one segment a stage; compile each when edgetpu_compiler is on PATH."""
    from rich.console import Console

    from coralline.staging.problem import read_plan
    from coralline.tflite.compiler import compile_segments
    from coralline.tflite.split import split_model

    with Console(stderr=True, quiet=json).status("splitting and comparing"):
        segments = compile_segments(
            split_model(model, read_plan(plan), out, verify_inputs=verify_inputs, seed=seed)
        )
    if json:
        output.print_json({"folder": str(segments.folder), **segments.to_json()})
        return
    _print(segments)


def _print(segments: SegmentSet) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from coralline.devices.model import MIB

    console = Console()
    compiled = all(segment.compiled for segment in segments.segments)
    table = Table(title=escape(str(segments.folder)), title_justify="left")
    table.add_column("segment")
    columns = ["size", "inputs", "outputs"]
    if compiled:
        columns += ["on-chip", "off-chip", "operators mapped"]
    for column in columns:
        table.add_column(column, justify="right")
    for segment in segments.segments:
        size = (segments.folder / segment.file).stat().st_size
        row = [f"{size / MIB:.3f} MiB", str(len(segment.inputs)), str(len(segment.outputs))]
        if segment.compiled:
            said = segment.compiled
            total = said["mapped_operators"] + said["unmapped_operators"]
            row += [
                f"{said['on_chip_bytes'] / MIB:.2f} MiB",
                f"{said['off_chip_bytes'] / MIB:.2f} MiB",
                f"{said['mapped_operators']} of {total}",
            ]
        table.add_row(escape(segment.file), *row)
    console.print(table)
    if segments.bit_equal_inputs:
        console.print(
            f"bit-equal with the whole model on {segments.bit_equal_inputs} random inputs"
        )
    else:
        console.print("not compared with the whole model")
    if not compiled:
        console.print("edgetpu_compiler is not on PATH: the segments are not compiled")
