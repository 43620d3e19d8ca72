"""Boards that no longer answer: how they are brought back, how often, and who may."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from scripted_board import ScriptedBoard, notes
from waiting import wait_for

from coralline.errors import DeviceError, UserError
from coralline.runtime.child import Stop, never
from hardware_lab import checks, database, health
from hardware_lab import runner as runner_module
from hardware_lab.boards import Recoverable
from hardware_lab.boards.android import Android
from hardware_lab.boards.host import Host
from hardware_lab.boards.ssh import Ssh
from hardware_lab.checks import UnfitError, check, survey
from hardware_lab.inventory import Demand, Inventory
from hardware_lab.jobs import JobOptions, View
from hardware_lab.lab import Lab, open_lab
from hardware_lab.runner import run_jobs
from hardware_lab.store import Store

INT8 = Path(__file__).parents[1] / "data" / "small_int8.tflite"


@dataclass
class Patient:
    """What has become of a board, and what would help it."""

    cure: str = ""
    hurts: DeviceError = field(default_factory=lambda: DeviceError("no answer", retryable=True))
    is_well: bool = True
    boots: int = 0
    done: list[str] = field(default_factory=list)

    def treat(self, step: str) -> None:
        self.done.append(step)
        if step == self.cure:
            self.is_well = True
            self.boots += step != "reconnect"


@dataclass(frozen=True)
class SickBoard(ScriptedBoard):
    """Fails its check until what helps it is done."""

    patient: Patient = field(default_factory=Patient)
    may_restart: bool = True
    restarts_in_s: float = 0.0

    def check(self, stop: Stop = never) -> str:
        if not self.patient.is_well:
            raise self.patient.hurts
        return "well"

    def reconnect(self) -> None:
        self.patient.treat("reconnect")

    def boot_id(self) -> str:
        if self.patient.hurts.args == ("it is gone",) and not self.patient.is_well:
            raise self.patient.hurts
        return str(self.patient.boots)

    def restart(self) -> None:
        self.patient.treat("restart")


@dataclass(frozen=True)
class Switch:
    """Its power."""

    patient: Patient
    pause_s: float = 0.0
    is_lost: bool = False

    def switch(self, on: bool, stop: Stop = never) -> None:
        if self.is_lost:
            raise DeviceError("the hub is gone")
        self.patient.treat("on" if on else "off")
        if on:
            self.patient.treat("power-cycle")

    def is_on(self, stop: Stop = never) -> bool | None:
        return None


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "POLL_S", (0.01, 0.02))
    monkeypatch.setattr(health, "PAUSE_S", 0.01)
    for name in ("RECONNECT_S", "START_S", "LOOK_S"):
        monkeypatch.setattr(checks, name, 0.02)


@pytest.fixture
def store(place: str) -> Lab:
    return open_lab(place)


def lab_of(board: SickBoard, **options: Any) -> Inventory:
    switch = Switch(board.patient, **options)
    return Inventory({board.name: board}, {board.name: {}}, power={board.name: switch})


def said(store: Lab, board: str = "b0") -> list[str]:
    return [f"{line['state']}: {line['cause']}" for line in store.health.log(board)]


STEPS = ["reconnect", "restart", "off", "on", "power-cycle"]


@pytest.mark.parametrize(
    ("cure", "done"), [("reconnect", 1), ("restart", 2), ("power-cycle", 5), ("none", 5)]
)
def test_steps_grow_harsher_until_one_helps(
    store: Lab, tmp_path: Path, cure: str, done: int
) -> None:
    board = SickBoard("b0", tmp_path)
    patient = board.patient
    patient.cure, patient.is_well = cure, False
    job = store.submit(INT8, Demand("b0"), JobOptions(repetitions=1, warmup=0))
    run_jobs(store, lab_of(board))
    if cure == "none":  # until its strikes are used up
        assert patient.done == STEPS[:done] * health.STRIKES
        assert store.job(job.id).state == "queued"
        assert store.health.known()["b0"].state == "bad"
        return
    assert patient.done == STEPS[:done]
    assert store.job(job.id).state == "done"
    *log, helped, good = said(store)
    assert log[0] == "unknown: reconnect, since: no answer"
    assert helped.startswith(f"unknown: {cure} helped after ") and good == "good: well"
    if cure != "reconnect":
        assert log[1] == "unknown: reconnect did not help: no answer"


def test_a_runner_that_is_interrupted_leaves_a_check_that_hangs(
    store: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = Event()

    def check(self: SickBoard, stop: Stop = never) -> str:
        begun.set()
        wait_for(stop)
        raise DeviceError("stopped", retryable=True)

    monkeypatch.setattr(SickBoard, "check", check)
    real = type(store).look

    def look(self: Lab, group: str | None = None) -> View:
        if begun.is_set():
            raise KeyboardInterrupt
        return real(self, group)

    monkeypatch.setattr(type(store), "look", look)
    board = SickBoard("b0", tmp_path)
    job = store.submit(INT8, Demand("b0"), JobOptions(repetitions=1, warmup=0))
    with pytest.raises(KeyboardInterrupt):
        run_jobs(store, lab_of(board))
    assert store.job(job.id).state == "queued"
    # The board is not to blame, and nothing was done to it.
    assert store.health.known()["b0"].strikes == 0 and board.patient.done == []


def test_a_board_that_vanishes_under_a_job(
    store: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = SickBoard("b0", tmp_path)
    board.patient.cure = "power-cycle"
    board.patient.hurts = DeviceError("it is gone", retryable=True)
    real = ScriptedBoard.measure
    left = [1]

    def measure(self: ScriptedBoard, *arguments: Any) -> Any:
        if left:
            left.pop()
            board.patient.is_well = False
            raise board.patient.hurts
        return real(self, *arguments)

    monkeypatch.setattr(ScriptedBoard, "measure", measure)
    jobs = [store.submit(INT8, Demand("b0"), JobOptions(repetitions=1, warmup=0)) for _ in range(2)]
    run_jobs(store, lab_of(board))
    assert [store.job(job.id).state for job in jobs] == ["done", "done"]
    assert sorted(store.job(job.id).attempt for job in jobs) == [1, 2]
    # What does not answer is not told to restart.
    assert board.patient.done == ["reconnect", "off", "on", "power-cycle"]
    assert [line["step"] for line in store.health.log("b0") if line["step"]] == [
        "reconnect",
        "power-cycle",
    ]
    assert len([note for note in notes(tmp_path) if note[0] == "begin"]) == 2


def test_steps_are_counted_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1e9)
    monkeypatch.setattr(database, "time", SimpleNamespace(time=lambda: clock.now))
    store, board = Store(tmp_path / "lab"), SickBoard("b0", tmp_path)
    lab = lab_of(board)

    def fails() -> list[str]:
        board.patient.done.clear()
        board.patient.is_well = False
        with pytest.raises(UnfitError):
            check(store, board, lab.power["b0"], never)
        return list(board.patient.done)

    most = checks.MOST_A_DAY["restart"]
    assert [fails() for _ in range(most)] == [STEPS] * most
    assert fails() == ["reconnect"]  # also when another runner counts on
    assert check_again(Store(tmp_path / "lab"), board, lab) == ["reconnect"]
    clock.now += health.DAY_S + 1
    assert fails() == STEPS


def check_again(store: Lab, board: SickBoard, lab: Inventory) -> list[str]:
    board.patient.done.clear()
    with pytest.raises(UnfitError):
        check(store, board, lab.power["b0"], never)
    return list(board.patient.done)


@pytest.mark.parametrize(
    "hurts", [DeviceError("no Python there"), UserError("no such file; the inventory names it")]
)
def test_what_a_person_must_mend_is_left_to_people(store: Lab, tmp_path: Path, hurts: Any) -> None:
    board = SickBoard("b0", tmp_path)
    board.patient.is_well, board.patient.hurts = False, hurts
    with pytest.raises(UnfitError, match="no "):
        check(store, board, lab_of(board).power["b0"], never)
    assert board.patient.done == []


def test_who_has_no_lease_helps_nobody(store: Lab, tmp_path: Path) -> None:
    board = SickBoard("b0", tmp_path)
    board.patient.is_well = False
    survey(store, [board])
    assert board.patient.done == []
    assert store.health.known()["b0"].strikes == 1


def test_who_loses_the_lease_stops_at_once(
    store: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "RECONNECT_S", 60.0)
    board = SickBoard("b0", tmp_path)
    board.patient.is_well = False
    begun = time.monotonic()
    with pytest.raises(UnfitError, match="its runner had to leave it"):
        check(store, board, lab_of(board).power["b0"], lambda: bool(board.patient.done))
    assert board.patient.done == ["reconnect"] and time.monotonic() - begun < 30
    assert "b0" not in store.health.known()  # it counts against nobody


def test_no_board_is_restarted_while_most_fail(store: Lab, tmp_path: Path) -> None:
    boards = [SickBoard(f"b{i}", tmp_path) for i in range(health.FEW + 2)]
    for board in boards:
        board.patient.is_well = False
        with pytest.raises(UnfitError):
            check(store, board, lab_of(board).power[board.name], never)
    restarted = [board.name for board in boards if "restart" in board.patient.done]
    power_cycled = [board.name for board in boards if "off" in board.patient.done]
    assert restarted == power_cycled == ["b0", "b1", "b2", "b3"]
    assert "unknown: neither restarted nor power-cycled: most of the lab fails" in said(store, "b4")


def test_a_switch_that_fails_is_told_of(store: Lab, tmp_path: Path) -> None:
    board = SickBoard("b0", tmp_path, may_restart=False)
    board.patient.is_well = False
    with pytest.raises(UnfitError):
        check(store, board, lab_of(board, is_lost=True).power["b0"], never)
    assert board.patient.done == ["reconnect"]
    assert "unknown: power-cycle did not help: the hub is gone" in said(store)


def test_a_restart_is_one_only_with_another_boot_id(store: Lab, tmp_path: Path) -> None:
    board = SickBoard("b0", tmp_path)
    patient = board.patient
    patient.is_well = False
    real = patient.treat

    def half(step: str) -> None:
        real(step)
        patient.is_well = step == "restart"  # it answers, as before: it has not restarted

    patient.treat = half  # type: ignore[method-assign]
    with pytest.raises(UnfitError):
        check(store, board, None, never)
    assert patient.done == ["reconnect", "restart"]
    assert "unknown: restart did not help: it has not restarted" in said(store)


def test_which_boards_can_be_helped() -> None:
    boards = [Ssh("b", host="b"), Android("b", binary="b"), Host("b")]
    assert [isinstance(board, Recoverable) for board in boards] == [True, True, False]
    assert not any(board.may_restart for board in boards if isinstance(board, Recoverable))
