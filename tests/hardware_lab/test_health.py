"""Boards that fail their check, or a job: how long they are used, and who frees them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from scripted_board import ScriptedBoard, notes, scripted_lab

from coralline.errors import DeviceError, UserError
from coralline.runtime.child import Stop, never
from hardware_lab import database, health
from hardware_lab import runner as runner_module
from hardware_lab.boards import Task
from hardware_lab.checks import survey
from hardware_lab.inventory import Demand
from hardware_lab.jobs import Job, JobOptions
from hardware_lab.lab import Lab, open_lab
from hardware_lab.runner import run_jobs
from hardware_lab.store import Store

INT8 = Path(__file__).parents[1] / "data" / "small_int8.tflite"


@pytest.fixture
def store(place: str) -> Lab:
    return open_lab(place)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "POLL_S", (0.01, 0.02))
    monkeypatch.setattr(health, "PAUSE_S", 0.01)


@pytest.fixture
def sick(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many checks each board will fail; counts down."""
    left: dict[str, int] = {}

    def check(self: ScriptedBoard, stop: Stop = never) -> str:
        if left.get(self.name, 0) > 0:
            left[self.name] -= 1
            raise DeviceError("no answer")
        return "scripted"

    monkeypatch.setattr(ScriptedBoard, "check", check)
    return left


def submit(store: Lab, demand: Demand) -> Job:
    return store.submit(INT8, demand, JobOptions(repetitions=1, warmup=0))


def states(store: Lab, board: str) -> list[str]:
    return [line["state"] for line in store.health.log(board)]


def test_a_board_is_checked_before_its_first_job(
    store: Lab, sick: dict[str, int], tmp_path: Path
) -> None:
    sick["b0"] = 2
    jobs = [submit(store, Demand("b0")) for _ in range(3)]
    run_jobs(store, scripted_lab(tmp_path, 1))
    assert {store.job(job.id).state for job in jobs} == {"done"}
    assert sick["b0"] == 0
    assert states(store, "b0") == ["looping", "good"]
    # What the board could not do counts against no job.
    assert sorted(store.job(j.id).max_attempts - store.job(j.id).attempt for j in jobs) == [2, 2, 2]


def test_quarantine(store: Lab, sick: dict[str, int], tmp_path: Path) -> None:
    sick["b0"] = 10
    lab = scripted_lab(tmp_path, 2)
    stuck, other = submit(store, Demand("b0")), submit(store, Demand(None, {"edgetpu": 1}))
    run_jobs(store, lab)  # returns, though a job is left that only b0 may do
    assert (store.job(stuck.id).state, store.job(other.id).state) == ("queued", "done")
    assert store.job(other.id).board == "b1"
    assert states(store, "b0") == ["looping", "bad"]
    assert sick["b0"] == 10 - health.STRIKES
    assert store.job(stuck.id).error == "b0: its check failed: no answer"
    survey(store, lab.boards.values())
    assert sick["b0"] == 10 - health.STRIKES

    sick["b0"] = 0
    store.health.set("b0", "unknown", "a new cable")
    run_jobs(store, lab)
    assert store.job(stuck.id).state == "done"
    assert store.health.log("b0")[-2]["cause"] == "a new cable"
    assert states(store, "b0") == ["looping", "bad", "unknown", "good"]


@pytest.mark.parametrize("state", ["maintenance", "retired"])
def test_a_board_that_a_person_has_taken_away(store: Lab, tmp_path: Path, state: str) -> None:
    store.health.set("b0", state, "moved")
    job = submit(store, Demand("b0"))
    run_jobs(store, scripted_lab(tmp_path, 1))
    assert store.job(job.id).state == "queued" and not notes(tmp_path)
    with pytest.raises(UserError, match="choose unknown, bad, maintenance, retired"):
        store.health.set("b0", "good", "I hope so")


def test_a_failed_job_has_the_board_checked(
    store: Lab, sick: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = scripted_lab(tmp_path, 1)
    submit(store, Demand("b0"))
    run_jobs(store, lab)
    assert states(store, "b0") == ["good"]

    def lost(self: ScriptedBoard, task: Task, on_progress: object = None) -> None:
        sick["b0"] = 1
        raise DeviceError("it has vanished")

    real = ScriptedBoard.measure
    monkeypatch.setattr(ScriptedBoard, "measure", lost)
    failed = submit(store, Demand("b0"))
    run_jobs(store, lab)
    assert store.job(failed.id).state == "failed"
    assert store.health.known()["b0"].state == "unknown"
    assert store.health.known()["b0"].cause == "it has vanished"
    monkeypatch.setattr(ScriptedBoard, "measure", real)
    last = submit(store, Demand("b0"))
    run_jobs(store, lab)
    assert store.job(last.id).state == "done"
    assert states(store, "b0") == ["good", "unknown", "looping", "good"]


def test_a_check_that_condemns_most_of_the_lab_is_suspect(
    store: Lab, sick: dict[str, int], tmp_path: Path
) -> None:
    lab = scripted_lab(tmp_path, 6)
    survey(store, lab.boards.values())
    sick.update(dict.fromkeys(lab.boards, 4))
    for name in lab.boards:
        store.health.set(name, "unknown", "a new version of the check")
    jobs = [submit(store, Demand(name)) for name in lab.boards]
    run_jobs(store, lab)
    # Three of six are condemned; the others are asked again until the check is mended.
    found = [store.health.known()[name].state for name in lab.boards]
    assert sorted(found) == ["bad"] * 3 + ["good"] * 3
    assert sorted(store.job(job.id).state for job in jobs) == ["done"] * 3 + ["queued"] * 3


def test_an_old_check_is_repeated(
    tmp_path: Path, sick: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=1e9)
    monkeypatch.setattr(database, "time", SimpleNamespace(time=lambda: clock.now))
    store, lab = Store(tmp_path / "lab"), scripted_lab(tmp_path, 1)
    checked = []
    for hours in (0, 23, 2, 1):
        clock.now += 3600 * hours
        submit(store, Demand("b0"))
        run_jobs(store, lab)
        checked.append(store.health.known()["b0"].checked - 1e9)
    assert checked == [0, 0, 25 * 3600, 25 * 3600]
