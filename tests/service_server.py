"""A lab's service for tests: in a thread, where a process of its own proves nothing more."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import uvicorn

from hardware_lab.service.app import Settings, create_app
from hardware_lab.service.server import configured
from hardware_lab.store import Store

CORALLINE = (sys.executable, "-c", "from coralline.cli.main import main; main()")


@contextmanager
def serving(store: Store, settings: Settings | None = None) -> Iterator[str]:
    """Serve a lab on a free port; yields its address."""
    app = create_app(store, settings or Settings(trusts_all=True, rate_per_s=1e6, burst=1e6))
    server = uvicorn.Server(configured(app))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


class ServiceProcess:
    """`coralline lab serve` in a process of its own; it ends with the block.

    Args:
        lab: Folder of the lab.
        arguments: Further ones.
    """

    def __init__(self, lab: Path, *arguments: str) -> None:
        self._lab = lab
        self._arguments = arguments
        self.port = 0
        self.url = ""
        self.log = lab.with_name(f"{lab.name}.serve.log")

    def __enter__(self) -> ServiceProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        """Begin, or begin again on the same port."""
        command = [*CORALLINE, "lab", "serve", "--lab", str(self._lab)]
        with open(self.log, "ab") as log:
            seen = log.tell()
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), *self._arguments], stderr=log
            )
        limit = time.monotonic() + 90
        while not (found := re.search(r"listens on (\w+://\S+:(\d+))", self._said(seen))):
            assert self.process.poll() is None and time.monotonic() < limit, self._said(seen)
            time.sleep(0.05)
        self.url, self.port = found[1].rstrip('",'), int(found[2])

    def _said(self, since: int) -> str:
        return self.log.read_bytes()[since:].decode()
