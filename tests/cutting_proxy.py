"""A TCP proxy that cuts connections when a test says so."""

from __future__ import annotations

import socket
import socketserver
from contextlib import suppress
from threading import Lock, Thread
from types import TracebackType


class CuttingProxy:
    """Forwards to a port of this machine.

    Attributes:
        left: How many bytes may still go to the server; then every connection is cut, and new
            ones are closed at once. None for no bound.
        sent: Bytes that went to the server.
        answers_left, answered: The same of the bytes that come from it.
    """

    def __init__(self, port: int) -> None:
        self.left: int | None = None
        self.answers_left: int | None = None
        self.sent = self.answered = 0
        self._lock = Lock()
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                proxy._serve(self.request, port)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> CuttingProxy:
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, client: socket.socket, port: int) -> None:
        if self.left == 0 or self.answers_left == 0:
            return
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as server:
            answers = Thread(target=self._answer, args=(server, client), daemon=True)
            answers.start()
            while data := client.recv(65536):
                with self._lock:
                    if self.left is not None:
                        data = data[: self.left]
                        self.left -= len(data)
                    self.sent += len(data)
                if not data:
                    break
                server.sendall(data)
            for end in (client, server):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            answers.join()

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                with self._lock:
                    if self.answers_left is not None:
                        data = data[: self.answers_left]
                        self.answers_left -= len(data)
                    self.answered += len(data)
                if not data:
                    break
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)
