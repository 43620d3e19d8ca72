"""The server that speaks S3: what it was given is there after any number of starts."""

from __future__ import annotations

import stat
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError

from coralline.errors import UserError
from hardware_lab.artifacts.server import Server


def client(server: Server, secret: str) -> object:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=server.access_key,
        aws_secret_access_key=secret,
    )


def test_it_keeps_what_it_is_given(tmp_path: Path) -> None:
    first = Server(tmp_path / "s3")
    first.start()
    try:
        first.make_bucket("lab")
        first.make_bucket("lab")
        first._client.put_object(Bucket="lab", Key="a", Body=b"kept")
        processes = list(first._processes)
        assert len(processes) == 4
    finally:
        first.stop()
    assert all(process.poll() is not None for process in processes)
    assert stat.S_IMODE((tmp_path / "s3").stat().st_mode) == 0o700

    again = Server(tmp_path / "s3")
    assert (again.access_key, again.secret_key) == (first.access_key, first.secret_key)
    again.start()
    try:
        assert again._client.get_object(Bucket="lab", Key="a")["Body"].read() == b"kept"
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            client(again, "wrong").get_object(Bucket="lab", Key="a")  # type: ignore[attr-defined]
        with pytest.raises(UserError, match=f"port {again.port} of 127.0.0.1 is taken"):
            Server(tmp_path / "other", again.port).start()
    finally:
        again.stop()
