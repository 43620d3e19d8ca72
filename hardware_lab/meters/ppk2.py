"""`ppk2`: Nordic's Power Profiler Kit II on a serial port, through the package ppk2-api.

It measures current alone, 100,000 times a second, in five ranges; power is its current times the
supply's voltage, which the inventory gives. Each sample carries a counter of six bits (Nordic's
pc-nrfconnect-ppk, src/device/serialDevice.ts), which tells what was lost. A trace holds means of a
millisecond.

Tested through ppk2-api against an emulator of the kit's serial protocol, never on a kit.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import numpy as np

from coralline.errors import DeviceError, UserError
from coralline.runtime.power import Trace
from hardware_lab.meters import Meter
from hardware_lab.meters.stream import Arrivals

HZ = 100_000
PER_MEAN = 100
"""Samples in a mean."""
READ_S = 0.005
QUIET_S = 0.2
"""A kit that was left sending has stopped when it says nothing for so long."""
FIRST_S = 5.0
"""Longest wait for the first sample."""
LAST_S = 0.1
"""How long after the end the last samples may take to arrive."""
MODES = ("ampere", "source")


@dataclass(frozen=True, kw_only=True)
class Ppk2(Meter):
    """A kit.

    Attributes:
        volts: Of the supply, from 0.8 to 5; the kit does not measure it.
        mode: `ampere` (between a supply and the board) or `source` (it is the supply; it is
            switched on when the meter is first used, and left on).
        port: As /dev/ttyACM0; empty for the only kit.
    """

    volts: float
    mode: str = "ampere"
    port: str = ""

    kind = "ppk2"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.8 <= self.volts <= 5:
            raise UserError("volts must be from 0.8 to 5")
        if self.mode not in MODES:
            raise UserError(f"mode {self.mode!r} is not known; choose {', '.join(MODES)}")

    def open(self) -> Ppk2Stream:
        """The kit."""
        return Ppk2Stream(self)


class Ppk2Stream:
    """What a kit sends."""

    def __init__(self, meter: Ppk2) -> None:
        self._meter = meter
        self._where = f"meter {meter.name!r}"

    def reset(self) -> str:
        """Open the port, stop what was left running, fetch the calibration, set the mode."""
        try:
            from ppk2_api.ppk2_api import PPK2_API
            from serial import SerialException
        except ImportError:
            raise DeviceError(
                f"{self._where}: needs ppk2-api; pip install coralline[meters]"
            ) from None
        port = self._meter.port or self._only(PPK2_API.list_devices())
        try:
            self._kit: Any = PPK2_API(port, timeout=1, write_timeout=1, exclusive=True)
        except SerialException as error:
            raise DeviceError(
                f"{self._where}: {port} cannot be opened ({error}); connect the kit, and add the "
                "lab's user to the group dialout"
            ) from None
        self._kit.stop_measuring()
        quiet_at = time.monotonic() + QUIET_S
        while time.monotonic() < quiet_at:
            if self._kit.get_data():
                quiet_at = time.monotonic() + QUIET_S
            time.sleep(READ_S)
        try:
            known = self._kit.get_modifiers()
        except UnicodeDecodeError:
            known = None
        if not known:
            raise DeviceError(
                f"{self._where}: {port} gives no calibration; it is no PPK2, or another program "
                "has it"
            )
        if self._meter.mode == "source":
            self._kit.use_source_meter()
        else:
            self._kit.use_ampere_meter()
        self._kit.set_source_voltage(round(1000 * self._meter.volts))
        if self._meter.mode == "source":
            self._kit.toggle_DUT_power("ON")
        self._means = _Means()
        self._arrivals = Arrivals(HZ)
        self._over, self._first = Event(), Event()
        self._failure: DeviceError | None = None
        self._reader = Thread(target=self._read, daemon=True)
        hardware = str(self._kit.modifiers["HW"] or "?").strip()
        return f"PPK2 (hardware {hardware}) on {port}"

    def start(self) -> None:
        """Begin; returns when the first samples are there."""
        self._kit.start_measuring()
        self._reader.start()
        if not self._first.wait(FIRST_S):
            self._over.set()
            raise DeviceError(f"{self._where}: the kit sends no samples")
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Take what is still under way, and close the port."""
        time.sleep(LAST_S)
        self._over.set()
        self._reader.join()
        if self._failure is not None:
            raise self._failure
        self._kit.stop_measuring()
        self._kit.ser.close()

    def data(self) -> Trace:
        """Means of a millisecond, with the share of samples that was lost in each."""
        counts, amperes, middles = self._means.whole()
        if len(counts) < 2:
            raise DeviceError(f"{self._where}: the kit sent {len(counts)} ms of samples")
        t_s, bound_s = self._arrivals.times(middles)
        return Trace(
            t_s,
            power_w=amperes * self._meter.volts,
            channels={"current_a": amperes, "lost_share": 1 - counts / PER_MEAN},
            bound_s=bound_s,
        )

    def _read(self) -> None:
        rest, last, seen = b"", None, 0
        while not self._over.wait(READ_S):
            try:
                data = rest + self._kit.get_data()
            except OSError as error:
                self._failure = DeviceError(f"{self._where}: the kit was lost ({error})")
                self._first.set()
                return
            # The package takes part of a sample for a sample.
            whole = len(data) // 4 * 4
            words, rest = data[:whole], data[whole:]
            if not words:
                continue
            counters = np.array(struct.unpack(f"<{whole // 4}I", words)) >> 18 & 0x3F
            # The counter has six bits: of 64 samples or more that are lost at once, it tells less.
            steps = np.diff(counters, prepend=counters[0] - 1 if last is None else last) % 64
            index = seen - 1 + np.cumsum(np.where(steps == 0, 64, steps))
            seen, last = int(index[-1]) + 1, counters[-1]
            self._arrivals.note(seen - 1)
            self._means.add(index, np.array(self._kit.get_samples(words)[0]) / 1e6)
            self._first.set()

    def _only(self, ports: list[str]) -> str:
        if len(ports) != 1:
            found = f"{len(ports)} kits are" if ports else "no PPK2 is"
            raise DeviceError(f"{self._where}: {found} connected; name one as `port`")
        return ports[0]


class _Means:
    """Means of PER_MEAN samples each, made as the samples come."""

    def __init__(self) -> None:
        # Count, sum of currents and sum of indices, by number of the mean.
        self._sums: dict[int, list[float]] = {}

    def add(self, index: Any, amperes: Any) -> None:
        """Samples in order: int64 (N,) from 0, lost ones counted, and float64 (N,)."""
        bins = index // PER_MEAN
        first = int(bins[0])
        counts = np.bincount(bins - first)
        currents, indices = (np.bincount(bins - first, row) for row in (amperes, index))
        for number in np.flatnonzero(counts):
            sums = self._sums.setdefault(first + int(number), [0.0, 0.0, 0.0])
            for i, part in enumerate((counts, currents, indices)):
                sums[i] += float(part[number])

    def whole(self) -> tuple[Any, Any, Any]:
        """Samples in each mean, their mean current and mean index; without the first and the
        last, which are parts. Three float64 (M,)."""
        sums = np.array(list(self._sums.values())[1:-1]).reshape(-1, 3)
        counts, currents, indices = sums.T
        return counts, currents / counts, indices / counts
