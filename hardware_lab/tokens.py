"""Bearer tokens: who may ask a lab's service for what."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, select

from coralline.errors import UserError
from hardware_lab.database import Database, Role, iso
from hardware_lab.database import tokens as _tokens

PREFIX = "clab"
TOKEN = re.compile(PREFIX + "_[0-9a-f]{8}_[A-Za-z0-9_-]{43,128}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Token:
    """What the lab keeps of a token: enough to know it again.

    Attributes:
        name: For people.
        id: Its public part.
        role: What its bearer may do.
        digest: SHA-256 of the whole. It is a random number of 256 bits: no salt, no slow hash.
        made, expires: Seconds since 1970.
    """

    name: str
    id: str
    role: Role
    digest: str
    made: float
    expires: float | None

    def is_that(self, given: str) -> bool:
        """Whether this is the token that somebody presents."""
        return hmac.compare_digest(self.digest, _digest(given))

    def to_json(self) -> dict[str, Any]:
        """Without the digest; times as ISO 8601, UTC."""
        return {
            "name": self.name,
            "role": self.role,
            "made_at": iso(self.made),
            "expires_at": iso(self.expires),
        }


class Tokens:
    """The tokens of one lab."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        name: str,
        role: Role,
        expires_s: float | None = None,
        *,
        given: str | None = None,
        replace: bool = False,
    ) -> str:
        """Make a token.

        Args:
            expires_s: From now.
            given: The token, from somebody who must know it before the lab does; else a new one.
            replace: Whether one of this name goes.

        Returns:
            The token; nobody can read it again.

        Raises:
            UserError: The name is taken or none, or what is given is no token.
        """
        if not NAME.fullmatch(name):
            raise UserError(f"token name {name!r} must be of letters, digits, '.', '_' and '-'")
        token = given or f"{PREFIX}_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}"
        if not TOKEN.fullmatch(token):
            raise UserError(
                f"what is given for {name!r} is no token: {PREFIX}_, 8 hexadecimal digits, _ and "
                "at least 43 letters and digits, drawn at random"
            )
        now = self._database.now()
        with self._database.write() as connection:
            if replace:
                connection.execute(delete(_tokens).where(_tokens.c.name == name))
            if connection.execute(select(_tokens).where(_tokens.c.name == name)).first():
                raise UserError(
                    f"token {name!r} is there already; remove it, or choose another name"
                )
            connection.execute(
                insert(_tokens).values(
                    name=name,
                    id=id_of(token),
                    role=role,
                    digest=_digest(token),
                    made=now,
                    expires=None if expires_s is None else now + expires_s,
                )
            )
        return token

    def remove(self, name: str) -> None:
        """Take a token back.

        Raises:
            UserError: There is none of this name.
        """
        with self._database.write() as connection:
            if not connection.execute(delete(_tokens).where(_tokens.c.name == name)).rowcount:
                raise UserError(f"token {name!r} is not known; `coralline lab token list` has them")

    def known(self) -> list[Token]:
        """Those that have expired too."""
        query = select(_tokens).order_by(_tokens.c.name)
        with self._database.read() as connection:
            return [Token(**row._mapping) for row in connection.execute(query)]


def id_of(token: str) -> str:
    """The public part of a token; empty for what is none."""
    parts = token.split("_", 2)
    return parts[1] if len(parts) == 3 and parts[0] == PREFIX else ""


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
