"""What a measurement says of itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from builders import chain, measure, plan_of

from coralline.errors import UserError
from coralline.runtime.measurement import Measurement
from coralline.runtime.pipeline import open_segments, run_pipeline
from coralline.runtime.samples import write_samples

INT8 = Path(__file__).parents[1] / "data" / "small_int8.tflite"


def real(**options: int | float) -> Measurement:
    """Of this machine's CPU."""
    segments = open_segments(INT8)
    run = run_pipeline(segments, **{"repetitions": 700, "warmup": 3, **options})  # type: ignore[arg-type]
    return Measurement.of_run(
        run,
        segments,
        id="ab",
        board="host",
        board_kind="host",
        simulated=False,
        processor="CPU",
        meter=None,
        started_at="2026-01-01T00:00:00+00:00",
        energy_mj_per_inference=None,
        environment={},
        processor_asked="cpu",
        processor_ran="cpu",
        delegated_share=1.0,
    )


def test_statistics_stand_in_the_file() -> None:
    found = real()
    data = json.loads(json.dumps(found.to_json()))
    assert Measurement.from_json(data) == found
    for name in ("p50", "p90", "p99"):
        told = data["statistics"][name]
        assert told["low"] <= told["value"] <= told["high"]
        assert told["value"] == data["summary"][f"latency_{name}_ms"]
    assert data["statistics"]["p99"]["at_most"] >= data["statistics"]["p90"]["at_most"]
    assert data["statistics"]["drift"]["value"] > 0
    assert len(found.at_s) == 700 and found.at_s[0] == 0
    assert all(b - a >= 0 for a, b in zip(found.at_s, found.at_s[1:], strict=False))


def test_too_few_samples_bound_nothing() -> None:
    told = real(repetitions=100).statistics()
    assert told["p90"]["at_most"] is not None and told["p99"]["at_most"] is None


def test_a_time_limit_ends_both_modes() -> None:
    found = real(repetitions=1_000_000, seconds=0.2)
    assert 1 <= len(found.latency_ms) < 1_000_000
    assert len(found.full_latency_ms) == len(found.latency_ms) == len(found.stage_busy_ms[0])
    assert found.at_s[-1] < 10


def test_another_processor_than_asked_for_is_marked() -> None:
    found = replace(real(repetitions=10), processor_asked="npu")
    assert found.fell_back
    assert "fell back: npu was asked for and cpu ran" in found.marks


def test_files_without_the_newer_fields_are_read() -> None:
    data = real(repetitions=10).to_json()
    for name in ("at_s", "processor_asked", "processor_ran", "delegated_share"):
        del data[name]
    old = Measurement.from_json(data)
    assert not old.fell_back and old.statistics()["drift"] is None


def test_samples_as_parquet(tmp_path: Path) -> None:
    found = measure(plan_of(chain("c", 8)))
    table = pq.read_table(write_samples(found, tmp_path / "m.parquet"))
    assert table["latency_ms"].to_pylist() == list(found.latency_ms)
    for s, row in enumerate(found.stage_busy_ms):
        assert table[f"busy_ms_{s}"].to_pylist() == list(row)
    assert table.schema.metadata[b"simulated"] == b"yes"
    summary = replace(found, latency_ms=(), latency_reported_ms={"count": 3, "mean": 1.0})
    with pytest.raises(UserError, match="reports a summary only"):
        write_samples(summary, tmp_path / "n.parquet")
    assert not (tmp_path / "n.parquet").exists()
