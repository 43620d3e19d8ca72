"""Whether boards may be used: checked before use, repeated, quarantined, and by whom freed.

- A board is checked by the runner that has just leased it, when it has never been, when the last
  check is older than CHECK_S, and when it has failed a job since.
- A check that fails is repeated, each time after a longer pause; the STRIKES-th in a row makes
  the board `bad`, and only a person makes it usable again. The jobs go back to the queue.
- A check that would condemn most of the lab is itself suspect: nothing is condemned then.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from contextlib import suppress

from coralline.errors import CorallineError, DeviceError, UserError
from hardware_lab.boards import Board
from hardware_lab.store import Health, HealthState, Store

CHECK_S = 24 * 3600.0
STRIKES = 3
PAUSE_S = 30.0
"""After the first strike; twice as long after each further one, up to MOST_PAUSE_S."""
MOST_PAUSE_S = 3600.0
BY_PEOPLE: tuple[HealthState, ...] = ("unknown", "bad", "maintenance", "retired")
FEW = 3
"""In a lab of so few boards, most of them may well be bad at once."""

log = logging.getLogger(__name__)


class UnfitError(DeviceError):
    """A board cannot work; what it was asked to do is not to blame."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=True)


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


def check(store: Store, board: Board) -> str:
    """Ask a board whether it can work, and note what it says; its lease or lock must be held.

    Raises:
        UnfitError: It cannot work.
    """
    try:
        says = board.check()
    except CorallineError as error:
        _strike(store, board.name, " ".join(str(error).split()))
        raise UnfitError(f"{board.name}: its check failed: {error}") from None
    with store.judging() as (_, note):
        note(board.name, "good", says, was_checked=True)
    return says


def distrust(store: Store, board: str, error: Exception) -> None:
    """Have a board that failed a job checked before the next."""
    with store.judging() as (known, note):
        if board not in known or known[board].state == "good":
            note(board, "unknown", " ".join(str(error).split()))


def survey(store: Store, boards: Iterable[Board]) -> None:
    """Check the boards that may be used, but for those that are measuring."""
    leased = {lease.resource for lease in store.leases()}
    for board in boards:
        known = store.health().get(board.name)
        if board.resource in leased or not is_usable(known, math.inf):
            continue
        with store.lock(board.resource) as lock, suppress(UnfitError):
            if lock is not None:
                check(store, board)


def set_health(store: Store, board: str, state: str, why: str) -> None:
    """What a person says of a board.

    Raises:
        UserError: A person cannot say that.
    """
    for known in BY_PEOPLE:
        if known == state:
            with store.judging() as (_, note):
                note(board, known, why)
            return
    raise UserError(f"state {state!r} cannot be set; choose {', '.join(BY_PEOPLE)}")


def _strike(store: Store, board: str, cause: str) -> None:
    with store.judging() as (known, note):
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
        note(board, state, cause, strikes=strikes, pause_s=pause, was_checked=True)
