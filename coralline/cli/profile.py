"""`coralline profile`: what each operator costs on this machine."""

from __future__ import annotations

from math import nan
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from coralline.cli import output

if TYPE_CHECKING:
    from coralline.devices.model import DeviceModel
    from coralline.runtime.profile import Profile


def add(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("profile", epilog="Example: coralline profile model.tflite --out graph.json")(
        profile
    )


def profile(
    models: list[Path] = typer.Argument(..., help="One or more .tflite models."),
    repetitions: int = typer.Option(30, "--repetitions", "-n", min=1, help="Rounds to time."),
    out: Path | None = typer.Option(
        None, "--out", "-o", help="Write the graph with measured operator times here."
    ),
    device_out: Path | None = typer.Option(
        None, "--device-out", help="Write a device model fitted to all models here (.yaml)."
    ),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Time each operator of a model alone on this machine's CPU."""
    import yaml
    from rich.console import Console

    from coralline.errors import UserError
    from coralline.files import write_text
    from coralline.graph.json_format import write_json
    from coralline.runtime.profile import fit_device, profile_model

    if out is not None and len(models) > 1:
        raise UserError(f"--out takes the graph of one model and {len(models)} are given")
    with Console(stderr=True, quiet=json).status("profiling"):
        found = [profile_model(model, repetitions=repetitions) for model in models]
    device = fit_device(found)
    if out is not None:
        write_json(found[0].graph, out)
    if device_out is not None:
        write_text(device_out, yaml.safe_dump(device.to_json(), sort_keys=False))
    rows = [_row(p, device) for p in found]
    if json:
        output.print_json({"models": rows, "device": device.to_json()})
        return
    _print(rows)
    for file in filter(None, (out, device_out)):
        print(f"written to {file}")


def _row(p: Profile, device: DeviceModel) -> dict[str, str | int | float]:
    unmeasured = p.graph.with_compute_ms([nan] * p.graph.n_nodes)
    fitted_ms = float(device.node_ms(unmeasured).sum())
    return {
        "model": p.graph.name,
        "operators": p.graph.n_nodes,
        "operators_sum_ms": float(p.graph.compute_ms.sum()),
        "fitted_sum_ms": fitted_ms,
        "whole_ms": p.whole_ms,
        "predicted_over_measured": p.predicted_over_measured,
        "fitted_over_measured": fitted_ms / p.whole_ms,
    }


def _print(rows: list[dict[str, str | int | float]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="this machine's CPU, one thread, medians of CPU time", title_justify="left")
    for column in ("model", "operators", "sum of operators", "fitted rates", "whole model"):
        table.add_column(column, justify="left" if column == "model" else "right")
    table.add_column("sum / whole", justify="right")
    table.add_column("fitted / whole", justify="right")
    for row in rows:
        table.add_row(
            escape(str(row["model"])),
            str(row["operators"]),
            *(f"{row[k]:.3f} ms" for k in ("operators_sum_ms", "fitted_sum_ms", "whole_ms")),
            f"{row['predicted_over_measured']:.2f}",
            f"{row['fitted_over_measured']:.2f}",
        )
    Console().print(table)
