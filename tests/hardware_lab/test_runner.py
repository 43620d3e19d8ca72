"""The lab under faults: nothing measured is lost or doubled, no board is driven by two."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import event

from coralline.errors import DeviceError, UserError
from hardware_lab.artifacts.bundle import ref_of_model
from hardware_lab.boards import Task
from hardware_lab.compare import Comparison
from hardware_lab.inventory import Demand, load_inventory
from hardware_lab.jobs import Job, JobOptions
from hardware_lab.runner import run_jobs
from hardware_lab.store import Store

INT8 = Path(__file__).parents[1] / "data" / "small_int8.tflite"
SIM = "edgetpu-usb-sim"
INVENTORY = load_inventory()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "lab")


def submit(
    store: Store,
    path: Path,
    board: str = SIM,
    repetitions: int = 30,
    group: str | None = None,
    against: Path | None = None,
) -> Job:
    options = JobOptions(repetitions=repetitions, warmup=2, group=group)
    return store.submit(path, Demand(board), options, against=against)


def runner(store: Store, code: str = "") -> subprocess.Popen[bytes]:
    """A runner in a process of its own, after some code of the test's."""
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from hardware_lab import runner, store\n"
        "from hardware_lab.inventory import load_inventory\n"
        "def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{code}\n"
        f"runner.run_jobs(store.Store(Path({str(Path(store.where).parent)!r})), load_inventory())\n"
    )
    return subprocess.Popen([sys.executable, "-c", script])


def wait_for(condition: object, timeout_s: float = 30.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def test_jobs_of_both_kinds_of_board_are_run(store: Store, segments: Path) -> None:
    host, sim, plain = submit(store, segments, "host"), submit(store, segments), submit(store, INT8)
    progress: list[str] = []
    ended = run_jobs(store, INVENTORY, on_progress=lambda job, done, total: progress.append(job.id))
    assert [job.id for job in ended] == [host.id, sim.id, plain.id]
    assert {job.state for job in ended} == {"done"}
    assert {host.id, sim.id} <= set(progress)

    measured, simulated = store.measurement(host.id), store.measurement(sim.id)
    assert measured.id == host.id
    assert not measured.simulated and measured.outputs_equal
    assert measured.energy_mj_per_inference is None and measured.meter is None
    assert measured.processor.startswith("CPU; XNNPACK ran")
    assert measured.environment["threads_per_stage"] == 1
    assert simulated.simulated and simulated.outputs_equal is None
    assert "simulated" in simulated.processor
    assert simulated.energy_mj_per_inference is not None
    assert simulated.energy_mj_per_inference > 0
    assert len(store.measurement(plain.id).stage_busy_ms) == 1
    for m in (measured, simulated):
        assert len(m.latency_ms) == len(m.full_latency_ms) == 30
        assert set(m.summary()) >= {"latency_p50_ms", "latency_p99_ms", "throughput_fps"}


def test_only_the_jobs_asked_for(store: Store, segments: Path) -> None:
    first, second = submit(store, segments), submit(store, segments, group="mine")
    assert [job.id for job in run_jobs(store, INVENTORY, "mine")] == [second.id]
    assert store.job(first.id).state == "queued"


def test_what_was_submitted_is_run(store: Store, segments: Path, tmp_path: Path) -> None:
    plain, folder = tmp_path / "plain.tflite", tmp_path / "folder"
    shutil.copyfile(INT8, plain)
    shutil.copytree(segments, folder)
    jobs = [submit(store, plain, against=folder), submit(store, folder)]
    plain.write_bytes(b"changed")
    shutil.rmtree(folder)
    assert [job.state for job in run_jobs(store, INVENTORY)] == ["done", "done"]
    assert jobs[0].path == str(plain) and jobs[0].against == str(folder)
    compared = store.result(jobs[0].id)
    assert isinstance(compared, Comparison)
    whole = hashlib.sha256(INT8.read_bytes()).hexdigest()
    assert jobs[0].artifact == f"sha256:{whole}" and compared.a.model_digest == whole
    assert jobs[0].against_artifact == jobs[1].artifact == ref_of_model(segments)
    assert (compared.a.model, len(compared.b.stage_busy_ms)) == ("plain", 2)


def test_a_failed_job_does_not_stop_the_others(
    store: Store, segments: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(INT8.read_bytes()[:2000])
    job = submit(store, bad)
    submit(store, segments)
    ended = run_jobs(store, INVENTORY)
    assert [job.state for job in ended] == ["failed", "done"]
    with pytest.raises(UserError, match=r"bad\.tflite: .*truncated or damaged"):
        store.job(job.id).raise_error()
    with pytest.raises(UserError, match="failed and has no measurement"):
        store.measurement(job.id)


def test_retryable_failures_are_tried_again_and_then_given_up(
    store: Store, segments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def lost(self: object, task: Task, on_progress: object = None) -> None:
        tries.append(task.id)
        raise DeviceError("the cable is loose", retryable=True)

    monkeypatch.setattr(type(INVENTORY.board(SIM)), "measure", lost)
    job = submit(store, segments)
    run_jobs(store, INVENTORY)
    assert tries == [job.id] * 3
    with pytest.raises(DeviceError, match="the cable is loose"):
        store.job(job.id).raise_error()


def test_a_runner_killed_while_the_board_works(store: Store, segments: Path) -> None:
    done = submit(store, segments)
    run_jobs(store, INVENTORY)
    kept = store.measurement(done.id)
    job = submit(store, segments, "host", repetitions=30_000)
    process = runner(store)
    wait_for(lambda: store.job(job.id).state == "running")
    time.sleep(1.0)  # well into the measurement
    process.kill()
    process.wait()
    assert store.job(job.id).state == "running"

    assert [j.id for j in run_jobs(store, INVENTORY)] == [job.id]
    found = store.job(job.id)
    assert (found.state, found.attempt) == ("done", 2)
    assert len(store.measurement(job.id).latency_ms) == 30_000
    assert store.measurement(done.id) == kept


@pytest.mark.parametrize(
    ("where", "attempts"),
    [
        ("runner.Workplace.models = die", 2),  # claimed, not begun
        ("runner.Task = die", 2),  # its model is here
        ("runner.Workplace.keep = die", 2),  # measured, its raw files not kept
        ("store.Store.finish = die", 2),  # measured, not kept
        ("store.insert = die", 2),  # in the transaction: state written, measurement not
        (
            "real = store.Store.finish\nstore.Store.finish = lambda *a: (real(*a), die())",
            1,
        ),  # kept, not yet told
    ],
)
def test_a_runner_killed_at_a_nasty_point(
    store: Store, segments: Path, where: str, attempts: int
) -> None:
    job = submit(store, segments)
    process = runner(store, where)
    assert process.wait(60) == -signal.SIGKILL
    run_jobs(store, INVENTORY)
    found = store.job(job.id)
    assert (found.state, found.attempt) == ("done", attempts)
    assert store.measurement(job.id).id == job.id


def test_two_runners_share_a_lab(store: Store, segments: Path) -> None:
    jobs = [submit(store, segments, ("host", SIM)[i % 2], repetitions=300) for i in range(8)]
    processes = [runner(store), runner(store)]
    for process in processes:
        assert process.wait(120) == 0
    found = store.jobs()
    assert [job.id for job in found] == [job.id for job in jobs]
    assert {(job.state, job.attempt) for job in found} == {("done", 1)}
    spans = sorted((str(job.started_at), str(job.finished_at)) for job in found)
    # The boards share this machine's CPU: no job begins before the last one has ended.
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_waiting_for_a_job_that_another_runner_has(store: Store, segments: Path) -> None:
    job = submit(store, segments, "host", repetitions=10_000, group="mine")
    process = runner(store)
    wait_for(lambda: store.job(job.id).state == "running")
    assert run_jobs(store, INVENTORY, "mine") == []
    assert store.job(job.id).state == "done" and store.job(job.id).attempt == 1
    assert process.wait(60) == 0


def test_full_disk(store: Store, segments: Path) -> None:
    first = submit(store, segments)
    run_jobs(store, INVENTORY)
    second = submit(store, segments, repetitions=5000)
    kept = store.measurement(first.id)

    def no_room(connection: object, *_: object) -> None:
        # SQLite itself then reports SQLITE_FULL when the file outgrows what a claim needs.
        pages = connection.execute("PRAGMA page_count").fetchone()[0]  # type: ignore[attr-defined]
        connection.execute(f"PRAGMA max_page_count = {pages + 8}")  # type: ignore[attr-defined]

    full = Store(Path(store.where).parent)
    event.listen(full._database._engine, "connect", no_room)
    full._database._engine.dispose()
    with pytest.raises(UserError, match=r"lab\.sqlite: .*full.* untouched: make room"):
        run_jobs(full, INVENTORY)
    assert store.measurement(first.id) == kept
    assert store.job(second.id).state == "running"

    run_jobs(store, INVENTORY)
    assert (store.job(second.id).state, store.job(second.id).attempt) == ("done", 2)
    assert store.measurement(first.id) == kept


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_really_full(tmp_path: Path, segments: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"cannot mount: {mount.stderr.decode().strip()}")
    try:
        store = Store(disk / "lab")
        first = submit(store, segments)
        run_jobs(store, INVENTORY)
        kept = store.measurement(first.id)
        big = submit(store, segments, repetitions=40_000)
        with pytest.raises(UserError, match="make room"):
            run_jobs(store, INVENTORY)
        assert store.measurement(first.id) == kept
        assert store.job(big.id).state == "running"
        assert store.jobs()  # the database is whole
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_what_cannot_be_submitted(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="repetitions is 0"):
        submit(store, INT8, repetitions=0)
    with pytest.raises(UserError, match="cannot be read"):
        submit(store, tmp_path / "none.tflite")
    with pytest.raises(UserError, match=r"holds no segments\.json"):
        submit(store, tmp_path)
    with pytest.raises(UserError, match="'nope' is not in"):
        store.job("nope")


def test_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "lab.sqlite").write_text("this is not a database, and long enough to be seen" * 20)
    with pytest.raises(UserError, match="not a database"):
        Store(tmp_path)
