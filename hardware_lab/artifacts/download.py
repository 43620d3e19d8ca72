"""Artifacts on this machine: whole and verified."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from coralline.errors import DeviceError, UserError
from coralline.runtime.child import Stop, never
from hardware_lab.artifacts import CHUNK_BYTES, PREFIX, Artifacts

LIMIT_S = 600.0
"""How long a download may take, waiting for a store that does not answer included."""
PAUSE_S = 0.5


class DiskError(UserError):
    """A disk of this machine is full or broken; neither job nor store is to blame."""


class Patience:
    """How long something may still take.

    Args:
        what: Is waited for, for messages.
        limit_s: From now.
        stop: It is not wanted any more.
    """

    def __init__(self, what: str, limit_s: float, stop: Stop) -> None:
        self._what = what
        self._limit_s = limit_s
        self._end = time.monotonic() + limit_s
        self._stop = stop

    def check(self) -> None:
        """Raise DeviceError, retryable, when it has taken too long or is not wanted any more."""
        if self._stop():
            raise DeviceError(f"{self._what}: stopped", retryable=True)
        if time.monotonic() > self._end:
            raise DeviceError(f"{self._what}: not done in {self._limit_s:g} s", retryable=True)

    def pause(self, error: DeviceError | None = None) -> None:
        """Wait a little, or raise the error, if there is one, when it has taken too long."""
        if error is not None and time.monotonic() + PAUSE_S > self._end:
            raise error
        self.check()
        time.sleep(PAUSE_S)


def download(artifacts: Artifacts, ref: str, out: Path, patience: Patience | None = None) -> None:
    """Write an artifact into a file: whole and verified, or not at all.

    What an earlier call that was cut off has received is not asked for again.

    Raises:
        MissingError: It is not in the store.
        UserError: It is damaged there, or another process downloads into the same file.
        DeviceError: The store has not given it in time.
        DiskError: The file cannot be written.
    """
    patience = patience or Patience(f"{artifacts.where}: {ref}", LIMIT_S, never)
    part = out.with_name(f".{out.name}.part")
    with on_disk(out), open(part, "ab+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another process downloads into it; let it end") from None
        resumed = file.tell() > 0
        while _receive(artifacts, ref, file, patience) != ref:
            file.truncate(0)
            if not resumed:
                raise UserError(
                    f"{artifacts.where}: {ref} is damaged there; delete it, and put it again"
                )
            resumed = False  # what lay here may have been wrong: once more, from the first byte
        os.fsync(file.fileno())
        os.replace(part, out)


def _receive(artifacts: Artifacts, ref: str, file: BinaryIO, patience: Patience) -> str:
    """Append what the file lacks, and return the artifact that it then is."""
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    while True:
        try:
            with artifacts.open(ref, file.tell()) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    patience.check()
                    digest.update(chunk)
                    with on_disk(Path(file.name)):
                        file.write(chunk)
                        file.flush()
            return PREFIX + digest.hexdigest()
        except DeviceError as error:
            if not error.retryable:
                raise
            patience.pause(error)


@contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Raise DiskError where the block cannot write or read files of this machine."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{path}: cannot be written ({error.strerror}); make room, then run again"
        ) from None
