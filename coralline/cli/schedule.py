"""`coralline schedule`: a staging plan for a model."""

from __future__ import annotations

from pathlib import Path

import typer

from coralline.cli import output


def add(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(
        "schedule",
        epilog="Example: coralline schedule model.tflite --stages 4 --out plan.json",
    )(schedule)


def schedule(
    model: Path = typer.Argument(..., help="A .tflite model or a graph JSON file."),
    stages: int = typer.Option(..., "--stages", "-k", help="Number of pipeline stages."),
    device: str = typer.Option(
        "edgetpu-usb", "--device", "-d", help="Name or YAML file of the device model."
    ),
    objective: str = typer.Option(
        "bottleneck", "--objective", help="bottleneck, peak-memory or latency."
    ),
    planner: str = typer.Option("exact-cpsat", "--planner", "-p", help="Name of the planner."),
    children_together: bool = typer.Option(
        False, "--children-together", help="Keep all readers of an operator in one stage."
    ),
    time_limit: float = typer.Option(60.0, "--time-limit", min=0.0, help="Seconds to search."),
    seed: int = typer.Option(0, "--seed", help="Seed of everything random."),
    out: Path | None = typer.Option(None, "--out", "-o", help="Write the plan to this file."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Assign a model's operators to pipeline stages, with proof of how good the plan is."""
    from coralline.devices.model import load_device
    from coralline.files import make_folder
    from coralline.graph import read_graph
    from coralline.staging import Effort, StagingProblem, make_plan

    problem = StagingProblem(
        graph=read_graph(model),
        n_stages=stages,
        device=load_device(device),
        objective=objective,  # type: ignore[arg-type]  # StagingProblem checks it
        children_together=children_together,
    )
    if out is not None:
        # Not after a minute of search.
        make_folder(out.parent)
    plan = make_plan(problem, planner, Effort(time_limit_s=time_limit, seed=seed))
    if out is not None:
        output.write_json(out, plan.to_json())
    if json:
        output.print_json(plan.to_json())
        return
    output.print_plan(plan, out)
