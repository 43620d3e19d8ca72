"""Cooling down before a job: until when, for how long at most, and what is told of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from scripted_board import ScriptedBoard, notes

from coralline.errors import DeviceError
from coralline.runtime.child import Stop, never
from coralline.runtime.environment import hottest
from hardware_lab import runner as runner_module
from hardware_lab.boards import Board
from hardware_lab.compare import Comparison
from hardware_lab.cooldown import LOOK_S, WINDOW_S, Cooldown, Cooled, cool_down
from hardware_lab.inventory import Demand, Inventory
from hardware_lab.jobs import JobOptions
from hardware_lab.lab import open_lab
from hardware_lab.runner import run_jobs
from hardware_lab.store import Store

INT8 = Path(__file__).parents[1] / "data" / "small_int8.tflite"
WANTED = Cooldown(celsius=50.0, max_s=300.0, pause_s=100.0, ambient_celsius=22.0)


@dataclass
class Clock:
    """Time that passes when somebody sleeps."""

    seconds: float = 1000.0

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass(frozen=True)
class WarmBoard(ScriptedBoard):
    """Its temperature is a function of time."""

    at: Callable[[], float | None] = field(default=lambda: 20.0)

    def celsius(self) -> float | None:
        return self.at()


def cooled(
    at: Callable[[float], float | None], wanted: Cooldown = WANTED, rested_s: float = 0.0
) -> Any:
    """What comes of a board whose temperature `at` gives by seconds since the beginning."""
    clock = Clock()
    board = WarmBoard("b0", Path(), at=lambda: at(clock.now() - 1000.0))
    return cool_down(board, wanted, rested_s, never, clock.now, clock.sleep)


def newton(start: float, room: float, time_constant_s: float) -> Callable[[float], float]:
    """Newton's law of cooling."""
    return lambda t: room + (start - room) * math.exp(-t / time_constant_s)


def test_a_cool_board_at_rest_waits_only_to_see_that() -> None:
    found = cooled(lambda t: 40.0)
    assert found.reason == "cool"
    assert WINDOW_S <= found.waited_s <= WINDOW_S + LOOK_S
    assert abs(found.slope_celsius_per_min) < 1e-9
    assert (found.celsius_before, found.celsius_after) == (40.0, 40.0)
    assert found.to_json()["ambient_celsius"] == 22.0


def test_a_board_that_has_rested_does_not_wait() -> None:
    found = cooled(lambda t: 40.0, rested_s=100.0)
    assert (found.reason, found.waited_s, found.slope_celsius_per_min) == ("cool", 0.0, None)
    warm = cooled(newton(80, 30, 60), rested_s=math.inf)  # something else has warmed it
    assert warm.reason == "cool" and warm.waited_s == pytest.approx(60 * math.log(2.5), abs=LOOK_S)


def test_it_waits_for_temperature_and_slope() -> None:
    """Below 50 °C after 55 s; it changes by less than 1.5 °C a minute much later."""
    at = newton(80, 30, 60)
    found = cooled(at)
    assert found.reason == "cool" and found.celsius_before == 80.0
    assert found.celsius_after == pytest.approx(at(found.waited_s), abs=0.2)
    # The slope is that of the window's middle: 60 / 60 * (T - 30) = 1.5.
    when = 60 * math.log(50 / 1.5) + WINDOW_S / 2
    assert found.waited_s == pytest.approx(when, abs=2 * LOOK_S)
    assert found.slope_celsius_per_min == pytest.approx(-1.5, abs=0.1)


def test_a_sensor_of_whole_degrees() -> None:
    at = newton(80, 30, 60)
    found = cooled(lambda t: float(round(at(t))))
    assert found.reason == "cool" and found.waited_s < 300


@pytest.mark.parametrize("at", [lambda t: 70.0, newton(60, 55, 30), lambda t: 30 + t / 20])
def test_it_gives_up(at: Callable[[float], float]) -> None:
    """Too warm for ever; cooling towards too warm; cool, and warming up by 3 °C a minute."""
    found = cooled(at)
    assert found.reason == "gave up" and found.waited_s == WANTED.max_s
    assert found.limit_celsius == 50.0


def test_without_a_sensor_it_rests() -> None:
    assert cooled(lambda t: None).to_json() == {
        "reason": "timed",
        "waited_s": 100.0,
        "limit_celsius": 50.0,
        "celsius_before": None,
        "celsius_after": None,
        "slope_celsius_per_min": None,
        "ambient_celsius": 22.0,
    }
    assert cooled(lambda t: None, rested_s=70.0).waited_s == pytest.approx(30.0)
    assert cooled(lambda t: None, rested_s=math.inf).waited_s == 0.0


def test_who_need_not_wait_is_told_of_the_heat() -> None:
    laptop = Cooldown(celsius=70.0, max_s=0.0, pause_s=0.0)
    assert cooled(lambda t: 60.0, laptop).reason == "cool"
    hot = cooled(lambda t: 85.0, laptop)
    assert (hot.reason, hot.waited_s, hot.celsius_after) == ("gave up", 0.0, 85.0)
    assert cooled(lambda t: None, laptop).waited_s == 0.0


@pytest.mark.parametrize("at", [lambda: None, lambda: 70.0])
def test_a_board_is_left_in_time(at: Callable[[], float | None]) -> None:
    clock = Clock()
    board = WarmBoard("b0", Path(), at=at)
    with pytest.raises(DeviceError, match="left while it cooled down") as caught:
        cool_down(board, WANTED, 0.0, lambda: clock.now() > 1010, clock.now, clock.sleep)
    assert caught.value.retryable and clock.now() < 1012


def test_a_sensor_that_goes_away() -> None:
    with pytest.raises(DeviceError, match="its temperature sensor is gone"):
        cooled(lambda t: 70.0 if t < 10 else None)


# ------------------------------------------------------------------ in the lab


def lab_of(board: ScriptedBoard, wanted: Cooldown) -> Inventory:
    return Inventory({"b0": board}, {"b0": {}}, cooldown={"b0": wanted})


def test_it_stands_beside_the_number(where: str, tmp_path: Path) -> None:
    store = Store(where)
    jobs = [
        store.submit(INT8, Demand("b0"), JobOptions(repetitions=4, warmup=0), against=against)
        for against in (None, INT8)
    ]
    board = WarmBoard("b0", tmp_path, at=lambda: 70.0)
    run_jobs(store, lab_of(board, Cooldown(celsius=50.0, max_s=0.2)))
    alone, compared = (store.result(job.id) for job in jobs)
    assert isinstance(compared, Comparison) and not isinstance(alone, Comparison)
    for found in (alone, compared.a, compared.b):
        told = found.environment["cooldown"]
        assert told["reason"] == "gave up" and told["waited_s"] >= 0.2
        assert any(mark.startswith("warm: it began at 70 °C after 0 s") for mark in found.marks)


def test_a_lab_knows_how_long_a_board_has_rested(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_lab(place)
    rested: list[float] = []

    def told(board: Board, wanted: Cooldown, rested_s: float, stop: Stop) -> Cooled:
        rested.append(rested_s)
        return cool_down(board, Cooldown(pause_s=0.0), rested_s, stop)

    monkeypatch.setattr(runner_module, "cool_down", told)
    board = ScriptedBoard("b0", tmp_path)
    for _ in range(2):
        job = store.submit(INT8, Demand("b0"), JobOptions(repetitions=1, warmup=0))
        run_jobs(store, lab_of(board, Cooldown()))
        assert store.measurement(job.id).environment["cooldown"]["reason"] == "timed"
    assert rested[0] == math.inf and 0 <= rested[1] < 300


def test_the_lease_is_kept_and_left_while_it_cools_down(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "BEAT_S", 0.05)
    monkeypatch.setattr(runner_module, "HOLD_S", 1.0)
    store = Store(where)
    job = store.submit(INT8, Demand("b0"), JobOptions(repetitions=1, warmup=0))
    seen: list[int] = []

    def cancel_if_beaten() -> float:
        seen.extend(lease.beat for lease in store.leases())
        if seen and seen[-1] > 30:  # it was kept for longer than HOLD_S
            store.cancel([job.id])
        return 70.0

    board = WarmBoard("b0", tmp_path, at=cancel_if_beaten)
    monkeypatch.setattr("hardware_lab.cooldown.LOOK_S", 0.1)
    run_jobs(store, lab_of(board, Cooldown(celsius=50.0, max_s=3600.0)))
    assert store.job(job.id).state == "cancelled" and not notes(tmp_path)


# ------------------------------------------------------------------ sensors


def test_what_sensors_print() -> None:
    assert hottest("45000\n-40000\n\n255000\n38500\nN/A\n") == 45.0
    assert hottest("") is None
