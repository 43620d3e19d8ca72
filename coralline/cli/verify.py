"""`coralline verify`: check a plan file and what it claims."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from coralline.cli import output

if TYPE_CHECKING:
    from coralline.staging.certificate import Certificate


def add(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(
        "verify",
        epilog="Example: coralline verify plan.json --model model.tflite --prove 60",
    )(verify)


def verify(
    plan: Path = typer.Argument(..., help="A plan that `coralline schedule` wrote."),
    model: Path = typer.Option(
        ..., "--model", "-m", help="The .tflite model or graph JSON file it was made for."
    ),
    device: str | None = typer.Option(
        None,
        "--device",
        "-d",
        help="Device model, or one for each stage with commas between; without it, what the plan "
        "names.",
    ),
    host_device: str | None = typer.Option(
        None, "--host-device", help="Of the host operators; without it, what the plan names."
    ),
    prove: float | None = typer.Option(
        None, "--prove", min=0.0, help="Seconds for another exact planner to prove the bound."
    ),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Check a plan without its planner: stages, every number, and what its bound rests on."""
    from rich.console import Console

    from coralline.devices.model import load_device, load_devices
    from coralline.errors import UserError
    from coralline.graph import read_graph
    from coralline.staging.certificate import verify_plan
    from coralline.staging.problem import read_plan

    given = read_plan(plan)
    graph = read_graph(model)
    devices = load_devices(device or str(given.device))
    host = None if host_device is None else load_device(host_device)
    try:
        given.check_graph(graph)
        with Console(stderr=True, quiet=json).status("checking"):
            certificate = verify_plan(given, graph, devices, prove, host)
    except UserError as error:
        raise UserError(f"{plan}: {error}") from None
    if json:
        output.print_json(certificate.to_json())
        return
    _print(certificate, given.simulated)


def _print(certificate: Certificate, simulated: bool) -> None:
    from rich.console import Console

    unit = certificate.unit
    console = Console(highlight=False)
    what = "simulated device" if simulated else "device"
    console.print(
        f"{certificate.graph_name}: the plan is feasible and its numbers hold ({what})\n"
        f"value        {certificate.value:,.6g} {unit}\n"
        f"lower bound  {certificate.lower_bound:,.6g} {unit}, "
        f"resting on {certificate.bound_rests_on}\n"
        f"proven here  {certificate.own_bound:,.6g} {unit}"
    )
    if certificate.prover is not None:
        again = "nothing"
        if certificate.prover_bound is not None:
            again = f"{certificate.prover_bound:,.6g} {unit}"
        console.print(f"proven again {again} by {certificate.prover}")
    if certificate.crossings_lower_bound is not None:
        console.print(
            f"crossings    {certificate.crossings}, none at this value has fewer than "
            f"{certificate.crossings_lower_bound}, "
            f"resting on {certificate.crossings_bound_rests_on}"
        )
    if certificate.proven_optimal:
        console.print(f"optimal, on {certificate.bound_rests_on}")
    console.print(f"not checked  {', '.join(certificate.not_checked)}")
