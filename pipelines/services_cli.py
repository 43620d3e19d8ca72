"""`coralline up` and `coralline down`: the servers that pipelines use, on this machine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import typer

_FOLDER = typer.Option(
    None, "--folder", envvar="CORALLINE_SERVICES", help="Keeps all; else ~/.local/share/coralline."
)
_JSON = typer.Option(False, "--json", help="Print one JSON object.")


def add(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("up", epilog='Example: eval "$(coralline up --env)"')(up)
    app.command("down", epilog="Example: coralline down")(down)


def up(
    env: bool = typer.Option(False, "--env", help="Print what a shell must export, alone."),
    mlflow_port: int | None = typer.Option(
        None, "--mlflow-port", min=1, max=65535, help="Else 5000, or the last."
    ),
    s3_port: int | None = typer.Option(
        None, "--s3-port", min=1, max=65535, help="Else 8441, or the last."
    ),
    lab_port: int | None = typer.Option(
        None, "--lab-port", min=1, max=65535, help="Else 8440, or the last."
    ),
    database: str | None = typer.Option(
        None, "--database", help="postgresql+psycopg://... for MLflow; else an SQLite file."
    ),
    inventory: Path | None = typer.Option(
        None, "--inventory", help="Boards of the runner; else those in the package, or the last."
    ),
    folder: Path | None = _FOLDER,
    json: bool = _JSON,
) -> None:
    """Start MLflow, its S3 store, a lab's service and runner here, or what of them is missing.

    Run again, it changes nothing that runs as it should.
    """
    from coralline.cli import output
    from pipelines import services

    where = folder or services.services_folder()
    settings = services.read_settings(
        where,
        mlflow_port=mlflow_port,
        s3_port=s3_port,
        lab_port=lab_port,
        database=database,
        inventory=inventory and str(inventory.resolve()),
    )

    def tell(name: str) -> None:
        if not json:
            print(f"starting {name}", file=sys.stderr)

    found = services.up(where, settings, tell)
    exports = services.client_environment(settings)
    lines = [f"export {name}={shlex.quote(value)}" for name, value in exports.items()]
    if json:
        rows = [
            {"name": s.name, "url": s.url, "change": s.change, "pid": s.pid, "log": str(s.log)}
            for s in found
        ]
        output.print_json({"folder": str(where), "services": rows, "environment": exports})
        return
    if not env:
        for status in found:
            print(f"{status.name:7} {status.change:9} {status.url}   log: {status.log}")
        print(f"credentials of s3: {where / 's3' / 'keys.json'}")
        place = f" --folder {shlex.quote(str(folder))}" if folder else ""
        print(f'to use them: eval "$(coralline up{place} --env)", which says')
    print("\n".join(lines))


def down(folder: Path | None = _FOLDER, json: bool = _JSON) -> None:
    """End what `coralline up` started; what it kept stays."""
    from coralline.cli import output
    from pipelines import services

    ended = services.down(folder or services.services_folder())
    if json:
        output.print_json({"ended": ended})
    else:
        print(f"ended: {', '.join(ended)}" if ended else "nothing ran")
