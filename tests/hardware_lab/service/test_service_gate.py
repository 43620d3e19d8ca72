"""Who may do what at the service, how often, and how much may be sent to it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from service_server import serving

from coralline.errors import UserError
from hardware_lab.database import ROLES, Role
from hardware_lab.service import gate, server
from hardware_lab.service.app import Settings, create_app
from hardware_lab.service.gate import ADMINS, ANYONE, RUNNERS, SUBMITTERS
from hardware_lab.store import Store
from hardware_lab.tokens import id_of

REF = "sha256:" + "0" * 64
OPEN = {"/healthz", "/readyz", "/api/v1/openapi.json"}
PAGES = {"/sign-in", "/sign-out", "/assets/{name}"}
WHO = {
    ("GET", "/metrics"): ANYONE,
    ("GET", "/api/v1/boards"): ANYONE,
    ("GET", "/api/v1/health"): ANYONE,
    ("GET", "/api/v1/health/{board}/log"): ANYONE,
    ("GET", "/api/v1/jobs"): ANYONE,
    ("GET", "/api/v1/jobs/{job_id}"): ANYONE,
    ("GET", "/api/v1/jobs/{job_id}/result"): ANYONE,
    ("GET", "/api/v1/jobs/{job_id}/files"): ANYONE,
    ("GET", "/api/v1/queue"): ANYONE,
    ("GET", "/api/v1/leases"): ANYONE,
    ("GET", "/api/v1/artifacts/{ref}"): ANYONE,
    ("HEAD", "/api/v1/artifacts/{ref}"): ANYONE,
    ("PUT", "/api/v1/artifacts/{ref}"): ANYONE,
    ("POST", "/api/v1/artifacts/{ref}/renewal"): ANYONE,
    ("POST", "/api/v1/jobs"): SUBMITTERS,
    ("POST", "/api/v1/jobs/{job_id}/labels"): SUBMITTERS,
    ("POST", "/api/v1/cancellations"): SUBMITTERS,
    ("PUT", "/api/v1/health/{board}"): ADMINS,
    ("POST", "/api/v1/prunings"): ADMINS,
    ("POST", "/api/v1/announcements"): RUNNERS,
    ("POST", "/api/v1/looks"): ANYONE,
    ("POST", "/api/v1/claims"): RUNNERS,
    ("POST", "/api/v1/beats"): RUNNERS,
    ("POST", "/api/v1/expiries"): RUNNERS,
    ("PUT", "/api/v1/jobs/{job_id}/attempts/{attempt}/result"): RUNNERS,
    ("POST", "/api/v1/jobs/{job_id}/attempts/{attempt}/failure"): RUNNERS,
    ("POST", "/api/v1/jobs/{job_id}/attempts/{attempt}/return"): RUNNERS,
    ("POST", "/api/v1/health/{board}/checks"): RUNNERS,
    ("POST", "/api/v1/health/{board}/distrust"): RUNNERS,
    ("POST", "/api/v1/health/{board}/steps"): RUNNERS,
    ("POST", "/api/v1/health/{board}/notes"): RUNNERS,
    ("GET", "/api/v1/resources/{resource}/rest"): RUNNERS,
    ("PUT", "/api/v1/jobs/{job_id}/attempts/{attempt}/files"): RUNNERS,
}
"""Every route of the service's programs; one that is added must be added here."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "lab")


@pytest.fixture
def tokens(store: Store) -> dict[Role, str]:
    return {role: store.tokens.add(role, role) for role in ROLES}


@pytest.fixture
def url(store: Store, tokens: dict[Role, str]) -> Iterator[str]:
    with serving(store, Settings(rate_per_s=1000, burst=1000)) as url:
        yield url


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def routes(app: FastAPI) -> dict[tuple[str, str], frozenset[Role] | None]:
    """Who may use which; None for all."""
    return {
        (method, str(route.path)): getattr(route.original_route, "roles", None)
        for route in iter_route_contexts(app.routes)
        for method in route.methods or ()
    }


def test_no_route_is_open_by_mistake(store: Store) -> None:
    found = routes(create_app(store, Settings()))
    assert {path for (_, path), roles in found.items() if roles is None} == OPEN | PAGES
    for_programs = {
        key: roles
        for key, roles in found.items()
        if roles is not None and (key[1].startswith("/api/") or key[1] == "/metrics")
    }
    assert for_programs == WHO


def test_every_role_at_every_route(url: str, tokens: dict[Role, str]) -> None:
    with httpx.Client(base_url=url) as client:
        for (method, path), roles in WHO.items():
            at = path.replace("{ref}", REF).replace("{attempt}", "1")
            at = at.replace("{job_id}", "none").replace("{board}", "b0").replace("{resource}", "x")
            for role, token in tokens.items():
                answer = client.request(method, at, headers=bearer(token))
                assert (answer.status_code == 403) == (role not in roles), (method, path, role)
                assert answer.status_code not in (401, 500), (method, path, role)
            for headers in ({}, bearer("clab_00000000_none"), bearer(tokens["admin"] + "x")):
                answer = client.request(method, at, headers=headers)
                assert answer.status_code == 401, (method, path)
                assert "Bearer" in answer.headers["WWW-Authenticate"]
        for path in OPEN:
            assert client.get(path).status_code == 200


def test_what_a_refusal_says(url: str, tokens: dict[Role, str]) -> None:
    with httpx.Client(base_url=url, headers={"X-Request-ID": "mine-1"}) as client:
        said = client.post("/api/v1/beats", headers=bearer(tokens["submit"])).json()
        assert said == {
            "error": "token 'submit' has the role 'submit'; this needs admin or run",
            "kind": "user",
            "retryable": False,
            "request_id": "mine-1",
        }
        answer = client.get("/nowhere", headers={"X-Request-ID": "line\tbreak;"})
        assert answer.status_code == 404 and answer.json()["request_id"] != "line\tbreak;"
        assert answer.headers["X-Request-ID"] == answer.json()["request_id"]


def test_tokens(store: Store) -> None:
    made = store.tokens.add("ci", "submit", 3600)
    (kept,) = store.tokens.known()
    assert (kept.name, kept.role, kept.id) == ("ci", "submit", id_of(made))
    assert kept.expires == pytest.approx(kept.made + 3600)
    assert made not in str(kept) and made.split("_", 2)[2] not in str(kept.to_json())
    assert kept.is_that(made) and not kept.is_that(made[:-1]) and not kept.is_that("")
    with pytest.raises(UserError, match="is there already"):
        store.tokens.add("ci", "run")
    with pytest.raises(UserError, match="must be of letters"):
        store.tokens.add("c i", "run")
    store.tokens.remove("ci")
    with pytest.raises(UserError, match="is not known"):
        store.tokens.remove("ci")
    # Not one of them lies in the database as it was given out.
    assert made.encode() not in b"".join(
        path.read_bytes() for path in Path(store.where).parent.glob("lab.sqlite*")
    )


def test_a_token_that_expires_or_is_removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "REMEMBER_S", 0.0)
    store.tokens.add("other", "admin")
    short, removed = store.tokens.add("short", "run", 1e-3), store.tokens.add("removed", "run")
    with serving(store, Settings()) as url, httpx.Client(base_url=url) as client:
        assert client.get("/api/v1/queue", headers=bearer(short)).status_code == 401
        assert client.get("/api/v1/queue", headers=bearer(removed)).status_code == 200
        store.tokens.remove("removed")
        assert client.get("/api/v1/queue", headers=bearer(removed)).status_code == 401


def test_a_lab_without_tokens_trusts_this_machine_alone(store: Store) -> None:
    with serving(store, Settings(trusts_all=True)) as url, httpx.Client(base_url=url) as client:
        assert client.post("/api/v1/looks").status_code == 200
        # A web site in a browser of this machine is not this machine.
        for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            assert client.post("/api/v1/looks", headers=headers).status_code == 401
        assert client.post("/api/v1/looks", headers={"Origin": url}).status_code == 200
    with serving(store, Settings(trusts_all=False)) as url, httpx.Client(base_url=url) as client:
        assert client.post("/api/v1/looks").status_code == 401


def test_a_cookie_opens_no_door_for_programs(url: str, tokens: dict[Role, str]) -> None:
    cookies = {gate.COOKIE: tokens["admin"]}
    with httpx.Client(base_url=url, cookies=cookies) as client:
        assert client.get("/api/v1/queue").status_code == 401
        assert client.post("/api/v1/looks").status_code == 401
        assert client.get("/metrics").status_code == 401


def test_a_rate_for_each_token(store: Store, tokens: dict[Role, str]) -> None:
    settings = Settings(rate_per_s=0.5, burst=5)
    with serving(store, settings) as url, httpx.Client(base_url=url) as client:
        mine, others = bearer(tokens["submit"]), bearer(tokens["run"])
        codes = [client.get("/api/v1/queue", headers=mine).status_code for _ in range(6)]
        assert codes == [200] * 5 + [429]
        refused = client.get("/api/v1/queue", headers=mine)
        assert int(refused.headers["Retry-After"]) in (1, 2) and refused.json()["retryable"]
        assert client.get("/api/v1/queue", headers=others).status_code == 200
        # Who guesses at tokens is slowed down too.
        codes = [client.get("/api/v1/queue").status_code for _ in range(7)]
        assert codes == [401] * 5 + [429] * 2


def test_a_body_that_is_too_large(url: str, tokens: dict[Role, str]) -> None:
    with httpx.Client(base_url=url, headers=bearer(tokens["admin"])) as client:
        large = b" " * (gate.MOST_BYTES + 1)
        told = client.post("/api/v1/jobs", content=large)
        untold = client.post("/api/v1/jobs", content=iter([large[:1000], large]))
        for answer in (told, untold):
            assert answer.status_code == 413 and "larger than" in answer.json()["error"]
        assert client.get("/api/v1/queue").status_code == 200


def test_a_body_that_stalls(
    url: str, tokens: dict[Role, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "STALL_S", 0.3)
    for sent in ([b"{"], [b"{"] + [b" "] * 20):  # nothing more; a byte at a time
        answer = slowly(url, tokens["admin"], sent)
        assert answer.startswith(b"HTTP/1.1 408"), answer


def test_headers_that_stall(
    store: Store, tokens: dict[Role, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE_S", 0.3)
    with serving(store, Settings()) as url:
        at = httpx.URL(url)
        for begun in (b"", b"GET /healthz HTTP/1.1\r\nX-Slow: "):
            with socket.create_connection((at.host, at.port), timeout=20) as connection:
                connection.sendall(begun)
                assert connection.recv(100) == b""


def test_headers_that_are_too_long(url: str) -> None:
    at = httpx.URL(url)
    with socket.create_connection((at.host, at.port), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX-Long: " + b"a" * (server.HEADER_BYTES + 1))
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


def slowly(url: str, token: str, parts: list[bytes]) -> bytes:
    """The answer to a request whose body never ends."""
    at = httpx.URL(url)
    head = (
        "POST /api/v1/jobs HTTP/1.1\r\nHost: lab\r\nContent-Length: 1000\r\n"
        f"Content-Type: application/json\r\nAuthorization: Bearer {token}\r\n\r\n"
    )
    with socket.create_connection((at.host, at.port), timeout=20) as connection:
        connection.sendall(head.encode())
        connection.settimeout(0.1)
        for part in parts:
            connection.sendall(part)
            try:
                if answer := connection.recv(1000):
                    return answer
            except TimeoutError:
                continue
        connection.settimeout(20)
        return connection.recv(1000)
