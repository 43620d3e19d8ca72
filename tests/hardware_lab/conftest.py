"""Labs in both kinds of database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
