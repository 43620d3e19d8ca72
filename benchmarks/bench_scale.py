"""How labelling and training grow with workers: one worker is one process on one core."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import psutil

from benchmarks.frame import BenchResult, Cell
from coralline.graph import synthetic
from coralline.graph.graph_set import write_graph_set

NODES, STAGES = 30, 4
MILLION, SHARD = 1_000_000, 10_000


def run(quick: bool) -> BenchResult:
    """Label the shards of one set, and train on them, with 1, 2, ... workers."""
    n_graphs, epochs = (40, 3) if quick else (2000, 5)
    cores = sorted(os.sched_getaffinity(0))
    counts = range(1, min(len(cores), 4) + 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graphs = folder / "graphs.jsonl"
        write_graph_set(graphs, synthetic.generate("respect", n_graphs, NODES, seed=0))
        # What is compiled at the first call is kept on the disk, and is no part of a shard.
        _labels(folder, "warm", 1, cores, limit=2)
        labelling = [_labels(folder, f"labels{n}", n, cores) for n in counts]
        training = [_training(folder, n, epochs, cores) for n in counts]
    return BenchResult(
        title=f"Labelling {n_graphs:,} graphs of {NODES} nodes for {STAGES} stages, exactly",
        columns=(
            "workers",
            "shards",
            "wall (s)",
            "CPU (s)",
            "graphs/s",
            "against 1 worker",
            "start of a shard (s)",
            "a million (h, computed)",
        ),
        rows=tuple(_labelling_row(n_graphs, found, labelling[0]) for found in labelling),
        note="A shard is a process of its own on a core of its own, as a pod is; its start "
        "(Python, planners, reading the set) is measured on a shard that is done, and is in the "
        "wall time. A million graphs: in shards of 10,000, at the measured start and rate.",
        environment={"cores": len(cores), "seed": 0},
        more=(
            BenchResult(
                title=f"Training on these graphs: {epochs} epochs",
                columns=("workers", "wall of an epoch (s)", "graphs/s", "against 1 worker"),
                rows=tuple(
                    (n, seconds, n_graphs / seconds, training[0] / seconds)
                    for n, seconds in zip(counts, training, strict=True)
                ),
                note="MultiWorkerMirroredStrategy on loopback, a process on a core each, which "
                "share every batch; the median epoch, validation included.",
            ),
        ),
    )


def _labelling_row(
    n_graphs: int, found: tuple[int, float, float, float], one: tuple[int, float, float, float]
) -> tuple[Cell, ...]:
    workers, wall, cpu, start = found
    graph_s = (wall - start) * workers / n_graphs
    rounds = math.ceil(MILLION / SHARD / workers)
    hours = rounds * (start + SHARD * graph_s) / 3600
    return (
        *(workers, workers, wall, cpu, n_graphs / wall),
        *(one[1] / wall, start, hours),
    )


def _labels(
    folder: Path, out: str, workers: int, cores: Sequence[int], limit: int | None = None
) -> tuple[int, float, float, float]:
    """Workers, wall and CPU seconds of all shards at once, and wall seconds of an empty shard."""
    graphs = folder / "graphs.jsonl"
    if limit is not None:
        graphs = folder / f"{out}.jsonl"
        lines = (folder / "graphs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        graphs.write_text("".join(lines[:limit]), encoding="utf-8")

    def command(shard: int, shards: int) -> list[str]:
        return [
            *("train", "label", "--graphs", str(graphs), "--out", str(folder / out / str(shards))),
            *("--stages", str(STAGES), "--workers", "1", "--json"),
            *("--shards", str(shards), "--shard", str(shard)),
        ]

    before = _children_cpu()
    wall = _together([command(shard, workers) for shard in range(workers)], cores)
    cpu = _children_cpu() - before
    # Labels that are there are kept: doing a shard again costs its start.
    start = _together([command(0, workers)], cores)
    return workers, wall, cpu, start


def _training(folder: Path, workers: int, epochs: int, cores: Sequence[int]) -> float:
    """Wall seconds of the median epoch."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(workers)]
    addresses = ["{}:{}".format(*one.getsockname()) for one in sockets]
    for one in sockets:
        one.close()
    environments = [
        {
            "TF_CONFIG": json.dumps(
                {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            )
        }
        for index in range(workers)
    ]
    out = folder / f"policy{workers}"
    command = [
        *("train", "run", "--graphs", str(folder / "graphs.jsonl")),
        *("--labels", str(folder / "labels1" / "1"), "--out", str(out), "--json"),
        *("--epochs", str(epochs), "--time-limit", "3600"),
    ]
    _together([command] * workers, cores, environments if workers > 1 else None)
    curve = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["curve"]
    ends = [epoch["seconds"] for epoch in curve]
    return float(np.median(np.diff(ends)))


def _together(
    commands: Sequence[Sequence[str]],
    cores: Sequence[int],
    environments: Sequence[dict[str, str]] | None = None,
) -> float:
    """Wall seconds of command lines of `coralline` that run at once, each on a core of its own."""
    begun = perf_counter()
    processes = []
    for i, command in enumerate(commands):
        environment = os.environ | (environments[i] if environments else {})
        process = subprocess.Popen(
            [Path(sys.executable).with_name("coralline"), *command],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        psutil.Process(process.pid).cpu_affinity([cores[i]])
        processes.append(process)
    if sum(process.wait() for process in processes):
        raise RuntimeError("a worker failed")
    return perf_counter() - begun


def _children_cpu() -> float:
    times = os.times()
    return times.children_user + times.children_system
