"""What the verbs print and write."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coralline.files import write_text

if TYPE_CHECKING:
    from coralline.staging.deployment import Choice
    from coralline.staging.problem import Plan


def print_json(data: Mapping[str, Any]) -> None:
    """One JSON object on stdout, and nothing else."""
    sys.stdout.write(json.dumps(data, allow_nan=False) + "\n")


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """One JSON object in a file, whole or not at all."""
    write_text(path, json.dumps(data, allow_nan=False, indent=1) + "\n")


def stages(count: int) -> str:
    """1 stage, 2 stages."""
    return f"{count} stage" if count == 1 else f"{count} stages"


def print_plan(plan: Plan, saved: Path | None) -> None:
    """A plan as a table of its stages."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from coralline.devices.check import published_error
    from coralline.devices.model import MIB, device_names, load_devices

    def amount(value: float) -> str:
        return f"{value / MIB:.3f} MiB" if plan.unit == "bytes" else f"{value:.3f} {plan.unit}"

    console = Console()
    simulated = " (simulated device)" if plan.simulated else ""
    table = Table(
        title=f"{escape(plan.graph_name)}: {stages(plan.n_stages)} on {plan.device}{simulated}",
        title_justify="left",
    )
    # Short words: the table has to fit 80 columns with times above 1000 ms.
    for column in (
        *("stage", "operators", "params\nMiB", "compute\nms", "in\nms", "out\nms"),
        *("stream\nms", "total\nms"),
    ):
        table.add_column(column, justify="right", no_wrap=True)
    rows = plan.stages
    for s in range(plan.n_stages):
        times = [rows[f"{part}_ms"][s] for part in ("compute", "in", "out", "stream", "stage")]
        table.add_row(
            str(s),
            str(plan.stage.count(s)),
            f"{rows['param_bytes'][s] / MIB:.3f}",
            *(f"{ms:.3f}" for ms in times),
        )
    console.print(table)
    verdict = "proven optimal" if plan.proven_optimal else "not proven optimal"
    gap = "" if plan.gap is None else f", gap {100 * plan.gap:.2f} %"
    console.print(
        f"{plan.objective}: [bold]{amount(plan.value)}[/bold], lower bound "
        f"{amount(plan.lower_bound)}{gap}, {verdict}; planner {plan.planner}, "
        f"{plan.solve_seconds:.3f} s"
    )
    if plan.unit == "bytes":
        crossings = plan.stages["hop_weighted_crossings"]
        proven = ", the fewest at this memory" if plan.crossings_proven else ""
        console.print(f"hop-weighted crossings: {crossings}{proven}")
    if plan.host_operators:
        console.print(f"on the host ({plan.host}): {len(plan.host_operators)} operators")
    # A device file of the user's own has not been compared with anything.
    names = dict.fromkeys(plan.device.split(","))
    if set(names) <= set(device_names()) and plan.has_devices(load_devices(plan.device)):
        for name in names:
            console.print(published_error(name).label)
    if saved is not None:
        console.print(f"written to {saved}", markup=False)


def choice_json(choice: Choice) -> dict[str, Any]:
    """The best plan, with how often to run it, why, and the other options."""
    return {
        **choice.best.plan.to_json(),
        "replicas": choice.best.replicas,
        "reason": choice.reason,
        "options": [option.to_json() for option in choice.options],
    }


def print_choice(choice: Choice) -> None:
    """The numbers of stages that were compared, and why one is best."""
    from rich.console import Console
    from rich.table import Table

    from coralline.devices.model import MIB

    simulated = " (simulated)" if choice.best.plan.simulated else ""
    table = Table(title=f"Ways to use the accelerators{simulated}", title_justify="left")
    for column in ("stages", "replicas", "throughput\n1/s", "latency\nms", "streamed\nMiB"):
        table.add_column(column, justify="right", no_wrap=True)
    for option in choice.options:
        table.add_row(
            str(option.plan.n_stages),
            str(option.replicas),
            f"{option.throughput_fps:.1f}",
            f"{option.latency_ms:.2f}",
            f"{option.streamed_bytes / MIB:.2f}",
            style="bold" if option is choice.best else None,
        )
    console = Console()
    console.print(table)
    console.print(choice.reason + "\n")
