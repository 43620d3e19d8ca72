"""`coralline lab serve` and `coralline lab token`, as far as they need no server."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from verbs import run_verb

from coralline.errors import UserError
from hardware_lab.logs import JsonLines
from hardware_lab.service_cli import serve
from hardware_lab.store import Store


@pytest.fixture
def where(tmp_path: Path) -> str:
    return str(tmp_path / "lab")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"host": "0.0.0.0"}, "others could do anything to the lab, for it has no token"),
        ({"host": "nowhere.invalid"}, "for it has no token"),
        ({"tls_cert": Path("none.pem")}, "none.pem: is not a certificate in PEM"),
        ({"tls_key": Path("none.pem")}, "--tls-key is of no use without --tls-cert"),
    ],
)
def test_a_service_that_cannot_be(where: str, options: dict[str, Any], said: str) -> None:
    defaults = {"host": "127.0.0.1", "port": 0, "tls_cert": None, "tls_key": None, "rate": 100}
    with pytest.raises(UserError, match=said):
        serve(**{**defaults, **options}, where=where, artifacts=None)


def test_an_address_that_is_not_here(where: str) -> None:
    Store(where).tokens.add("a", "admin")
    with pytest.raises(UserError, match="cannot be listened on"):
        serve(
            host="192.0.2.1",
            port=0,
            tls_cert=None,
            tls_key=None,
            rate=100,
            where=where,
            artifacts=None,
        )


def test_tokens(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    lab = ("--lab", where)
    options = ("--role", "submit", "--name", "ci", "--expires", "90d")
    code, made, _ = run_verb(capsys, "lab", "token", "add", *options, *lab)
    (kept,) = Store(where).tokens.known()
    assert code == 0 and kept.is_that(made.strip())
    _, listed, _ = run_verb(capsys, "lab", "token", "list", "--json", *lab)
    assert json.loads(listed)["tokens"] == [kept.to_json()] and kept.expires
    code, _, said = run_verb(capsys, "lab", "token", "add", "--role", "root", "--name", "x", *lab)
    assert code == 2 and "role 'root' is not known; choose submit, run, admin" in said
    assert run_verb(capsys, "lab", "token", "remove", "ci", *lab)[0] == 0
    assert Store(where).tokens.known() == []
    code, _, said = run_verb(capsys, "lab", "token", "list", "--lab", "http://127.0.0.1:1")
    assert code == 2 and "tokens are made where the lab's database is" in said


def test_a_line_of_the_log() -> None:
    record = logging.makeLogRecord(
        {"name": "lab", "levelname": "INFO", "msg": "%s\n%d", "args": ("a", 2), "request_id": "x"}
    )
    text = JsonLines().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert line["message"] == "a\n2" and line["request_id"] == "x" and line["level"] == "info"
