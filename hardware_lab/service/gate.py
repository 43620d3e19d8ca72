"""Who may do what: bearer tokens with roles, a rate for each, and limits of what is sent."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from anyio import to_thread
from fastapi import APIRouter, HTTPException, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.types import Message

from hardware_lab.database import ROLES, Role
from hardware_lab.tokens import Token, Tokens, id_of

ANYONE: frozenset[Role] = frozenset(ROLES)
SUBMITTERS: frozenset[Role] = frozenset({"submit", "admin"})
RUNNERS: frozenset[Role] = frozenset({"run", "admin"})
ADMINS: frozenset[Role] = frozenset({"admin"})

COOKIE = "coralline_token"
"""Where a browser, which cannot be told to send a bearer token, keeps it; good for pages only."""
HERE = ("localhost", "127.0.0.1", "::1")
MOST_BYTES = 1 << 20
"""Of a request, unless its route takes more."""
STALL_S = 20.0
"""A request whose body does not go on for so long is given up."""
LEAST_BYTES_PER_S = 16 << 10
"""A body that comes more slowly over its whole length is given up."""
REMEMBER_S = 2.0
"""A token that is removed is still good for so long."""
MOST_CALLERS = 10_000
_BEARER = HTTPBearer(auto_error=False, description="Of `coralline lab token add`.")
"""For the OpenAPI document; the gate reads the header before anything else is read."""


@dataclass(frozen=True)
class Caller:
    """Who makes a request.

    Attributes:
        name: Of the token; empty for one without.
        role: What the caller may do.
        key: Of whose rate it is.
    """

    name: str
    role: Role
    key: str


class Gate:
    """Lets callers in, and not too often.

    Args:
        tokens: Who may come in.
        trusts_all: Let everybody in as `admin` as long as there is no token at all; only for a
            service that nobody but this machine reaches.
        rate_per_s: Requests of one token, or of one address without a token, over some time.
        burst: How many of them at once.
    """

    def __init__(
        self, tokens: Tokens, *, trusts_all: bool, rate_per_s: float, burst: float
    ) -> None:
        self._tokens = tokens
        self._trusts_all = trusts_all
        self._rate_per_s, self._burst = rate_per_s, burst
        self._known: Mapping[str, Token] = {}
        self._known_at = -1e9
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def admit(
        self, request: Request, roles: frozenset[Role], given: str | None = None
    ) -> Caller:
        """See that a request may be made.

        Args:
            given: The token, when the request does not bring it as `presented` says.

        Raises:
            HTTPException: 401, 403 or 429.
        """
        caller = await self._caller(request, presented(request) if given is None else given)
        self._count(caller.key if caller else _address(request))
        if caller is None:
            raise HTTPException(
                401,
                "no valid token; send one as `Authorization: Bearer`, which `coralline lab token "
                "add` makes where the lab is",
                headers={"WWW-Authenticate": 'Bearer realm="coralline lab"'},
            )
        if caller.role not in roles:
            raise HTTPException(
                403,
                f"token {caller.name!r} has the role {caller.role!r}; this needs "
                f"{' or '.join(sorted(roles))}",
            )
        return caller

    async def _caller(self, request: Request, given: str) -> Caller | None:
        if time.monotonic() - self._known_at > REMEMBER_S:
            known = await to_thread.run_sync(self._tokens.known)
            self._known = {token.id: token for token in known}
            self._known_at = time.monotonic()
        if not self._known and self._trusts_all and _is_of_here(request):
            return Caller("", "admin", _address(request))
        found = self._known.get(id_of(given))
        if found is None or not found.is_that(given):
            return None
        if found.expires is not None and found.expires <= time.time():
            return None
        return Caller(found.name, found.role, f"token {found.name}")

    def _count(self, key: str) -> None:
        """Take one from the caller's bucket, which fills again at the rate."""
        now = time.monotonic()
        left, at = self._buckets.pop(key, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._rate_per_s)
        if left < 1:
            self._buckets[key] = left, now
            after_s = max(1, round((1 - left) / self._rate_per_s))
            raise HTTPException(
                429,
                f"more than {self._rate_per_s:g} requests a second; try again in {after_s} s",
                headers={"Retry-After": str(after_s)},
            )
        self._buckets[key] = left - 1, now
        if len(self._buckets) > MOST_CALLERS:
            self._buckets.popitem(last=False)


def presented(request: Request) -> str:
    """The token that a request brings; empty for none."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


def _address(request: Request) -> str:
    return f"address {request.client.host if request.client else ''}"


def _is_of_here(request: Request) -> bool:
    """Whether it is not some web site, open in a browser of this machine, that asks."""
    if request.url.hostname not in HERE:
        return False
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.url.netloc


class GuardedRoute(APIRoute):
    """A route that knows who may use it, and how much may be sent to it.

    Both are looked at before anything of the body is read.
    """

    roles: frozenset[Role]
    most_bytes = MOST_BYTES

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            gate: Gate = request.app.state.gate
            request.state.caller = await gate.admit(request, self.roles)
            if "\0" in request.url.path or b"%00" in request.scope["query_string"]:
                raise HTTPException(400, "the address has a NUL in it, which no name has")
            return await handler(limited(request, self.most_bytes))

        return guarded


def router_for(roles: frozenset[Role], most_bytes: int = MOST_BYTES, **options: Any) -> APIRouter:
    """A router whose routes are for these roles, and take bodies of so many bytes."""
    kind = type("Route", (GuardedRoute,), {"roles": roles, "most_bytes": most_bytes})
    return APIRouter(route_class=kind, dependencies=[Security(_BEARER)], **options)


def limited(request: Request, most_bytes: int) -> Request:
    """The request, whose body may neither be too long nor come too slowly."""
    told = request.headers.get("content-length", "0")
    too_large = HTTPException(413, f"the request is larger than {most_bytes} bytes")
    if not told.isdecimal() or int(told) > most_bytes:
        raise too_large
    begun, size = time.monotonic(), 0

    async def receive() -> Message:
        nonlocal size
        try:
            async with asyncio.timeout(STALL_S):
                message = await request.receive()
        except TimeoutError:
            raise HTTPException(408, f"nothing came for {STALL_S:g} s") from None
        size += len(message.get("body", b""))
        if size > most_bytes:
            raise too_large
        took_s = time.monotonic() - begun
        if message.get("more_body") and took_s > STALL_S + size / LEAST_BYTES_PER_S:
            raise HTTPException(408, f"comes more slowly than {LEAST_BYTES_PER_S} bytes a second")
        return message

    return Request(request.scope, receive)
