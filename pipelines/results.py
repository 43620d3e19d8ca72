"""Reading and printing what a pipeline run found."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from coralline.errors import read_text


def read_results(table: Path, folder: Path) -> dict[str, Any]:
    """The results of a run, with its report copied to where a person finds it.

    Args:
        table: The results file that the pipeline returned.
        folder: Of the run.
    """
    results: dict[str, Any] = json.loads(read_text(table, "a results file"))
    from components.reporting import tracking_database
    from components.tracking import tracking_uri

    report = folder / "report.html"
    shutil.copyfile(results["report"], report)
    uri = tracking_uri(tracking_database())
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
    from rich.table import Table

    console = Console()
    simulated = " (simulated device)" if any(r["simulated"] for r in results["rows"]) else ""
    plans = Table(title=f"Plans{simulated}", title_justify="left")
    plans.add_column("model")
    for column in ("K", "planner"):
        plans.add_column(column)
    for column in (
        "bottleneck\nms",
        "lower bound\nms",
        "gap\n%",
        "peak params\nMiB",
        "solve\ns",
    ):
        plans.add_column(column, justify="right")
    previous = None
    for row in results["rows"]:
        group = (row["model"], row["stages"])
        if previous is not None and group != previous:
            plans.add_section()
        previous = group
        gap = "-" if row["gap"] is None else f"{100 * row['gap']:.2f}"
        plans.add_row(
            row["model"],
            str(row["stages"]),
            row["planner"] + (" *" if row["proven_optimal"] else ""),
            f"{row['bottleneck_ms']:.3f}",
            f"{row['lower_bound']:.3f}",
            gap,
            f"{row['peak_param_bytes'] / 2**20:.3f}",
            f"{row['solve_seconds']:.3f}",
        )
    plans.caption = "* proven optimal for the device model"
    console.print(plans)
    for board in sorted({b["board"] for row in results["rows"] for b in row["boards"]}):
        console.print(_board_table(results["rows"], board))
    for device, error in results["simulator_errors"].items():
        console.print(
            f"The simulated {device} is {100 * error['median_error']:.0f} % from "
            f"{error['figures']} published figures, in the median (coralline devices check)."
        )
    console.print(f"MLflow data: {results['tracking_uri']}")
    console.print(f"look at it with: [bold]{results['mlflow_command']}[/bold]", soft_wrap=True)
    console.print(f"report: [bold]{results['report']}[/bold]", soft_wrap=True)


def _board_table(rows: list[dict[str, Any]], board: str) -> Any:
    from rich.table import Table

    found = [(row, b) for row in rows for b in row["boards"] if b["board"] == board]
    simulated = found[0][1]["simulated"]
    table = Table(
        title=f"{'Simulated' if simulated else 'Measured'} on {board}", title_justify="left"
    )
    for column in ("model", "K", "planner"):
        table.add_column(column)
    for column in ("p50\nms", "p90\nms", "p99\nms", "throughput\n1/s", "energy\nmJ"):
        table.add_column(column, justify="right")
    previous = None
    for row, b in found:
        group = (row["model"], row["stages"])
        if previous is not None and group != previous:
            table.add_section()
        previous = group
        energy = b["energy_mj_per_inference"]
        table.add_row(
            row["model"],
            str(row["stages"]),
            row["planner"],
            f"{b['latency_p50_ms']:.2f}",
            f"{b['latency_p90_ms']:.2f}",
            f"{b['latency_p99_ms']:.2f}",
            f"{b['throughput_fps']:.1f}",
            "-" if energy is None else f"{energy:.1f}",
        )
    return table
