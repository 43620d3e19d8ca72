"""Asking boards whether they can work; `hardware_lab.health` says what follows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress

from coralline.errors import CorallineError, DeviceError
from hardware_lab.boards import Board
from hardware_lab.health import is_usable
from hardware_lab.lab import Lab


class UnfitError(DeviceError):
    """A board cannot work; what it was asked to do is not to blame."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=True)


def check(store: Lab, board: Board) -> str:
    """Ask a board whether it can work, and note what it says; its lease or lock must be held.

    Raises:
        UnfitError: It cannot work.
    """
    try:
        says = board.check()
    except CorallineError as error:
        store.health.failed(board.name, " ".join(str(error).split()))
        raise UnfitError(f"{board.name}: its check failed: {error}") from None
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
