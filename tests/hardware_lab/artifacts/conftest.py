"""A server that speaks S3 and checks signatures."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from hardware_lab.artifacts.server import Server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def bucket(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket, and the environment that boto3 needs to reach it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    name = f"lab-{uuid4().hex[:8]}"
    s3_server.make_bucket(name)
    return name
