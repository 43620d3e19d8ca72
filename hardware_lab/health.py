"""What the lab thinks of its boards: how long they are used, and who frees them.

- A board is checked by the runner that has just leased it, when it has never been, when the last
  check is older than CHECK_S, and when it has failed a job since.
- A check that fails is repeated, each time after a longer pause; the STRIKES-th in a row makes
  the board `bad`, and only a person makes it usable again. The jobs go back to the queue.
- A check that would condemn most of the lab is itself suspect: nothing is condemned then, and
  no board is restarted.

The log has every change of a state, and every step by which `hardware_lab.checks` tries to bring
a board back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, insert, select, text, update
from sqlalchemy.engine import Connection

from coralline.errors import UserError
from hardware_lab.database import Database, HealthState, iso
from hardware_lab.database import health as _health
from hardware_lab.database import health_log as _health_log

CHECK_S = 24 * 3600.0
STRIKES = 3
PAUSE_S = 30.0
"""After the first strike; twice as long after each further one, up to MOST_PAUSE_S."""
MOST_PAUSE_S = 3600.0
BY_PEOPLE: tuple[HealthState, ...] = ("unknown", "bad", "maintenance", "retired")
FEW = 3
"""In a lab of so few boards, most of them may well be bad at once."""
DAY_S = 24 * 3600.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Health:
    """What the lab thinks of a board.

    Attributes:
        board: Name.
        state: `good`; `unknown`, to be checked before the next job; `looping`, its check fails
            and is repeated; `bad`, it failed too often; `maintenance` or `retired` by a person.
        cause: What the last check, job or person said.
        since: When the state began; this and the other times in seconds since 1970.
        strikes: Checks failed in a row.
        checked: When it was last checked; 0 for never.
        again: When a looping board is checked again.
    """

    board: str
    state: HealthState
    cause: str
    since: float
    strikes: int
    checked: float
    again: float

    def to_json(self) -> dict[str, Any]:
        """With times as ISO 8601, UTC."""
        return {
            "board": self.board,
            "state": self.state,
            "cause": self.cause,
            "since": iso(self.since),
            "strikes": self.strikes,
            "checked_at": iso(self.checked or None),
        }


@dataclass(frozen=True)
class Verdict:
    """What the lab is to think of a board from now on.

    Attributes:
        state, cause, strikes: As `Health`.
        pause_s: Until the board is checked again.
        was_checked: Whether it has just been.
    """

    state: HealthState
    cause: str
    strikes: int = 0
    pause_s: float = 0.0
    was_checked: bool = False


class HealthRecords:
    """The health of the boards of one lab, and how it came about."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def known(self) -> dict[str, Health]:
        """What the lab thinks of the boards that it has used, by name."""
        with self._database.read() as connection:
            return _known(connection)

    def log(self, board: str) -> list[dict[str, Any]]:
        """The states that a board has been in and the steps to recover it, the first first."""
        query = select(_health_log).where(_health_log.c.board == board)
        with self._database.read() as connection:
            return [
                {"state": row.state, "step": row.step, "cause": row.cause, "at": iso(row.at)}
                for row in connection.execute(query.order_by(_health_log.c.number))
            ]

    def passed(self, board: str, says: str) -> None:
        """A board has passed its check."""
        self._judge(board, lambda known: Verdict("good", says, was_checked=True))

    def failed(self, board: str, cause: str) -> None:
        """A board has failed its check."""
        self._judge(board, lambda known: _strike(known, board, cause))

    def distrust(self, board: str, cause: str) -> None:
        """Have a board that failed a job checked before the next."""

        def judge(known: Mapping[str, Health]) -> Verdict | None:
            trusted = board not in known or known[board].state == "good"
            return Verdict("unknown", cause) if trusted else None

        self._judge(board, judge)

    def set(self, board: str, state: str, why: str) -> None:
        """What a person says of a board.

        Raises:
            UserError: A person cannot say that.
        """
        if state not in BY_PEOPLE:
            raise UserError(f"state {state!r} cannot be set; choose {', '.join(BY_PEOPLE)}")
        verdict = Verdict(state, why)
        self._judge(board, lambda _: verdict)

    def begin_step(self, board: str, step: str, cause: str, most_a_day: int) -> bool:
        """Note that a step to recover a board begins, unless it has begun too often.

        Returns:
            Whether it may begin.
        """
        with self._database.write() as connection:
            now = self._database.now()
            begun = connection.execute(
                select(func.count()).where(
                    _health_log.c.board == board,
                    _health_log.c.step == step,
                    _health_log.c.at > now - DAY_S,
                )
            ).scalar_one()
            if begun >= most_a_day:
                return False
            self._log(connection, board, cause, step)
        return True

    def note(self, board: str, what: str) -> None:
        """Add to the log what came of a step; the state stays."""
        with self._database.write() as connection:
            self._log(connection, board, what)

    def _log(self, connection: Connection, board: str, what: str, step: str | None = None) -> None:
        known = _known(connection).get(board)
        state = "unknown" if known is None else known.state
        line = {"board": board, "state": state, "step": step, "cause": what}
        connection.execute(insert(_health_log).values(line | {"at": self._database.now()}))

    def _judge(self, board: str, judge: Callable[[Mapping[str, Health]], Verdict | None]) -> None:
        with self._database.write() as connection:
            if not self._database.is_sqlite:
                connection.execute(text("LOCK TABLE health IN EXCLUSIVE MODE"))
            known = _known(connection)
            verdict = judge(known)
            if verdict is None:
                return
            now = self._database.now()
            values: dict[str, Any] = {
                "state": verdict.state,
                "cause": verdict.cause,
                "strikes": verdict.strikes,
                "again": now + verdict.pause_s,
            }
            if verdict.was_checked:
                values["checked"] = now
            before = known.get(board)
            if before is None or before.state != verdict.state:
                values["since"] = now
                line = {"board": board, "state": verdict.state, "cause": verdict.cause, "at": now}
                connection.execute(insert(_health_log).values(line))
            if before is None:
                connection.execute(
                    insert(_health).values({"checked": 0.0, **values, "board": board})
                )
            else:
                connection.execute(update(_health).where(_health.c.board == board).values(values))


def is_usable(health: Health | None, now: float) -> bool:
    """Whether a job may begin on a board.

    Args:
        health: None for a board that the lab has not used yet.
        now: `Store.now`.
    """
    if health is None or health.state in ("good", "unknown"):
        return True
    return health.state == "looping" and now >= health.again


def is_due(health: Health | None, now: float) -> bool:
    """Whether a board must be checked before a job."""
    return health is None or health.state != "good" or now - health.checked > CHECK_S


def most_fail(known: Mapping[str, Health]) -> bool:
    """Whether most boards in use fail their checks: what they share is then to blame."""
    in_use = [h for h in known.values() if h.state not in ("maintenance", "retired")]
    failing = sum(h.state in ("looping", "bad") for h in in_use)
    return len(in_use) > FEW and 2 * failing > len(in_use)


def _strike(known: Mapping[str, Health], board: str, cause: str) -> Verdict:
    strikes = 1 + (known[board].strikes if board in known else 0)
    pause = min(PAUSE_S * 2 ** min(strikes - 1, 20), MOST_PAUSE_S)
    state: HealthState = "looping"
    if strikes >= STRIKES:
        in_use = [h for h in known.values() if h.state not in ("maintenance", "retired")]
        bad = 1 + sum(h.state == "bad" for h in in_use)
        if len(in_use) > FEW and 2 * bad > len(in_use):
            cause = f"{cause} (not condemned: most of the lab would be, by one check)"
            log.error("board %s: %s", board, cause)
        else:
            state = "bad"
    return Verdict(state, cause, strikes=strikes, pause_s=pause, was_checked=True)


def _known(connection: Connection) -> dict[str, Health]:
    rows = connection.execute(select(_health).order_by(_health.c.board))
    return {row.board: Health(**row._mapping) for row in rows}
