"""`joulescope`: a Joulescope JS110 or JS220 on USB, through the package joulescope.

The instrument integrates power at its full rate, a million times a second or two, and tells the
energy up to a hundred times a second: a counter, whose samples may be few.

Tested through the package joulescope with its USB driver replaced, never on an instrument.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np

from coralline.errors import DeviceError, UserError
from coralline.runtime.power import Trace
from hardware_lab.meters import Meter
from hardware_lab.meters.stream import Arrivals

SAMPLE_HZ = 2_000_000
"""Of the count that a statistic carries, in either model (joulescope, v1/device.py)."""
RATES_HZ = (1, 2, 5, 10, 20, 50, 100)
WAIT_S = 5.0
"""Longest wait for a statistic."""


@dataclass(frozen=True, kw_only=True)
class Joulescope(Meter):
    """An instrument.

    Attributes:
        serial: Its serial number; empty for the only one.
        hz: How often it tells the energy: 1, 2, 5, 10, 20, 50 or 100.
    """

    serial: str = ""
    hz: int = 100

    kind = "joulescope"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hz not in RATES_HZ:
            raise UserError(f"hz must be one of {', '.join(map(str, RATES_HZ))}")

    def open(self) -> JoulescopeStatistics:
        """The instrument."""
        return JoulescopeStatistics(self)


class JoulescopeStatistics:
    """What an instrument tells."""

    def __init__(self, meter: Joulescope) -> None:
        self._meter = meter
        self._where = f"meter {meter.name!r}"
        self._told: list[tuple[float, float, float, float]] = []
        self._next = Event()

    def reset(self) -> str:
        """Open the instrument and let it choose its current range."""
        try:
            import joulescope
        except ImportError:
            raise DeviceError(
                f"{self._where}: needs joulescope; pip install coralline[meters]"
            ) from None
        found = {device.serial_number: device for device in joulescope.scan(config="auto")}
        self._device: Any = self._chosen(found)
        try:
            self._device.open()
            self._device.parameter_set("reduction_frequency", self._meter.hz)
        except (RuntimeError, OSError) as error:
            raise DeviceError(
                f"{self._where}: {self._device} cannot be opened ({error}); close other programs "
                "that use it, and let the lab's user open it (Joulescope's udev rules)"
            ) from None
        self._arrivals = Arrivals(SAMPLE_HZ)
        return str(self._device)

    def start(self) -> None:
        """Begin; returns when the first energy is told."""
        self._device.statistics_callback_register(self._on_statistics)
        self._await()

    def stop(self) -> None:
        """Wait for an energy that was counted until now, and close the instrument."""
        stopped = time.monotonic()
        self._await()  # it may have been under way
        while time.monotonic() < stopped + 2 / self._meter.hz:
            self._await()
        self._device.statistics_callback_unregister(self._on_statistics)
        self._device.close()

    def data(self) -> Trace:
        """Energy, and means of voltage, current and power."""
        index, joules, volts, amperes = np.array(self._told).T
        t_s, bound_s = self._arrivals.times(index)
        return Trace(
            t_s,
            # Without a load, noise may let the energy fall by some nanojoules.
            energy_j=np.maximum.accumulate(joules),
            channels={"voltage_v": volts, "current_a": amperes},
            bound_s=bound_s,
        )

    def _on_statistics(self, value: Any) -> None:
        index = value["time"]["samples"]["value"][1]
        signals = value["signals"]
        self._arrivals.note(index)
        self._told.append(
            (
                index,
                value["accumulators"]["energy"]["value"],
                signals["voltage"]["avg"]["value"],
                signals["current"]["avg"]["value"],
            )
        )
        self._next.set()

    def _await(self) -> None:
        self._next.clear()
        if not self._next.wait(WAIT_S):
            raise DeviceError(f"{self._where}: {self._device} tells nothing; it may be unplugged")

    def _chosen(self, found: dict[str, Any]) -> Any:
        if self._meter.serial:
            if self._meter.serial not in found:
                there = ", ".join(map(str, found.values())) or "none"
                raise DeviceError(
                    f"{self._where}: Joulescope {self._meter.serial} is not connected; {there} is"
                )
            return found[self._meter.serial]
        if len(found) != 1:
            there = f"{len(found)} Joulescopes are" if found else "no Joulescope is"
            raise DeviceError(f"{self._where}: {there} connected; name one as `serial`")
        return next(iter(found.values()))
