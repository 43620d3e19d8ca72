"""Letting a board cool down before it measures, so that no job pays for the heat of the last one.

A board with a sensor waits until it is cool and its temperature hardly changes; one without waits
until it has rested for a fixed time. Neither waits longer than the inventory allows, and a job
that had to begin on a warm board is marked. Between the turns of a comparison nobody waits: its
turns are ordered so that either plan runs as often after itself as after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from coralline.errors import DeviceError, UserError
from coralline.runtime.child import STOP_S, Stop
from hardware_lab.boards import Board, Thermal

SLOPE_CELSIUS_PER_MIN = 1.5
"""A board whose temperature changes by less is at rest. A sensor that tells whole degrees must
hold one of them for WINDOW_S, or waver."""
WINDOW_S = 30.0
"""The slope is that of the last so many seconds."""
LOOK_S = 2.0
"""Between two readings."""

Reason = Literal["cool", "timed", "gave up"]


@dataclass(frozen=True)
class Cooldown:
    """How cool a board must be, as the inventory has it.

    Attributes:
        celsius: Its hottest sensor must show no more.
        max_s: Longest wait; with 0 the sensor is read once, and nobody waits.
        pause_s: How long a board without a sensor must have rested.
        ambient_celsius: Of the room, where a person has measured it; recorded.
    """

    celsius: float = 60.0
    max_s: float = 300.0
    pause_s: float = 180.0
    ambient_celsius: float | None = None

    def __post_init__(self) -> None:
        for name, value, most in (
            ("celsius", self.celsius, 120.0),
            ("max_s", self.max_s, 3600.0),
            ("pause_s", self.pause_s, 3600.0),
        ):
            if not 0 <= value <= most:
                raise UserError(f"{name} is {value:g}; it must be from 0 to {most:g}")


DEFAULTS: Mapping[str, Cooldown] = {
    # Often somebody's laptop: it is looked at, and nobody is kept waiting.
    "host": Cooldown(celsius=70.0, max_s=0.0, pause_s=0.0),
    # Single-board computers slow down from 80 to 85 degrees; 300 s is what MLPerf Mobile waits
    # (mobile_app_open, cooldown of a submission) and 180 s what FAI-PEP does.
    "ssh": Cooldown(),
    # A USB accelerator has no sensor.
    "coral-local": Cooldown(),
    # The battery, which is as warm as the phone's body.
    "android": Cooldown(celsius=35.0),
}
"""By the board's kind; what is not here, as the simulations, does not get warm."""


@dataclass(frozen=True)
class Cooled:
    """How a board came to be as cool as it was when a job began.

    Attributes:
        reason: `cool`: its sensor said so; `timed`: it has none, and rested long enough;
            `gave up`: it was still warm, or getting cooler or warmer, after the longest wait.
        waited_s: For it.
        limit_celsius: That it was to reach.
        celsius_before, celsius_after: Before and after the wait; None without a sensor.
        slope_celsius_per_min: At the end; None where there were too few readings.
        ambient_celsius: Of the room, as the inventory has it.
    """

    reason: Reason
    waited_s: float
    limit_celsius: float
    celsius_before: float | None = None
    celsius_after: float | None = None
    slope_celsius_per_min: float | None = None
    ambient_celsius: float | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def cool_down(
    board: Board,
    wanted: Cooldown,
    rested_s: float,
    stop: Stop,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Cooled:
    """Wait until a board is cool; its lease must be held.

    Args:
        rested_s: How long ago it was last used.
        stop: Once true, the board must be left.

    Raises:
        DeviceError: The board does not answer, or was to be left.
    """
    begun = now()

    def wait(seconds: float) -> None:
        end = now() + seconds
        while not stop() and now() < end:
            sleep(min(STOP_S, end - now()))
        if stop():
            raise DeviceError(f"{board.name}: left while it cooled down", retryable=True)

    def cooled(reason: Reason, **facts: float | None) -> Cooled:
        return Cooled(
            reason,
            round(now() - begun, 3),
            wanted.celsius,
            ambient_celsius=wanted.ambient_celsius,
            **facts,
        )

    before = board.celsius() if isinstance(board, Thermal) else None
    if before is None or not isinstance(board, Thermal):
        wait(max(wanted.pause_s - rested_s, 0.0))
        return cooled("timed")
    readings = [(now(), before)]
    while True:
        last = readings[-1][1]
        slope = _slope(readings)
        at_rest = slope is not None and abs(slope) <= SLOPE_CELSIUS_PER_MIN
        # A board that has not worked for as long as one without a sensor must rest is at rest.
        at_rest |= wanted.max_s == 0 or rested_s >= wanted.pause_s
        facts = {
            "celsius_before": before,
            "celsius_after": last,
            "slope_celsius_per_min": slope,
        }
        if last <= wanted.celsius and at_rest:
            return cooled("cool", **facts)
        left = wanted.max_s - (now() - begun)
        if left <= 0:
            return cooled("gave up", **facts)
        wait(min(LOOK_S, left))
        reading = board.celsius()
        if reading is None:
            raise DeviceError(f"{board.name}: its temperature sensor is gone", retryable=True)
        readings.append((now(), reading))
        while readings[-1][0] - readings[1][0] >= WINDOW_S:
            del readings[0]


def _slope(readings: list[tuple[float, float]]) -> float | None:
    """Degrees a minute by least squares over the last WINDOW_S; None before they have passed."""
    at, celsius = np.array(readings).T
    if at[-1] - at[0] < WINDOW_S:
        return None
    return float(60 * np.polyfit(at - at[0], celsius, 1)[0])
