"""Whole jobs of a lab whose artifacts are in S3, in a server that checks signatures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from scripted_board import measurement
from small_disk import needs_root, small_disk
from verbs import verb

from coralline.errors import DeviceError
from coralline.runtime.child import Progress, Stop, never
from coralline.runtime.measurement import Measurement
from hardware_lab import runner as runner_module
from hardware_lab.artifacts import s3
from hardware_lab.artifacts.server import Server
from hardware_lab.boards import Task
from hardware_lab.inventory import Demand, Inventory
from hardware_lab.jobs import JobOptions
from hardware_lab.runner import run_jobs
from hardware_lab.store import Store
from hardware_lab.workplace import Workplace

INT8 = Path(__file__).parents[2] / "data" / "small_int8.tflite"


@dataclass(frozen=True)
class Tracing:
    """A board with a power trace of many parts, which does as the test says."""

    does: Callable[[], object]
    trace: bytes
    name: str = "b0"
    resource: str = "tracing"

    kind = "tracing"

    def check(self, stop: Stop = never) -> str:
        return "tracing"

    def measure(self, task: Task, on_progress: Progress | None = None) -> Measurement:
        assert task.scratch is not None and task.path.read_bytes() == INT8.read_bytes()
        (task.scratch / "power.parquet").write_bytes(self.trace)
        self.does()
        return measurement(id=task.id)


def lab(does: Callable[[], object], trace: bytes = b"power") -> Inventory:
    return Inventory({"b0": Tracing(does, trace)}, {"b0": {}})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "TRIES", 1)
    monkeypatch.setattr(runner_module, "POLL_S", (0.02, 0.1))
    monkeypatch.setattr(runner_module, "SEND_S", 0.1)


def test_a_job_from_submission_to_its_raw_files(
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    said = verb(capsys)

    def call(*arguments: str) -> Any:
        return json.loads(said(*arguments, "--json"))

    place = ("--artifacts", f"s3://{bucket}/lab")
    job = call("lab", "submit", str(INT8), "--board", "host", "-n", "20", *place)
    assert [j["state"] for j in call("lab", "run", *place)["jobs"]] == ["done"]
    fetched = call("lab", "fetch", job["id"], "--out", "raw", *place)["files"]
    assert list(fetched) == ["samples.parquet"] and (tmp_path / "raw" / "samples.parquet").exists()
    kept = Store(tmp_path / ".coralline" / "lab").files(job["id"]).kept
    keys = {o["Key"] for o in boto3.client("s3").list_objects_v2(Bucket=bucket)["Contents"]}
    refs = (job["artifact"], kept["samples.parquet"].ref)
    assert keys == {f"lab/{ref.replace(':', '/')}" for ref in refs}
    assert not (tmp_path / ".coralline" / "lab" / "artifacts").exists()


def test_the_server_is_stopped_and_started_during_a_job(
    bucket: str, s3_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "lab", f"s3://{bucket}")
    job = store.submit(INT8, Demand("b0"), JobOptions(repetitions=1, warmup=0))
    trace = os.urandom(s3.PART_BYTES + 1_000_000)
    real, tries = Workplace.keep, []

    def started_after_a_try(*arguments: Any) -> Any:
        tries.append(arguments)
        try:
            return real(*arguments)
        except DeviceError:
            s3_server.start()
            raise

    monkeypatch.setattr(Workplace, "keep", started_after_a_try)
    run_jobs(store, lab(lambda: s3_server.stop(), trace))
    assert store.job(job.id).state == "done" and store.job(job.id).attempt == 1
    assert len(tries) == 2
    files = store.files(job.id)
    assert files.not_stored is None
    with store.artifacts.open(files.kept["power.parquet"].ref) as stream:
        assert stream.read() == trace


@needs_root
def test_the_disk_of_the_server_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "disk", "40m") as resize:
        server = Server(tmp_path / "disk" / "s3")
        server.start()
        try:
            for name, value in server.environment.items():
                monkeypatch.setenv(name, value)
            server.make_bucket("lab")
            store = Store(tmp_path / "lab", "s3://lab")
            job = store.submit(INT8, Demand("b0"), JobOptions(repetitions=1, warmup=0))

            def fill() -> None:
                monkeypatch.setattr(runner_module, "PATIENCE_S", 0.2)
                with open(tmp_path / "disk" / "filler", "wb") as file:
                    file.write(b"\0" * 30_000_000)

            trace = os.urandom(2 * s3.PART_BYTES)
            run_jobs(store, lab(fill, trace))
            assert store.job(job.id).state == "done"
            assert store.measurement(job.id).latency_ms == (1.0, 2.0, 3.0)
            assert "s3://lab" in str(store.files(job.id).not_stored)

            resize("100m")
            run_jobs(store, lab(lambda: None))
            files = store.files(job.id)
            assert files.not_stored is None and files.kept["power.parquet"].size_bytes == len(trace)
            with store.artifacts.open(files.kept["power.parquet"].ref) as stream:
                assert stream.read() == trace
        finally:
            server.stop()
