"""Power meters. One module a kind, in two parts, as boards have one: what the inventory says of
a meter, and the instrument that it opens.

An instrument works in the four steps that devlib's have (github.com/ARM-software/devlib,
doc/instrumentation.rst): reset, start, stop, data. It runs in a process of its own, which
`hardware_lab.meters.process` starts and ends, so that one that hangs holds nobody up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from coralline.errors import UserError
from coralline.runtime.power import Trace

SUPPLY_POINTS = ("usb-vbus", "rail", "battery", "wall", "dc-in", "package")


class Instrument(Protocol):
    """A meter in use. Each step raises DeviceError when it fails, and says what to do."""

    def reset(self) -> str:
        """Connect, and forget what was recorded; what the instrument calls itself."""

    def start(self) -> None:
        """Begin to record; the first sample has been taken when this returns."""

    def stop(self) -> None:
        """Record until now at least, then no more, and disconnect."""

    def data(self) -> Trace:
        """What was recorded from start to stop."""


@dataclass(frozen=True, kw_only=True)
class Meter(ABC):
    """What the inventory says of a meter; a kind's own options are its own fields.

    Attributes:
        name: In the inventory.
        at: The supply point that it measures: one of SUPPLY_POINTS.
        accuracy_percent: Of its reading of power or energy there, by its data sheet or
            calibration. None when not known: a total uncertainty is not given then.
        idle_s: How long the idle baseline is taken.
    """

    name: str
    at: str
    accuracy_percent: float | None = None
    idle_s: float = 10.0

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        if self.at not in SUPPLY_POINTS:
            raise UserError(f"at {self.at!r} is not known; choose {', '.join(SUPPLY_POINTS)}")
        if self.accuracy_percent is not None and self.accuracy_percent <= 0:
            raise UserError("accuracy_percent must be above 0")
        if self.idle_s <= 0:
            raise UserError("idle_s must be above 0")

    @abstractmethod
    def open(self) -> Instrument:
        """The instrument; it is not touched before `reset`."""


def meter_kinds() -> Mapping[str, type[Meter]]:
    """The kinds that an inventory may name."""
    from hardware_lab.meters.battery import Battery
    from hardware_lab.meters.ina import Ina219, Ina226
    from hardware_lab.meters.joulescope import Joulescope
    from hardware_lab.meters.monsoon import Monsoon
    from hardware_lab.meters.ppk2 import Ppk2
    from hardware_lab.meters.rails import Rails
    from hardware_lab.meters.rapl import Rapl
    from hardware_lab.meters.replay import Replay

    kinds: tuple[type[Meter], ...] = (
        Battery,
        Ina219,
        Ina226,
        Joulescope,
        Monsoon,
        Ppk2,
        Rails,
        Rapl,
        Replay,
    )
    return {kind.kind: kind for kind in kinds}
