"""The script that PostgreSQL's image runs on an empty data folder, against a real server."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from manifest_rules import ROOT

from benchmarks.postgresql_server import PostgresqlServer

SCRIPT = ROOT / "k8s" / "base" / "postgres" / "databases.sh"
MOUNT = "/run/secrets/coralline"


@pytest.fixture
def server(postgresql_binaries: Path) -> Iterator[dict[str, str]]:
    """The environment that psql reaches a new server with, as its superuser `postgres`."""
    postgresql = PostgresqlServer(postgresql_binaries, durable=False)
    try:
        postgresql.start()
        (host,) = parse_qs(urlsplit(postgresql.new_database()).query)["host"]
        environment = {
            **os.environ,
            "PATH": f"{postgresql_binaries}:{os.environ['PATH']}",
            "PGHOST": host,
        }
        for user, command in (
            ("lab", "CREATE ROLE postgres SUPERUSER LOGIN"),
            # The image has no such superuser.
            ("postgres", "ALTER ROLE lab RENAME TO other"),
        ):
            _psql(environment, user, "postgres", command)
        yield environment
    finally:
        postgresql.remove()


def _psql(environment: dict[str, str], user: str, database: str, command: str) -> str:
    words = ["psql", "-tA", "-v", "ON_ERROR_STOP=1", "-U", user, "-d", database, "-c", command]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_each_database_has_a_user_who_sees_no_other(server: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mlflow-password").write_text('it\'s "a" $password\\')
    (tmp_path / "lab-password").write_text("other")
    text = SCRIPT.read_text()
    assert MOUNT in text
    script = tmp_path / "databases.sh"
    script.write_text(text.replace(MOUNT, str(tmp_path)))
    subprocess.run(["sh", str(script)], env=server, check=True, capture_output=True)

    assert _psql(server, "mlflow", "mlflow", "CREATE TABLE t (); SELECT current_user") == (
        "CREATE TABLE\nmlflow"
    )
    may = (
        "SELECT datname FROM pg_database WHERE has_database_privilege('{}', oid, 'connect') AND {}"
    )
    ours = "datname IN ('mlflow', 'lab')"
    for name in ("mlflow", "lab"):
        assert _psql(server, "postgres", "postgres", may.format(name, ours)) == name
    stored = "SELECT count(*) FROM pg_authid WHERE rolpassword LIKE 'SCRAM-SHA-256%'"
    assert _psql(server, "postgres", "postgres", stored) == "2"
