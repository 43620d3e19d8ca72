"""Labs in both kinds of database, and behind a service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from service_server import serving

from benchmarks.postgresql_server import PostgresqlServer
from hardware_lab.store import Store


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
