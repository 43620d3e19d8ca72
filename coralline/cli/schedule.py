"""`coralline schedule`: a staging plan for a model."""

from __future__ import annotations

from pathlib import Path

import typer

from coralline.cli import output
from coralline.errors import UserError


def add(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(
        "schedule",
        epilog="Example: coralline schedule model.tflite --stages 4 --out plan.json",
    )(schedule)


def schedule(
    model: Path = typer.Argument(..., help="A .tflite model or a graph JSON file."),
    stages: str = typer.Option(
        ..., "--stages", "-k", help="Number of pipeline stages, or auto with --accelerators."
    ),
    accelerators: int | None = typer.Option(
        None, "--accelerators", "-n", help="With --stages auto: how many there are."
    ),
    device: str = typer.Option(
        "edgetpu-usb", "--device", "-d", help="Name or YAML file of the device model."
    ),
    objective: str = typer.Option(
        "bottleneck", "--objective", help="bottleneck, peak-memory or latency."
    ),
    planner: str = typer.Option("auto", "--planner", "-p", help="Name of the planner."),
    children_together: bool = typer.Option(
        False, "--children-together", help="Keep all readers of an operator in one stage."
    ),
    time_limit: float = typer.Option(60.0, "--time-limit", min=0.0, help="Seconds to search."),
    seed: int = typer.Option(0, "--seed", min=0, help="Seed of everything random."),
    out: Path | None = typer.Option(None, "--out", "-o", help="Write the plan to this file."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Assign a model's operators to pipeline stages, with proof of how good the plan is."""
    from coralline.devices.model import load_device
    from coralline.files import make_folder
    from coralline.graph import read_graph
    from coralline.staging import Effort, StagingProblem, make_plan
    from coralline.staging.deployment import choose_stages

    auto = stages == "auto"
    if auto == (accelerators is None):
        raise UserError(
            "--stages auto and --accelerators N go together: N accelerators, any number of stages"
        )
    if not auto and not stages.lstrip("-").isdecimal():
        raise UserError(f"--stages {stages}: give a whole number, or auto")
    problem = StagingProblem(
        graph=read_graph(model),
        n_stages=1 if auto else int(stages),
        device=load_device(device),
        objective=objective,  # type: ignore[arg-type]  # StagingProblem checks it
        children_together=children_together,
    )
    if out is not None:
        # Not after a minute of search.
        make_folder(out.parent)
    effort = Effort(time_limit_s=time_limit, seed=seed)
    choice = None
    if accelerators is not None:
        choice = choose_stages(problem, accelerators, planner, effort)
    plan = make_plan(problem, planner, effort) if choice is None else choice.best.plan
    if out is not None:
        output.write_json(out, plan.to_json())
    if json:
        output.print_json(plan.to_json() if choice is None else output.choice_json(choice))
        return
    if choice is not None:
        output.print_choice(choice)
    output.print_plan(plan, out)
