"""Programs of this machine that act on a board, within bounds of time and without leftovers."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import IO

from coralline.errors import DeviceError
from coralline.runtime.child import STOP_S, Stop, never

MOST_BYTES = 1 << 20
"""Of each output; what a program prints beyond it is not read."""


@dataclass(frozen=True)
class Ended:
    """What a program left: its exit code and both outputs."""

    code: int
    output: str
    errors: str

    @property
    def last_words(self) -> str:
        """The last line that says something, of its errors rather than of its output."""
        for text in (self.errors, self.output):
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            if lines:
                return lines[-1]
        return "it said nothing"


def run_program(
    command: Sequence[str],
    where: str,
    *,
    time_limit_s: float,
    stop: Stop = never,
    stdin: IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
    keep_open: tuple[int, ...] = (),
) -> Ended:
    """Run a program to its end.

    However this returns or raises, the program has ended and its process group with it.

    Args:
        where: Begins every message.
        stop: Ends it.
        stdin: Nothing when None.
        environment: None for this process's.
        keep_open: File descriptors that it holds too.

    Raises:
        DeviceError: There is no such program; or, retryable, it took too long or was stopped.
    """
    # Files, not pipes: a grandchild in a session of its own would hold a pipe open.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command,
                stdin=stdin or subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=environment,
                pass_fds=keep_open,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise DeviceError(
                f"{where}: {command[0]} is not here; install it, or name where it is"
            ) from None
        except OSError as error:
            raise DeviceError(f"{where}: cannot run {command[0]} ({error.strerror})") from None
        stopped = False
        try:
            deadline = monotonic() + time_limit_s
            while not _has_ended(process, min(STOP_S, deadline - monotonic())):
                stopped = stop()
                if stopped or monotonic() >= deadline:
                    raise DeviceError(
                        f"{where}: stopped: nobody waits for it any more"
                        if stopped
                        else f"{where}: no answer in {time_limit_s:g} s",
                        retryable=True,
                    )
        finally:
            # Before it is waited for, so that the group's number is still its own.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return Ended(process.returncode, _read(output), _read(errors))


def _has_ended(process: subprocess.Popen[bytes], wait_s: float) -> bool:
    """Whether it ends within this time; it is left for `wait`."""
    descriptor = os.pidfd_open(process.pid)
    try:
        return bool(select.select([descriptor], [], [], max(wait_s, 0.0))[0])
    finally:
        os.close(descriptor)


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(MOST_BYTES).decode(errors="replace")
