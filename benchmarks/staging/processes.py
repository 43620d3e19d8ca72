"""`coralline schedule` as a process of its own: what starting it costs, and its memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.staging.measure import Journal
from benchmarks.staging.sets import DEVICE, SEED, Size
from coralline.errors import DeviceError
from coralline.graph import synthetic
from coralline.graph.compute_graph import ComputeGraph
from coralline.graph.json_format import write_json

SCALED = ("topo-dp", "policy", "auto", "exact")
"""Planners whose growth is measured."""

SCALED_FAMILY = "cell"
SCALED_LIMIT_S = 5.0
STAGES = 4


@dataclass(frozen=True)
class Started:
    """One process.

    Attributes:
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
            environment = {**os.environ, "NUMBA_CACHE_DIR": str(Path(folder) / planner)}

            def measured(planner: str = planner, env: Mapping[str, str] = environment) -> list:
                cold = _schedule(path, planner, 60.0, env, cold=True)
                runs = [_schedule(path, planner, 60.0, env) for _ in range(size.process_runs)]
                middle = median(run.wall_s for run in runs)
                warm = min(runs, key=lambda run: abs(run.wall_s - middle))
                return [asdict(cold), asdict(warm)]

            key = f"start {planner} {graph.digest}"
            found += [Started(**one) for one in journal.keep(key, measured)]
    return found


def scaling(size: Size, journal: Journal) -> list[Started]:
    """Time and memory of a planner on ever larger graphs of one family."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for nodes in size.scaling:
            graph = synthetic.generate(SCALED_FAMILY, 1, nodes, SEED)[0]
            path = Path(folder) / "graph.json"
            write_json(graph, path)
            for planner in SCALED:
                print(f"        {planner} on {nodes:,} nodes", file=sys.stderr)
                run = journal.keep(
                    f"scaling {planner} {graph.digest}",
                    lambda p=planner, g=path: asdict(_schedule(g, p, SCALED_LIMIT_S, os.environ)),
                )
                found.append(Started(**run))
    return found


def _schedule(
    graph: Path, planner: str, limit_s: float, env: Mapping[str, str], *, cold: bool = False
) -> Started:
    command = [str(Path(sys.executable).with_name("coralline")), "schedule", str(graph)]
    command += ["--stages", str(STAGES), "--device", DEVICE, "--planner", planner]
    command += ["--time-limit", str(limit_s), "--json"]
    with tempfile.TemporaryFile() as said:
        start = perf_counter()
        process = subprocess.Popen(command, stdout=said, env=dict(env))
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
        cold=cold,
        wall_s=wall_s,
        solve_s=plan["solve_seconds"],
        memory_mib=usage.ru_maxrss / 1024,
        value=plan["value"],
        gap=plan["gap"],
        proven=plan["proven_optimal"],
    )
