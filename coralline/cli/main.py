"""The command line: finds the verbs, and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
from importlib.metadata import distribution

import typer

from coralline import __version__
from coralline.errors import CorallineError, UserError

app = typer.Typer(
    name="coralline",
    help="Plan, split, run and measure neural networks on small devices.",
    epilog="Example: coralline schedule model.tflite --stages 4 --device edgetpu-usb",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"coralline {__version__}")
        raise typer.Exit


@app.callback()
def coralline(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Root options."""


def _add_verbs() -> None:
    for entry in distribution("coralline").entry_points:
        if entry.group == "coralline.verbs":
            entry.load()(app)


def main() -> None:
    """Run the command line.

    Exits 2 on bad input with one line, 1 when a device or tool fails.
    """
    _add_verbs()
    try:
        app()
    except UserError as error:
        _say(error)
        sys.exit(2)
    except CorallineError as error:
        _say(error)
        # A plan that cannot exist is the asker's to change; a device that fails is not.
        sys.exit(2 if isinstance(error, ValueError) else 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _say(error: Exception) -> None:
    print("coralline: " + " ".join(str(error).split()), file=sys.stderr)
