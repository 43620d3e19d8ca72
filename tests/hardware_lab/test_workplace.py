"""Models and raw files on their way: nothing measured is lost, whatever is down or full."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import pyarrow.parquet as pq
import pytest
from scripted_board import measurement
from small_disk import needs_root, small_disk

from coralline.errors import DeviceError, UserError
from coralline.runtime.child import Progress, Stop, never
from coralline.runtime.measurement import Measurement
from hardware_lab import runner as runner_module
from hardware_lab.artifacts import File, Files
from hardware_lab.artifacts.download import DiskError
from hardware_lab.boards import Task
from hardware_lab.inventory import Demand, Inventory
from hardware_lab.jobs import Job, JobOptions
from hardware_lab.lab import open_lab
from hardware_lab.locks import Lock
from hardware_lab.runner import Runner, run_jobs
from hardware_lab.store import Store

INT8 = Path(__file__).parents[1] / "data" / "small_int8.tflite"
TESTS = Path(__file__).parents[1]
POWER = b"a power trace"


@dataclass(frozen=True)
class Writing:
    """A board that writes a power trace beside its result, and does as the test says."""

    does: Callable[[Task], object] = lambda task: None
    name: str = "b0"
    resource: str = "writing"

    kind = "writing"

    def check(self, stop: Stop = never) -> str:
        return "writing"

    def measure(self, task: Task, on_progress: Progress | None = None) -> Measurement:
        assert task.scratch is not None and task.path.is_file()
        (task.scratch / "turn").mkdir(exist_ok=True)
        (task.scratch / "turn" / "power.parquet").write_bytes(POWER)
        self.does(task)
        return measurement(id=task.id)


def lab(does: Callable[[Task], object] = lambda task: None) -> Inventory:
    return Inventory({"b0": Writing(does)}, {"b0": {}})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "POLL_S", (0.02, 0.05))
    monkeypatch.setattr(runner_module, "SEND_S", 0.1)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("CORALLINE_ARTIFACTS", str(tmp_path / "artifacts"))
    return Store(tmp_path / "lab")


def submit(store: Store) -> Job:
    return store.submit(INT8, Demand("b0"), JobOptions(repetitions=10, warmup=1))


def take_away(store: Store) -> None:
    os.rename(store.artifacts.where, f"{store.artifacts.where}.away")


def bring_back(store: Store) -> None:
    os.rename(f"{store.artifacts.where}.away", store.artifacts.where)


def read(store: Store, file: File) -> bytes:
    with store.artifacts.open(file.ref) as stream:
        return stream.read()


def all_is_kept(store: Store, job: Job, tmp_path: Path) -> None:
    assert store.job(job.id).state == "done"
    assert store.measurement(job.id).latency_ms == (1.0, 2.0, 3.0)
    files = store.files(job.id)
    assert list(files.kept) == ["samples.parquet", "turn/power.parquet"]
    assert files.not_stored is None
    assert read(store, files.kept["turn/power.parquet"]) == POWER
    (tmp_path / "samples").write_bytes(read(store, files.kept["samples.parquet"]))
    assert pq.read_table(tmp_path / "samples")["latency_ms"].to_pylist() == [1.0, 2.0, 3.0]
    assert files.kept["samples.parquet"].size_bytes == (tmp_path / "samples").stat().st_size
    assert list((store.folder / "work").iterdir()) == []


def test_a_result_comes_with_its_raw_files(store: Store, tmp_path: Path) -> None:
    job = submit(store)
    assert store.files(job.id) == Files()
    run_jobs(store, lab())
    all_is_kept(store, job, tmp_path)
    assert Files.from_json(json.loads(json.dumps(store.files(job.id).to_json()))) == store.files(
        job.id
    )
    for bad in (
        {"kept": {"../up": {"ref": job.artifact, "size_bytes": 1}}, "not_stored": None},
        {"kept": {"a": {"ref": "elsewhere", "size_bytes": 1}}, "not_stored": None},
        {"kept": []},
    ):
        with pytest.raises(UserError):
            Files.from_json(bad)


def test_a_failed_attempt_leaves_no_files(store: Store, tmp_path: Path) -> None:
    tries: list[str] = []

    def fail_once(task: Task) -> None:
        tries.append(task.id)
        if len(tries) == 1:
            raise DeviceError("loose cable", retryable=True)

    job = submit(store)
    run_jobs(store, lab(fail_once))
    all_is_kept(store, job, tmp_path)


def test_the_artifact_store_is_down_and_comes_back(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = submit(store)
    put = store.artifacts.put

    def back_after_a_try(source: Path) -> str:
        try:
            return put(source)
        except DeviceError:
            bring_back(store)
            raise

    store.artifacts.put = back_after_a_try  # type: ignore[method-assign, assignment]
    with caplog.at_level(logging.WARNING):
        run_jobs(store, lab(lambda task: take_away(store)))
    all_is_kept(store, job, tmp_path)
    assert "artifacts cannot be kept or read there" in caplog.text


def test_the_artifact_store_stays_away(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runner_module, "PATIENCE_S", 0.2)
    job = submit(store)
    run_jobs(store, lab(lambda task: take_away(store)))
    found = store.files(job.id)
    assert found.kept == {} and "cannot be kept or read there" in str(found.not_stored)
    assert store.job(job.id).state == "done"
    assert store.measurement(job.id).latency_ms == (1.0, 2.0, 3.0)
    assert f"job {job.id}: its raw files are not stored" in caplog.text

    bring_back(store)
    run_jobs(store, lab())
    all_is_kept(store, job, tmp_path)


def test_no_job_fails_because_the_artifact_store_is_down(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(store)
    runner = Runner(store, lab())
    take_away(store)
    runner._patience_s = 0.2
    with pytest.raises(DeviceError, match="cannot be kept or read there"):
        runner.run()
    assert store.job(job.id).state == "running" and store.job(job.id).error is None

    # One that runs for ever gives the job back until the store answers.
    monkeypatch.setattr(runner_module, "LIMIT_S", 0.2)
    over = Event()
    thread = Thread(target=runner.run, args=(over,))
    thread.start()
    wait_for(lambda: "cannot be kept" in str(store.job(job.id).error))
    bring_back(store)
    wait_for(lambda: store.job(job.id).state == "done")
    over.set()
    thread.join()
    assert store.job(job.id).max_attempts - store.job(job.id).attempt >= 1
    all_is_kept(store, job, tmp_path)


def test_a_model_that_is_gone_fails_its_job_alone(store: Store, tmp_path: Path) -> None:
    job = submit(store)
    shutil.rmtree(Path(store.artifacts.where))
    store = Store(tmp_path / "lab")
    run_jobs(store, lab())
    found = store.job(job.id)
    assert found.state == "failed" and found.error_is_users
    assert "is not in" in str(found.error) and "submit it again" in str(found.error)


def test_what_a_killed_runner_left_is_cleared_up(store: Store, tmp_path: Path) -> None:
    job = submit(store)
    script = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from test_workplace import lab\n"
        "from hardware_lab.runner import run_jobs\n"
        "from hardware_lab.store import Store\n"
        "die = lambda task: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"run_jobs(Store(Path({str(tmp_path / 'lab')!r})), lab(die))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS / 'hardware_lab'}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = (store.folder / "work").iterdir()
    assert (left / "raw" / "turn" / "power.parquet").exists()
    run_jobs(store, lab())
    run_jobs(store, lab())
    all_is_kept(store, job, tmp_path)


def test_who_shares_a_lab_must_share_its_artifacts(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CORALLINE_ARTIFACTS")
    store = Store(where)
    if where.startswith("postgresql"):
        with pytest.raises(UserError, match=r"give --artifacts, or set CORALLINE_ARTIFACTS"):
            submit(store)
        with pytest.raises(UserError, match="give --artifacts"):
            Runner(store, lab())
        assert store.jobs() == []
    else:
        assert store.artifacts.where == str(Path(where) / "artifacts")


def test_files_that_are_stored_later(place: str) -> None:
    store = open_lab(place)
    job = store.submit(INT8, Demand("b0"), JobOptions(repetitions=1, warmup=0))
    late = Files({"power.parquet": File(job.artifact, 3)})
    assert not store.attach(job.id, 1, late)
    claimed = store.claim(Demand("b0"), "b0", "on-b0", Lock(-1, "here:1:1"), "r")
    assert claimed is not None
    store.finish(claimed, measurement(id=job.id), Files(not_stored="the store is down"))
    assert store.files(job.id) == Files(not_stored="the store is down")
    assert not store.attach(job.id, 2, late)
    assert store.attach(job.id, 1, late) and store.files(job.id) == late
    assert not store.attach(job.id, 1, late)


@needs_root
def test_the_disk_of_the_runner_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORALLINE_ARTIFACTS", str(tmp_path / "artifacts"))
    with small_disk(tmp_path / "disk", "1m") as resize:
        store = Store(tmp_path / "disk" / "lab")
        (tmp_path / "large").write_bytes(os.urandom(2_000_000))
        job = store.submit(tmp_path / "large", Demand("b0"), JobOptions(repetitions=10, warmup=1))
        with pytest.raises(DiskError, match=r"No space left on device.*make room"):
            run_jobs(store, lab())
        assert store.job(job.id).state == "running"
        resize("8m")
        run_jobs(store, lab())
        all_is_kept(store, job, tmp_path)


@needs_root
def test_the_disk_of_the_artifacts_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORALLINE_ARTIFACTS", str(tmp_path / "disk" / "artifacts"))
    monkeypatch.setattr(runner_module, "PATIENCE_S", 0.2)
    with small_disk(tmp_path / "disk", "4m") as resize:
        store = Store(tmp_path / "lab")
        job = submit(store)

        def fill(task: Task) -> None:
            with pytest.raises(OSError), open(tmp_path / "disk" / "filler", "wb") as file:
                while True:
                    file.write(b"\0" * 4096)

        run_jobs(store, lab(fill))
        assert "No space left on device" in str(store.files(job.id).not_stored)
        assert store.measurement(job.id).latency_ms == (1.0, 2.0, 3.0)
        (tmp_path / "large").write_bytes(b"\1" * 100_000)
        with pytest.raises(DeviceError, match="No space left on device"):
            store.submit(tmp_path / "large", Demand("b0"), JobOptions(repetitions=1, warmup=0))
        resize("8m")
        run_jobs(store, lab())
        all_is_kept(store, job, tmp_path)


def wait_for(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    pause = Event()
    for _ in range(int(limit_s / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError("waited too long")
