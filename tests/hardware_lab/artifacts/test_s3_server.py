"""The server that speaks S3: what it was given is there after any number of starts."""

from __future__ import annotations

import stat
import subprocess
import sys
import time
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


def test_it_ends_with_whoever_started_it(tmp_path: Path) -> None:
    script = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from hardware_lab.artifacts.server import Server\n"
        f"server = Server(Path({str(tmp_path / 's3')!r}))\n"
        "server.start()\n"
        "print(*(process.pid for process in server._processes), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    said = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=False)
    pids = [int(pid) for pid in said.stdout.split()]
    assert len(pids) == 4
    limit = time.monotonic() + 60
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < limit
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"swift" in command


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
