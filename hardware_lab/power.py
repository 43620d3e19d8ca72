"""Switching a board's power: what the lab does when a board no longer answers.

Each kind of switch is a program of this machine, called with a time limit. `labgrid` stands for
all that labgrid drives (some thirty kinds of network sockets, relays and hubs): its own client is
called, from wherever it is installed, since its fork of pyserial and the one that meters use
cannot be installed together.

None of this has switched real hardware: tests cover the commands that are run, with programs that
stand in for `uhubctl` and `ykushcmd`, and labgrid's own coordinator, exporter and client.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from coralline.errors import DeviceError, UserError
from coralline.runtime.child import STOP_S, Stop, never
from hardware_lab.commands import Ended, run_program

COMMAND_S = 20.0
"""Longest that one command of a switch may take: a runner that must leave its board has time."""
YKUSH_MODELS = ("ykush", "ykushxs", "ykush3")
LABGRID_USER = "coralline"
"""Who acquires places: a place that is left acquired by this user was left by a killed runner."""


class PowerSwitch(Protocol):
    """What switches a board's power. Its dataclass fields are its options in the inventory."""

    @property
    def pause_s(self) -> float:
        """How long a board must be without power to start anew."""

    def switch(self, on: bool, stop: Stop = never) -> None:
        """Switch it.

        Raises:
            DeviceError: It could not be switched, or was stopped.
        """

    def is_on(self, stop: Stop = never) -> bool | None:
        """Whether it is on; None where the switch does not tell.

        Raises:
            DeviceError: It did not answer.
        """


def cycle(power: PowerSwitch, stop: Stop = never) -> None:
    """Switch a board off and on again; once off, it is switched on however this ends.

    Raises:
        DeviceError: It could not be switched, does not say that it is as it should be, or was
            stopped.
    """
    try:
        _switch(power, False, stop)
        end = time.monotonic() + power.pause_s
        while time.monotonic() < end and not stop():
            time.sleep(min(STOP_S, max(end - time.monotonic(), 0.0)))
    finally:
        _switch(power, True)


def _switch(power: PowerSwitch, on: bool, stop: Stop = never) -> None:
    power.switch(on, stop)
    # ykushcmd ends well without a hub.
    if power.is_on(stop) not in (on, None):
        raise DeviceError(f"the power is not {'on' if on else 'off'}, though it was switched so")


@dataclass(frozen=True)
class Uhubctl:
    """A port of a USB hub that switches its ports, through https://github.com/mvp/uhubctl.

    Attributes:
        location: Of the hub, as `uhubctl` lists it: `1-1`.
        port: Of the hub.
        pause_s: Between off and on.
        program: Path of uhubctl.
    """

    location: str
    port: int
    pause_s: float = 5.0
    program: str = "uhubctl"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d+(-\d+(\.\d+)*)?", self.location):
            raise UserError(f"location {self.location!r} is not a hub as uhubctl lists it: 1-1")
        _within("port", self.port, 1, 255)
        _check_pause(self.pause_s)

    def switch(self, on: bool, stop: Stop = never) -> None:
        """`uhubctl -a on|off`."""
        self._run(["-a", "on" if on else "off"], stop)

    def is_on(self, stop: Stop = never) -> bool | None:
        """What the hub says of the port; a USB 3 hub says it twice."""
        said = self._run([], stop).output
        states = re.findall(rf"^ *Port {self.port}: [0-9a-f]{{4}}(.*)$", said, re.MULTILINE)
        return any("power" in state.split() for state in states) if states else None

    def _run(self, words: Sequence[str], stop: Stop) -> Ended:
        command = [self.program, "-l", self.location, "-p", str(self.port), *words]
        return _must(command, "uhubctl", stop)


@dataclass(frozen=True)
class Ykush:
    """A port of a YKUSH hub, through https://github.com/Yepkit/ykush.

    Attributes:
        port: Of the hub; a YKUSH XS has only 1.
        serial: Of the hub; empty for the only one.
        model: `ykush`, `ykushxs` or `ykush3`.
        pause_s: Between off and on.
        program: Path of ykushcmd.
    """

    port: int
    serial: str = ""
    model: str = "ykush"
    pause_s: float = 5.0
    program: str = "ykushcmd"

    def __post_init__(self) -> None:
        if self.model not in YKUSH_MODELS:
            raise UserError(f"model {self.model!r} is not known; choose {', '.join(YKUSH_MODELS)}")
        _within("port", self.port, 1, 1 if self.model == "ykushxs" else 3)
        if not re.fullmatch(r"[A-Za-z0-9]*", self.serial):
            raise UserError(f"serial {self.serial!r} is not of letters and digits")
        _check_pause(self.pause_s)

    def switch(self, on: bool, stop: Stop = never) -> None:
        """`ykushcmd -u|-d`: up or down."""
        self._run("-u" if on else "-d", stop)

    def is_on(self, stop: Stop = never) -> bool | None:
        """What the hub says of the port."""
        found = re.search(r"is (ON|OFF)\b", self._run("-g", stop).output)
        return None if found is None else found[1] == "ON"

    def _run(self, action: str, stop: Stop) -> Ended:
        command = [self.program]
        if self.model != "ykush":
            command.append(self.model)
        if self.serial:
            command += ["-s", self.serial]
        command.append(action)
        if self.model != "ykushxs":
            command.append(str(self.port))
        return _must(command, "ykushcmd", stop)


@dataclass(frozen=True)
class Labgrid:
    """A place of a labgrid coordinator, with whatever switches its power.

    labgrid itself leaves a place acquired when its client dies; here the place is acquired by a
    user of this lab's own, for the moment of switching, and one that was left so is taken over:
    only who has leased the board switches it.

    Attributes:
        place: Name of the place.
        coordinator: `host:port`; empty for labgrid-client's own choice.
        resource: Name of the power resource in the place; empty when there is one.
        pause_s: Between off and on.
        program: Path of labgrid-client.
    """

    place: str
    coordinator: str = ""
    resource: str = ""
    pause_s: float = 5.0
    program: str = "labgrid-client"

    def __post_init__(self) -> None:
        for name, text, pattern in (
            ("place", self.place, r"[A-Za-z0-9_][A-Za-z0-9_.-]*"),
            ("coordinator", self.coordinator, r"([A-Za-z0-9][A-Za-z0-9_.:-]*)?"),
            ("resource", self.resource, r"([A-Za-z0-9_][A-Za-z0-9_.-]*)?"),
        ):
            if not re.fullmatch(pattern, text):
                raise UserError(f"{name} {text!r} is not a name that labgrid takes")
        _check_pause(self.pause_s)

    def switch(self, on: bool, stop: Stop = never) -> None:
        """Acquire the place, switch it, and release it."""
        self._power("on" if on else "off", stop)

    def is_on(self, stop: Stop = never) -> bool | None:
        """What the switch says; some cannot tell."""
        try:
            said = self._power("get", stop).output
        except DeviceError as error:
            if error.retryable:
                raise
            return None
        found = re.search(r" is (on|off)\s*$", said)
        return None if found is None else found[1] == "on"

    def _power(self, action: str, stop: Stop) -> Ended:
        if self._run(["acquire"], stop).code != 0:
            self._run(["release"], stop)  # refused, unless a killed runner of this lab has it
            self._must(["acquire"], stop)
        try:
            named = ["--name", self.resource] if self.resource else []
            return self._must(["power", *named, action], stop)
        finally:
            with suppress(DeviceError):  # it is taken over the next time
                self._run(["release"], never)

    def _must(self, words: Sequence[str], stop: Stop) -> Ended:
        ended = self._run(words, stop)
        if ended.code != 0:
            raise DeviceError(f"labgrid-client {words[0]} {self.place}: {ended.last_words}")
        return ended

    def _run(self, words: Sequence[str], stop: Stop) -> Ended:
        command = [self.program, "-p", self.place]
        if self.coordinator:
            command += ["-x", self.coordinator]
        environment = {**os.environ, "LG_USERNAME": LABGRID_USER}
        return run_program(
            [*command, *words],
            f"labgrid place {self.place}",
            time_limit_s=COMMAND_S,
            stop=stop,
            environment=environment,
        )


@dataclass(frozen=True)
class CommandSwitch:
    """Any two commands of this machine; they are not given to a shell.

    Attributes:
        on, off: Command lines; an exit code other than 0 means that it failed.
        state: Prints `on` or `off`; empty when nothing tells.
        pause_s: Between off and on.
    """

    on: str
    off: str
    state: str = ""
    pause_s: float = 5.0

    def __post_init__(self) -> None:
        for name, text in (("on", self.on), ("off", self.off), ("state", self.state)):
            try:
                words = shlex.split(text)
            except ValueError as error:
                raise UserError(f"{name} {text!r} is not a command line ({error})") from None
            if not words and name != "state":
                raise UserError(f"{name} is empty; give a command line")
        _check_pause(self.pause_s)

    def switch(self, on: bool, stop: Stop = never) -> None:
        """Run the command."""
        _must(shlex.split(self.on if on else self.off), "the power's command", stop)

    def is_on(self, stop: Stop = never) -> bool | None:
        """What the command prints."""
        if not self.state:
            return None
        said = _must(shlex.split(self.state), "the power's command", stop).output.strip().lower()
        if said not in ("on", "off"):
            raise DeviceError(f"{self.state}: prints {said[:40]!r}, neither on nor off")
        return said == "on"


def switch_kinds() -> Mapping[str, type[PowerSwitch]]:
    """The kinds that an inventory may name."""
    return {"command": CommandSwitch, "labgrid": Labgrid, "uhubctl": Uhubctl, "ykush": Ykush}


def _must(command: Sequence[str], where: str, stop: Stop) -> Ended:
    ended = run_program(command, where, time_limit_s=COMMAND_S, stop=stop)
    if ended.code != 0:
        raise DeviceError(f"{where}: ended with exit code {ended.code} ({ended.last_words})")
    return ended


def _within(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise UserError(f"{name} is {value}; it must be from {least} to {most}")


def _check_pause(pause_s: float) -> None:
    if not 0 <= pause_s <= 60:
        raise UserError(f"pause_s is {pause_s:g}; it must be from 0 to 60")
