"""`coralline schedule`: a staging plan for a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from coralline.cli import output
from coralline.errors import UserError

if TYPE_CHECKING:
    from coralline.graph import ComputeGraph
    from coralline.staging import Plan


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
        "edgetpu-usb",
        "--device",
        "-d",
        help="Name or YAML file of the device model; one for each stage, with commas between, "
        "where they differ.",
    ),
    objective: str = typer.Option(
        "bottleneck", "--objective", help="bottleneck, peak-memory or latency."
    ),
    planner: str = typer.Option(
        "auto", "--planner", "-p", help="auto, exact, policy, ...; a wrong name lists all."
    ),
    policy: Path | None = typer.Option(
        None, "--policy", help="policy.npz of `coralline train run`; the shipped without."
    ),
    children_together: bool = typer.Option(
        False, "--children-together", help="Keep all readers of an operator in one stage."
    ),
    host_operators: str | None = typer.Option(
        None,
        "--host-operators",
        help="Operators that stay on the host: names or numbers with commas between, or auto for "
        "those of a .tflite model that an Edge TPU cannot run.",
    ),
    host_device: str = typer.Option(
        "host-cpu", "--host-device", help="Device model of the host that runs them."
    ),
    memory_limit: float | None = typer.Option(
        None, "--memory-limit", help="MiB of parameters that a stage may hold at most."
    ),
    activation_cache: bool = typer.Option(
        False,
        "--activation-cache",
        help="Count on less cache for parameters where a stage's activations are large.",
    ),
    time_limit: float = typer.Option(60.0, "--time-limit", min=0.0, help="Seconds to search."),
    seed: int = typer.Option(0, "--seed", min=0, help="Seed of everything random."),
    out: Path | None = typer.Option(None, "--out", "-o", help="Write the plan to this file."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Assign a model's operators to pipeline stages, with proof of how good the plan is."""
    from rich.console import Console

    from coralline.devices.model import MIB, load_device, load_devices
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
    graph = read_graph(model)
    problem = StagingProblem(
        graph=graph,
        n_stages=1 if auto else int(stages),
        device=load_devices(device),
        objective=objective,  # type: ignore[arg-type]  # StagingProblem checks it
        children_together=children_together,
        host_operators=_host_operators(host_operators, model, graph),
        host=load_device(host_device),
        memory_limit_bytes=None if memory_limit is None else int(memory_limit * MIB),
        activation_cache=activation_cache,
    )
    if out is not None:
        # Not after a minute of search.
        make_folder(out.parent)
    effort = Effort(
        time_limit_s=time_limit, seed=seed, policy=None if policy is None else str(policy)
    )
    choice = None
    with Console(stderr=True, quiet=json).status(f"planning (--time-limit {time_limit:g} s)"):
        if accelerators is not None:
            choice = choose_stages(problem, accelerators, planner, effort)
        plan = make_plan(problem, planner, effort) if choice is None else choice.best.plan
    if out is not None:
        output.write_json(out, plan.to_json())
    if json:
        output.print_json(plan.to_json() if choice is None else output.choice_json(choice))
    else:
        if choice is not None:
            output.print_choice(choice)
        output.print_plan(plan, out)
    _warn_of_unmapped(model, plan)


def _warn_of_unmapped(model: Path, plan: Plan) -> None:
    """Say on stderr that a plan for Edge TPUs gives them operators that they cannot run."""
    from coralline.graph.tflite_file import is_tflite
    from coralline.tflite.edgetpu import unmapped_operators

    # The device models of Edge TPUs are named so.
    if not any(name.startswith("edgetpu") for name in plan.device.split(",")):
        return
    if not is_tflite(model):
        return
    left = unmapped_operators(model, plan.host_operators)
    if left:
        typer.echo(
            f"an Edge TPU cannot run {len(left)} of the {len(plan.stage)} operators, and the times "
            "above are as if it could:\n`coralline graph` says why; --host-operators auto plans "
            "with them on the host",
            err=True,
        )


def _host_operators(given: str | None, model: Path, graph: ComputeGraph) -> tuple[int, ...]:
    from coralline.tflite.edgetpu import unmapped_operators

    if given is None:
        return ()
    if given == "auto":
        if model.suffix != ".tflite":
            raise UserError(
                f"{model}: --host-operators auto reads what an Edge TPU cannot run from a .tflite "
                "model; name the operators"
            )
        return tuple(operator.node for operator in unmapped_operators(model))
    numbers = {str(v): v for v in range(graph.n_nodes)}
    numbers |= {name: v for v, name in reversed(list(enumerate(graph.node_names)))}
    asked = [name.strip() for name in given.split(",")]
    unknown = [name for name in asked if name not in numbers]
    if unknown:
        raise UserError(
            f"--host-operators: {model} has no operator {unknown[0]!r}; `coralline graph --out` "
            "writes a file that lists them"
        )
    return tuple(sorted({numbers[name] for name in asked}))
