"""Labs in both kinds of database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.postgresql_server import PostgresqlServer, binaries


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    folder = binaries()
    if folder is None:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL's server is needed; apt-get install postgresql")
        pytest.skip("PostgreSQL's server is not installed (Debian package postgresql)")
    server = PostgresqlServer(folder, durable=False)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The place of a new lab."""
    monkeypatch.setenv("CORALLINE_HOME", str(tmp_path / "home"))
    if request.param == "sqlite":
        return str(tmp_path / "lab")
    url: str = request.getfixturevalue("postgresql").new_database()
    return url
