"""Serves a lab on a port: limits of what a connection may do, and an end that cuts nobody off."""

from __future__ import annotations

import logging
import signal
import socket
import ssl
from asyncio import TimerHandle, Transport
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from coralline.errors import UserError

CONNECTIONS = 512
HEADER_BYTES = 32 << 10
IDLE_S = 30
"""A connection on which no request is answered is closed after it: none, or half of its headers,
have come, or the rest of a refused one drips in."""
DRAIN_S = 30
"""Requests that are not done by then, when the service is to end, are cut off."""

log = logging.getLogger(__name__)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches what listens there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(
    app: FastAPI, host: str, port: int, tls_cert: Path | None = None, tls_key: Path | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, then end what was begun.

    Args:
        port: 0 for any that is free.
        tls_cert, tls_key: PEM files; without them the service speaks plain HTTP.

    Raises:
        UserError: The port is taken, or the files cannot be used.
    """
    if tls_cert is not None:
        _check_tls(tls_cert, tls_key)
    listener = _listen(host, port)
    scheme = "http" if tls_cert is None else "https"
    at = f"[{host}]" if ":" in host else host
    log.info("listens on %s://%s:%d", scheme, at, listener.getsockname()[1])
    _Server(configured(app, tls_cert, tls_key)).run(sockets=[listener])
    log.info("ended")


def configured(
    app: FastAPI, tls_cert: Path | None = None, tls_key: Path | None = None
) -> uvicorn.Config:
    """The web server's settings; see `serve`."""
    return uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        log_config=None,
        access_log=False,  # the application's own says more
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=DRAIN_S,
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
    )


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As the base's, which would then kill this process by the signal that ended it well."""
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Protocol(H11Protocol):
    """HTTP/1.1 with a limit to the time in which a request's headers must come."""

    _patience: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio does so only for sockets that were made with the number of the protocol; without
        # it each answer, sent as headers and body, waits for the client's late acknowledgement.
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wait()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        if self._patience is not None:
            self._patience.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def _wait(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._patience = self.loop.call_later(IDLE_S, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except OSError as error:
        raise UserError(
            f"{host}:{port}: cannot be listened on ({error.strerror}); give another --host or "
            "--port"
        ) from None
    listener.set_inheritable(True)
    return listener


def _check_tls(cert: Path, key: Path | None) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
    except OSError as error:  # of which SSLError is one
        raise UserError(
            f"{cert}: is not a certificate in PEM with its key ({error.strerror or error}); give "
            "--tls-cert, and --tls-key where the key is in another file"
        ) from None
