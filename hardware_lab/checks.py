"""Asking boards whether they can work, and bringing those back that do not answer.

`hardware_lab.health` says what follows from a check. A board that does not answer is helped, by
who has leased it and before the check counts against it, in steps that grow harsher: connect
anew, restart, cut the power. Each is taken only where the inventory allows it, so many times a
day at most, and not while most of the lab fails its checks.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from coralline.errors import CorallineError, DeviceError
from coralline.runtime.child import Stop, never
from hardware_lab.boards import Board, Recoverable
from hardware_lab.health import is_usable, most_fail
from hardware_lab.lab import Lab
from hardware_lab.power import PowerSwitch, cycle

MOST_A_DAY: Mapping[str, int] = {"reconnect": 24, "restart": 3, "power-cycle": 3}
"""How often each step is taken at most, for one board."""
RECONNECT_S = 30.0
"""How long a board that was connected anew may take to answer."""
START_S = 300.0
"""How long a board may take to start."""
LOOK_S = 2.0
"""Between two looks at a board that is awaited."""

log = logging.getLogger(__name__)


class UnfitError(DeviceError):
    """A board cannot work; what it was asked to do is not to blame."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=True)


def check(
    store: Lab, board: Board, power: PowerSwitch | None = None, stop: Stop | None = None
) -> str:
    """Ask a board whether it can work, and note what it says; its lease or lock must be held.

    Args:
        power: Its switch.
        stop: Given by who has the lease, and true once the board must be left: the board is then
            helped if it does not answer.

    Raises:
        UnfitError: It cannot work.
    """
    try:
        says = board.check(stop or never)
    except CorallineError as error:
        why, found = _line(error), None
        if stop is not None and getattr(error, "retryable", False) and not stop():
            found = _Recovery(store, board, power, stop).climb(why)
        if stop is not None and stop():
            raise UnfitError(f"{board.name}: its runner had to leave it") from None
        if found is None:
            store.health.failed(board.name, why)
            raise UnfitError(f"{board.name}: its check failed: {error}") from None
        says = found
    store.health.passed(board.name, says)
    return says


def survey(store: Lab, boards: Iterable[Board]) -> None:
    """Check the boards that may be used, but for those that are measuring."""
    leased = {lease.resource for lease in store.leases()}
    for board in boards:
        known = store.health.known().get(board.name)
        if board.resource in leased or not is_usable(known, math.inf):
            continue
        with store.lock(board.resource) as lock, suppress(UnfitError):
            if lock is not None:
                check(store, board)


@dataclass(frozen=True)
class _Recovery:
    """The steps to bring one board back."""

    store: Lab
    board: Board
    power: PowerSwitch | None
    stop: Stop

    def climb(self, why: str) -> str | None:
        """What the board says once it can work again; None when nothing helped.

        Args:
            why: What its check said.
        """
        board = self.board if isinstance(self.board, Recoverable) else None
        if board is None and self.power is None:
            return None
        reconnect = (lambda: None) if board is None else board.reconnect
        found = self._step("reconnect", why, reconnect, lambda: True, RECONNECT_S)
        if found is not None or self.stop():
            return found
        if most_fail(self.store.health.known()):
            self.store.health.note(
                self.board.name, "neither restarted nor power-cycled: most of the lab fails"
            )
            return None
        if board is not None and board.may_restart:
            with suppress(DeviceError):  # what does not answer cannot be told to restart
                before = board.boot_id()
                found = self._step(
                    "restart", why, board.restart, lambda: board.boot_id() != before, START_S
                )
        if found is None and self.power is not None and not self.stop():
            power = self.power
            found = self._step(
                "power-cycle", why, lambda: cycle(power, self.stop), lambda: True, START_S
            )
        return found

    def _step(
        self,
        name: str,
        why: str,
        act: Callable[[], None],
        is_back: Callable[[], bool],
        limit_s: float,
    ) -> str | None:
        health, board = self.store.health, self.board.name
        if not health.begin_step(board, name, f"{name}, since: {why}", MOST_A_DAY[name]):
            log.warning("board %s: no %s: it had %d in a day", board, name, MOST_A_DAY[name])
            return None
        log.warning("board %s: %s, since: %s", board, name, why)
        begun = time.monotonic()
        try:
            act()
            says = self._await(is_back, begun + limit_s)
        except CorallineError as error:
            health.note(board, f"{name} did not help: {_line(error)}")
            return None
        health.note(board, f"{name} helped after {time.monotonic() - begun:.0f} s")
        return says

    def _await(self, is_back: Callable[[], bool], until: float) -> str:
        """What the board says as soon as it can work again."""
        while True:
            try:
                if is_back():
                    return self.board.check(self.stop)
                error = DeviceError("it has not restarted")
            except DeviceError as failure:
                error = failure
            if self.stop():
                raise DeviceError("its runner had to leave it")
            if time.monotonic() > until:
                raise error
            time.sleep(LOOK_S)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
