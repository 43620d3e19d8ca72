"""Artifacts in S3: in a server that checks signatures, and in moto."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import moto
import pytest
from cutting_proxy import CuttingProxy

from coralline.errors import DeviceError, UserError
from hardware_lab.artifacts import MissingError, RefusedError, open_artifacts, s3
from hardware_lab.artifacts.download import Patience, download
from hardware_lab.artifacts.s3 import PART_BYTES, S3
from hardware_lab.artifacts.server import Server

SMALL = os.urandom(100_000)
LARGE = os.urandom(2 * PART_BYTES + 3_000_000)


def ref_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture(params=["swift", "moto"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    if request.param == "swift":
        yield S3(f"s3://{request.getfixturevalue('bucket')}/some/lab")
        return
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with moto.mock_aws():
        boto3.client("s3").create_bucket(Bucket="lab")
        yield S3("s3://lab/some/lab")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "TRIES", 1)


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_what_is_put_can_be_read(store: S3, data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(data)
    assert store.size(ref_of(data)) is None
    assert store.put(file) == ref_of(data)
    assert store.size(ref_of(data)) == len(data)
    download(store, ref_of(data), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    with store.open(ref_of(data), max(len(data) - 10, 0)) as stream:
        assert stream.read() == data[-10:]
    with store.open(ref_of(data), len(data)) as stream:
        assert stream.read() == b""
    assert [(a.ref, a.size_bytes) for a in store.stored()] == [(ref_of(data), len(data))]
    assert abs(next(store.stored()).put_at - time.time()) < 3600


def test_a_stream_that_is_read_once(store: S3) -> None:
    reader, writer = os.pipe()
    os.write(writer, SMALL[:50_000])
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        assert store.put(stream) == ref_of(SMALL[:50_000])


def test_what_is_there_is_not_sent_again_unless_it_is_old(
    store: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = store.put(io.BytesIO(SMALL))
    sent: list[str] = []
    real = store._put_whole
    monkeypatch.setattr(store, "_put_whole", lambda *a: (sent.append("sent"), real(*a)))
    assert store.put(io.BytesIO(SMALL)) == ref and not sent
    monkeypatch.setattr(s3, "FRESH_S", -3600.0)
    assert store.put(io.BytesIO(SMALL)) == ref and sent


def test_what_is_not_there(store: S3) -> None:
    ref = ref_of(SMALL)
    with pytest.raises(MissingError, match=f"{ref} is not in s3://"), store.open(ref):
        pass
    assert not store.delete(ref, put_before=time.time())


def test_deleting(store: S3) -> None:
    ref = store.put(io.BytesIO(SMALL))
    assert not store.delete(ref, put_before=time.time() - 3600)
    assert store.delete(ref, put_before=time.time() + 3600)
    assert store.size(ref) is None and list(store.stored()) == []


def test_a_file_that_changes_while_it_is_sent(
    store: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for data in (SMALL, LARGE):
        file = tmp_path / "file"
        file.write_bytes(data)
        real = s3.ref_of

        def changed(stream: Any, real: Any = real, file: Path = file) -> Any:
            ref = real(stream)
            with open(file, "r+b") as other:
                other.write(b"changed")
            return ref

        monkeypatch.setattr(s3, "ref_of", changed)
        with pytest.raises(UserError, match="has changed while it was sent"):
            store.put(file)
        monkeypatch.setattr(s3, "ref_of", real)
    assert list(store.stored()) == [] and store.clean(time.time() + 3600) == 0


def test_an_upload_that_is_cut_goes_on(s3_server: Server, bucket: str, quick: None) -> None:
    ref, key = ref_of(LARGE), f"sha256/{ref_of(LARGE)[7:]}"
    with CuttingProxy(s3_server.port) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxy.port}"
        store = S3(f"s3://{bucket}")
        proxy.left = PART_BYTES + 1_000_000
        with pytest.raises(DeviceError, match="does not answer") as caught:
            store.put(io.BytesIO(LARGE))
        assert caught.value.retryable
        with pytest.raises(DeviceError, match="does not answer"):
            store.size(ref)
        os.environ["AWS_ENDPOINT_URL"] = s3_server.endpoint
        client = boto3.client("s3")
        (pending,) = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
        assert pending["Key"] == key
        assert S3(f"s3://{bucket}").size(ref) is None

        proxy.left, proxy.sent = None, 0
        assert store.put(io.BytesIO(LARGE)) == ref
        # The first part was not sent again.
        assert len(LARGE) - PART_BYTES <= proxy.sent < len(LARGE) - PART_BYTES + 100_000
        assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket)
        assert store.size(ref) == len(LARGE)


def test_a_wrong_part_is_sent_again(s3_server: Server, bucket: str) -> None:
    client = boto3.client("s3")
    key = {"Bucket": bucket, "Key": f"sha256/{ref_of(LARGE)[7:]}"}
    upload = client.create_multipart_upload(**key)["UploadId"]
    client.upload_part(**key, UploadId=upload, PartNumber=1, Body=b"\0" * PART_BYTES)
    store = S3(f"s3://{bucket}")
    ref = store.put(io.BytesIO(LARGE))
    with store.open(ref) as stream:
        assert stream.read() == LARGE


def test_uploads_that_nobody_goes_on_with(store: S3) -> None:
    client, key = store._client, f"some/lab/sha256/{'0' * 64}"
    client.create_multipart_upload(Bucket=store._bucket, Key=key)
    client.create_multipart_upload(Bucket=store._bucket, Key="another/lab/file")
    assert store.clean(begun_before=1000.0) == 0
    assert store.clean(time.time() + 3600) == 1
    (left,) = client.list_multipart_uploads(Bucket=store._bucket)["Uploads"]
    assert left["Key"] == "another/lab/file"


def test_an_upload_that_others_end(
    bucket: str, s3_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = S3(f"s3://{bucket}"), S3(f"s3://{bucket}")
    real = store._put_parts

    def late(ref: str, file: Any, size_bytes: int) -> None:
        monkeypatch.setattr(store, "_put_parts", real)
        upload, _ = store._upload(ref)
        monkeypatch.setattr(store, "_upload", lambda ref: (upload, {}))
        other.put(io.BytesIO(LARGE))
        real(ref, file, size_bytes)

    monkeypatch.setattr(store, "_put_parts", late)
    assert store.put(io.BytesIO(LARGE)) == ref_of(LARGE)
    assert store.size(ref_of(LARGE)) == len(LARGE)


def test_a_download_that_is_cut_goes_on(
    s3_server: Server, bucket: str, tmp_path: Path, quick: None
) -> None:
    ref = S3(f"s3://{bucket}").put(io.BytesIO(LARGE))
    with CuttingProxy(s3_server.port) as proxy:
        proxy.answers_left = 5_000_000
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxy.port}"
        store = S3(f"s3://{bucket}")
        with pytest.raises(DeviceError, match=r"does not answer|not done"):
            download(store, ref, tmp_path / "out", Patience("it", 2.0, lambda: False))
        had = (tmp_path / ".out.part").stat().st_size
        assert 0 < had < 5_000_000
        proxy.answers_left = None
        before = proxy.answered
        download(store, ref, tmp_path / "out")
        assert proxy.answered - before < len(LARGE) - had + 100_000
    assert (tmp_path / "out").read_bytes() == LARGE


def test_a_damaged_artifact_is_noticed(bucket: str, tmp_path: Path) -> None:
    store = S3(f"s3://{bucket}")
    ref = store.put(io.BytesIO(SMALL))
    boto3.client("s3").put_object(Bucket=bucket, Key=f"sha256/{ref[7:]}", Body=SMALL[:-1] + b"?")
    with pytest.raises(UserError, match="is damaged there"):
        download(store, ref, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_who_may_not(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(RefusedError, match=r"Forbidden; .*AWS_SECRET_ACCESS_KEY"):
        S3(f"s3://{bucket}").put(io.BytesIO(SMALL))
    with pytest.raises(RefusedError):
        S3(f"s3://{bucket}").size(ref_of(SMALL))
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(RefusedError, match="credentials"):
        S3(f"s3://{bucket}").size(ref_of(SMALL))


def test_no_such_place(bucket: str) -> None:
    with pytest.raises(RefusedError, match="there is no bucket 'nowhere'"):
        S3("s3://nowhere/lab").size(ref_of(SMALL))
    with pytest.raises(RefusedError, match="there is no bucket 'nowhere'"):
        S3("s3://nowhere/lab").put(io.BytesIO(SMALL))
    with pytest.raises(UserError, match="names no bucket"):
        open_artifacts("s3://")
    assert open_artifacts(f"s3://{bucket}/lab").where == f"s3://{bucket}/lab"


def test_nobody_answers(bucket: str, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(DeviceError, match="does not answer") as caught:
        S3(f"s3://{bucket}").put(io.BytesIO(SMALL))
    assert caught.value.retryable
