"""This machine as an ssh board, through a server of the tests, and what a job leaves on it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psutil
from processes import processes
from sshd_server import Server

from hardware_lab.boards.ssh import Ssh


def board_on(server: Server, tmp_path: Path, **options: Any) -> Ssh:
    values: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": server.port,
        "identity_file": str(server.client_key),
        "known_hosts": str(server.known_hosts),
        "python": sys.executable,
        "folder": str(tmp_path / "on the board"),
        "time_limit_s": 120.0,
    }
    return Ssh("pi", **(values | options))


def remote(board: Ssh) -> list[psutil.Process]:
    """The payload's processes on the board: supervisor and worker."""
    files = f"{board.folder}/files/"
    return processes(lambda line: len(line) > 2 and line[1].startswith(files))


def is_clean(board: Ssh) -> bool:
    """Nothing of a job is left on the board, neither process nor file."""
    jobs = Path(board.folder) / "jobs"
    parts = list((Path(board.folder) / "files").glob("*.part"))
    return not remote(board) and not jobs.exists() and not parts
