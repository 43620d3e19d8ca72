"""When the samples of an instrument were taken that sends them at a steady rate, without a time."""

from __future__ import annotations

import time
from array import array

import numpy as np

from coralline.runtime.power import Samples

DRIFT_S = 5.0
"""Shorter recordings do not tell how the instrument's clock runs beside ours."""


class Arrivals:
    """Samples cannot arrive before they are taken: what arrives soonest is nearest to its time.

    Args:
        hz: Of the instrument, by its own clock.
    """

    def __init__(self, hz: float) -> None:
        self._hz = hz
        self._noted = array("d")  # index and time of each

    def note(self, index: float) -> None:
        """The sample of this index, from 0 and with lost ones counted, has just arrived."""
        self._noted.extend((index, time.monotonic()))

    def times(self, indices: Samples) -> tuple[Samples, float]:
        """When samples were taken, float64 like `indices`, and how far that may be off: by how
        much later than the soonest the others arrive."""
        index, at = np.array(self._noted).reshape(-1, 2).T
        late = at - index / self._hz
        slope, zero = 0.0, late.min()
        if at[-1] - at[0] >= DRIFT_S:
            half = at < (at[0] + at[-1]) / 2
            early, later = (np.flatnonzero(part) for part in (half, ~half))
            i, j = early[late[early].argmin()], later[late[later].argmin()]
            slope = (late[j] - late[i]) / (index[j] - index[i])
            zero = late[i] - slope * index[i]
        bound_s = float(np.median(np.abs(late - zero - slope * index)))
        return zero + indices * (1 / self._hz + slope), bound_s
