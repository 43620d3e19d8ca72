"""Labs in both kinds of database, and an emulated phone."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import adbutils
import pytest
from adb_device import AdbDevice

from benchmarks.postgresql_server import PostgresqlServer


@pytest.fixture(scope="session")
def postgresql(postgresql_binaries: Path) -> Iterator[PostgresqlServer]:
    server = PostgresqlServer(postgresql_binaries, durable=False)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The place of a new lab."""
    monkeypatch.setenv("CORALLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CORALLINE_ARTIFACTS", str(tmp_path / "artifacts"))
    if request.param == "sqlite":
        return str(tmp_path / "lab")
    url: str = request.getfixturevalue("postgresql").new_database()
    return url


@pytest.fixture(scope="module")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A server and keys of our own: this machine's stay as they are."""
    adb = shutil.which("adb")
    if adb is None and not os.environ.get("CI"):
        pytest.skip("adb is not here (Debian package adb)")
    assert adb, "CI needs adb: install the Debian package adb"
    with pytest.MonkeyPatch.context() as patch, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        patch.setenv("ANDROID_ADB_SERVER_PORT", port)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("ADB_MDNS", "0")
        yield
        subprocess.run([adb, "-P", port, "kill-server"], check=False, capture_output=True)


@pytest.fixture
def phone(adb_server: None, tmp_path: Path) -> Iterator[AdbDevice]:
    made = AdbDevice(tmp_path / "phone")
    yield made
    made.stop()
    adbutils.AdbClient().disconnect(made.serial)
