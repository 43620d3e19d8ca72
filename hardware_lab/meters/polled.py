"""An instrument that gives a sample when asked, asked again and again."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from threading import Event, Thread

import numpy as np

from coralline.errors import DeviceError
from coralline.runtime.power import Samples


class Poller:
    """Asks in a thread of its own.

    A sample's time is the middle of the call that fetched it.

    Args:
        read: Gives one number a channel; raises DeviceError.
        period_s: From one call's begin to the next; a call that is late is made at once.
    """

    def __init__(self, read: Callable[[], Sequence[float]], period_s: float) -> None:
        self._read, self._period_s = read, period_s
        self._over = Event()
        self._rows = array("d")  # begin and end of a call, and a number a channel
        self._failure: DeviceError | None = None
        self._thread = Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Take the first sample, then go on in the background.

        Raises:
            DeviceError: As `read`.
        """
        self._take()
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample.

        Raises:
            DeviceError: As `read`, then or before.
        """
        self._over.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        self._take()

    def samples(self) -> tuple[Samples, Samples, float]:
        """When each was taken, float64 (N,); channels, float64 (C, N); and how far these times
        may be off: half of the time that a call takes, and no more than one in a hundred more."""
        begun, ended, *values = np.array(self._rows).reshape(-1, 2 + self._channels).T
        bound_s = float(np.percentile(ended - begun, 99)) / 2
        return (begun + ended) / 2, np.array(values), bound_s

    def _run(self) -> None:
        due = time.monotonic() + self._period_s
        while not self._over.wait(max(due - time.monotonic(), 0.0)):
            try:
                self._take()
            except DeviceError as error:
                self._failure = error
                return
            due = max(due + self._period_s, time.monotonic())

    def _take(self) -> None:
        begun = time.monotonic()
        values = self._read()
        self._channels = len(values)
        self._rows.extend((begun, time.monotonic(), *values))
