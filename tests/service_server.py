"""A lab's service for tests: in a thread, where a process of its own proves nothing more."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import uvicorn

from hardware_lab.service.app import Settings, create_app
from hardware_lab.service.server import configured
from hardware_lab.store import Store


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
