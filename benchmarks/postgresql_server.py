"""A PostgreSQL server of its own for a test or a benchmark, that can be stopped and started."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from uuid import uuid4


def binaries() -> Path | None:
    """The folder with the server's binaries, which Debian does not put on the path."""
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / "initdb").exists():
            return folder
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


class PostgresqlServer:
    """Listens on a socket in a folder of its own. Root is refused by PostgreSQL and becomes
    the user `postgres` for it, or else `nobody`.

    Args:
        durable: Whether a commit waits for the disk, as it does in use.
    """

    def __init__(self, binaries: Path, *, durable: bool) -> None:
        self._binaries = binaries
        self._user = _ordinary_user() if os.geteuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="lab-pg-"))
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        self._settings = ("-c", "listen_addresses=", "-c", f"fsync={'on' if durable else 'off'}")
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-D", "data", "-U", "lab", "--auth=trust", "--no-sync")

    def start(self) -> None:
        self._process = subprocess.Popen(
            [self._binaries / "postgres", "-D", "data", "-k", self._folder, *self._settings],
            cwd=self._folder,
            user=self._user,
            stdin=subprocess.DEVNULL,
            stderr=open(self._folder / "log", "ab"),  # noqa: SIM115
        )
        limit = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < limit
            time.sleep(0.05)

    def stop(self) -> None:
        """End it and every connection, without waiting for clients."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(60)

    def remove(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)  # nothing of it is wanted any more
            self._process.wait(60)
        shutil.rmtree(self._folder)

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"lab_{uuid4().hex[:8]}"
        self._run("createdb", "-h", str(self._folder), "-U", "lab", name)
        return f"postgresql://lab@/{name}?host={self._folder}"

    def _answers(self) -> bool:
        command = [self._binaries / "pg_isready", "-q", "-h", self._folder]
        return subprocess.run(command, check=False).returncode == 0

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._binaries / program, *arguments],
            cwd=self._folder,
            user=self._user,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def _ordinary_user() -> str:
    import pwd

    return "postgres" if any(u.pw_name == "postgres" for u in pwd.getpwall()) else "nobody"
