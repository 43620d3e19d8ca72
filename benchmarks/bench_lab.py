"""The lab's queue under load: simulated boards that answer at once, so that the queue is what
is timed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.frame import BenchResult, Cell
from benchmarks.postgresql_server import PostgresqlServer, binaries
from coralline.runtime.child import Stop, never
from coralline.runtime.measurement import Measurement
from hardware_lab.boards import Task
from hardware_lab.inventory import Demand, Inventory
from hardware_lab.jobs import Job, JobOptions
from hardware_lab.store import Store

LIMIT_S = 1800.0
SAMPLES = tuple(1.0 + 0.01 * i for i in range(100))
ANSWER = Measurement(
    id="",
    model="simulated",
    model_digest="",
    plan={},
    board="",
    board_kind="simulated",
    simulated=True,
    processor="simulated",
    meter=None,
    started_at="",
    warmup=0,
    first_inference_ms=1.0,
    latency_ms=SAMPLES,
    full_latency_ms=SAMPLES,
    wall_s=1.0,
    stage_busy_ms=(SAMPLES,),
    queue_wait_ms=(SAMPLES,),
    transfer_ms=(SAMPLES,),
    energy_mj_per_inference=None,
    outputs_equal=None,
    environment={},
)


@dataclass(frozen=True)
class InstantBoard:
    """Simulated; has measured before it is asked."""

    name: str

    kind = "simulated"

    @property
    def resource(self) -> str:
        return f"simulated-{self.name}"

    def check(self, stop: Stop = never) -> str:
        return "simulated"

    def measure(self, task: Task, on_progress: object = None) -> Measurement:
        return replace(ANSWER, id=task.id, board=self.name)


def run(quick: bool) -> BenchResult:
    """Fill and drain the queue with each kind of database."""
    n_boards, n_runners, n_jobs = (20, 4, 200) if quick else (200, 20, 10_000)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CORALLINE_ARTIFACTS"] = f"{folder}/artifacts"
        rows.append(("SQLite", *_load(f"{folder}/lab", folder, n_boards, n_runners, n_jobs)))
        if (found := binaries()) is not None:
            with _server(found) as url:
                rows.append(("PostgreSQL", *_load(url, folder, n_boards, n_runners, n_jobs)))
    return BenchResult(
        title=f"The lab's queue: {n_jobs:,} jobs, {n_boards} simulated boards, {n_runners} runners",
        columns=(
            "database",
            "jobs/s",
            "submit p50 (ms)",
            "submit p99 (ms)",
            "wait p50 (s)",
            "runner at 10 % (MiB)",
            "runner at the end (MiB)",
            "measured twice",
            "boards driven by two",
        ),
        rows=tuple(rows),
        note="One process submits while the runners, processes of this machine too, drain the "
        "queue; half of the jobs name a board, half ask for tags. jobs/s from the first submission "
        "to the last end. Memory: the largest runner, after a tenth of the jobs and after all.",
        environment={"boards": n_boards, "runners": n_runners, "jobs": n_jobs},
    )


def _load(where: str, folder: str, n_boards: int, n_runners: int, n_jobs: int) -> tuple[Cell, ...]:
    import psutil

    model = Path(folder) / "model.tflite"
    model.write_bytes(b"not read by a simulated board")
    store = Store(where)
    rng = np.random.default_rng(1)
    command = [sys.executable, "-m", "benchmarks.bench_lab", where]
    shares = np.array_split(np.arange(n_boards), n_runners)
    runners = [
        subprocess.Popen(
            [*command, *map(str, share)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for share in shares
    ]
    for runner in runners:
        assert runner.stdout is not None
        runner.stdout.readline()  # it is ready

    def largest_mib() -> float:
        return max(psutil.Process(r.pid).memory_info().rss for r in runners) / 2**20

    submit_ms, early_mib = [], 0.0
    start = time.perf_counter()
    try:
        for i in range(n_jobs):
            board = f"b{rng.integers(n_boards)}" if i % 2 else None
            needs = {} if board else {"edgetpu": int(rng.integers(1, 5))}
            begun = time.perf_counter()
            store.submit(model, Demand(board, needs), JobOptions(repetitions=1, warmup=0))
            submit_ms.append(1000 * (time.perf_counter() - begun))
            if i == n_jobs // 10:
                early_mib = largest_mib()
        while store.queue() or store.leases():
            if time.perf_counter() - start > LIMIT_S:
                raise RuntimeError(f"the queue is not drained after {LIMIT_S:g} s")
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        late_mib = largest_mib()
    finally:
        for runner in runners:
            runner.communicate()
    jobs = store.jobs()
    if len(jobs) != n_jobs or any(job.state != "done" for job in jobs):
        raise RuntimeError("jobs are missing")
    p50, p99 = np.percentile(submit_ms, [50, 99])
    waits = [_seconds(job.started_at) - _seconds(job.submitted_at) for job in jobs]
    return (
        n_jobs / seconds,
        float(p50),
        float(p99),
        float(np.median(waits)),
        early_mib,
        late_mib,
        sum(job.attempt > 1 for job in jobs),
        _overlaps(jobs),
    )


def _overlaps(jobs: list[Job]) -> int:
    """How often a board began a job before it had ended the one before."""
    spans: dict[str | None, list[tuple[str | None, str | None]]] = {}
    for job in jobs:
        spans.setdefault(job.board, []).append((job.started_at, job.finished_at))
    return sum(
        before[1] > after[0]  # type: ignore[operator]  # both are done
        for of_board in spans.values()
        for before, after in pairwise(sorted(of_board))  # type: ignore[type-var]
    )


def _seconds(stamp: str | None) -> float:
    from datetime import datetime

    return datetime.fromisoformat(str(stamp)).timestamp()


@contextmanager
def _server(found: Path) -> Iterator[str]:
    server = PostgresqlServer(found, durable=True)
    try:
        server.start()
        yield server.new_database()
    finally:
        server.remove()


def _serve(where: str, numbers: list[str]) -> None:
    """A runner of these boards, until its standard input ends."""
    from threading import Event, Thread

    from hardware_lab.runner import Runner

    boards: dict[str, Any] = {f"b{number}": InstantBoard(f"b{number}") for number in numbers}
    tags = {f"b{number}": {"edgetpu": 1 + int(number) % 4} for number in numbers}
    over = Event()
    Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    runner = Runner(Store(where), Inventory(boards, tags))
    print("ready", flush=True)
    runner.run(until=over)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2:])
