"""Two plans in turns on one board."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_board import measurement

from coralline.errors import UserError
from coralline.runtime.child import Progress, Stop, never
from coralline.runtime.measurement import Measurement
from hardware_lab.boards import Task
from hardware_lab.compare import BLOCKS, Comparison, compare
from hardware_lab.inventory import Demand, Inventory
from hardware_lab.jobs import JobOptions
from hardware_lab.runner import run_jobs
from hardware_lab.store import Store

INT8 = Path(__file__).parents[1] / "data" / "small_int8.tflite"
FLOAT = INT8.with_name("small_float.tflite")


@dataclass
class Moody:
    """A board that slows down all the time; B takes `ratio` times as long as A on it."""

    name: str = "moody"
    ratio: float = 1.0
    mood: float = 1.0
    asked: list[Task] = field(default_factory=list)
    ran: str = "cpu"

    kind = "moody"
    resource = "moody"

    def check(self, stop: Stop = never) -> str:
        return "moody"

    def measure(self, task: Task, on_progress: Progress | None = None) -> Measurement:
        rng = np.random.default_rng(len(self.asked))
        self.asked.append(task)
        self.mood *= 1.2
        times = self.mood * rng.lognormal(2, 0.05, task.repetitions)
        if task.path.name == FLOAT.name:
            times *= self.ratio
        begun = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=10 * len(self.asked))
        row = tuple(times.tolist())
        if on_progress is not None:
            on_progress(task.repetitions, task.repetitions)
        return measurement(
            id=task.id,
            started_at=begun.isoformat(),
            first_inference_ms=2 * row[0],
            latency_ms=row,
            full_latency_ms=row,
            at_s=tuple((np.cumsum(times) / 1e3).tolist()),
            wall_s=float(times.sum()) / 1e3,
            stage_busy_ms=(row,),
            queue_wait_ms=((0.0,) * len(row),),
            transfer_ms=((0.0,) * len(row),),
            environment={"cores_busy_with_others": 0.1 * len(self.asked)},
            processor_asked="cpu",
            processor_ran=self.ran,
        )


def lab(board: Moody) -> Inventory:
    return Inventory({"moody": board}, {"moody": {}})


def task(repetitions: int = 400, **options: Any) -> Task:
    return Task("ab", INT8, repetitions, warmup=1, **options)


def test_the_ratio_is_free_of_the_mood_of_the_board() -> None:
    board = Moody(ratio=1.1)
    seen: list[tuple[int, int]] = []
    found = compare(board, task(), FLOAT, lambda done, total: seen.append((done, total)))
    ratio = found.ratios["latency_p50_ms"]
    # Each turn is a fifth slower than the one before: far more than what B is slower than A.
    assert 1.05 < ratio.low <= 1.1 <= ratio.high < 1.15
    fps = found.ratios["throughput_fps"]
    assert fps.low <= 1 / 1.1 <= fps.high < 1
    assert [asked.path for asked in board.asked] == [INT8, FLOAT, FLOAT, INT8] * BLOCKS
    assert seen[-1][0] == seen[-1][1] and len(seen) == 4 * BLOCKS


def test_equal_plans_show_no_difference() -> None:
    ratio = compare(Moody(), task(), FLOAT).ratios["latency_p50_ms"]
    assert ratio.low < 1 < ratio.high


def test_turns_share_samples_and_seconds_and_lose_nothing() -> None:
    board = Moody()
    found = compare(board, task(403, seconds=60.0), FLOAT)
    assert all(asked.repetitions == 51 and asked.seconds == 7.5 for asked in board.asked)
    assert found.blocks == BLOCKS
    for part in (found.a, found.b):
        assert len(part.latency_ms) == len(part.at_s) == len(part.stage_busy_ms[0]) == 8 * 51
        assert all(late > early for early, late in zip(part.at_s, part.at_s[1:], strict=False))
        assert part.environment["turns"] == 2 * BLOCKS
        assert 0.1 < part.environment["cores_busy_with_others"] < 1.6
    assert Comparison.from_json(json.loads(json.dumps(found.to_json()))) == found
    with pytest.raises(UserError, match="a comparison needs at least 4"):
        compare(board, task(3), FLOAT)


def test_programs_that_report_only_a_summary_are_compared_by_it() -> None:
    reports = [{"count": 10.0, "mean": 2.0, "min": 1.0, "p50": 2.0}, {"count": 30.0, "mean": 4.0}]
    parts = [
        measurement(latency_ms=(), full_latency_ms=(), latency_reported_ms=report)
        for report in reports
    ]
    merged = Measurement.merged(parts)
    assert merged.latency_reported_ms == {"count": 40.0, "mean": 3.5}
    assert merged.summary()["latency_mean_ms"] == 3.5


def test_a_job_that_compares(tmp_path: Path) -> None:
    store, board = Store(tmp_path), Moody(ratio=1.3)
    job = store.submit(INT8, Demand("moody"), JobOptions(repetitions=100, warmup=1), against=FLOAT)
    run_jobs(store, lab(board))
    assert store.job(job.id).state == "done"
    found = store.result(job.id)
    assert isinstance(found, Comparison) and found.ratios["latency_p50_ms"].low > 1
    with pytest.raises(UserError, match="is a comparison"):
        store.measurement(job.id)


def test_a_comparison_that_fell_back_is_invalid(tmp_path: Path) -> None:
    store = Store(tmp_path)
    job = store.submit(INT8, Demand("moody"), JobOptions(repetitions=100, warmup=1), against=FLOAT)
    run_jobs(store, lab(Moody(ran="gpu")))
    assert store.job(job.id).state == "invalid"
    assert isinstance(store.result(job.id), Comparison)
