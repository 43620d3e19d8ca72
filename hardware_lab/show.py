"""How the lab's results are shown on a terminal, and written to files."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coralline.cli import output

if TYPE_CHECKING:
    from coralline.runtime.energy import EnergyRecord
    from coralline.runtime.measurement import Measurement
    from hardware_lab.artifacts import Files
    from hardware_lab.compare import Comparison
    from hardware_lab.lab import Lab


def write_result(out: Path, result: Measurement | Comparison) -> None:
    """The result as JSON, and beside it the raw samples as Parquet: of a comparison, two files."""
    from hardware_lab.compare import write_all_samples

    output.write_json(out, result.to_json())
    write_all_samples(result, out.with_suffix(".parquet"))


def write_files(out: Path, store: Lab, job_id: str) -> None:
    """What a result comes with beside its samples, beside `out`: power.parquet as
    OUT.power.parquet."""
    from hardware_lab.artifacts.download import download

    files = store.files(job_id)
    for name, file in files.kept.items():
        if not name.startswith("samples."):
            download(store.artifacts, file.ref, out.with_suffix(f".{name.replace('/', '.')}"))
    if files.not_stored is not None:
        print(f"raw files are not stored: {files.not_stored}", file=sys.stderr)


def print_files(files: Files) -> None:
    """The raw files of a result."""
    if files.kept:
        print_table(
            ["raw file", "bytes", "artifact"],
            [[name, str(file.size_bytes), file.ref] for name, file in files.kept.items()],
        )
    if files.not_stored is not None:
        print(f"raw files are not stored: {files.not_stored}")


def print_result(result: Measurement | Comparison) -> None:
    """A table for people."""
    from coralline.runtime.measurement import Measurement

    if isinstance(result, Measurement):
        print_measurement(result)
    else:
        print_comparison(result)


def print_comparison(found: Comparison) -> None:
    """The ratios of two plans measured in turns, and what either measured."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(soft_wrap=True)
    a, b = found.a, found.b
    said = "simulated" if a.simulated else "measured"
    console.print(
        f"[bold]A[/bold] {escape(_plan(a))}, [bold]B[/bold] {escape(_plan(b))}, on {a.board} "
        f"([bold]{said}[/bold]; {escape(a.processor)}), {found.blocks} blocks of A B B A"
    )
    together = a.summary(), b.summary()
    rows = []
    for name, ratio in found.ratios.items():
        values = (f"{values[name]:.3f}" if name in values else "" for values in together)
        differs = "no" if ratio.low <= 1 <= ratio.high else "yes"
        numbers = (f"{number:.3f}" for number in (ratio.value, ratio.low, ratio.high))
        rows.append([_metric(name), *values, *numbers, differs])
    print_table([said, "A", "B", "B/A", "95 % from", "to", "differs"], rows)
    for name, part in (("A", a), ("B", b)):
        for mark in part.marks:
            console.print(f"[yellow]{name}: {escape(mark)}[/yellow]")
    console.print(f"job {a.id}")


def _metric(name: str) -> str:
    """One of `Measurement.summary` in few words, so that a row fits 80 columns."""
    units = {
        "throughput_fps": "throughput, 1/s",
        "energy_mj_per_inference": "energy, mJ",
        "energy_net_mj_per_inference": "net energy, mJ",
    }
    shown = name.removeprefix("latency_").removeprefix("measured_").removesuffix("_ms")
    return units.get(name, f"{shown.replace('_', ' ')}, ms")


def _plan(m: Measurement) -> str:
    stages = output.stages(len(m.stage_busy_ms))
    return f"{m.model} in {stages} by {m.plan.get('planner', 'no planner')}"


def print_measurement(m: Measurement) -> None:
    """Latencies with their certainty, stages, and what speaks against the numbers."""
    from rich.console import Console
    from rich.markup import escape

    said = "simulated" if m.simulated else "measured"
    console = Console(soft_wrap=True)
    console.print(
        f"[bold]{escape(m.model)}[/bold], {output.stages(len(m.stage_busy_ms))} on {m.board} "
        f"([bold]{said}[/bold]; {m.processor})"
    )
    if m.latency_reported_ms is None:
        _print_samples(m, said)
    else:
        _print_reported(m.latency_reported_ms, said)
    if m.energy is not None:
        _print_energy(m.energy)
    elif m.energy_mj_per_inference is not None:
        console.print(f"energy {m.energy_mj_per_inference:.3f} mJ per inference (simulated)")
    elif "meter_failure" not in m.environment:
        console.print("energy not known: no meter")
    if m.outputs_equal:
        console.print("every output that was checked has the whole model's bits")
    for mark in m.marks:
        console.print(f"[yellow]{escape(mark)}[/yellow]")
    console.print(f"job {m.id}")


def _print_energy(energy: EnergyRecord) -> None:
    from rich.console import Console
    from rich.markup import escape

    def cell(value: float, uncertainty: Mapping[str, float | None]) -> str:
        total = uncertainty["total"]
        return f"{value:.4g}" if total is None else f"{value:.4g} ± {total:.2g}"

    print_table(
        ["energy, mJ per inference", "gross", "net", "mean W", "s", "inferences"],
        [
            [
                {"alone": "one alone", "full": "pipeline full"}[name],
                cell(spent.gross_mj, spent.gross_uncertainty_mj),
                cell(spent.net_mj, spent.net_uncertainty_mj),
                f"{spent.power_w:.4g}",
                f"{spent.seconds:.1f}",
                str(spent.inferences),
            ]
            for name, spent in energy.windows.items()
        ],
    )
    meter = energy.meter
    Console(soft_wrap=True).print(
        f"meter {escape(meter.name)} ({escape(meter.device)}) at {meter.at}; idle draws "
        f"{energy.idle_w:.4g} W"
    )


def _print_reported(reported: Mapping[str, float], said: str) -> None:
    from rich.console import Console

    names = [name for name in reported if name != "count"]
    print_table([f"{said}, ms", *names], [["one alone", *(f"{reported[n]:.3f}" for n in names)]])
    Console(soft_wrap=True).print(
        f"the board's program reports this of {reported['count']:.0f} inferences, and no samples"
    )


def _print_samples(m: Measurement, said: str) -> None:
    import numpy as np
    from rich.console import Console

    told = m.statistics()
    alone, full = (
        dict(zip(("min", "max", "mean"), (min(x), max(x), float(np.mean(x))), strict=True))
        | {f"p{percent}": float(np.percentile(x, percent)) for percent in (50, 90, 99)}
        for x in (m.latency_ms, m.full_latency_ms)
    )
    rows = []
    for name in ("min", "p50", "p90", "p99", "max", "mean"):
        surely = told.get(name, {})
        bounds = [surely.get(key) for key in ("low", "high", "at_most")]
        cells = ["" if bound is None else f"{bound:.3f}" for bound in bounds]
        rows.append([name, f"{alone[name]:.3f}", *cells, f"{full[name]:.3f}"])
    print_table([f"{said}, ms", "alone", "95 % from", "to", "99 % below", "full"], rows)
    stages = zip(m.stage_busy_ms, m.transfer_ms, m.queue_wait_ms, strict=True)
    print_table(
        [f"stage ({said}, median ms)", "busy", "transfer", "queue wait"],
        [[str(s), *(f"{np.median(part):.3f}" for part in parts)] for s, parts in enumerate(stages)],
    )
    Console(soft_wrap=True).print(
        f"{len(m.latency_ms)} samples each, throughput {m.throughput_fps:.1f} inferences/s, "
        f"first inference {m.first_inference_ms:.3f} ms, bottleneck "
        f"{m.measured_bottleneck_ms:.3f} ms ({said})"
    )


def print_trends(trends: Sequence[Mapping[str, Any]]) -> None:
    """The latest night of each series, and what is to be said of it.

    Args:
        trends: `coralline.trend/v1` objects.
    """
    from rich.console import Console
    from rich.markup import escape

    from hardware_lab.trend_page import sentence

    console = Console(soft_wrap=True)
    for trend in trends:
        colour = "red" if trend["red"] else "green"
        console.print(
            f"[{colour}]{trend['verdict']:9}[/{colour}] [bold]{escape(trend['series'])}[/bold] "
            f"(night {len(trend['nights'])}): {escape(sentence(trend))}"
        )
        for line in trend.get("commits", ()):
            console.print(f"          {escape(line)}")


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """A table; columns of numbers are set to the right."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        numbers = bool(rows) and all(row[i].replace(".", "", 1).isdigit() for row in rows)
        # The first names the row: cut short it would be of no use.
        whole = max((len(row[i]) for row in rows), default=0) if i == 0 else None
        table.add_column(column, justify="right" if numbers else "left", min_width=whole)
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)
