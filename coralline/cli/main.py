"""The command line: finds the verbs, and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib.metadata import distribution

import typer
from typer.exceptions import TyperException

from coralline import __version__
from coralline.errors import CorallineError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell gives it."""

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


@cache
def _add_verbs() -> None:
    for entry in distribution("coralline").entry_points:
        if entry.group == "coralline.verbs":
            entry.load()(app)


def main() -> None:
    """Run the command line.

    Exits 2 on bad input with one line, 1 when a device or tool fails.
    """
    try:
        _add_verbs()
        code = app(prog_name="coralline", standalone_mode=False)
        sys.stdout.flush()
    except TyperException as error:
        code = _usage(error)
    except CorallineError as error:
        _say(str(error))
        # A plan that cannot exist is the asker's to change; a device that fails is not.
        code = 2 if isinstance(error, ValueError) else 1
    except BrokenPipeError:
        code = 1
        _drop_output()
    except OSError as error:
        code = 1
        where = error.filename or "standard output"
        _say(f"{where}: {error.strerror}; free space or choose another place")
        _drop_output()
    except MemoryError:
        code = 1
        _say("the memory does not suffice; ask for less at once")
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        _say("interrupted")
    sys.exit(code)


def _usage(error: TyperException) -> int:
    said = error.format_message().strip().rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "coralline"
    if said:  # else a verb that needs another was given alone, and its help is printed
        _say(f"{said}; `{command} --help` shows how")
    return error.exit_code


def _say(text: str) -> None:
    print("coralline: " + " ".join(text.split()), file=sys.stderr)


def _drop_output() -> None:
    # What is left in the buffer can go nowhere, and must not fail again at the end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
