"""Boards: what can run a split model and time it. One module a kind."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from coralline.runtime.child import Progress, Stop, never
from coralline.runtime.measurement import Measurement


@dataclass(frozen=True)
class Task:
    """What a board is asked to measure.

    Attributes:
        id: Of the measurement.
        path: A folder that `coralline split` wrote, or a plain .tflite.
        repetitions: Samples of each mode.
        warmup: Inferences before the first sample of each mode.
        seconds: After so long a mode gives no more samples; None for no such limit.
        keep_open: File descriptors that every process working on the board must hold: the
            board's lock lasts until all of them have ended.
        scratch: A folder for files that belong to the result, as `power.parquet`; None when nobody
            wants them.
        stop: Once it is true the board must be left at once, however far the task is: another
            runner may soon have the board.
    """

    id: str
    path: Path
    repetitions: int
    warmup: int
    seconds: float | None = None
    keep_open: tuple[int, ...] = ()
    scratch: Path | None = None
    stop: Stop = never


class Board(Protocol):
    """One board. Its dataclass fields after `name` are its options in the inventory."""

    @property
    def name(self) -> str:
        """In the inventory."""

    @property
    def kind(self) -> str:
        """As the inventory writes it."""

    @property
    def resource(self) -> str:
        """What it works on: of the boards with one resource, one works at a time. No other thing
        in the lab has this name; `here` makes one for a part of this machine."""

    def check(self, stop: Stop = never) -> str:
        """One line on what the board is now.

        Args:
            stop: As `Task.stop`.

        Raises:
            CorallineError: It cannot work, or was not waited for; says why.
        """

    def measure(self, task: Task, on_progress: Progress | None = None) -> Measurement:
        """Run the task.

        Raises:
            UserError: The task cannot run on this board.
            DeviceError: The board failed.
        """


@runtime_checkable
class Recoverable(Protocol):
    """What a board may also have: ways to bring it back when it no longer answers."""

    @property
    def may_restart(self) -> bool:
        """Whether the inventory lets the lab restart it."""

    def reconnect(self) -> None:
        """Drop what this machine holds of a connection to it.

        Raises:
            DeviceError: It could not be dropped.
        """

    def boot_id(self) -> str:
        """Another text each time it has started, once it can be used.

        Raises:
            DeviceError: It does not answer, or has not started yet.
        """

    def restart(self) -> None:
        """Tell it to start anew; does not wait for that.

        Raises:
            DeviceError: It could not be told.
        """


@runtime_checkable
class Thermal(Protocol):
    """What a board may also have: sensors of its temperature."""

    def celsius(self) -> float | None:
        """The hottest of them now, in degrees Celsius; None where there is none.

        Raises:
            DeviceError: The board does not answer.
        """


def here(part: str) -> str:
    """The resource that is a part of this machine."""
    return f"{part}-{socket.gethostname()}"


def board_kinds() -> Mapping[str, type[Board]]:
    """The kinds that an inventory may name."""
    from hardware_lab.boards.android import Android
    from hardware_lab.boards.coral_local import CoralLocal
    from hardware_lab.boards.edgetpu_sim import SimulatedEdgeTpu
    from hardware_lab.boards.host import Host
    from hardware_lab.boards.ssh import Ssh

    return {
        "android": Android,
        "coral-local": CoralLocal,
        "edgetpu-sim": SimulatedEdgeTpu,
        "host": Host,
        "ssh": Ssh,
    }
