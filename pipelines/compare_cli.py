"""`coralline compare`: executions in MLflow, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer

_SHOWN_CHANGES = 20


def add(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("compare", epilog="Example: coralline compare latest~1 latest")(compare)


def compare(
    runs: list[str] = typer.Argument(
        ..., metavar="RUN RUN...", help="latest, latest~1, or the id or name of a run in MLflow."
    ),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Say which plan is fastest, what got slower than in the first run, and how far from optimal.

    The store is the server that $MLFLOW_TRACKING_URI names, or else the local file.
    """
    from components.comparing import compare_runs
    from components.tracking import tracking_uri
    from coralline.cli import output

    found = compare_runs(tracking_uri(), runs)
    if json:
        output.print_json(found)
    else:
        _print(found)


def _print(found: Mapping[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    letters = [chr(ord("A") + i) for i in range(len(found["runs"]))]
    for letter, run in zip(letters, found["runs"], strict=True):
        console.print(
            f"{letter}: {run['name']}, {run['started_at']}, code {run['code_version']}, "
            f"run {run['id']}",
            highlight=False,
            soft_wrap=True,
        )
    console.print()
    _table(
        console,
        "Fastest plan",
        ["board", "model/stages", *(f"{letter}: best plan, 1/s" for letter in letters)],
        [
            [
                _board(row["board"], any(best and best["simulated"] for best in row["runs"])),
                f"{row['model']}/{row['stages']}",
                *(
                    "-"
                    if best is None
                    else f"{best['planner']} {best['throughput_fps']:.1f}"
                    + (" *" if i == row["fastest_run"] else "")
                    for i, best in enumerate(row["runs"])
                ),
            ]
            for row in found["fastest"]
        ],
        "* fastest of the runs",
    )
    _print_changes(console, found["changes"], letters)
    _table(
        console,
        "Distance from the optimum, at most, %",
        ["model/stages/planner", *letters],
        [
            [f"{row['model']}/{row['stages']}/{row['planner']}", *map(_percent, row["gaps"])]
            for row in found["gaps"]
        ],
    )
    _table(
        console,
        "What differs",
        ["name", *letters],
        [[row["name"], *(value or "-" for value in row["values"])] for row in found["differences"]],
    )


def _print_changes(console: Any, changes: Sequence[Mapping[str, Any]], letters: list[str]) -> None:
    moved = [row for row in changes if row["verdict"] in ("slower", "faster")]
    moved.sort(key=lambda row: -row["ratio"])
    _table(
        console,
        "Median latency, against A",
        ["run", "board", "plan", "A ms", "now ms", "times as long", ""],
        [
            [
                letters[row["run"]],
                _board(row["board"], row["simulated"]),
                f"{row['model']}/{row['stages']}/{row['planner']}",
                f"{row['before_ms']:.3f}",
                f"{row['after_ms']:.3f}",
                f"{row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})",
                row["verdict"],
            ]
            for row in moved[:_SHOWN_CHANGES]
        ],
        f"{len(moved)} of {len(changes)} moved by more than 2 % and beyond their 95 % intervals, "
        f"which hold for the samples of a run; from run to run a board's mood adds to them"
        + (f"; {_SHOWN_CHANGES} are shown, --json has all" if len(moved) > _SHOWN_CHANGES else ""),
    )


def _table(
    console: Any, title: str, columns: list[str], rows: list[list[str]], caption: str = ""
) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table if rows else f"{title}: nothing to show. {caption}")
    console.print()


def _board(name: str, simulated: bool) -> str:
    return f"{name} (simulated)" if simulated else name


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
