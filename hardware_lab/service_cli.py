"""`coralline lab serve`, `lab runner` and `lab token`: the lab's long-lived processes, and who
may speak to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from coralline.cli import output
from hardware_lab.options import artifacts as _artifacts
from hardware_lab.options import inventory as _inventory
from hardware_lab.options import json_only as _json
from hardware_lab.options import seconds_of
from hardware_lab.options import where as _where

if TYPE_CHECKING:
    from hardware_lab.tokens import Tokens

PORT = 8440

token = typer.Typer(
    help="Who may ask the lab's service for what.",
    epilog="Example: coralline lab token add --role submit --name ci --expires 90d",
    no_args_is_help=True,
)


def add_service(lab: typer.Typer) -> None:
    """Add the verbs."""
    lab.callback()(options)
    lab.command("serve", epilog="Example: coralline lab serve --host 0.0.0.0")(serve)
    lab.command("runner", epilog="Example: coralline lab runner --lab https://lab:8440")(runner)
    lab.add_typer(token, name="token")


def options(
    token_file: Path | None = typer.Option(
        None,
        "--token-file",
        envvar="CORALLINE_LAB_TOKEN_FILE",
        help="File with the token for a service; else $CORALLINE_LAB_TOKEN.",
    ),
    ca: Path | None = typer.Option(
        None,
        "--ca",
        envvar="CORALLINE_LAB_CA",
        help="PEM file with the service's certificate, or the one that signed it.",
    ),
) -> None:
    """What says who asks, and whom to trust; given before the verb."""
    import os

    for name, value in (("TOKEN_FILE", token_file), ("CA", ca)):
        if value is not None:
            os.environ[f"CORALLINE_LAB_{name}"] = str(value)


def serve(
    host: str = typer.Option("127.0.0.1", "--host", help="Address to listen on."),
    port: int = typer.Option(PORT, "--port", min=0, max=65535, help="0 for any that is free."),
    tls_cert: Path | None = typer.Option(None, "--tls-cert", help="Certificate, PEM."),
    tls_key: Path | None = typer.Option(None, "--tls-key", help="Its key, PEM."),
    rate: float = typer.Option(200.0, "--rate", min=1, help="Requests a second of each token."),
    where: str | None = _where(),
    artifacts: str | None = _artifacts(),
) -> None:
    """Serve the lab over HTTP until told to end.

    Without a token (`coralline lab token add`) it listens to this machine alone.
    """
    import logging

    from coralline.errors import UserError
    from hardware_lab.logs import log_to_stderr
    from hardware_lab.service.app import THREADS, Settings, create_app
    from hardware_lab.service.server import is_loopback
    from hardware_lab.service.server import serve as serve_app
    from hardware_lab.store import Store, default_lab

    if tls_key is not None and tls_cert is None:
        raise UserError("--tls-key is of no use without --tls-cert")
    log_to_stderr()
    log = logging.getLogger("hardware_lab.service")
    store = Store(where or default_lab(), artifacts, connections=THREADS)
    known, local = store.tokens.known(), is_loopback(host)
    if not known and not local:
        raise UserError(
            f"--host {host}: others could do anything to the lab, for it has no token; run "
            "`coralline lab token add`, or listen on 127.0.0.1"
        )
    if not known:
        log.warning("the lab has no token: everybody on this machine may do everything")
    elif not local and tls_cert is None:
        log.warning("without --tls-cert, whoever listens on the way can read the tokens")
    log.info("serves %s, artifacts in %s", store.where, store.artifacts.where)
    settings = Settings(trusts_all=local, rate_per_s=rate, burst=2 * rate)
    serve_app(create_app(store, settings), host, port, tls_cert, tls_key)


def runner(
    inventory: Path | None = _inventory(),
    where: str | None = _where(),
    artifacts: str | None = _artifacts(),
) -> None:
    """Run jobs as they come, until told to end: a first signal waits for those that run."""
    import logging
    import signal
    from threading import Event

    from hardware_lab.inventory import load_inventory
    from hardware_lab.lab import open_lab
    from hardware_lab.logs import log_to_stderr
    from hardware_lab.runner import Runner

    log_to_stderr()
    log = logging.getLogger("hardware_lab")
    boards = load_inventory(inventory)
    store = open_lab(where, artifacts)
    told = Event()

    def end(number: int, _: object) -> None:
        if told.is_set():
            raise KeyboardInterrupt
        told.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    worker = Runner(store, boards)
    log.info(
        "runner %s takes jobs of %s for %s", worker.name, store.where, ", ".join(boards.boards)
    )
    worker.run(until=told)
    log.info("ended")


@token.command("add", epilog="Example: coralline lab token add --role run --name rack-3")
def add(
    name: str = typer.Option(..., "--name", help="For people, and to remove it by."),
    role: str = typer.Option(..., "--role", help="submit, run or admin; all may read."),
    expires: str | None = typer.Option(None, "--expires", help="After 12h, or 90d; else never."),
    given: Path | None = typer.Option(
        None, "--given", help="File with the token, when others know it already; else a new one."
    ),
    replace: bool = typer.Option(False, "--replace", help="Take back the one of this name."),
    where: str | None = _where(),
    json: bool = _json(),
) -> None:
    """Make a token and print it; the lab keeps only its digest, so it cannot be read again."""
    from coralline.errors import UserError, read_text
    from hardware_lab.database import ROLES

    if role not in ROLES:
        raise UserError(f"role {role!r} is not known; choose {', '.join(ROLES)}")
    token = None if given is None else read_text(given, "a token").strip()
    made = _tokens(where).add(
        name, role, seconds_of(expires, "--expires"), given=token, replace=replace
    )
    if json:
        shown = {"token": made} if given is None else {}
        output.print_json({"name": name, "role": role, **shown})
    elif given is None:
        print(made)


@token.command("list", epilog="Example: coralline lab token list")
def list_(where: str | None = _where(), json: bool = _json()) -> None:
    """List the tokens, without what makes them good."""
    from hardware_lab.show import print_table

    rows = [one.to_json() for one in _tokens(where).known()]
    if json:
        output.print_json({"tokens": rows})
    else:
        names = ("made_at", "expires_at")
        print_table(
            ["token", "role", "made", "expires"],
            [[row["name"], row["role"], *(_minute(row[n]) for n in names)] for row in rows],
        )


def _minute(at: str | None) -> str:
    return "never" if at is None else f"{at[:16].replace('T', ' ')} UTC"


@token.command("remove", epilog="Example: coralline lab token remove ci")
def remove(
    name: str = typer.Argument(..., help="Of the token."),
    where: str | None = _where(),
    json: bool = _json(),
) -> None:
    """Take a token back; a running service knows within seconds."""
    _tokens(where).remove(name)
    if json:
        output.print_json({"removed": name})
    else:
        print(f"token {name} is good for nothing now")


def _tokens(where: str | None) -> Tokens:
    from coralline.errors import UserError
    from hardware_lab.store import Store, default_lab

    place = where or default_lab()
    if place.startswith(("http://", "https://")):
        raise UserError(f"{place}: tokens are made where the lab's database is; give that as --lab")
    return Store(place).tokens
