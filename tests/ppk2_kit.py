"""A Power Profiler Kit II on a pseudo-terminal: the kit's side of its serial protocol."""

from __future__ import annotations

import os
import pty
import select
import struct
import time
import tty
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Thread

HZ = 100_000
ADC_AMPERES = 1.8 / 163840
OHM = (1031.64, 101.65, 10.15, 0.94, 0.043)
LENGTHS = {0x0D: 3, 0x11: 2, 0x0C: 2}  # commands with arguments; the others are of one byte
METADATA = (
    "Calibrated: 1\n"
    + "".join(
        f"R{i}: {ohm}\nGS{i}: 0\nGI{i}: 1\nO{i}: 0\nS{i}: 0\nI{i}: 0\n" for i, ohm in enumerate(OHM)
    )
    + "HW: 9173\nIA: 56\nEND\n"
)


@dataclass
class Kit:
    """Sends samples of `amperes(seconds since it was told to start)`.

    Attributes:
        drop: Whether it loses the sample of this number.
        is_kit: Whether it knows its calibration.
        mute: Whether it sends no samples.
        sending: Whether it was left sending.
        sent: Samples since it was told to start.
    """

    amperes: Callable[[float], float]
    drop: Callable[[int], bool] = lambda number: False
    is_kit: bool = True
    mute: bool = False
    sending: bool = False
    sent: int = 0
    commands: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._master, slave = pty.openpty()
        tty.setraw(slave)
        self.port = os.ttyname(slave)
        self._slave = slave  # held open, or the other side would hang up between two users
        self._over = False
        self._thread = Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over = True
        self._thread.join()
        os.close(self._master)
        os.close(self._slave)

    def _serve(self) -> None:
        os.set_blocking(self._master, False)
        commands, began, waiting = b"", time.monotonic(), b""
        while not self._over:
            readable, _, _ = select.select([self._master], [], [], 0.002)
            if readable:
                commands += os.read(self._master, 4096)
            while commands and len(commands) >= (size := LENGTHS.get(commands[0], 1)):
                command, commands = commands[:size], commands[size:]
                self.commands.append(command)
                if command[0] == 0x06:
                    self.sending, self.sent, began, waiting = True, 0, time.monotonic(), b""
                elif command[0] == 0x07:
                    self.sending, waiting = False, b""
                elif command[0] == 0x19 and self.is_kit:
                    waiting += METADATA.encode()
            if self.sending and not self.mute:
                due = int((time.monotonic() - began) * HZ)
                if len(waiting) < 64 * 1024:  # else the reader is slow, and the kit waits
                    waiting += b"".join(
                        self._word(number)
                        for number in range(self.sent, due)
                        if not self.drop(number)
                    )
                    self.sent = due
            if waiting:
                with suppress(BlockingIOError):
                    waiting = waiting[os.write(self._master, waiting[:4096]) :]

    def _word(self, number: int) -> bytes:
        amperes = self.amperes(number / HZ)
        span = 3 if amperes < 0.5 else 4
        adc = round(amperes / (4 * ADC_AMPERES / OHM[span]))
        return struct.pack("<I", adc | span << 14 | (number & 0x3F) << 18)
