"""Artifacts in a folder: of this machine, or of one that is mounted on all that share a lab."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from coralline.errors import DeviceError
from coralline.files import make_folder
from hardware_lab.artifacts import (
    CHUNK_BYTES,
    PREFIX,
    MissingError,
    Stored,
    hex_of,
    reading,
    ref_of,
)


class Folder:
    """Artifact `sha256:abcd...` is the file `ab/cd/abcd...`, written once and never changed.

    Args:
        folder: Made when absent.

    Raises:
        UserError: The folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = make_folder(folder.absolute())
        self._unfinished = make_folder(self._folder / "unfinished")

    @property
    def where(self) -> str:
        """The folder."""
        return str(self._folder)

    def put(self, source: Path | BinaryIO) -> str:
        """As `Artifacts.put`."""
        with reading(source) as stream:
            if stream.seekable():
                start = stream.tell()
                ref = ref_of(stream)
                if self.renew(ref, stream.tell() - start):
                    return ref
                stream.seek(start)
            with self._speaking():
                return self._write(stream)

    def renew(self, ref: str, size_bytes: int) -> bool:
        """As `Artifacts.renew`."""
        now = time.time()
        with suppress(FileNotFoundError), self._speaking():
            os.utime(self._path(ref), (now, now))
            return self._path(ref).stat().st_size == size_bytes
        return False

    @contextmanager
    def open(self, ref: str, start: int = 0) -> Iterator[BinaryIO]:
        """As `Artifacts.open`."""
        try:
            with self._speaking():
                stream = open(self._path(ref), "rb")  # noqa: SIM115
        except FileNotFoundError:
            raise MissingError(f"{ref} is not in {self.where}") from None
        with stream:
            stream.seek(start)
            yield stream

    def size(self, ref: str) -> int | None:
        """As `Artifacts.size`."""
        with suppress(FileNotFoundError), self._speaking():
            return self._path(ref).stat().st_size
        return None

    def stored(self) -> Iterator[Stored]:
        """As `PrunableArtifacts.stored`."""
        for path in self._folder.glob("??/??/*"):
            with suppress(FileNotFoundError), self._speaking():
                file = path.stat()
                yield Stored(PREFIX + path.name, file.st_size, file.st_mtime)

    def delete(self, ref: str, put_before: float) -> bool:
        """As `PrunableArtifacts.delete`."""
        path, aside = self._path(ref), self._unfinished / uuid4().hex
        with suppress(FileNotFoundError), self._speaking():
            if path.stat().st_mtime >= put_before:
                return False
            # Once it is aside, a `put` of the same bytes writes them again; one that was just
            # before it has been content with these.
            path.rename(aside)
            if aside.stat().st_mtime >= put_before:
                aside.rename(path)
                return False
            aside.unlink()
            return True
        return False

    def clean(self, begun_before: float) -> int:
        """As `PrunableArtifacts.clean`."""
        removed = 0
        with self._speaking():
            for path in self._unfinished.iterdir():
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < begun_before:
                        path.unlink()
                        removed += 1
        return removed

    def _write(self, stream: BinaryIO) -> str:
        temporary = self._unfinished / uuid4().hex
        digest = hashlib.sha256()
        try:
            with open(temporary, "xb") as file:
                while chunk := stream.read(CHUNK_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            ref = PREFIX + digest.hexdigest()
            path = self._path(ref)
            _make_lasting(path.parent.parent)
            _make_lasting(path.parent)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
        return ref

    def _path(self, ref: str) -> Path:
        digest = hex_of(ref)
        return self._folder / digest[:2] / digest[2:4] / digest

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What is mounted here may be gone, and every artifact with it.
            if isinstance(error, FileNotFoundError) and self._unfinished.is_dir():
                raise
            raise DeviceError(
                f"{self.where}: artifacts cannot be kept or read there ({error.strerror})",
                retryable=True,
            ) from None


def _make_lasting(folder: Path) -> None:
    try:
        folder.mkdir()
    except FileExistsError:
        return
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
