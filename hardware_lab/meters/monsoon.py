"""`monsoon`: a Monsoon High Voltage Power Monitor on USB, through the package monsoon.

It supplies the board through its main channel and measures current and voltage there, 5,000 times
a second. Current has two ranges, each with an offset and a scale from the instrument's memory and
from references that it measures itself every 1.25 s (the package, sampleEngine.py); samples of
references are missing from the trace, where they show as small gaps. A packet tells how many
packets the instrument has dropped until then: each is taken to have held as many samples.

Tested through the package monsoon with the USB device replaced, never on an instrument.
"""

from __future__ import annotations

import time
from array import array
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import numpy as np

from coralline.errors import DeviceError, UserError
from coralline.runtime.power import Trace
from hardware_lab.meters import Meter
from hardware_lab.meters.stream import Arrivals

HZ = 5000
PACKET_BYTES = 64
FIELDS = 10
"""Of a sample: currents (coarse, fine) of main, USB and auxiliary, voltages of main and USB, type
and flags."""
COARSE, FINE, VOLTAGE, KIND = 0, 1, 6, 8
FIRST_S = 10.0
"""Longest wait for the first sample, after some references."""
LAST_S = 0.1
"""How long after the end the last samples may take to arrive."""


@dataclass(frozen=True, kw_only=True)
class Monsoon(Meter):
    """An instrument, its main channel.

    Attributes:
        serial: Its serial number; 0 for the only one.
        volts: To set its output to, from 0.8 to 13.5; 0 leaves it as it is.
    """

    serial: int = 0
    volts: float = 0.0

    kind = "monsoon"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.volts and not 0.8 <= self.volts <= 13.5:
            raise UserError("volts must be from 0.8 to 13.5, or 0")

    def open(self) -> MonsoonStream:
        """The instrument."""
        return MonsoonStream(self)


class MonsoonStream:
    """What an instrument sends."""

    def __init__(self, meter: Monsoon) -> None:
        self._meter = meter
        self._where = f"meter {meter.name!r}"

    def reset(self) -> str:
        """Connect, stop what was left running, set the output."""
        try:
            from Monsoon import HVPM, pmapi
            from Monsoon.calibrationData import calibrationData
            from usb.core import NoBackendError, USBError
        except ImportError:
            raise DeviceError(
                f"{self._where}: needs monsoon; pip install coralline[meters]"
            ) from None
        self._usb_error = USBError
        self._monsoon: Any = HVPM.Monsoon()
        try:
            self._monsoon.setup_usb(self._meter.serial or None, pmapi.USB_protocol())
            if self._monsoon.Protocol.DEVICE is None:
                raise DeviceError(
                    f"{self._where}: no Monsoon is connected, or not serial {self._meter.serial}"
                )
            self._monsoon.stopSampling()
            if self._meter.volts:
                self._monsoon.setVout(self._meter.volts)
            serial = self._monsoon.getSerialNumber()
        except NoBackendError:
            raise DeviceError(
                f"{self._where}: libusb is not here; install the Debian package libusb-1.0-0"
            ) from None
        except (USBError, ValueError) as error:
            raise DeviceError(
                f"{self._where}: the Monsoon does not answer ({error}); let the lab's user open "
                "USB device 2ab9:0001 by a udev rule"
            ) from None
        self._references = calibrationData()
        self._arrivals = Arrivals(HZ)
        self._rows = array("d")  # index, current and voltage of each sample
        self._over, self._first = Event(), Event()
        self._failure: DeviceError | None = None
        self._reader = Thread(target=self._read, daemon=True)
        return f"Monsoon HVPM {serial}"

    def start(self) -> None:
        """Begin; returns when the first sample is there."""
        try:
            self._monsoon.StartSampling()
        except (self._usb_error, ValueError) as error:
            raise DeviceError(f"{self._where}: the Monsoon does not start ({error})") from None
        self._reader.start()
        if not self._first.wait(FIRST_S):
            self._over.set()
            raise DeviceError(f"{self._where}: the Monsoon sends no samples")
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Take what is still under way, and let the instrument go; its output stays on."""
        time.sleep(LAST_S)
        self._over.set()
        self._reader.join()
        if self._failure is not None:
            raise self._failure
        with suppress(self._usb_error):
            self._monsoon.stopSampling()

    def data(self) -> Trace:
        """Power, voltage and current of the main channel."""
        index, amperes, volts = np.array(self._rows).reshape(-1, 3).T
        t_s, bound_s = self._arrivals.times(index)
        return Trace(
            t_s,
            power_w=volts * amperes,
            channels={"voltage_v": volts, "current_a": amperes},
            bound_s=bound_s,
        )

    def _read(self) -> None:
        seen, dropped = 0, None
        while not self._over.is_set():
            try:
                data = self._monsoon.BulkRead()
            except self._usb_error as error:
                self._failure = DeviceError(f"{self._where}: the Monsoon was lost ({error})")
                self._first.set()
                return
            for at in range(0, len(data), PACKET_BYTES):
                packet = self._monsoon.swizzlePacket(data[at : at + PACKET_BYTES])
                count = packet[2]
                if dropped is not None:
                    seen += (packet[0] - dropped) % 0x10000 * count
                dropped = packet[0]
                for i in range(count):
                    self._take(seen, packet[3 + FIELDS * i : 3 + FIELDS * (i + 1)])
                    seen += 1
                self._arrivals.note(seen - 1)

    def _take(self, index: int, sample: list[int]) -> None:
        from Monsoon.Operations import SampleType

        kind = sample[KIND] & 0x30
        if kind == SampleType.ZeroCal:
            self._references.addZeroCal(sample[COARSE], True)
            self._references.addZeroCal(sample[FINE], False)
        elif kind == SampleType.refCal:
            self._references.addRefCal(sample[COARSE], True)
            self._references.addRefCal(sample[FINE], False)
        elif kind == SampleType.Measurement and self._references.calibrated():
            known = self._monsoon.statusPacket
            if sample[FINE] < self._monsoon.fineThreshold:
                # In microamperes.
                value = self._scaled(
                    sample[FINE], False, known.mainFineScale, known.mainFineZeroOffset
                )
                amperes = value / 1e6
            else:
                value = self._scaled(
                    sample[COARSE], True, known.mainCoarseScale, known.mainCoarseZeroOffset
                )
                amperes = value / 1e3
            volts = sample[VOLTAGE] * self._monsoon.ADCRatio * self._monsoon.mainvoltageScale
            self._rows.extend((index, amperes, volts))
            self._first.set()

    def _scaled(self, raw: int, coarse: bool, scale: float, offset: float) -> float:
        zero = offset + self._references.getZeroCal(coarse)
        return (raw - zero) * scale / (self._references.getRefCal(coarse) - zero)
