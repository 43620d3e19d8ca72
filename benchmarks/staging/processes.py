"""`coralline schedule` as a process of its own: what starting it costs, and its memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.staging.measure import REPEATED_S, Journal
from benchmarks.staging.sets import DEVICE, SEED, Size
from coralline.errors import DeviceError
from coralline.graph import synthetic
from coralline.graph.compute_graph import ComputeGraph
from coralline.graph.json_format import write_json

SCALED = ("topo-dp", "policy", "auto", "exact")
"""Planners whose growth is measured."""

SCALED_FAMILY = "cell"
LIMIT_S = 5.0
STAGES = 4


@dataclass(frozen=True)
class Started:
    """One process.

    Attributes:
        cold: Whether its compilation cache was empty.
        wall_s: From its start to its end.
        solve_s: What the planner took of that.
        memory_mib: The most memory that it held.
    """

    graph: str
    nodes: int
    planner: str
    cold: bool
    wall_s: float
    solve_s: float
    memory_mib: float
    value: float
    gap: float | None
    proven: bool


def starts(size: Size, graph: ComputeGraph, journal: Journal) -> list[Started]:
    """Each planner on one graph: with an empty compilation cache, then with a full one."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.json"
        write_json(graph, path)
        for planner in size.started:
            print(f"        start of {planner}", file=sys.stderr)

            def measured(planner: str = planner) -> list[dict[str, Any]]:
                environment = {**os.environ, "NUMBA_CACHE_DIR": str(Path(folder) / planner)}
                cold = _schedule(path, planner, environment)
                warm = [_schedule(path, planner, environment) for _ in range(size.process_runs)]
                warm.sort(key=lambda run: run.wall_s)
                return [asdict(replace(cold, cold=True)), asdict(warm[len(warm) // 2])]

            kept = journal.keep(f"start {planner} {graph.digest}", measured)
            found += [Started(**one) for one in kept]
    return found


def scaling(size: Size, journal: Journal) -> list[Started]:
    """Time and memory of a planner on ever larger graphs of one family."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.json"
        for nodes in size.scaling:
            graph = synthetic.generate(SCALED_FAMILY, 1, nodes, SEED)[0]
            write_json(graph, path)
            for planner in SCALED:
                print(f"        {planner} on {nodes:,} nodes", file=sys.stderr)

                def measured(planner: str = planner) -> dict[str, Any]:
                    runs = [_schedule(path, planner)]
                    if runs[0].solve_s < REPEATED_S:
                        runs += [_schedule(path, planner) for _ in range(size.process_runs - 1)]
                    runs.sort(key=lambda run: run.solve_s)
                    return asdict(runs[len(runs) // 2])

                kept = journal.keep(f"scaling {planner} {graph.digest}", measured)
                found.append(Started(**kept))
    return found


def _schedule(graph: Path, planner: str, environment: Mapping[str, str] = os.environ) -> Started:
    command = [str(Path(sys.executable).with_name("coralline")), "schedule", str(graph)]
    command += ["--stages", str(STAGES), "--device", DEVICE, "--planner", planner]
    command += ["--time-limit", str(LIMIT_S), "--json"]
    with tempfile.TemporaryFile() as said:
        start = perf_counter()
        process = subprocess.Popen(command, stdout=said, env=dict(environment))
        # wait4 alone tells how much memory this child held.
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise DeviceError(f"{' '.join(command)} failed; see above")
        said.seek(0)
        plan = json.load(said)
    return Started(
        graph=plan["graph_name"],
        nodes=len(plan["stage"]),
        planner=planner,
        cold=False,
        wall_s=wall_s,
        solve_s=plan["solve_seconds"],
        memory_mib=usage.ru_maxrss / 1024,
        value=plan["value"],
        gap=plan["gap"],
        proven=plan["proven_optimal"],
    )
