"""`coralline devices`: the device models, and how far they are from the real devices."""

from __future__ import annotations

import typer

from coralline.cli import output

devices = typer.Typer(
    no_args_is_help=True,
    help="List the device models and compare them with published measurements.",
    epilog="Example: coralline devices check edgetpu-usb",
)


def add(app: typer.Typer) -> None:
    """Add the verb."""
    app.add_typer(devices, name="devices")


@devices.command("list", epilog="Example: coralline devices list")
def list_devices(json: bool = typer.Option(False, "--json", help="Print one JSON object.")) -> None:
    """List the device models that come with Coralline, with their stored error."""
    from coralline.devices.check import published_error
    from coralline.devices.model import device_names, load_device

    models = [load_device(name) for name in device_names()]
    errors = {model.name: published_error(model.name) for model in models}
    if json:
        output.print_json(
            {
                "devices": [
                    {**m.to_json(), "median_error_held_out": errors[m.name].median_held_out}
                    for m in models
                ]
            }
        )
        return
    for model in models:
        typer.echo(f"{model.name}: {model.description}")
        typer.echo(f"  {errors[model.name].label}")


@devices.command("fit", epilog="Example: coralline devices fit")
def fit_constants(
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Fit the Edge TPU constants that no source gives, as the device files say."""
    from rich.console import Console

    from training.device_check import fit

    with Console(stderr=True).status("building the models"):
        constants = fit()
    if json:
        output.print_json(constants)
        return
    for name, value in constants.items():
        typer.echo(f"{name}: {value:.4g}")


@devices.command("check", epilog="Example: coralline devices check edgetpu-usb")
def check(
    names: list[str] = typer.Argument(None, metavar="[NAME]...", help="Devices; all without."),
    write: bool = typer.Option(
        False, "--write", help="Keep the result in the package, for reports and README."
    ),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Predict every published figure that a buildable model reproduces, and print the errors."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from coralline.devices.check import remarks, store, summarise
    from coralline.devices.model import device_names, load_device
    from coralline.errors import UserError
    from training.device_check import check_device

    if write and names:
        raise UserError("--write keeps all devices together; give no names with it")
    models = [load_device(name) for name in names or device_names()]
    results = []
    with Console(stderr=True).status("building the models") as status:
        for model in models:
            predictions = check_device(
                model, lambda f: status.update(f"{f.model} at {f.input_size} px on {f.device}")
            )
            results.append(summarise(model, predictions))
    if write:
        path = store([result for result in results if result.predictions])
    notes, left_out = remarks()
    if json:
        output.print_json(
            {
                "devices": [{**asdict(result), "label": result.label} for result in results],
                "notes": notes,
                "left_out": left_out,
            }
        )
        return
    console = Console()
    for result in results:
        for quantity, unit in (("latency_ms", "ms"), ("off_chip_mib", "MiB off chip")):
            shown = [p for p in result.predictions if p.figure.quantity == quantity]
            if not shown:
                continue
            table = Table(title=f"{result.device}, {unit}: published and simulated")
            table.add_column("model", no_wrap=True)
            for column in ("px", "stages", "published", "simulated", "error", ""):
                table.add_column(column, justify="right", no_wrap=True)
            for p in shown:
                table.add_row(
                    p.figure.model,
                    str(p.figure.input_size),
                    str(p.figure.stages),
                    f"{p.figure.value:.2f}",
                    f"{p.predicted:.2f}",
                    f"{100 * p.relative_error:+.0f} %",
                    "fitted" if p.figure.fitted else "",
                )
            console.print(table)
        if result.median_fitted is not None:
            console.print(
                f"median absolute error over the {result.n_fitted} latencies fitted to: "
                f"{100 * result.median_fitted:.1f} %"
            )
        console.print(f"[bold]{result.label}[/bold]\n")
    for name, note in notes.items():
        console.print(f"{name}: {note}")
    for figure, reason in left_out.items():
        console.print(f"left out: {figure}: {reason}")
    if write:
        console.print(f"written to {path}")
