"""What a benchmark returns, how it is found, and how its result is kept and shown.

A benchmark is a module `benchmarks/bench_<name>.py` with

    def run(quick: bool) -> BenchResult

that times both sides of its comparison in the same call, so that no table compares numbers
from different moments or machines.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coralline.errors import UserError
from coralline.files import write_text

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = "coralline.benchmark/v1"
FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"

Cell = str | int | float | None


@dataclass(frozen=True)
class BenchResult:
    """One table, and the others of the same run if there are any.

    Attributes:
        title: What is compared.
        columns: Headers, with units.
        rows: One cell a column; None where there is nothing to say.
        note: How to read the table, and what it does not show.
        environment: What matters here beyond `machine()`: sizes, seeds, repetitions.
        more: Further tables.
        figures: SVG texts by name.
        records: What the tables were made from, one JSON object each; kept in the JSON alone.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    environment: Mapping[str, Cell] = field(default_factory=dict)
    more: tuple[BenchResult, ...] = ()
    figures: Mapping[str, str] = field(default_factory=dict)
    records: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: row {row} has not {len(self.columns)} cells")


def bench_names() -> tuple[str, ...]:
    """Names of the benchmarks in this folder."""
    return tuple(sorted(p.stem.removeprefix("bench_") for p in FOLDER.glob("bench_*.py")))


def load(name: str) -> Callable[[bool], BenchResult]:
    """The `run` of a benchmark.

    Raises:
        UserError: No benchmark has that name.
    """
    if name not in bench_names():
        raise UserError(
            f"benchmark {name!r} is not known; choose one of {', '.join(bench_names())}"
        )
    run: Callable[[bool], BenchResult] = import_module(f"benchmarks.bench_{name}").run
    return run


def machine() -> dict[str, Cell]:
    """The machine and the versions that a number in a table depends on."""
    import psutil

    versions: dict[str, Cell] = {}
    for package in ("coralline", "numpy", "ortools", "scipy", "ai-edge-litert", "mlflow"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
        **versions,
    }


def write(name: str, result: BenchResult, *, quick: bool, seconds: float, folder: Path) -> None:
    """Keep a result as `<name>.json` and `<name>.md` in `folder`, its figures beside them."""
    environment = {**machine(), **result.environment}
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    data = {
        "schema": SCHEMA,
        "name": name,
        "made_at": made_at,
        "quick": quick,
        "seconds": round(seconds, 2),
        **_table_json(result),
        "more": [_table_json(part) for part in result.more],
        "environment": environment,
        "records": result.records,
    }
    write_text(folder / f"{name}.json", json.dumps(data, indent=1, allow_nan=False) + "\n")
    lines = [f"# {result.title}", "", *_markdown_table(result)]
    for part in result.more:
        lines += ["", f"## {part.title}", "", *_markdown_table(part)]
    for figure, svg in result.figures.items():
        write_text(folder / f"{name}-{figure}.svg", svg)
        lines += ["", f"![{figure}]({name}-{figure}.svg)"]
    size = " Quick sizes." if quick else ""
    where = ", ".join(f"{key} {show(value)}" for key, value in environment.items())
    lines += ["", f"Measured {made_at} in {seconds:.1f} s.{size} {where}."]
    write_text(folder / f"{name}.md", "\n".join(lines) + "\n")


def table(result: BenchResult) -> Table:
    """The result for a terminal."""
    from rich import box
    from rich.table import Table

    shown = Table(title=result.title, title_justify="left", caption=result.note or None)
    shown.caption_justify = "left"
    shown.box = box.SIMPLE_HEAD
    for i, column in enumerate(result.columns):
        text = any(isinstance(row[i], str) for row in result.rows)
        shown.add_column(column, justify="left" if text else "right")
    for row in result.rows:
        shown.add_row(*map(show, row))
    return shown


def show(cell: Cell) -> str:
    """A cell for people: four significant digits, thousands apart."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _table_json(result: BenchResult) -> dict[str, Any]:
    return {name: getattr(result, name) for name in ("title", "columns", "rows", "note")}


def _markdown_table(result: BenchResult) -> list[str]:
    lines = [_markdown_row(result.columns), "|" + "---|" * len(result.columns)]
    lines += [_markdown_row([show(cell) for cell in row]) for row in result.rows]
    return [*lines, "", result.note] if result.note else lines


def _markdown_row(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
