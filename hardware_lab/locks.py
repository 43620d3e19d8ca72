"""Locks of this machine: whoever holds one works alone on a thing, until its processes end."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coralline.errors import UserError
from coralline.files import make_folder


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
        """
        path = self._folder / f"{resource}.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(f"{path}: cannot be opened ({error.strerror})") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            yield None
            return
        try:
            file = os.fstat(descriptor)
            yield Lock(descriptor, f"{_this_start()}:{file.st_dev}:{file.st_ino}")
        finally:
            os.close(descriptor)


def _this_start() -> str:
    """Names this machine since it was last started."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
