"""`battery`: what a phone's fuel gauge says, read over adb.

The kernel gives the gauge's last voltage and current in microvolts and microamperes
(kernel.org/doc/Documentation/ABI/testing/sysfs-class-power). The sign of the current differs from
phone to phone, so its size is taken; it is what the phone draws only while the phone is not
charged, hence by adb over the network or with the charger switched off. Android calls its gauges
not very accurate (source.android.com/docs/core/power/device), and a few samples a second see
little of an inference: power rails, where a phone has them, are better. Many phones let only root
read these files.

Tested against this machine's shell as an emulated phone, never on a phone.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from coralline.errors import DeviceError, UserError
from coralline.runtime.power import Trace
from hardware_lab.boards.adb import Adb
from hardware_lab.meters import Meter
from hardware_lab.meters.polled import Poller

READ_S = 10.0
"""Longest that one reading may take."""
DISCHARGING = "Discharging"


@dataclass(frozen=True, kw_only=True)
class Battery(Meter):
    """The battery of a phone.

    Attributes:
        serial: As for board kind `android`.
        folder: Of the gauge, on the phone.
        hz: How often to read it.
    """

    at: str = "battery"
    serial: str = ""
    folder: str = "/sys/class/power_supply/battery"
    hz: float = 4.0

    kind = "battery"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.at != "battery":
            raise UserError("the fuel gauge measures the battery; `at` must be battery")
        if not 0.1 <= self.hz <= 50:
            raise UserError("hz must be from 0.1 to 50")
        if not re.fullmatch(r"/[A-Za-z0-9._/-]+", self.folder):
            raise UserError(f"folder {self.folder!r} is not a path of a phone")

    def open(self) -> FuelGauge:
        """The gauge."""
        return FuelGauge(self)


class FuelGauge:
    """A gauge behind adb."""

    def __init__(self, meter: Battery) -> None:
        self._meter = meter
        self._where = f"meter {meter.name!r}"
        self._states: set[str] = set()

    def reset(self) -> str:
        """Connect, and see that the gauge can be read."""
        self._phone = Adb(self._meter.serial, self._where)
        serial = self._phone.open()
        self._read()
        self._states.clear()
        self._poller = Poller(self._read, 1 / self._meter.hz)
        return f"fuel gauge of {serial}"

    def start(self) -> None:
        """Begin to read."""
        self._poller.start()

    def stop(self) -> None:
        """Read a last time."""
        self._poller.stop()

    def data(self) -> Trace:
        """Power, voltage and current of the battery."""
        t_s, (volts, amperes), bound_s = self._poller.samples()
        other = sorted(self._states - {DISCHARGING})
        return Trace(
            t_s,
            power_w=volts * amperes,
            channels={"voltage_v": volts, "current_a": amperes},
            bound_s=bound_s,
            notes=(f"the battery was {', '.join(other).lower()}, not discharging alone",)
            if other
            else (),
        )

    def _read(self) -> tuple[float, float]:
        files = " ".join(f"{self._meter.folder}/{n}" for n in ("voltage_now", "current_now"))
        # One process on the phone reads both, one right after the other.
        command = f"cat {files} && cat {shlex.quote(self._meter.folder + '/status')}"
        ran = self._phone.shell(command, time_limit_s=READ_S)
        lines = ran.output.split("\n")
        if ran.code != 0 or len(lines) < 3:
            why = ran.output.strip().rpartition("\n")[2]
            raise DeviceError(
                f"{self._where}: the phone does not let its battery be read ({why}); root it, or "
                "use its power rails (kind rails)"
            )
        try:
            volts, amperes = float(lines[0]) / 1e6, abs(float(lines[1])) / 1e6
        except ValueError:
            raise DeviceError(
                f"{self._where}: the battery's files hold no numbers ({lines[0].strip()})"
            ) from None
        self._states.add(lines[2].strip())
        return volts, amperes
