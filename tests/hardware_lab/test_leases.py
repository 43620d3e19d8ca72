"""Runners in processes of their own, and what may happen to them, to clock and database.

After everything: no board was driven by two, and every job was measured once.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import pytest
from runner_process import start_runner
from scripted_board import ScriptedBoard, notes, scripted_lab
from waiting import wait_for

from benchmarks.postgresql_server import PostgresqlServer
from hardware_lab import database
from hardware_lab import runner as runner_module
from hardware_lab.inventory import Demand, Inventory
from hardware_lab.jobs import Job, JobOptions
from hardware_lab.lab import Lab, open_lab
from hardware_lab.locks import Lock
from hardware_lab.runner import Runner, run_jobs
from hardware_lab.store import HOLD_S, Store

INT8 = Path(__file__).parents[1] / "data" / "small_int8.tflite"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "BEAT_S", 0.1)
    monkeypatch.setattr(runner_module, "POLL_S", (0.02, 0.1))


@pytest.fixture
def runner(
    place: str, tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> Callable[..., subprocess.Popen[bytes]]:
    """Starts a runner of the lab at `place`."""
    return partial(start_runner, started, place, tmp_path)


def submit(store: Lab, demand: Demand) -> Job:
    return store.submit(INT8, demand, JobOptions(repetitions=1, warmup=0))


def all_is_well(store: Lab, folder: Path, jobs: list[Job]) -> None:
    """Every job is done, has its own measurement, and no board was driven by two."""
    for job in jobs:
        assert store.job(job.id).state == "done", store.job(job.id)
        assert store.measurement(job.id).id == job.id
    assert not [note for note in notes(folder) if note[0] == "collision"]


def test_many_runners_and_some_are_killed(
    place: str, runner: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    store = open_lab(place)
    rng = random.Random(5)
    wanted = [Demand(f"b{i}") for i in range(3)]
    wanted += [Demand(None, {"edgetpu": n}) for n in (1, 2)]
    jobs = [submit(store, rng.choice(wanted)) for _ in range(40)]
    homes = count() if "://" in place else iter(lambda: 0, 1)
    for _ in range(2):
        processes = [runner(boards=3, seconds=0.1, home=f"home{next(homes)}") for _ in range(2)]
        wait_for(lambda: len(notes(tmp_path)) > 4)
        time.sleep(rng.random() / 2)
        for process in processes:
            process.kill()
    last = [runner(boards=3, home=f"home{next(homes)}") for _ in range(2)]
    assert [process.wait(60) for process in last] == [0, 0]
    all_is_well(store, tmp_path, jobs)
    begun = Counter(note[2] for note in notes(tmp_path) if note[0] == "begin")
    for job in jobs:
        found = store.job(job.id)
        # An attempt may be killed before it has begun, but none begins that is not counted.
        assert begun[job.id] <= found.attempt <= 3
        assert found.demand.board in (None, found.board)
        assert found.demand.needs.get("edgetpu") != 2 or found.board == "b1"


@pytest.mark.parametrize(
    ("where_it_dies", "attempts"),
    [
        ("runner.Workplace.models = die", 2),  # claimed, not begun
        ("ScriptedBoard._note = die", 2),  # the board works
        ("runner.Workplace.keep = die", 2),  # measured, not kept
        ("Lab.finish = die", 2),  # its raw files kept, its result not
        ("real = Lab.finish\nLab.finish = lambda *a: (real(*a), die())", 1),
    ],
)
def test_a_runner_killed_at_every_step(
    place: str,
    runner: Callable[..., subprocess.Popen[bytes]],
    tmp_path: Path,
    where_it_dies: str,
    attempts: int,
) -> None:
    killed_and_run_again(open_lab(place), runner, tmp_path, where_it_dies, attempts)


def test_a_runner_killed_in_its_transaction(
    where: str, tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    """The job's state is written, the measurement is not."""
    runner = partial(start_runner, started, where, tmp_path)
    killed_and_run_again(Store(where), runner, tmp_path, "store.insert = die", 2)


def killed_and_run_again(
    store: Lab,
    runner: Callable[..., subprocess.Popen[bytes]],
    tmp_path: Path,
    where_it_dies: str,
    attempts: int,
) -> None:
    job = submit(store, Demand("b0"))
    assert runner(where_it_dies).wait(60) == -signal.SIGKILL
    # On its machine nobody waits for the lease to run out.
    begun = time.monotonic()
    run_jobs(store, scripted_lab(tmp_path, 2))
    assert time.monotonic() - begun < HOLD_S
    all_is_well(store, tmp_path, [job])
    assert store.job(job.id).attempt == attempts


def test_a_runner_that_no_longer_reaches_the_database(
    postgresql: PostgresqlServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """It leaves the board before another host gets it, and its result is refused."""
    monkeypatch.setenv("CORALLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CORALLINE_ARTIFACTS", str(tmp_path / "artifacts"))
    for name, value in (("HOLD_S", 0.5), ("LEASE_S", 1.2)):
        monkeypatch.setattr(runner_module, name, value)
    url = postgresql.new_database()
    cut_off = Store(url)
    monkeypatch.setenv("CORALLINE_HOME", str(tmp_path / "other home"))
    other = Store(url)
    job = submit(cut_off, Demand("b0"))
    cut = Event()

    def unless_cut(name: str) -> None:
        real = getattr(cut_off, name)

        def call(*arguments: object) -> object:
            if cut.is_set():
                raise runner_module.DeviceError("no route to host", retryable=True)
            return real(*arguments)

        monkeypatch.setattr(cut_off, name, call)

    for name in ("beat", "finish", "fail", "leases", "queue"):
        unless_cut(name)
    first = Thread(target=run_jobs, args=(cut_off, scripted_lab(tmp_path, 1, seconds=20)))
    first.start()
    wait_for(lambda: notes(tmp_path))
    cut.set()
    run_jobs(other, scripted_lab(tmp_path, 1))
    all_is_well(other, tmp_path, [job])
    assert other.job(job.id).attempt == 2
    assert [note[0] for note in notes(tmp_path)] == ["begin", "end", "begin", "end"]
    kept = other.measurement(job.id)
    cut.clear()  # now it reaches it, and says what it has to say of the first attempt
    first.join(30)
    assert not first.is_alive()
    assert other.measurement(job.id) == kept
    assert other.job(job.id).state == "done"


def test_a_host_that_is_gone_for_good(
    postgresql: PostgresqlServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("CORALLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CORALLINE_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setattr(runner_module, "LEASE_S", 1.0)
    store = Store(postgresql.new_database())
    job = submit(store, Demand("b0"))
    lost = store.claim(job.demand, "b0", "scripted-b0", Lock(-1, "there"), "lost")
    assert lost is not None
    begun = time.monotonic()
    run_jobs(store, scripted_lab(tmp_path, 1))
    assert time.monotonic() - begun > 1.0
    all_is_well(store, tmp_path, [job])
    with pytest.raises(runner_module.DeviceError, match="is refused"):
        store.fail(lost, runner_module.DeviceError("late"))


@pytest.mark.parametrize("place", ["postgresql"], indirect=True)
def test_the_database_is_gone_and_comes_back(
    place: str,
    postgresql: PostgresqlServer,
    runner: Callable[..., subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    store = open_lab(place)
    jobs = [submit(store, Demand(f"b{i % 2}")) for i in range(8)]
    process = runner("runner.HOLD_S, runner.LEASE_S = 60, 90", seconds=0.5)
    for gone_s in (0.3, 1.0):
        already = len(notes(tmp_path))
        wait_for(lambda already=already: len(notes(tmp_path)) > already)
        postgresql.stop()
        time.sleep(gone_s)
        postgresql.start()
    assert process.wait(60) == 0
    all_is_well(store, tmp_path, jobs)
    begun = Counter(note[2] for note in notes(tmp_path) if note[0] == "begin")
    # An answer may get lost, and with it an attempt, but no measurement is made twice.
    assert begun == {job.id: 1 for job in jobs}


def test_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    jumping = SimpleNamespace(time=lambda: 1e9 + rng.uniform(-1e6, 1e6))
    monkeypatch.setattr(database, "time", jumping)
    stores = [Store(tmp_path / "lab") for _ in range(3)]
    jobs = [submit(stores[0], Demand(None, {"edgetpu": 1})) for _ in range(12)]
    lab = scripted_lab(tmp_path, 3, seconds=0.05)
    threads = [Thread(target=run_jobs, args=(store, lab)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    all_is_well(stores[0], tmp_path, jobs)
    assert {stores[0].job(job.id).attempt for job in jobs} == {1}


def test_a_running_job_is_cancelled(place: str, tmp_path: Path) -> None:
    store = open_lab(place)
    job, other = submit(store, Demand("b0")), submit(store, Demand("b1"))
    boards = {"b0": ScriptedBoard("b0", tmp_path, 1000), "b1": ScriptedBoard("b1", tmp_path)}
    lab = Inventory(boards, {name: {} for name in boards})
    thread = Thread(target=run_jobs, args=(store, lab))
    thread.start()
    wait_for(lambda: "b0" in {note[1] for note in notes(tmp_path)})
    store.cancel([job.id])
    thread.join(60)
    assert store.job(job.id).state == "cancelled"
    all_is_well(store, tmp_path, [other])


def test_what_works_on_this_cpu_works_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "lab")
    boards = [ScriptedBoard(f"b{i}", tmp_path, 0.8, on_this_cpu=i == 0) for i in range(3)]
    lab = Inventory({b.name: b for b in boards}, {b.name: {} for b in boards})
    for name in ("b1", "b2", "b0", "b1", "b2"):
        submit(store, Demand(name))
    run_jobs(store, lab)
    said = [f"{what} {board}" for what, board, *_ in notes(tmp_path)]
    # Alone, in its turn although the others are free before; these may be slow to begin.
    others = ["begin b1", "begin b2", "end b1", "end b2"]
    assert sorted(said[:4]) == others
    assert said[4:6] == ["begin b0", "end b0"]
    assert sorted(said[6:]) == others


def test_a_driver_with_a_bug_fails_its_job_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "lab")
    bad, good = submit(store, Demand("b0")), submit(store, Demand("b1"))
    real = ScriptedBoard.measure

    def measure(self: ScriptedBoard, *arguments: object) -> object:
        return {}["key"] if self.name == "b0" else real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ScriptedBoard, "measure", measure)
    run_jobs(store, scripted_lab(tmp_path, 2))
    assert store.job(bad.id).error == "b0: its driver failed (KeyError('key'))"
    all_is_well(store, tmp_path, [good])


def test_a_runner_that_stays(place: str, tmp_path: Path) -> None:
    store, told = open_lab(place), Event()
    ended: list[str] = []
    lab = scripted_lab(tmp_path, 2, seconds=0.3)
    staying = Runner(store, lab, on_end=lambda job: ended.append(job.id))
    thread = Thread(target=staying.run, args=(told,))
    thread.start()
    first = submit(store, Demand("b0"))
    wait_for(lambda: ended == [first.id])
    second, third = submit(store, Demand("b1")), submit(store, Demand("b1"))
    wait_for(lambda: len(notes(tmp_path)) == 3)
    told.set()  # what runs is ended, what waits is left
    thread.join(30)
    all_is_well(store, tmp_path, [first, second])
    assert store.job(third.id).state == "queued"
