"""`coralline zoo`: int8 models of the Keras applications and of HRNet."""

from __future__ import annotations

from pathlib import Path

import typer

from coralline.cli import output

zoo = typer.Typer(
    no_args_is_help=True,
    help="Build int8 .tflite models of known networks, without trained weights.",
    epilog="Example: coralline zoo build mobilenet_v2 resnet50 --out models",
)


def add(app: typer.Typer) -> None:
    """Add the verb."""
    app.add_typer(zoo, name="zoo")


@zoo.command("list", epilog="Example: coralline zoo list")
def list_models(json: bool = typer.Option(False, "--json", help="Print one JSON object.")) -> None:
    """List the models, with the side of their input in pixels."""
    from training.zoo import APPLICATIONS

    if json:
        output.print_json({"models": {name: size for name, (_, size) in APPLICATIONS.items()}})
        return
    for name, (_, size) in APPLICATIONS.items():
        typer.echo(f"{name:22} {size} x {size}")


@zoo.command("build", epilog="Example: coralline zoo build mobilenet_v2 --out models")
def build(
    names: list[str] = typer.Argument(..., metavar="NAME...", help="Names from `zoo list`."),
    out: Path = typer.Option(Path(), "--out", "-o", help="Folder to write into."),
    input_size: int | None = typer.Option(
        None, "--input-size", min=1, help="Side of the input in pixels; the model's own without."
    ),
    seed: int = typer.Option(0, "--seed", min=0, help="Seed of weights and images."),
    io_type: str = typer.Option("int8", "--io-type", help="int8 or uint8."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Build models; one that was built before comes from the cache."""
    from rich.console import Console

    from training.zoo import build_model

    console = Console(stderr=True)
    paths = {}
    for name in names:
        with console.status(f"building {name}"):
            paths[name] = build_model(
                name,
                out,
                input_size=input_size,
                seed=seed,
                io_type=io_type,  # type: ignore[arg-type]  # build_model checks it
            )
        if not json:
            typer.echo(f"{paths[name]} ({paths[name].stat().st_size / 2**20:.1f} MiB)")
    if json:
        output.print_json({"models": {name: str(path) for name, path in paths.items()}})
