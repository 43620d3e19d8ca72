"""What TFLite's and LiteRT's benchmark programs print (google-ai-edge/LiteRT,
tflite/tools/benchmark, which both share)."""

from __future__ import annotations

import re
from typing import Any

from coralline.errors import DeviceError


def parse_latency(said: str) -> tuple[float, dict[str, float]]:
    """First inference and summary of the timed ones, both in ms, from the program's output.

    It prints a line of statistics, in microseconds, after the warm-up and one after the timed
    inferences; equal values are printed once (tensorflow/core/util/stats_calculator.h).

    Returns:
        The first warm-up inference, and `count`, `min`, `max`, `mean`, `std`, and where the
        program knows them `p5`, `p50`, `p95`.

    Raises:
        DeviceError: The output holds no such lines.
    """
    lines: list[dict[str, str]] = [
        dict(re.findall(r"(\w+)=([\d.e+-]+)", line)) for line in _statistics(said)
    ]
    if len(lines) < 2 or int(lines[-1]["count"]) < 1 or int(lines[0]["count"]) < 1:
        raise DeviceError(f"the benchmark program tells no latencies ({last_line(said)})")
    warmup, timed = lines[0], lines[-1]
    names = {"min": "min", "max": "max", "avg": "mean", "p5": "p5", "median": "p50", "p95": "p95"}
    if "min" in timed:
        found = {new: float(timed[old]) / 1e3 for old, new in names.items() if old in timed}
        found["std"] = float(timed["std"]) / 1e3
    else:
        found = dict.fromkeys(names.values(), float(timed["curr"]) / 1e3) | {"std": 0.0}
    first = float(warmup.get("first") or warmup["curr"]) / 1e3
    return first, {"count": float(timed["count"]), **found}


def _statistics(said: str) -> list[str]:
    # The profile ends with such a line too; it is not of inferences.
    return re.findall(r"^(?:[A-Z]+: )?(count=.*)$", said, re.MULTILINE)


def parse_delegates(said: str) -> list[dict[str, Any]]:
    """What the runtime logs of each delegate that took operators: `name`, `nodes`, `of`."""
    return [
        {"name": name, "nodes": int(nodes), "of": int(of)}
        for nodes, of, name in re.findall(
            r"Replacing (\d+) out of (\d+) node\(s\) with delegate \(([^)]*)\)", said
        )
    ]


def parse_asked(said: str) -> str | None:
    """How much the delegate asked for runs: `completely`, `partially`, `not`; None if untold."""
    if re.search(r"Explicitly applied .* delegate, and the model graph will be completely", said):
        return "completely"
    if re.search(r"Explicitly applied .* delegate, and the model graph will be partially", said):
        return "partially"
    if re.search(r"Though .* delegate is explicitly applied, the model graph will not", said):
        return "not"
    return None


def parse_profile(text: str) -> list[dict[str, Any]]:
    """Time of each operator from the CSV profile: `type`, `name`, `mean_ms`, `calls`.

    Operators in the order in which they ran. A type may hold commas; names hold none.
    """
    _, _, runs = text.partition("Operator-wise Profiling Info for Regular Benchmark Runs")
    _, _, table = runs.partition("Run Order")
    lines = table.splitlines()[1:]
    if not lines:
        return []
    columns = [column.strip() for column in lines[0].split(",")]
    if not {"node type", "avg_ms", "times called", "name"} <= set(columns):
        return []
    found = []
    for line in lines[1:]:
        cells = [cell.strip() for cell in line.split(",")]
        extra = len(cells) - len(columns)
        if extra < 0:
            break
        row = dict(zip(columns[1:], cells[extra + 1 :], strict=True))
        found.append(
            {
                "type": ", ".join(cells[: extra + 1]),
                "name": row["name"].strip('"'),
                "mean_ms": float(row["avg_ms"]),
                "calls": int(row["times called"]),
            }
        )
    return found


def parse_stamped(stamped: str) -> tuple[str, list[tuple[float, float, int]]]:
    """The output without the time that begins each line, and what the program did when.

    A line announces the inferences of the warm-up, and one those that are timed; either phase
    ends with its line of statistics (benchmark_model.cc, `BenchmarkModel::Run`).

    Returns:
        Begin, end and inferences of the two phases; none when it does not tell.
    """
    lines = [line.partition(" ") for line in stamped.splitlines()]
    phases, begin_s = [], None
    for at_s, _, line in lines:
        if "Running benchmark for at least" in line:
            begin_s = float(at_s)
        elif begin_s is not None and (told := re.match(r"(?:[A-Z]+: )?count=(\d+)", line)):
            phases.append((begin_s, float(at_s), int(told[1])))
            begin_s = None
    return "\n".join(line for _, _, line in lines), phases if len(phases) == 2 else []


def last_line(said: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
