"""Faults, and what must be so after each of them.

Nothing measured is lost or counted twice, no board is driven by two, the queue drains, the log
says why, and no child process is left. Which fault is injected where:

| fault | at a driver | through the lab |
|---|---|---|
| runner killed at every step | ssh: `test_a_killed_runner_leaves_nothing` | `test_leases`, |
|   | | `test_runner`; here: while it checks, cools down, switches the power |
| runner stopped, its lease expires | | here, on one host and on two |
| runner cut off from the database | | `test_leases` |
| runner or service killed, answers lost | | `service/` |
| database gone and back | | `test_leases`; here: between check and job |
| artifact store down, uploads cut | `artifacts/` | `test_workplace`, `artifacts/test_lab_on_s3` |
| board vanishes | ssh, android: `test_the_board_vanishes`, `.._drops_in_mid_push` | here |
| board restarts in the middle | android: `test_the_phone_restarts_under_a_run` | here |
| board hangs | ssh: `test_a_silent_lab_..`; android: `test_the_phone_hangs` | here: its sshd, and |
|   | | its worker, stopped |
| board does not come back | | `test_recovery` |
| wrong outputs | android: `test_a_program_that_goes_wrong`; host: | here: a flipped bit |
|   | `runtime/test_pipeline` | |
| board throttles | `test_conditions`; android: `.._slowed_for_heat_..` | here |
| board loaded, samples lost | `runtime/test_measurement` | |
| board's disk full | ssh, android: `test_a_full_disk`, `test_the_disk_of_the_phone_..` | here |
| lab's disk full | | `test_runner`, `test_workplace`, `artifacts/` |
| lab's clock jumps | | `test_leases`; here: while boards rest |
| board's clock jumps | | here |
| switch or meter fails | `test_power`, `meters/` | `test_recovery`, `meters/test_metering` |
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import psutil
import pytest
from runner_process import start_runner
from scripted_board import LitBoard, lit_lab, notes, scripted_lab
from small_disk import needs_root, small_disk
from ssh_board import board_on, is_clean, remote
from sshd_server import Server, needs_sshd
from waiting import wait_for

from benchmarks.postgresql_server import PostgresqlServer
from coralline.errors import UserError
from coralline.runtime.child import Stop, never
from coralline.tflite.segments import SegmentSet
from hardware_lab import checks, database
from hardware_lab import runner as runner_module
from hardware_lab.boards import ssh
from hardware_lab.boards.ssh import Ssh
from hardware_lab.cooldown import Cooldown
from hardware_lab.inventory import Demand, Inventory
from hardware_lab.jobs import Job, JobOptions
from hardware_lab.lab import Lab
from hardware_lab.runner import run_jobs
from hardware_lab.store import Store

INT8 = Path(__file__).parents[1] / "data" / "small_int8.tflite"
LONG = 12_000
"""Samples of each mode: about a second of work."""


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    before = children()
    yield
    wait_for(lambda: children() <= before)


def children() -> set[psutil.Process]:
    """Of this process; but for PostgreSQL's server, which serves many tests."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "postgres" not in process.name():
                found.add(process)
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "BEAT_S", 0.1)
    monkeypatch.setattr(runner_module, "POLL_S", (0.02, 0.1))
    monkeypatch.setattr(checks, "LOOK_S", 0.1)


def submit(store: Lab, demand: Demand, path: Path = INT8, repetitions: int = 1) -> Job:
    return store.submit(path, demand, JobOptions(repetitions=repetitions, warmup=1))


def after(store: Lab, jobs: list[Job], states: list[str], folder: Path | None = None) -> list[Job]:
    """What must be so after every fault; the jobs, as they are now."""
    found = [store.job(job.id) for job in jobs]
    assert [job.state for job in found] == states, [job.error for job in found]
    assert store.queue() == [] and store.leases() == []
    for job in found:
        if job.state == "done":
            assert store.measurement(job.id).id == job.id
        else:
            assert job.error
            with pytest.raises(UserError, match="has no measurement"):
                store.measurement(job.id)
    if folder is not None:
        said = notes(folder)
        assert not [note for note in said if note[0] == "collision"]
        assert len([note for note in said if note[0] == "begin"]) <= sum(j.attempt for j in found)
    return found


def causes(store: Lab, board: str) -> list[str]:
    return [str(line["cause"]) for line in store.health.log(board)]


# ------------------------------------------------------------------ the runner


def test_a_stopped_runner_has_lost_its_lease_when_it_goes_on(
    where: str, tmp_path: Path, started: list[subprocess.Popen[bytes]], caplog: Any
) -> None:
    store = Store(where)
    job = submit(store, Demand("b0"))
    # It ends when it has said what came of the job.
    code = (
        "real = runner.Runner._record\nrunner.Runner._record = lambda *a: (real(*a), os._exit(7))"
    )
    process = start_runner(started, where, tmp_path, code, seconds=1000)
    wait_for(lambda: notes(tmp_path), 60)
    stop_outside_of_the_database(process, store)
    assert psutil.Process(process.pid).status() == psutil.STATUS_STOPPED
    second = Thread(target=run_jobs, args=(store, scripted_lab(tmp_path, 2)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module, "LEASE_S", 1.0)
        second.start()
        wait_for(lambda: store.job(job.id).state == "queued", 60)
        # Its lease is gone; the board is not free, for the stopped one may still hold it.
        time.sleep(0.5)
        assert [note[0] for note in notes(tmp_path)] == ["begin"]
        process.send_signal(signal.SIGCONT)
        second.join(60)
    assert not second.is_alive()
    assert process.wait(60) == 7
    (found,) = after(store, [job], ["done"], tmp_path)
    assert found.attempt == 2
    assert [note[0] for note in notes(tmp_path)] == ["begin", "end", "begin", "end"]
    assert f"job {job.id}: its lease of b0 is ended: no heartbeat in 1 s" in caplog.text


def stop_outside_of_the_database(process: subprocess.Popen[bytes], store: Store) -> None:
    """With SQLite, whose writers wait for each other, everybody would wait for it."""
    while True:
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        with store.lock("database") as lock:
            if lock is not None:
                return
        process.send_signal(signal.SIGCONT)
        time.sleep(0.05)


@pytest.mark.parametrize(
    "where_it_dies",
    [
        "from scripted_board import LitBoard\nLitBoard.check = die",
        "runner.cool_down = die",
        # Off, and not on again.
        "from hardware_lab import power\nreal = power.CommandSwitch.switch\n"
        "power.CommandSwitch.switch = lambda s, on, *a: die() if on else real(s, on, *a)",
    ],
)
def test_a_runner_killed_before_it_measures(
    home: Path,
    tmp_path: Path,
    started: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    where_it_dies: str,
) -> None:
    place = str(tmp_path / "lab")
    store = Store(place)
    job = submit(store, Demand("b0"))
    switches = "CommandSwitch" in where_it_dies
    (tmp_path / "light").write_text("dim" if switches else "on")
    code = f"from hardware_lab import checks\nchecks.RECONNECT_S = 0\n{where_it_dies}\n"
    code += "from hardware_lab.cooldown import Cooldown\nfrom scripted_board import lit_lab"
    inventory = "lit_lab(Path({folder!r}), Cooldown(max_s=0.0, pause_s=0.0))"
    process = start_runner(started, place, tmp_path, code, inventory=inventory)
    assert process.wait(60) == -signal.SIGKILL
    assert (tmp_path / "light").read_text().strip() == ("off" if switches else "on")
    monkeypatch.setattr(checks, "RECONNECT_S", 0.0)
    run_jobs(store, lit_lab(tmp_path, Cooldown(max_s=0.0, pause_s=0.0)))
    (found,) = after(store, [job], ["done"], tmp_path)
    assert found.attempt == 2
    if switches:
        assert (tmp_path / "light").read_text().strip() == "on"
        steps = [line["step"] for line in store.health.log("b0") if line["step"]]
        assert steps == ["reconnect", "power-cycle"] * 2
        assert any(cause.startswith("power-cycle helped") for cause in causes(store, "b0"))


def test_the_database_is_gone_between_check_and_job(
    postgresql: PostgresqlServer, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a board says is lost then; the job is not blamed, and begins again."""
    store = Store(postgresql.new_database())
    jobs = [submit(store, Demand("b0")) for _ in range(2)]
    (tmp_path / "light").write_text("on")
    real = LitBoard.check
    gone = [1]

    def check(self: LitBoard, stop: Stop = never) -> str:
        if gone:
            gone.pop()
            postgresql.stop()
            back.start()
        return real(self)

    monkeypatch.setattr(LitBoard, "check", check)
    back = Thread(target=lambda: (time.sleep(0.5), postgresql.start()))
    run_jobs(store, lit_lab(tmp_path))
    back.join()
    found = after(store, jobs, ["done", "done"], tmp_path)
    assert all(job.max_attempts - job.attempt >= 2 for job in found)


def test_the_labs_clock_jumps_while_boards_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=1e9)
    monkeypatch.setattr(database, "time", SimpleNamespace(time=lambda: clock.now))
    store = Store(tmp_path / "lab")
    (tmp_path / "light").write_text("on")
    jobs = []
    for jump in (0.0, -1e6, 2e6):
        clock.now += jump
        jobs.append(submit(store, Demand("b0")))
        run_jobs(store, lit_lab(tmp_path, Cooldown(pause_s=0.5)))
    after(store, jobs, ["done"] * 3, tmp_path)
    told = [store.measurement(job.id).environment["cooldown"] for job in jobs]
    waited = [cooled["waited_s"] for cooled in told]
    # Back: it waits as if it had just been used, and no longer.
    assert max(waited[0], waited[2]) < 0.5 <= waited[1] < 10


# ------------------------------------------------------------------ a real board


@pytest.fixture
def board(server: Server, tmp_path: Path, impatient: None) -> Iterator[Ssh]:
    made = board_on(server, tmp_path)
    yield made
    wait_for(lambda: not remote(made))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lab and board notice within seconds that the other is gone."""
    monkeypatch.setattr(ssh, "HEARTBEAT_S", 0.3)
    options = [o for o in ssh._OPTIONS if not o.startswith("ServerAlive")]
    monkeypatch.setattr(
        ssh, "_OPTIONS", (*options, "ServerAliveInterval=1", "ServerAliveCountMax=2")
    )
    change_payload(monkeypatch, tmp_path, "SILENCE_S = 60.0", "SILENCE_S = 3.0")


def change_payload(patch: pytest.MonkeyPatch, tmp_path: Path, old: str, new: str) -> None:
    text = ssh.PAYLOAD.read_text()
    assert text.count(old) == 1
    changed = tmp_path / f"payload-{uuid4().hex}.py"
    changed.write_text(text.replace(old, new))
    patch.setattr(ssh, "PAYLOAD", changed)


def lab_of(*boards: Ssh) -> Inventory:
    return Inventory({board.name: board for board in boards}, {board.name: {} for board in boards})


def run_with_fault(store: Lab, inventory: Inventory, fault: Callable[[], None]) -> None:
    """Run the jobs; the fault comes once, in the middle of the first."""
    once = Event()

    def progress(job: Job, done: int, total: int) -> None:
        if not once.is_set():
            once.set()
            fault()

    run_jobs(store, inventory, on_progress=progress)
    assert once.is_set()


@needs_sshd
@pytest.mark.parametrize("restarts", [False, True])
def test_a_board_vanishes_and_comes_back(
    server: Server, board: Ssh, segments: Path, tmp_path: Path, restarts: bool
) -> None:
    """Its network, with what runs there going on; or all of it, as when it restarts."""
    store = Store(tmp_path / "lab")
    jobs = [submit(store, Demand("pi"), segments, n) for n in (LONG, 5)]
    comes_back = Thread(target=lambda: (time.sleep(1.0), server.launch()))

    def vanish() -> None:
        server.kill()
        for process in remote(board) if restarts else ():
            process.kill()
        comes_back.start()

    run_with_fault(store, lab_of(board), vanish)
    comes_back.join()
    found = after(store, jobs, ["done", "done"])
    assert sorted(job.attempt for job in found) == [1, 2]
    assert len(store.measurement(jobs[0].id).latency_ms) == LONG
    assert any("connection lost" in cause for cause in causes(store, "pi"))
    assert store.health.known()["pi"].state == "good"
    wait_for(lambda: is_clean(board))


@needs_sshd
def test_a_board_hangs(server: Server, board: Ssh, segments: Path, tmp_path: Path) -> None:
    """Its end of the connection is stopped: nothing is closed, nothing answers."""
    store = Store(tmp_path / "lab")
    jobs = [submit(store, Demand("pi"), segments, n) for n in (LONG, 5)]

    def hang() -> None:
        assert server.process
        for process in psutil.Process(server.process.pid).children(recursive=True):
            if "sshd" in process.name():
                process.send_signal(signal.SIGSTOP)

    run_with_fault(store, lab_of(board), hang)
    found = after(store, jobs, ["done", "done"])
    assert sorted(job.attempt for job in found) == [1, 2]
    assert any("connection lost" in cause for cause in causes(store, "pi"))


@needs_sshd
def test_what_runs_on_a_board_hangs(
    server: Server, board: Ssh, segments: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "lab")
    hasty = replace(board, name="hasty", time_limit_s=8.0)
    jobs = [
        submit(store, Demand("hasty"), segments, 1_000_000),
        submit(store, Demand("pi"), segments, 5),
    ]

    def hang() -> None:
        for process in remote(board):
            if process.cmdline()[-1] == "work":
                process.send_signal(signal.SIGSTOP)

    run_with_fault(store, lab_of(hasty, board), hang)
    found = after(store, jobs, ["failed", "done"])
    assert "not finished after 8 s, the time limit; it is ended" in str(found[0].error)
    assert store.health.known()["hasty"].state == "unknown"  # it is checked before it is used
    assert is_clean(board)


FLIPS = {
    "received == 2: value.view(np.uint8).flat[0] ^= 0x80": "from the lab's reference",
    "received == 40: value.view(np.uint8).flat[0] ^= 1": "from that of the same input before",
}


@needs_sshd
def test_a_flipped_bit_is_no_result(
    board: Ssh, segments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "lab")
    jobs = []
    for flip, says in FLIPS.items():
        jobs.append(submit(store, Demand("pi"), segments, 50))
        with pytest.MonkeyPatch.context() as patch:
            real = 'value = item["buffers"][name]\n'
            change_payload(patch, tmp_path, real, f"{real}            if {flip}\n")
            run_jobs(store, lab_of(board))
        found = store.job(jobs[-1].id)
        assert found.state == "failed" and f"differs {says}" in str(found.error)
        assert store.health.known()["pi"].state == "unknown"
        assert f"differs {says}" in causes(store, "pi")[-1]
    jobs.append(submit(store, Demand("pi"), segments, 50))
    run_jobs(store, lab_of(board))
    after(store, jobs, ["failed", "failed", "done"])
    assert store.measurement(jobs[-1].id).outputs_equal


@needs_sshd
def test_a_board_throttles(
    board: Ssh, segments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel lowers the clock that it allows, and takes that back."""
    base = tmp_path / "sys/devices/system/cpu/cpufreq/policy0"
    base.mkdir(parents=True)
    for file in ("scaling_cur_freq", "scaling_max_freq"):
        (base / file).write_text("1800000\n")
    change_payload(monkeypatch, tmp_path, 'SYSTEM = "/sys"', f'SYSTEM = "{tmp_path}/sys"')
    change_payload(monkeypatch, tmp_path, "CLOCK_S = 0.5", "CLOCK_S = 0.02")
    store = Store(tmp_path / "lab")
    job = submit(store, Demand("pi"), segments, LONG)

    def throttle() -> None:
        (base / "scaling_max_freq").write_text("1000000\n")
        time.sleep(0.2)
        (base / "scaling_max_freq").write_text("1800000\n")

    run_with_fault(store, lab_of(board), throttle)
    after(store, [job], ["done"])
    marks = store.measurement(job.id).marks
    assert "throttled: its clock fell from 1.80 to 1.00 GHz" in marks


@needs_sshd
@needs_root
def test_a_boards_disk_is_full(
    board: Ssh, segments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "lab")
    with small_disk(tmp_path / "disk", "128k") as resize:
        small = replace(board, folder=str(tmp_path / "disk" / "coralline"))
        job = submit(store, Demand("pi"), segments, 3000)
        run_jobs(store, lab_of(small))
        (found,) = after(store, [job], ["failed"])
        assert "No space left on device" in str(found.error)
        assert is_clean(small)
        resize("16m")
        again = submit(store, Demand("pi"), segments, 3000)
        run_jobs(store, lab_of(small))
        after(store, [job, again], ["failed", "done"])


@needs_sshd
def test_a_boards_clock_jumps(
    board: Ssh, segments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had none of its own, and is told the time when all that it has is years old."""
    store = Store(tmp_path / "lab")
    files = Path(board.folder) / "files"

    def measured() -> Job:
        job = submit(store, Demand("pi"), segments, 5)
        run_jobs(store, lab_of(board))
        return after(store, [job], ["done"])[0]

    measured()
    nobodys = files / ("0" * 64)
    nobodys.touch()
    for path in files.iterdir():
        os.utime(path, (0, 0))
    assert measured().attempt == 1
    assert not nobodys.exists()

    # What the board has is gone by the time that it is wanted: it is sent again.
    real = Ssh._kept

    def kept(self: Ssh, stop: Stop) -> set[str]:
        found = real(self, stop)
        (files / ssh.file_digest(segments / SegmentSet.read(segments).segments[0].file)).unlink()
        monkeypatch.setattr(Ssh, "_kept", real)
        return found

    monkeypatch.setattr(Ssh, "_kept", kept)
    assert measured().attempt == 2
    assert any("is gone; it is sent again" in cause for cause in causes(store, "pi"))


@needs_sshd
def test_a_runner_of_another_host_is_stopped(
    server: Server,
    board: Ssh,
    segments: Path,
    postgresql: PostgresqlServer,
    home: Path,
    tmp_path: Path,
    started: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its ssh goes on without it; the board notices the silence before another host has it."""
    url = postgresql.new_database()
    store = Store(url)
    job = submit(store, Demand("pi"), segments, LONG)
    code = (
        "from hardware_lab.boards import ssh\nfrom hardware_lab.boards.ssh import Ssh\n"
        "from hardware_lab.inventory import Inventory\n"
        "runner.HOLD_S, runner.LEASE_S = 5, 10\n"
        f"ssh.HEARTBEAT_S, ssh.PAYLOAD = 0.3, Path({str(ssh.PAYLOAD)!r})"
    )
    inventory = f"Inventory({{{{'pi': {board!r}}}}}, {{{{'pi': {{{{}}}}}}}})"
    process = start_runner(started, url, tmp_path, code, home="other", inventory=inventory)
    wait_for(lambda: workers(board), 60)
    process.send_signal(signal.SIGSTOP)
    most = [0]
    done = Event()

    def watch() -> None:
        while not done.wait(0.1):
            most[0] = max(most[0], len(workers(board)))

    watching = Thread(target=watch)
    watching.start()
    monkeypatch.setattr(runner_module, "LEASE_S", 4.0)
    try:
        run_jobs(store, lab_of(board))
    finally:
        done.set()
        watching.join()
        process.send_signal(signal.SIGCONT)
    assert process.wait(60) == 0
    (found,) = after(store, [job], ["done"])
    assert found.attempt == 2 and most[0] == 1
    assert len(store.measurement(job.id).latency_ms) == LONG


def workers(board: Ssh) -> list[psutil.Process]:
    found = []
    for process in remote(board):
        try:
            if process.cmdline()[-1:] == ["work"]:
                found.append(process)
        except psutil.Error:
            continue
    return found
