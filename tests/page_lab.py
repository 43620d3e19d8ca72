"""A lab with something of everything that pages show."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from scripted_board import measurement

from coralline.runtime.energy import Identity, energy_record
from coralline.runtime.measurement import Measurement
from coralline.runtime.power import Trace, Window, write_trace
from coralline.runtime.statistics import Estimate
from hardware_lab import nights
from hardware_lab.announcements import BoardFacts
from hardware_lab.artifacts import File, Files
from hardware_lab.compare import Comparison
from hardware_lab.inventory import Demand
from hardware_lab.jobs import Job, JobOptions
from hardware_lab.store import Store
from hardware_lab.trends import Series

MODEL = Path(__file__).parent / "data" / "small_int8.tflite"
EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'"
"""A name that somebody hopes a page will run."""
NIGHTS = 8
SLOWER = 3
"""Of these the last so many are slower."""


def sampled(n: int = 1024, stages: int = 2, factor: float = 1.0, **changes: Any) -> Measurement:
    """A measurement of n samples over two minutes and a half."""
    rng = np.random.default_rng(n)
    times = factor * rng.lognormal(1, 0.05, n)

    def rows(share: float) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple((share * times).tolist()) for _ in range(stages))

    values: dict[str, Any] = {
        "simulated": False,
        "board_kind": "host",
        "model": "a_net",
        "plan": {"planner": "uniform"},
        "processor": "a processor",
        "processor_asked": "cpu",
        "processor_ran": "cpu",
        "latency_ms": tuple(times.tolist()),
        "full_latency_ms": tuple(times.tolist()),
        "at_s": tuple(np.linspace(0, 150, n).tolist()),
        "wall_s": float(times.sum()) / 1000,
        "stage_busy_ms": rows(0.4),
        "transfer_ms": rows(0.1),
        "queue_wait_ms": rows(0.05),
    }
    return measurement(**{**values, **changes})


def metered(folder: Path, **changes: Any) -> tuple[Measurement, Path]:
    """One with a meter that saw 1 W idle and 3 W at work, and the meter's trace."""
    t_s = np.linspace(100, 130, 15_000)
    trace = Trace(t_s, np.where(t_s < 110, 1.0, 3.0))
    windows = (
        Window("idle", 100.5, 109.5),
        Window("alone", 110.5, 120, 1000),
        Window("full", 120, 129, 1500),
    )
    path = write_trace(trace, folder / "power.parquet", windows)
    record = energy_record(trace, windows, Identity("hub", "ina226", "INA226", "usb-vbus", 0.5))
    values: dict[str, Any] = {
        "windows": windows,
        "energy": record,
        "energy_mj_per_inference": record.whole.gross_mj,
        "meter": "hub",
    }
    return sampled(**values, **changes), path


@dataclass
class PageLab:
    """Boards `pi`, `sim`, EVIL, `lost` and `resting`, and the ids of jobs by what they are."""

    store: Store
    ids: dict[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> list[str]:
        """Of a page of each kind."""
        jobs = [f"/jobs/{job_id}" for job_id in self.ids.values()]
        return [
            "/",
            "/jobs",
            "/boards/pi",
            "/boards/pi-nights",
            "/trends",
            "/trends/a_net%2F2%2Fpi-nights",
            *jobs,
        ]

    def submit(self, name: str, board: str, against: Path | None = None, **options: Any) -> Job:
        wanted = JobOptions(repetitions=1024, warmup=10, **options)
        job = self.store.submit(MODEL, Demand(board), wanted, against=against)
        self.ids[name] = job.id
        return job

    def take(self, job: Job) -> Job:
        """Start it, whatever is before it."""
        board = str(job.demand.board)
        with self.store.lock(f"lock-{job.id}") as lock:
            assert lock is not None
            claimed = self.store.claim(job.demand, board, f"r-{board}", lock, "host-a:1:abc")
        assert claimed is not None
        assert claimed.id == job.id
        return claimed

    def finish(
        self, job: Job, result: Measurement | Comparison, files: Files | None = None
    ) -> None:
        claimed = self.take(job)
        if isinstance(result, Measurement):
            result = replace(result, id=job.id, board=str(claimed.board))
        self.store.finish(claimed, result, files)


def page_lab(folder: Path, *, measured: bool = True) -> PageLab:
    """The lab, in a folder; without what was measured it is there sooner."""
    lab = PageLab(Store(folder / "lab"))
    store = lab.store
    store.boards.announce(
        "host-a",
        "host-a:1:abc",
        [
            BoardFacts("pi", "ssh", "r-pi", {"edgetpu": 2, "usb3": 1}, {"address": "pi.local"}),
            BoardFacts("sim", "edgetpu-sim", "r-sim", {}, {}),
            BoardFacts(EVIL, "host", "r-evil", {}, {"note": EVIL}),
            BoardFacts("lost", "android", "r-lost", {}, {}),
        ],
    )
    store.health.passed("pi", "LiteRT, 4 cores")
    store.health.passed("sim", "a device model")
    for _ in range(3):
        store.health.failed("lost", f"no answer {EVIL}")
    store.health.set("resting", "maintenance", "a new cable is on its way")

    if measured:
        _results(lab, folder)
        spend_nights(lab)
    store.fail(lab.take(lab.submit("failed", EVIL)), RuntimeError(f"it broke {EVIL}"))
    lab.take(lab.submit("running", "sim"))
    lab.submit("second", "pi", priority=1)
    lab.submit("first", "pi", priority=5, deadline_s=3600, group="night", labels={"a": "b c"})
    return lab


def _results(lab: PageLab, folder: Path) -> None:
    lab.finish(lab.submit("plain", "pi"), sampled())
    lab.finish(lab.submit("simulated", "sim"), sampled(simulated=True, board_kind="edgetpu-sim"))
    found, trace = metered(folder)
    file = File(lab.store.artifacts.put(trace), trace.stat().st_size)
    lab.finish(lab.submit("metered", "pi"), found, Files({"power.parquet": file}))
    missing = Files({"power.parquet": replace(file, ref="sha256:" + "0" * 64)}, "disk full")
    lab.finish(lab.submit("lacking", "pi"), found, missing)
    a, b = sampled(), sampled(factor=1.1)
    ratios = {"latency_p50_ms": Estimate(1.1, 1.08, 1.12), "throughput_fps": Estimate(1, 0.9, 1.1)}
    lab.finish(lab.submit("compared", "pi", against=MODEL), Comparison(a, b, 4, ratios))
    fell = sampled(processor_asked="npu")
    lab.finish(lab.submit("invalid", "pi", group=EVIL, labels={"model": EVIL, EVIL: EVIL}), fell)
    told = {"count": 20.0, "mean": 4.0, "p50": 3.9}
    empty = {"latency_ms": (), "full_latency_ms": (), "at_s": (), "latency_reported_ms": told}
    lab.finish(lab.submit("reported", "pi"), replace(sampled(stages=0), **empty))


def commit_of(night: int) -> str:
    """What was measured in a night."""
    return f"{night:010x}".ljust(40, "0")


def spend_nights(lab: PageLab, first: int = 0, end: int = NIGHTS) -> None:
    """The nights from one to another; those from NIGHTS - SLOWER are slower."""
    series = Series("a_net", 2, "pi-nights")
    begun = datetime.now(UTC) - timedelta(days=NIGHTS)
    for i in range(first, end):
        labels = nights.labels("nightly", f"night {i}", series, commit_of(i))
        job = lab.store.submit(
            MODEL, Demand("pi-nights"), JobOptions(repetitions=1, warmup=0, labels=labels)
        )
        factor = 1.3 if i >= NIGHTS - SLOWER else 1.0
        started = (begun + timedelta(days=i)).isoformat()
        lab.finish(job, sampled(256, factor=factor, started_at=started))
