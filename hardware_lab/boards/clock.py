"""What the clock of a board is to the clock of the lab's host, and its windows on the latter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coralline.runtime.power import Window

MOST_DRIFT = 500e-6
"""Faster does no clock drift (RFC 5905, appendix A: MAXFREQ); more is the readings' error."""


@dataclass(frozen=True)
class Reading:
    """One comparison of the two, as NTP makes it (RFC 5905, section 8): the one clock was looked
    at between a question and its answer, which the other clock timed.

    Attributes:
        at_s: On the board's clock.
        ahead_s: What to add to the board's clock for the lab's.
        bound_s: How far that may be off.
    """

    at_s: float
    ahead_s: float
    bound_s: float


@dataclass(frozen=True)
class Relation:
    """Two clocks that were compared before and after; between, they drift apart evenly."""

    before: Reading
    after: Reading

    @property
    def bound_s(self) -> float:
        """How far `lab_s` may be off."""
        return max(self.before.bound_s, self.after.bound_s)

    def lab_s(self, board_s: ArrayLike) -> NDArray[np.float64]:
        """Times of the board on the clock of the lab's host, CLOCK_MONOTONIC."""
        first, last = self.before, self.after
        drift = (last.ahead_s - first.ahead_s) / (last.at_s - first.at_s)
        drift = min(max(drift, -MOST_DRIFT), MOST_DRIFT)
        at = np.asarray(board_s, dtype=np.float64)
        middle_s, ahead_s = (first.at_s + last.at_s) / 2, (first.ahead_s + last.ahead_s) / 2
        return at + ahead_s + drift * (at - middle_s)

    def windows(self, marked: Sequence[tuple[str, float, float, int]]) -> tuple[Window, ...]:
        """Windows on the lab's clock, from name, begin, end and inferences on the board's."""
        return tuple(
            Window(name, float(self.lab_s(begin)), float(self.lab_s(end)), count, self.bound_s)
            for name, begin, end, count in marked
        )
