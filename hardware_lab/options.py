"""Options that several verbs of the lab share."""

from __future__ import annotations

from typing import Any

import typer


def where() -> Any:
    """--lab."""
    return typer.Option(
        None,
        "--lab",
        envvar="CORALLINE_LAB",
        help="Folder that keeps the lab, postgresql://user@host/database, or https://host:port of "
        "its service.",
    )


def artifacts() -> Any:
    """--artifacts."""
    return typer.Option(
        None,
        "--artifacts",
        envvar="CORALLINE_ARTIFACTS",
        help="Folder or s3://bucket/prefix with models and raw samples; else in the lab's folder.",
    )


def inventory() -> Any:
    """--inventory."""
    return typer.Option(None, "--inventory", help="Inventory file; else the one in the package.")


def json_only() -> Any:
    """--json."""
    return typer.Option(False, "--json", help="Print one JSON object.")


def seconds_of(text: str | None, what: str) -> float | None:
    """How many seconds 90s, 30m, 8h or 2d are.

    Raises:
        UserError: The text is none of these; names `what`.
    """
    import re

    from coralline.errors import UserError

    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if found is None:
        raise UserError(f"{what} {text!r} is not a time; write 90s, 30m, 8h or 2d")
    return int(found[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}[found[2]]
