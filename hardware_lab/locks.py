"""Locks of this machine: whoever holds one works alone on a thing, until its processes end."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from coralline.errors import DeviceError, UserError
from coralline.files import make_folder

WAIT_S = 30.0
"""How long a lock is waited for, of those that nobody holds for a second unless it is stopped."""


@dataclass(frozen=True)
class Lock:
    """A resource of this machine that is held.

    Attributes:
        descriptor: To be kept open by every process that works on the resource.
        name: Of this lock alone among those of all machines; another after a restart.
    """

    descriptor: int
    name: str


class Locks:
    """The locks that are files of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = make_folder(folder)

    @contextmanager
    def hold(self, resource: str, *, wait: bool = False) -> Iterator[Lock | None]:
        """Hold a resource of this machine.

        Yields:
            None when another holds it and `wait` is false.

        Raises:
            DeviceError: Another has held it for WAIT_S; names who. It is retryable.
        """
        path = self._folder / f"{resource}.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(f"{path}: cannot be opened ({error.strerror})") from None
        try:
            file = os.fstat(descriptor)
            if _flock(descriptor, wait=wait):
                yield Lock(descriptor, f"{_this_start()}:{file.st_dev}:{file.st_ino}")
            elif wait:
                raise DeviceError(
                    f"{path}: {_holder(file.st_ino)} has held it for {WAIT_S:g} s; end it, or let "
                    "it go on (kill -CONT) when it is stopped",
                    retryable=True,
                )
            else:
                yield None
        finally:
            os.close(descriptor)


def _flock(descriptor: int, *, wait: bool) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    if not wait:
        return False
    # The kernel lets those in by turns who wait in it; who came again and again might never be.
    # It knows no limit: a thread waits, and what it gets too late it lets go by closing.
    mine, locked = os.dup(descriptor), Event()

    def lock() -> None:
        fcntl.flock(mine, fcntl.LOCK_EX)
        os.close(mine)
        locked.set()

    Thread(target=lock, daemon=True).start()
    return locked.wait(WAIT_S)


def _holder(inode: int) -> str:
    """Who has a lock, as the kernel tells."""
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        words = line.split()
        if words[1] == "FLOCK" and words[5].split(":")[2] == str(inode):
            with suppress(OSError):
                told = Path(f"/proc/{words[4]}/status").read_text(encoding="utf-8")
                state = next(line for line in told.splitlines() if line.startswith("State:"))
                return f"process {words[4]}, {state.split(maxsplit=1)[1]},"
    return "a process that cannot be seen from here"


def _this_start() -> str:
    """Names this machine since it was last started."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
