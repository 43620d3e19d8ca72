"""Reading and printing what a pipeline run found."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.nightly import SCHEMA as NIGHTLY
from coralline.devices.model import MIB
from coralline.errors import read_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Row = dict[str, Any]


def read_results(table: Path, folder: Path) -> dict[str, Any]:
    """The results of a run, with its report copied to where a person finds it.

    Args:
        table: The results file that the pipeline returned.
        folder: Of the run.
    """
    from components.tracking import tracking_uri

    results: dict[str, Any] = json.loads(read_text(table, "a results file"))
    report = folder / "report.html"
    shutil.copyfile(results["report"], report)
    uri = tracking_uri()
    command = f"{sys.executable} -m mlflow ui --backend-store-uri {uri}"
    return {
        **results,
        "report": str(report),
        "run_folder": str(folder),
        "tracking_uri": uri,
        "mlflow_command": f"open {uri}" if uri.startswith("http") else command,
    }


def print_results(results: dict[str, Any]) -> None:
    """Tables for a person: what was planned, what was measured, where the rest lies."""
    from rich.console import Console

    console = Console()
    if results["schema"] == NIGHTLY:
        from hardware_lab.show import print_trends

        print_trends(results["trends"])
    else:
        _print_rows(console, results)
    console.print(f"MLflow data: {results['tracking_uri']}", soft_wrap=True)
    console.print(f"look at it with: [bold]{results['mlflow_command']}[/bold]", soft_wrap=True)
    console.print(f"report: [bold]{results['report']}[/bold]", soft_wrap=True)


def _print_rows(console: Console, results: dict[str, Any]) -> None:
    console.print(_plan_table(results["rows"]))
    for board in sorted({b["board"] for row in results["rows"] for b in row["boards"]}):
        console.print(_board_table(results["rows"], board))
    for label in results["simulators"]:
        console.print(label)


def _plan_table(rows: list[Row]) -> Table:
    simulated = ", on a simulated device" if any(row["simulated"] for row in rows) else ""
    table = _table(
        f"Plans{simulated}",
        ["bottleneck\nms", "bound\nms", "gap\n%", "peak params\nMiB", "solve\ns"],
    )
    for title, group in _groups(rows):
        table.add_row(title)
        for row in group:
            gap = "-" if row["gap"] is None else f"{100 * row['gap']:.2f}"
            table.add_row(
                f"  {row['planner']}{' *' if row['proven_optimal'] else ''}",
                f"{row['bottleneck_ms']:.3f}",
                f"{row['lower_bound']:.3f}",
                gap,
                f"{row['peak_param_bytes'] / MIB:.3f}",
                f"{row['solve_seconds']:.3f}",
            )
        table.add_section()
    table.caption = "* proven optimal for the device model"
    return table


def _board_table(rows: list[Row], board: str) -> Table:
    found = [{**row, "on": on} for row in rows for on in row["boards"] if on["board"] == board]
    kind = "Simulated" if found[0]["on"]["simulated"] else "Measured"
    # A ratio of the simulator to itself says nothing.
    measured = not found[0]["on"]["simulated"]
    table = _table(
        f"{kind} on {board}",
        [
            "p50\nms",
            "p90\nms",
            "p99\nms",
            "throughput\n1/s",
            "predicted /\nmeasured" if measured else "energy\nmJ",
        ],
    )
    for title, group in _groups(found):
        table.add_row(title)
        for row in group:
            on = row["on"]
            last = on["predicted_over_measured"] if measured else on["energy_mj_per_inference"]
            table.add_row(
                f"  {row['planner']}",
                f"{on['latency_p50_ms']:.2f}",
                f"{on['latency_p90_ms']:.2f}",
                f"{on['latency_p99_ms']:.2f}",
                f"{on['throughput_fps']:.1f}",
                "-" if last is None else f"{last:.2f}",
            )
        table.add_section()
    return table


def _table(title: str, columns: list[str]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("planner", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _groups(rows: list[Row]) -> Iterator[tuple[str, list[Row]]]:
    from rich.markup import escape

    for (model, stages), group in groupby(rows, key=lambda row: (row["model"], row["stages"])):
        yield f"[bold]{escape(model)}, {stages} stages[/bold]", list(group)
