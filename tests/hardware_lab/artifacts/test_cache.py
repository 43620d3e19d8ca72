"""Artifacts on this machine: verified, resumed, bounded, and shared by processes."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import BinaryIO

import pytest

from coralline.errors import DeviceError, UserError
from hardware_lab.artifacts import MissingError, Model
from hardware_lab.artifacts.cache import Cache
from hardware_lab.artifacts.download import DiskError, Patience, download
from hardware_lab.artifacts.folder import Folder

DATA = os.urandom(3_500_000)


class Cutting(Folder):
    """Ends every stream with an error after so many bytes, and notes where each began."""

    cut_after = 1 << 62

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.starts: list[int] = []

    @contextmanager
    def open(self, ref: str, start: int = 0) -> Iterator[BinaryIO]:
        self.starts.append(start)
        with super().open(ref, start) as stream:
            yield _Cut(stream, self.cut_after)  # type: ignore[misc]


class _Cut:
    def __init__(self, stream: BinaryIO, left: int) -> None:
        self._stream, self._left = stream, left

    def read(self, size: int) -> bytes:
        chunk = self._stream.read(min(size, self._left))
        self._left -= len(chunk)
        if size and not chunk and not self._left:
            raise DeviceError("the connection was cut", retryable=True)
        return chunk


@pytest.fixture
def artifacts(tmp_path: Path) -> Cutting:
    return Cutting(tmp_path / "artifacts")


@pytest.fixture
def cache(artifacts: Cutting, tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", artifacts)


def into(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name


def damage(artifacts: Folder, ref: str) -> None:
    path = next(p for p in Path(artifacts.where).rglob("*") if p.name == ref[7:])
    path.write_bytes(path.read_bytes()[:-1] + b"\xff\xff")


def test_a_download_that_is_cut_goes_on(artifacts: Cutting, tmp_path: Path) -> None:
    ref = artifacts.put(io.BytesIO(DATA))
    out = tmp_path / "out"
    artifacts.cut_after = 1 << 20
    download(artifacts, ref, out)
    assert out.read_bytes() == DATA
    assert artifacts.starts == [0, 1 << 20, 2 << 20, 3 << 20]


def test_a_download_goes_on_in_another_process(artifacts: Cutting, tmp_path: Path) -> None:
    ref = artifacts.put(io.BytesIO(DATA))
    out = tmp_path / "out"
    artifacts.cut_after = 1 << 20
    with pytest.raises(DeviceError, match="was cut"):
        download(artifacts, ref, out, Patience("it", 0.1, lambda: False))
    assert not out.exists()
    artifacts.cut_after = 1 << 62
    download(artifacts, ref, out)
    assert out.read_bytes() == DATA and artifacts.starts == [0, 1 << 20]
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["out"]


def test_a_wrong_half_is_not_kept(artifacts: Cutting, tmp_path: Path) -> None:
    ref = artifacts.put(io.BytesIO(DATA))
    for wrong in (b"\0" * 1000, b"\0" * (len(DATA) + 1)):
        (tmp_path / ".out.part").write_bytes(wrong)
        download(artifacts, ref, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == DATA


def test_a_damaged_artifact_is_noticed(artifacts: Cutting, cache: Cache, tmp_path: Path) -> None:
    ref = artifacts.put(io.BytesIO(DATA))
    damage(artifacts, ref)
    with pytest.raises(UserError, match="is damaged there"):
        download(artifacts, ref, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="is damaged there"):
        cache.model(Model("a.tflite", ref), into(tmp_path, "task"))


def test_nobody_waits_for_ever(artifacts: Cutting, cache: Cache, tmp_path: Path) -> None:
    model = Model("a.tflite", artifacts.put(io.BytesIO(DATA)))
    artifacts.cut_after = 0
    with pytest.raises(DeviceError, match="was cut") as caught:
        cache.model(model, into(tmp_path, "a"), limit_s=0.1)
    assert caught.value.retryable
    with pytest.raises(DeviceError, match="stopped"):
        cache.model(model, into(tmp_path, "b"), stop=lambda: True)


def test_a_model_is_fetched_once_and_verified_each_time(
    artifacts: Cutting, cache: Cache, tmp_path: Path
) -> None:
    model = Model("/home/somebody/a.tflite", artifacts.put(io.BytesIO(DATA)))
    for name in ("a", "b"):
        path = cache.model(model, into(tmp_path, name))
        assert path == tmp_path / name / "a.tflite" and path.read_bytes() == DATA
    assert artifacts.starts == [0]
    # It is one file; a board that writes into it damages the cache as well.
    path.write_bytes(b"overwritten")
    found = cache.model(Model("b.tflite", model.ref), into(tmp_path, "c"))
    assert found.name == "b.tflite" and found.read_bytes() == DATA
    assert artifacts.starts == [0, 0]
    for name in ("..", "a/..", "", "x" * 300, "\0"):
        odd = cache.model(Model(name, model.ref), into(tmp_path, f"odd{len(name)}"))
        assert odd.name == "model" and odd.read_bytes() == DATA


def test_a_model_that_is_not_there(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"a\.tflite: .* is not in .*; submit it again"):
        cache.model(Model("a.tflite", "sha256:" + "0" * 64), into(tmp_path, "a"))


def test_what_was_used_least_recently_makes_room(artifacts: Cutting, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", artifacts, most_bytes=2500)
    models = [Model(f"{i}.tflite", artifacts.put(io.BytesIO(bytes([i]) * 1000))) for i in range(3)]
    fetched = [cache.model(m, into(tmp_path, f"a{i}")) for i, m in enumerate(models[:2])]
    for i, model in enumerate(models):
        os.utime(tmp_path / "cache" / model.ref[7:], (i, i)) if i < 2 else None
    cache.model(models[0], into(tmp_path, "again"))
    cache.model(models[2], into(tmp_path, "third"))
    assert {p.name for p in (tmp_path / "cache").iterdir() if p.is_dir()} == {
        models[0].ref[7:],
        models[2].ref[7:],
    }
    # Who works with the one that has gone still has it.
    assert fetched[1].read_bytes() == b"\1" * 1000
    large = Model("large.tflite", artifacts.put(io.BytesIO(b"l" * 5000)))
    assert len(cache.model(large, into(tmp_path, "large")).read_bytes()) == 5000


def test_many_ask_for_one_model_at_once(artifacts: Cutting, cache: Cache, tmp_path: Path) -> None:
    model = Model("a.tflite", artifacts.put(io.BytesIO(DATA)))
    found: list[bytes] = []
    threads = [
        Thread(
            target=lambda name=name: found.append(  # type: ignore[misc]
                cache.model(model, into(tmp_path, name)).read_bytes()
            )
        )
        for name in "abcdef"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [DATA] * 6
    assert artifacts.starts == [0]


def _killed_while_fetching(where: str, folder: Path, model: Model) -> None:
    artifacts = Cutting(Path(where))
    artifacts.cut_after = 1 << 20
    (folder / "killed").mkdir()
    Cache(folder / "cache", artifacts).model(model, folder / "killed", stop=_die_in_the_middle(2))


def _die_in_the_middle(after: int) -> object:
    calls = iter(range(after))

    def stop() -> bool:
        if next(calls, None) is None:
            os._exit(9)
        return False

    return stop


def test_a_process_killed_while_it_fetches(
    artifacts: Cutting, cache: Cache, tmp_path: Path
) -> None:
    model = Model("a.tflite", artifacts.put(io.BytesIO(DATA)))
    process = get_context("fork").Process(
        target=_killed_while_fetching, args=(artifacts.where, tmp_path, model)
    )
    process.start()
    process.join()
    assert process.exitcode == 9
    assert cache.model(model, into(tmp_path, "a")).read_bytes() == DATA
    assert artifacts.starts[0] > 0  # it has gone on


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_here(artifacts: Cutting, tmp_path: Path) -> None:
    disk = into(tmp_path, "disk")
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"cannot mount: {mount.stderr.decode().strip()}")
    try:
        model = Model("a.tflite", artifacts.put(io.BytesIO(DATA)))
        cache = Cache(disk / "cache", artifacts)
        with pytest.raises(DiskError, match="No space left on device"):
            cache.model(model, into(disk, "task"))
        # The other side of the same disk.
        store = Folder(disk / "artifacts")
        with pytest.raises(DeviceError, match="No space left on device") as caught:
            store.put(io.BytesIO(DATA))
        assert caught.value.retryable
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        assert cache.model(model, into(disk, "again")).read_bytes() == DATA
        assert store.size(store.put(io.BytesIO(DATA))) == len(DATA)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
