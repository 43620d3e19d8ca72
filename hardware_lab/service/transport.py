"""Requests to a lab's service: who asks, how often to try again, and what its errors mean."""

from __future__ import annotations

import io
import os
import random
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import httpx

from coralline import __version__
from coralline.errors import CorallineError, DeviceError, UserError, read_text
from hardware_lab.artifacts import CHUNK_BYTES, MissingError

TOKEN, TOKEN_FILE, CA = "CORALLINE_LAB_TOKEN", "CORALLINE_LAB_TOKEN_FILE", "CORALLINE_LAB_CA"
TRIES = 5
PAUSE_S = 0.1
"""Before the second try; twice as long before each further one, and never all at once."""
MOST_PAUSE_S = 5.0
TIMEOUT = httpx.Timeout(30.0, connect=5.0)
STORING = httpx.Timeout(30.0, read=600.0)
"""The service answers once artifacts are kept or deleted, wherever that is."""
IDLE_S = 10.0
"""Less than the service's own, which would else close a connection under a request."""
UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""Nothing has reached the service."""


class Http:
    """The service at an address.

    The token is that of $CORALLINE_LAB_TOKEN, or in the file $CORALLINE_LAB_TOKEN_FILE; the
    file $CORALLINE_LAB_CA, if there is one, says which certificates are trusted.

    Raises:
        UserError: One of the files cannot be read.
    """

    def __init__(self, url: str) -> None:
        self.where = url.rstrip("/")
        headers = {"User-Agent": f"coralline/{__version__}"}
        token = os.environ.get(TOKEN, "")
        if not token and (file := os.environ.get(TOKEN_FILE)):
            token = read_text(Path(file), "a file with a token")
        if token.strip():
            headers["Authorization"] = f"Bearer {token.strip()}"
        try:
            self._client = httpx.Client(
                base_url=f"{self.where}/api/v1",
                headers=headers,
                verify=_trusted(os.environ.get(CA)),
                timeout=TIMEOUT,
                limits=httpx.Limits(keepalive_expiry=IDLE_S, max_connections=64),
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise UserError(f"{url!r}: not the address of a lab ({error})") from None

    def ask(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        again: bool = True,
        timeout: httpx.Timeout = TIMEOUT,
    ) -> Any:
        """What the service answers, parsed; None for an empty answer.

        Args:
            again: Whether the request, when its answer got lost, can be made again.
            timeout: Longer for what the service is longer at.

        Raises:
            UserError: The request is to blame.
            DeviceError: The service is; retryable when it did not answer.
        """
        asked = {k: v for k, v in (query or {}).items() if v is not None}

        def send() -> httpx.Response:
            return self._client.request(
                method, path, json=body, params=asked, headers=headers, timeout=timeout
            )

        response = self._try(again, send)
        if response.status_code == 204:
            return None
        try:
            return response.json()
        except ValueError:
            raise DeviceError(f"{self.where}: answers, but not as a lab does") from None

    def send(self, path: str, stream: BinaryIO, size_bytes: int) -> None:
        """Put the rest of a stream that can be read again."""
        start = stream.tell()
        headers = {"Content-Length": str(size_bytes), "Content-Type": "application/octet-stream"}

        def put() -> httpx.Response:
            stream.seek(start)
            chunks = iter(lambda: stream.read(CHUNK_BYTES), b"")
            return self._client.put(path, content=chunks, headers=headers, timeout=STORING)

        self._try(True, put)

    def size(self, path: str) -> int | None:
        """Of what is there, in bytes; None when nothing is."""
        response = self._try(True, lambda: self._client.head(path), but=(404,))
        return None if response.status_code == 404 else int(response.headers["Content-Length"])

    @contextmanager
    def stream(self, path: str, start: int) -> Iterator[BinaryIO]:
        """Read the artifact there from the byte `start`."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._speaking(), self._client.stream("GET", path, headers=headers) as response:
            if response.status_code == 416:  # all of it is known
                yield io.BytesIO()
                return
            if response.status_code >= 400:
                response.read()
                error = self._error(response)
                raise MissingError(str(error)) if response.status_code == 404 else error
            yield io.BufferedReader(_Incoming(response, self), CHUNK_BYTES)

    def _try(
        self, again: bool, send: Callable[[], httpx.Response], but: tuple[int, ...] = ()
    ) -> httpx.Response:
        for attempt in range(TRIES):
            after_s = 0.0
            try:
                response = send()
            except httpx.TransportError as error:
                found = self._silence(error)
                may_repeat = again or isinstance(error, UNSENT)
            except httpx.HTTPError as error:
                raise self._silence(error) from None
            else:
                if response.status_code < 400 or response.status_code in but:
                    return response
                found = self._error(response)
                may_repeat = again or response.status_code == 429
                told = response.headers.get("Retry-After", "")
                after_s = float(told) if told.isdecimal() else 0.0
            if not may_repeat or not getattr(found, "retryable", False) or attempt == TRIES - 1:
                raise found
            pause_s = max(after_s, PAUSE_S * 2**attempt * random.uniform(0.5, 1.5))
            time.sleep(min(pause_s, MOST_PAUSE_S))
        raise AssertionError  # the last try returns or raises

    def _error(self, response: httpx.Response) -> CorallineError:
        """What an answer that is no success says."""
        try:
            data = response.json()
            said, kind, retryable = str(data["error"]), data["kind"], bool(data["retryable"])
        except (ValueError, KeyError, TypeError):
            said = f"answers {response.status_code}"
            kind, retryable = "device", response.status_code in (429, 502, 503, 504)
        if kind == "user" and not retryable:
            return UserError(f"{self.where}: {said}")
        return DeviceError(f"{self.where}: {said}", retryable=retryable)

    def _silence(self, error: httpx.HTTPError) -> CorallineError:
        reason = " ".join(str(error).split()) or type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in reason or isinstance(error, httpx.UnsupportedProtocol):
            return UserError(
                f"{self.where}: cannot be trusted ({reason}); give its certificate, or the one "
                f"that signed it, as --ca, or set {CA}"
            )
        return DeviceError(f"{self.where}: does not answer ({reason})", retryable=True)

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise self._silence(error) from None


class _Incoming(io.RawIOBase):
    """What an answer brings, as it comes."""

    def __init__(self, response: httpx.Response, http: Http) -> None:
        self._chunks = response.iter_raw(CHUNK_BYTES)
        self._http = http
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._left:
            with self._http._speaking():
                chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = chunk
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def _trusted(ca: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:  # of which SSLError is one
        raise UserError(f"{ca}: is not a file of certificates in PEM ({error.strerror})") from None
