"""Artifacts through the service: streamed, checked, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_server import ServiceProcess, serving
from waiting import wait_for

from coralline.errors import DeviceError, UserError
from hardware_lab.artifacts import Artifacts, MissingError, hex_of, ref_of
from hardware_lab.artifacts.download import download
from hardware_lab.lab import open_lab
from hardware_lab.service.files import byte_range
from hardware_lab.service.transport import Http
from hardware_lab.store import Store

DATA = os.urandom(300_000)
REF = ref_of(BytesIO(DATA))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("CORALLINE_HOME", str(tmp_path / "home"))
    return Store(tmp_path / "lab")


@pytest.fixture
def url(store: Store) -> Iterator[str]:
    with serving(store) as url:
        yield url


@pytest.fixture
def artifacts(url: str) -> Artifacts:
    return open_lab(url).artifacts


def test_what_is_put_is_there(artifacts: Artifacts, store: Store, tmp_path: Path) -> None:
    assert artifacts.size(REF) is None
    with pytest.raises(MissingError, match="is not in"), artifacts.open(REF):
        pass
    file = tmp_path / "file"
    file.write_bytes(DATA)
    assert artifacts.put(file) == REF
    assert artifacts.put(BytesIO(DATA)) == REF  # again
    assert artifacts.size(REF) == store.artifacts.size(REF) == len(DATA)
    for start in (0, 1, len(DATA) - 1, len(DATA)):
        with artifacts.open(REF, start) as stream:
            assert stream.read() == DATA[start:]
    download(artifacts, REF, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA


def test_what_the_lab_has_is_not_sent_again(
    artifacts: Artifacts, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    send = Http.send

    def counted(http: Http, path: str, stream: BinaryIO, size_bytes: int) -> None:
        sent.append(size_bytes)
        send(http, path, stream, size_bytes)

    monkeypatch.setattr(Http, "send", counted)
    assert not artifacts.renew(REF, len(DATA))
    artifacts.put(BytesIO(DATA))
    assert not artifacts.renew(REF, len(DATA) - 1)
    path = next(Path(store.artifacts.where).glob(f"??/??/{hex_of(REF)}"))
    os.utime(path, (1, 1))
    assert artifacts.put(BytesIO(DATA)) == REF
    assert sent == [len(DATA)]
    # It counts as put now: `prune` leaves it to the job that is about to name it.
    [kept] = store.artifacts.stored()
    assert kept.put_at > time.time() - 3600


def test_a_stream_that_cannot_be_read_again(artifacts: Artifacts) -> None:
    read, write = os.pipe()
    with open(write, "wb") as source:
        source.write(b"through a pipe")
    with open(read, "rb") as stream:
        assert artifacts.put(stream) == ref_of(BytesIO(b"through a pipe"))


def test_nothing_but_the_artifact_itself(url: str, store: Store) -> None:
    answer = httpx.put(f"{url}/api/v1/artifacts/{REF}", content=DATA[:-1])
    assert answer.status_code == 422 and "and not" in answer.json()["error"]
    assert httpx.put(f"{url}/api/v1/artifacts/sha256:no", content=b"").status_code == 422
    assert list(store.artifacts.stored()) == []


@pytest.mark.parametrize(
    ("asked", "status", "start", "end"),
    [
        (None, 200, 0, 10),
        ("bytes=0-", 200, 0, 10),
        ("bytes=3-", 206, 3, 10),
        ("bytes=3-5", 206, 3, 6),
        ("bytes=3-99", 206, 3, 10),
        ("bytes=-4", 206, 6, 10),
        ("bytes=-99", 200, 0, 10),
        ("bytes=9-9", 206, 9, 10),
        ("bytes=5-3", 200, 0, 10),
        ("bytes=1-2,4-5", 200, 0, 10),
        ("lines=1-2", 200, 0, 10),
        ("bytes=10-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
    ],
)
def test_ranges(
    url: str, store: Store, asked: str | None, status: int, start: int, end: int
) -> None:
    data = b"0123456789"
    ref = store.artifacts.put(BytesIO(data))
    headers = {"Range": asked} if asked else {}
    for method in ("GET", "HEAD"):
        answer = httpx.request(method, f"{url}/api/v1/artifacts/{ref}", headers=headers)
        assert answer.status_code == status
        if status == 416:
            assert answer.headers["Content-Range"] == "bytes */10"
            continue
        assert int(answer.headers["Content-Length"]) == end - start
        assert answer.content == (data[start:end] if method == "GET" else b"")
        if status == 206:
            assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/10"


@given(st.text(alphabet="bytes=-0123456789, ", max_size=24), st.integers(0, 1000))
def test_any_range_is_within_the_artifact(asked: str, size: int) -> None:
    try:
        start, end = byte_range(asked, size)
    except Exception as error:
        assert getattr(error, "status_code", None) == 416
        return
    assert 0 <= start <= end <= size and (start < end or size == 0)


def test_an_upload_that_is_cut(url: str, store: Store) -> None:
    at = httpx.URL(url)
    head = f"PUT /api/v1/artifacts/{REF} HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Length: {len(DATA)}\r\n\r\n"
    folder = Path(store.artifacts.where) / "unfinished"
    with socket.create_connection((at.host, at.port)) as connection:
        connection.sendall(head.encode() + DATA[:200_000])
        wait_for(lambda: list(folder.iterdir()))
    wait_for(lambda: not list(folder.iterdir()))
    assert store.artifacts.size(REF) is None
    with open_lab(url).artifacts.open(open_lab(url).artifacts.put(BytesIO(DATA))) as stream:
        assert stream.read() == DATA


def test_a_download_that_is_cut_goes_on_where_it_was(
    url: str, artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts.put(BytesIO(DATA))
    real, begun = type(artifacts).open, []

    def flaky(self: Artifacts, ref: str, start: int = 0) -> Any:
        begun.append(start)
        if len(begun) < 3:
            raise DeviceError("the line is cut", retryable=True)
        return real(self, ref, start)

    monkeypatch.setattr(type(artifacts), "open", flaky)
    (tmp_path / ".copy.part").write_bytes(DATA[:100_000])
    download(artifacts, REF, tmp_path / "copy")
    assert begun == [100_000] * 3 and (tmp_path / "copy").read_bytes() == DATA


def test_a_store_that_has_no_room(
    url: str, store: Store, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(_: object) -> str:
        raise DeviceError("artifacts cannot be kept there (No space left)", retryable=True)

    monkeypatch.setattr(store.artifacts, "put", put)
    answer = httpx.put(f"{url}/api/v1/artifacts/{REF}", content=DATA)
    assert answer.status_code == 503 and answer.headers["Retry-After"]
    with pytest.raises(DeviceError, match="No space left") as caught:
        artifacts.put(BytesIO(DATA))
    assert caught.value.retryable


def test_what_is_larger_than_memory_may_be(tmp_path: Path) -> None:
    """The service's memory does not grow with what goes through it."""
    large = tmp_path / "large"
    with open(large, "wb") as file:
        file.truncate(200 << 20)
        file.seek(0)
        file.write(b"begin")
    with ServiceProcess(tmp_path / "lab") as service:
        artifacts = open_lab(service.url).artifacts
        artifacts.put(BytesIO(b"small"))
        process = psutil.Process(service.process.pid)
        before = process.memory_info().rss
        ref = artifacts.put(large)
        digest = hashlib.sha256()
        with artifacts.open(ref) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        assert ref == f"sha256:{digest.hexdigest()}"
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
        assert peak - before < 32 << 20


def test_a_name_that_is_none(artifacts: Artifacts) -> None:
    with pytest.raises(UserError):
        artifacts.size("sha256:no")
