"""Labs in databases and behind a service, and an emulated phone."""

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
from service_server import serving
from sshd_server import Server

from benchmarks.postgresql_server import PostgresqlServer
from coralline.devices.model import load_device
from coralline.graph import read_graph
from coralline.staging import StagingProblem, make_plan
from coralline.tflite.split import split_model
from hardware_lab.store import Store

INT8 = Path(__file__).parents[1] / "data" / "small_int8.tflite"


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in two stages."""
    problem = StagingProblem(read_graph(INT8), 2, load_device("edgetpu-usb"))
    out = tmp_path_factory.mktemp("split") / "segments"
    return split_model(INT8, make_plan(problem, "uniform"), out).folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """An SSH server of the test's own."""
    folder = tmp_path / "sshd"
    folder.mkdir()
    made = Server(folder)
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="session")
def postgresql(postgresql_binaries: Path) -> Iterator[PostgresqlServer]:
    server = PostgresqlServer(postgresql_binaries, durable=False)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, home: Path) -> str:
    """The place of a new lab in a database."""
    return _place(request, home)


@pytest.fixture(params=["sqlite", "postgresql", "service"])
def place(request: pytest.FixtureRequest, home: Path) -> Iterator[str]:
    """The place of a new lab, in a database or behind a service."""
    if request.param != "service":
        yield _place(request, home)
        return
    with serving(Store(home.parent / "lab")) as url:
        yield url


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CORALLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CORALLINE_ARTIFACTS", str(tmp_path / "artifacts"))
    return tmp_path / "home"


def _place(request: pytest.FixtureRequest, home: Path) -> str:
    if request.param == "sqlite":
        return str(home.parent / "lab")
    url: str = request.getfixturevalue("postgresql").new_database()
    return url


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that end with the test."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


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
