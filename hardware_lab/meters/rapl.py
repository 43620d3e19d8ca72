"""`rapl`: the energy counters of x86 processors, through Linux' powercap.

Each package zone of /sys/class/powercap counts microjoules up to `max_energy_range_uj` and then
begins again (kernel.org/doc/html/latest/power/powercap/powercap.html). They see the processor's
package, and not memory modules, drives or power supply. Most kernels let root alone read them,
since their fine steps can betray what the processor computes (CVE-2020-8694).

Tested against a tree of files that is laid out like the kernel's, never on a processor: virtual
machines have no such counters.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coralline.errors import DeviceError, UserError
from coralline.runtime.power import Trace, unwrapped
from hardware_lab.meters import Meter
from hardware_lab.meters.polled import Poller

UPDATE_S = 1e-3
"""How often the processor writes its counters, about (Intel SDM volume 3B, 15.10.1)."""


@dataclass(frozen=True, kw_only=True)
class Rapl(Meter):
    """The packages of this machine's processors, together.

    Attributes:
        folder: Where the zones are.
        hz: How often to read them. Once a minute is the least: a busy processor's counter begins
            again after some minutes, and two beginnings between two readings would be taken for
            one.
    """

    at: str = "package"
    folder: str = "/sys/class/powercap"
    hz: float = 20.0

    kind = "rapl"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.at != "package":
            raise UserError("RAPL measures the processor's package; `at` must be package")
        if not 1 / 60 <= self.hz <= 1 / UPDATE_S:
            raise UserError("hz must be from 1/60 to 1000")

    def open(self) -> RaplCounters:
        """The counters."""
        return RaplCounters(self)


class RaplCounters:
    """The counters of all packages."""

    def __init__(self, meter: Rapl) -> None:
        self._meter = meter
        self._zones: list[Path] = []

    def reset(self) -> str:
        """Find the package zones, and see that they can be read."""
        where = f"meter {self._meter.name!r}"
        folder = Path(self._meter.folder)
        # intel-rapl:0 is a package; intel-rapl:0:1 a part of it. AMD's have the same names.
        found = sorted(folder.glob("intel-rapl:*")) if folder.is_dir() else []
        names = {zone: _text(zone / "name") for zone in found if zone.name.count(":") == 1}
        zones = {zone: name for zone, name in names.items() if name.startswith("package")}
        if not zones:
            raise DeviceError(
                f"{where}: {folder} has no package of a processor: load the kernel's module "
                "intel_rapl_msr; a virtual machine has none"
            )
        for zone in zones:
            if not os.access(zone / "energy_uj", os.R_OK):
                raise DeviceError(
                    f"{where}: {zone / 'energy_uj'} may not be read; let the lab's user: a udev "
                    "rule for SUBSYSTEM powercap that runs chgrp and chmod g+r on energy_uj"
                )
        self._zones = list(zones)
        self._limits = [int(_text(zone / "max_energy_range_uj")) for zone in zones]
        self._poller = Poller(self._read, 1 / self._meter.hz)
        return f"RAPL {', '.join(zones.values())}"

    def start(self) -> None:
        """Begin to read."""
        self._poller.start()

    def stop(self) -> None:
        """Read a last time."""
        self._poller.stop()

    def data(self) -> Trace:
        """Energy of all packages."""
        t_s, counts, bound_s = self._poller.samples()
        energy_uj = [unwrapped(row, limit) for row, limit in zip(counts, self._limits, strict=True)]
        return Trace(
            t_s, energy_j=np.sum(energy_uj, axis=0) / 1e6, bound_s=bound_s, stale_s=UPDATE_S
        )

    def _read(self) -> list[float]:
        try:
            return [float(_text(zone / "energy_uj")) for zone in self._zones]
        except (OSError, ValueError) as error:
            raise DeviceError(f"meter {self._meter.name!r}: {error}") from None


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()
