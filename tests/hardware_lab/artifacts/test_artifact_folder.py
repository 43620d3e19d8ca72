"""Artifacts in a folder: whole, once, and prunable while others put."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from coralline.errors import DeviceError, UserError
from hardware_lab.artifacts import MissingError, open_artifacts
from hardware_lab.artifacts.folder import Folder

DATA = os.urandom(3_000_000)
REF = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "artifacts")


class Pipe(io.RawIOBase):
    """A stream that can be read once."""

    def __init__(self, data: bytes, fails: bool = False) -> None:
        self._rest = io.BytesIO(data)
        self._fails = fails

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        chunk = self._rest.read(len(buffer))  # type: ignore[arg-type]
        if not chunk and self._fails:
            raise OSError(5, "the other end is gone")
        buffer[: len(chunk)] = chunk  # type: ignore[index]
        return len(chunk)


def files(folder: Folder) -> list[str]:
    return sorted(p.name for p in Path(folder.where).rglob("*") if p.is_file())


def test_what_is_put_can_be_read(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    streams = (tmp_path / "file", io.BytesIO(DATA), Pipe(DATA))
    assert {folder.put(stream) for stream in streams} == {REF}  # type: ignore[arg-type]
    assert files(folder) == [REF.removeprefix("sha256:")]
    with folder.open(REF) as stream:
        assert stream.read() == DATA
    with folder.open(REF, 2_999_990) as stream:
        assert stream.read() == DATA[-10:]
    assert folder.size(REF) == len(DATA)
    behind = io.BytesIO(b"head" + DATA)
    behind.seek(4)
    assert folder.put(behind) == REF


def test_what_is_not_there(folder: Folder) -> None:
    assert folder.size(REF) is None
    with pytest.raises(MissingError, match="is not in"), folder.open(REF):
        pass
    for ref in ("", "sha256:../../etc/passwd", REF.upper(), REF + "\n", "md5:" + "0" * 32):
        with pytest.raises(UserError, match="is not an artifact"):
            folder.size(ref)
    with pytest.raises(UserError, match="cannot be read"):
        folder.put(Path("none"))


def test_half_an_artifact_is_none(folder: Folder) -> None:
    with pytest.raises(DeviceError, match="the other end is gone") as caught:
        folder.put(Pipe(DATA, fails=True))  # type: ignore[arg-type]
    assert caught.value.retryable
    assert files(folder) == []


def test_pruning(folder: Folder) -> None:
    old, young = folder.put(io.BytesIO(b"old")), folder.put(io.BytesIO(b"young"))
    path = next(p for p in Path(folder.where).rglob("*") if p.name == old[7:])
    os.utime(path, (1000, 1000))
    assert {(a.ref, a.size_bytes) for a in folder.stored()} == {(old, 3), (young, 5)}
    assert not folder.delete(young, put_before=2000)
    assert not folder.delete(old, put_before=1000)
    assert folder.delete(old, put_before=1001) and not folder.delete(old, put_before=1001)
    assert [a.ref for a in folder.stored()] == [young]

    # What is put again counts as put now.
    os.utime(next(p for p in Path(folder.where).rglob("*") if p.name == young[7:]), (1000, 1000))
    folder.put(io.BytesIO(b"young"))
    assert not folder.delete(young, put_before=time.time() - 60)

    left = Path(folder.where) / "unfinished" / "of-a-killed-process"
    left.write_bytes(b"half")
    assert folder.clean(begun_before=time.time() - 60) == 0
    os.utime(left, (1000, 1000))
    assert folder.clean(begun_before=2000) == 1 and not left.exists()


def _put_again_and_again(where: str, rounds: int) -> None:
    folder = Folder(Path(where))
    for _ in range(rounds):
        folder.put(io.BytesIO(b"wanted"))
        assert folder.size(folder.put(io.BytesIO(b"wanted"))) == 6


def test_a_put_beside_a_prune_is_kept(folder: Folder) -> None:
    ref = folder.put(io.BytesIO(b"wanted"))
    process = get_context("fork").Process(target=_put_again_and_again, args=(folder.where, 300))
    process.start()
    while process.is_alive():
        folder.delete(ref, put_before=time.time() - 60)
    process.join()
    assert process.exitcode == 0
    assert folder.size(ref) == 6


def test_a_mount_that_is_gone_is_not_an_artifact_that_is_gone(folder: Folder) -> None:
    ref = folder.put(io.BytesIO(DATA))
    away = Path(folder.where).with_name("away")
    os.rename(folder.where, away)
    for ask in (lambda: folder.size(ref), lambda: folder.put(io.BytesIO(DATA))):
        with pytest.raises(DeviceError, match="cannot be kept or read") as caught:
            ask()
        assert caught.value.retryable
    with pytest.raises(DeviceError), folder.open(ref):
        pass
    assert not Path(folder.where).exists()
    shutil.move(away, folder.where)
    assert folder.size(ref) == len(DATA)


def test_places(tmp_path: Path) -> None:
    assert open_artifacts(str(tmp_path / "a")).where == str(tmp_path / "a")
    with pytest.raises(UserError, match="cannot be there"):
        open_artifacts("ftp://server/a")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        open_artifacts(str(tmp_path / "file" / "a"))
