"""Models of a lab on this machine, for the boards that run them."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from coralline.errors import UserError
from coralline.files import make_folder
from coralline.runtime.child import Stop, never
from hardware_lab.artifacts import Artifacts, MissingError, Model, hex_of
from hardware_lab.artifacts.bundle import is_archive, ref_of_model, unpack
from hardware_lab.artifacts.download import LIMIT_S, Patience, download, on_disk

MOST_BYTES = 16 << 30
MOST_NAME_BYTES = 200


class Cache:
    """A folder that any number of processes share; what was used least recently makes room.

    Args:
        folder: Made when absent.
        most_bytes: How much may lie there, beside one model that is larger.
    """

    def __init__(self, folder: Path, artifacts: Artifacts, most_bytes: int = MOST_BYTES) -> None:
        self._folder = make_folder(folder)
        self._artifacts = artifacts
        self._most_bytes = most_bytes

    def model(
        self, model: Model, into: Path, *, limit_s: float = LIMIT_S, stop: Stop = never
    ) -> Path:
        """A model, fetched unless it is here, and verified.

        Args:
            into: An empty folder on the disk of the cache. It gets hard links to the model, which
                stay when the cache drops it.
            limit_s: Give up after it.
            stop: Give up once it is true.

        Returns:
            A split folder or a .tflite, with the model's name.

        Raises:
            MissingError: The model is not in the store.
            UserError: It is damaged there, or is no model.
            DeviceError: The store has not given it in time.
            DiskError: This machine's disk cannot take it.
        """
        path = into / _file_name(model.name)
        patience = Patience(f"{self._artifacts.where}: {model.name}", limit_s, stop)
        with on_disk(self._folder), self._alone(hex_of(model.ref), patience) as entry:
            if not _link(entry / "model", path) or not _is(path, model.ref):
                _remove(path)
                _remove(entry / "model")
                self._fetch(model, entry, patience)
                _link(entry / "model", path)
                if not _is(path, model.ref):
                    raise UserError(
                        f"{model.name}: {model.ref} is not packed as it should be; submit it again"
                    )
            os.utime(entry)
        return path

    def _fetch(self, model: Model, entry: Path, patience: Patience) -> None:
        size_bytes = self._artifacts.size(model.ref)
        if size_bytes is not None:
            self._make_room(size_bytes)
        entry.mkdir(exist_ok=True)
        _fetch(self._artifacts, model, entry / "model", patience)

    def _make_room(self, size_bytes: int) -> None:
        entries = []
        for entry in self._folder.iterdir():
            if entry.is_dir():
                with suppress(FileNotFoundError):
                    entries.append((entry.stat().st_mtime, _size(entry), entry))
        total = size_bytes + sum(size for _, size, _ in entries)
        for _, size, entry in sorted(entries):
            if total <= self._most_bytes:
                return
            with self._lock(entry.name) as held:
                if held:
                    shutil.rmtree(entry, ignore_errors=True)
                    total -= size

    @contextmanager
    def _alone(self, digest: str, patience: Patience) -> Iterator[Path]:
        """The folder of a model, which no other may touch."""
        while True:
            with self._lock(digest) as held:
                if held:
                    yield self._folder / digest
                    return
            patience.pause()

    @contextmanager
    def _lock(self, digest: str) -> Iterator[bool]:
        with open(self._folder / f"{digest}.lock", "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def fetch_model(artifacts: Artifacts, model: Model, into: Path) -> Path:
    """Download a model into a folder, under its own name.

    Raises:
        UserError: As `Cache.model`, or something of this name is there.
        DeviceError: The store has not given it in time.
    """
    path = into / _file_name(model.name)
    if path.exists():
        raise UserError(f"{path}: is there already; choose another output folder")
    with on_disk(path):
        _fetch(artifacts, model, path, Patience(f"{artifacts.where}: {model.name}", LIMIT_S, never))
    return path


def _fetch(artifacts: Artifacts, model: Model, path: Path, patience: Patience) -> None:
    """Download a model: a file, or a folder that takes its place when it is whole."""
    file, folder = path.with_name(f".{path.name}.packed"), path.with_name(f".{path.name}.unpacked")
    try:
        download(artifacts, model.ref, file, patience)
    except MissingError:
        raise MissingError(
            f"{model.name}: {model.ref} is not in {artifacts.where}; submit it again, and give "
            "the same --artifacts there and here"
        ) from None
    if not is_archive(file):
        file.rename(path)
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        unpack(file, folder)
    except UserError as error:
        raise UserError(f"{model.name}: {error}") from None
    finally:
        file.unlink()
    folder.rename(path)


def _file_name(name: str) -> str:
    name = re.sub(r"[\x00-\x1f]", "", name).rsplit("/", 1)[-1]
    fits = name not in ("", ".", "..") and len(os.fsencode(name)) <= MOST_NAME_BYTES
    return name if fits else "model"


def _link(model: Path, path: Path) -> bool:
    """Whether there is a model to link to."""
    if model.is_dir():
        path.mkdir()
        for file in model.iterdir():
            os.link(file, path / file.name)
        return True
    if model.exists():
        os.link(model, path)
        return True
    return False


def _is(path: Path, ref: str) -> bool:
    try:
        return ref_of_model(path) == ref
    except UserError:  # of a folder that has lost a file
        return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
