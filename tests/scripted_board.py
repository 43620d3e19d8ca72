"""A board that does as the test says, and notices when two drive it."""

from __future__ import annotations

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coralline.errors import DeviceError
from coralline.runtime.child import Progress, Stop, never
from coralline.runtime.measurement import Measurement
from hardware_lab.boards import Task, here
from hardware_lab.cooldown import Cooldown
from hardware_lab.inventory import Inventory
from hardware_lab.power import CommandSwitch


def measurement(**changes: Any) -> Measurement:
    """Three samples of a model of one stage."""
    samples = (1.0, 2.0, 3.0)
    values: dict[str, Any] = {
        "id": "m",
        "model": "scripted",
        "model_digest": "ab" * 32,
        "plan": {},
        "board": "b0",
        "board_kind": "scripted",
        "simulated": True,
        "processor": "simulated by a test",
        "meter": None,
        "started_at": "2026-11-21T03:00:00+00:00",
        "warmup": 0,
        "first_inference_ms": 4.0,
        "latency_ms": samples,
        "full_latency_ms": samples,
        "wall_s": 0.006,
        "stage_busy_ms": (samples,),
        "queue_wait_ms": (samples,),
        "transfer_ms": (samples,),
        "energy_mj_per_inference": None,
        "outputs_equal": None,
        "environment": {},
    }
    return Measurement(**{**values, **changes})


@dataclass(frozen=True)
class ScriptedBoard:
    """Takes `seconds` for a job, and writes to `folder` when it began and ended each."""

    name: str
    folder: Path
    seconds: float = 0.0
    on_this_cpu: bool = False

    kind = "scripted"

    @property
    def resource(self) -> str:
        return here("cpu") if self.on_this_cpu else f"scripted-{self.name}"

    def check(self, stop: Stop = never) -> str:
        return "scripted"

    def measure(self, task: Task, on_progress: Progress | None = None) -> Measurement:
        # The kernel frees the lock of a process that is killed.
        with open(self.folder / f"{self.resource}.device", "wb") as device:
            try:
                fcntl.flock(device, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._note("collision", task)
                raise
            self._note("begin", task)
            try:
                end = time.monotonic() + self.seconds
                while time.monotonic() < end:
                    if task.stop():
                        raise DeviceError("stopped", retryable=True)
                    time.sleep(0.01)
            finally:
                self._note("end", task)
        return measurement(id=task.id, board=self.name)

    def _note(self, what: str, task: Task) -> None:
        line = f"{what} {self.name} {task.id} {os.getpid()}\n"
        with open(self.folder / "notes", "ab", buffering=0) as file:
            file.write(line.encode())


@dataclass(frozen=True)
class LitBoard(ScriptedBoard):
    """Works while the light in its folder is on."""

    def check(self, stop: Stop = never) -> str:
        if (self.folder / "light").read_text().strip() != "on":
            raise DeviceError("no answer", retryable=True)
        return "it is on"


def lit_lab(folder: Path, cooldown: Cooldown | None = None) -> Inventory:
    """Board b0, with a switch for its light."""
    light = folder / "light"
    switch = CommandSwitch(
        on=f"sh -c 'echo on > {light}'", off=f"sh -c 'echo off > {light}'", pause_s=0.0
    )
    return Inventory(
        {"b0": LitBoard("b0", folder)},
        {"b0": {}},
        power={"b0": switch},
        cooldown={} if cooldown is None else {"b0": cooldown},
    )


def scripted_lab(folder: Path, count: int, seconds: float = 0.0) -> Inventory:
    """Boards b0, b1, ...; every second one has two `edgetpu`, the others one."""
    names = [f"b{i}" for i in range(count)]
    return Inventory(
        {name: ScriptedBoard(name, folder, seconds) for name in names},
        {name: {"edgetpu": 1 + i % 2} for i, name in enumerate(names)},
    )


def notes(folder: Path) -> list[list[str]]:
    """What, board, job and process of every line, in the order of time."""
    path = folder / "notes"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []
