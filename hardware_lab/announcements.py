"""What runners say of their boards: a lab knows no others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select

from hardware_lab.database import Database, iso
from hardware_lab.database import boards as _boards
from hardware_lab.inventory import Inventory, Tags

ANNOUNCE_S = 60.0
"""How often a runner says so."""
FORGOTTEN_S = 30 * 86400.0
KEY = ("name", "host")
SECRET = ("password", "secret", "token", "community")
"""Options with these in their names stay with the runner."""


@dataclass(frozen=True)
class BoardFacts:
    """A board as its runner's inventory has it.

    Attributes:
        name: In the inventory.
        kind: `host`, `ssh`, ...
        resource: What it works on; see `hardware_lab.boards.Board`.
        tags: What it has, and how many of each.
        options: The others of its inventory entry, without secrets.
    """

    name: str
    kind: str
    resource: str
    tags: Tags
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Announced:
    """A board, and the runner that last said it has it.

    Attributes:
        board: What it is.
        host: Of the runner. One board may be in the inventories of several hosts.
        runner: Its name.
        seen: When; seconds since 1970.
    """

    board: BoardFacts
    host: str
    runner: str
    seen: float

    def to_json(self) -> dict[str, Any]:
        """Flat, with the time as ISO 8601, UTC."""
        rest = {"host": self.host, "runner": self.runner, "seen_at": iso(self.seen)}
        return {**asdict(self.board), **rest}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Announced:
        """Read what `to_json` wrote."""
        board = BoardFacts(**{field.name: data[field.name] for field in fields(BoardFacts)})
        seen = datetime.fromisoformat(data["seen_at"]).timestamp()
        return Announced(board, data["host"], data["runner"], seen)


class BoardRecords:
    """The boards of all runners of one lab."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def announce(self, host: str, runner: str, boards: Sequence[BoardFacts]) -> None:
        """Say which boards a runner has; who has not said so for FORGOTTEN_S is forgotten."""
        now = self._database.now()
        with self._database.write() as connection:
            connection.execute(delete(_boards).where(_boards.c.seen < now - FORGOTTEN_S))
            for board in boards:
                row = {**asdict(board), "host": host, "runner": runner, "seen": now}
                said = self._database.insert(_boards).values(row)
                connection.execute(said.on_conflict_do_update(index_elements=KEY, set_=row))

    def known(self) -> list[Announced]:
        """By name, then by host."""
        query = select(_boards).order_by(_boards.c.name, _boards.c.host)
        names = [field.name for field in fields(BoardFacts)]
        with self._database.read() as connection:
            return [
                Announced(
                    BoardFacts(**{name: getattr(row, name) for name in names}),
                    row.host,
                    row.runner,
                    row.seen,
                )
                for row in connection.execute(query)
            ]


def facts(inventory: Inventory) -> list[BoardFacts]:
    """What a runner may say of its boards."""
    found = []
    for name, board in inventory.boards.items():
        options: dict[str, Any] = _shown(asdict(board)) if is_dataclass(board) else {}
        options.pop("name", None)
        plain = json.loads(json.dumps(options, default=str))
        tags = dict(inventory.tags[name])
        found.append(BoardFacts(name, board.kind, board.resource, tags, plain))
    return found


def _shown(options: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _shown(value) if isinstance(value, dict) else value
        for key, value in options.items()
        if not any(word in key for word in SECRET)
    }
