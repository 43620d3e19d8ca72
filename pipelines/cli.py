"""`coralline pipeline`: the Kubeflow pipelines, on this machine or on a server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from pipelines import compare_cli, server_cli


def add(app: typer.Typer) -> None:
    """Add the verb."""
    verb = typer.Typer(
        no_args_is_help=True,
        help="The Kubeflow pipelines, on this machine or on a server.",
        epilog="Example: coralline pipeline run respect",
    )
    verb.command(
        "run", epilog=r"Example: coralline pipeline run respect --set models=\[my_model.tflite]"
    )(run)
    verb.command("compile", epilog="Example: coralline pipeline compile respect --out r.yaml")(
        compile_
    )
    verb.command("list", epilog="Example: coralline pipeline list")(list_)
    verb.command("cost", epilog="Example: coralline pipeline cost latest")(cost)
    compare_cli.add(verb)
    server_cli.add(verb)
    app.add_typer(verb, name="pipeline")


def run(
    name: str = typer.Argument(..., help="Name of a pipeline, or a compiled one (.yaml)."),
    settings: list[str] = typer.Option(
        [], "--set", help="Argument of the pipeline as NAME=VALUE; VALUE is YAML. Repeatable."
    ),
    fresh: bool = typer.Option(False, "--fresh", help="Reuse nothing from earlier runs."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Execute a pipeline on this machine and print what it found."""
    from coralline.cli import output
    from pipelines.arguments import read_arguments
    from pipelines.display import Display
    from pipelines.local import run_pipeline

    arguments = read_arguments(name, settings)
    with Display(sys.stderr, quiet=json) as display:
        outputs, folder = run_pipeline(name, arguments, reuse=not fresh, on_event=display.show)
    from pipelines.results import print_results, read_results

    results = read_results(Path(outputs["Output"]), folder)
    if json:
        output.print_json(results)
    else:
        print_results(results)


def compile_(
    name: str = typer.Argument(..., help="Name of a pipeline."),
    out: Path = typer.Option(..., "--out", "-o", help="The YAML file to write."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Write a pipeline as the YAML that a Kubeflow server takes."""
    from coralline.cli import output
    from pipelines.registry import compile_pipeline

    compile_pipeline(name, out)
    if json:
        output.print_json({"pipeline": name, "file": str(out)})
    else:
        typer.echo(f"written to {out}")


def list_(json: bool = typer.Option(False, "--json", help="Print one JSON object.")) -> None:
    """List the pipelines."""
    from coralline.cli import output
    from pipelines.registry import NAMES

    if json:
        output.print_json({"pipelines": list(NAMES)})
    else:
        typer.echo("\n".join(NAMES))


def cost(
    run: str = typer.Argument("latest", help="latest, latest~1, or the id or name of a run."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Say what a run cost: minutes by step, memory, and what it keeps in MLflow and in the lab."""
    from components.costing import run_cost
    from components.tracking import tracking_uri
    from coralline.cli import output

    found = run_cost(tracking_uri(), run)
    if json:
        output.print_json(found)
    else:
        _print_cost(found)


def _print_cost(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from coralline.devices.model import MIB

    console = Console()
    table = Table(title=escape(found["name"]), title_justify="left")
    for column in ("step", "s", "processor s", "most memory MiB"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for step in found["steps"]:
        table.add_row(
            escape(step["step"]),
            f"{step['seconds']:.1f}",
            f"{step['cpu_seconds']:.1f}",
            f"{step['peak_bytes'] / MIB:.0f}",
        )
    console.print(table)
    console.print(
        f"{found['minutes']:.1f} minutes in all; MLflow keeps {found['bytes'] / MIB:.2f} MiB in "
        f"{found['files']} files, {found['runs']} runs and {found['rows']} rows of them; the lab "
        f"keeps {found['lab_jobs']} jobs",
        soft_wrap=True,
    )
