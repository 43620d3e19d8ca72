"""The Monsoon driver through the real package monsoon, the USB device replaced."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import usb.core

from coralline.errors import DeviceError, UserError
from coralline.runtime.energy import mean_power
from hardware_lab.meters.monsoon import HZ, Monsoon

VOLTS, PER_PACKET = 4.0, 3
ZERO, REFERENCE = 3000, 53000
# What is in the instrument's memory, by the code that asks for it.
MEMORY = {
    0xC0: 32,  # firmware
    0x45: 2,  # a high voltage model
    0x42: 12345,  # serial number
    0x88: 0xE000,  # calibration of the output, within its limits
    0x89: 0xC800,
    0x1A: 40000,  # fine scale, microamperes from zero to reference
    0x1B: 5000,  # coarse scale, milliamperes
    0x25: 100,  # fine offset
    0x26: 100,
}


class Usb:
    """A power monitor's side of USB: control transfers, and packets of samples at its rate.

    Attributes:
        amperes: Its load.
        drop: Whether it drops the packet of this number.
        vanish_after: It is unplugged after so many packets.
    """

    idVendor = 0x2AB9  # noqa: N815
    idProduct = 0x0001  # noqa: N815
    serial_number = "12345"

    def __init__(
        self,
        amperes: float,
        drop: Callable[[int], bool] = lambda number: False,
        vanish_after: float = float("inf"),
    ) -> None:
        self.amperes, self.drop, self.vanish_after = amperes, drop, vanish_after
        self.sampling, self.volts = True, 0.0  # somebody left it sampling
        self.number = self.dropped = 0

    def detach_kernel_driver(self, interface: int) -> None: ...

    def set_configuration(self) -> None: ...

    def get_active_configuration(self) -> dict[tuple[int, int], list[Any]]:
        return {(0, 0): [SimpleNamespace(bEndpointAddress=address) for address in (0x81, 0x01)]}

    def ctrl_transfer(
        self, kind: int, request: int, value: int, index: int, data: Any, timeout: int
    ) -> Any:
        code = index & 0xFF
        if kind == 0xC0:
            if code == 0xC4:
                return struct.pack("I", 0x80 if self.sampling else 0)
            return struct.pack("I", MEMORY.get(code, 0))
        if request == 0x02:
            self.sampling, self.number, self.began = True, 0, time.monotonic()
        elif request == 0x03:
            self.sampling = False
        elif code == 0x41:
            self.volts = struct.unpack("I", bytes(data))[0] / 1048576
        return 4

    def read(self, endpoint: int, size: int, timeout: int) -> np.ndarray:
        assert (endpoint, size) == (0x81, 64) and self.sampling
        self.number += 1
        while self.drop(self.number):
            self.number, self.dropped = self.number + 1, self.dropped + 1
        if self.number > self.vanish_after:
            raise usb.core.USBError("No such device", errno=19)
        due = self.began + self.number * PER_PACKET / HZ
        time.sleep(max(due - time.monotonic(), 0))
        data = struct.pack("<HBB", self.dropped, 0, PER_PACKET)
        for i in range(PER_PACKET):
            data += self._sample(self.number * PER_PACKET + i)
        return np.frombuffer(data.ljust(64, b"\0"), np.uint8)

    def _sample(self, number: int) -> bytes:
        """References first, then a zero and a reference every 1.25 s."""
        turn = number % 6250 if number > 40 else number
        if turn in (1, 2) or number <= 40:
            zero = turn % 2 == 0
            fine = coarse = ZERO if zero else REFERENCE
            kind = 0x10 if zero else 0x30
        else:
            span = REFERENCE - ZERO - 100
            fine = min(ZERO + 100 + round(span * self.amperes * 1e6 / 40000), 65535)
            coarse = ZERO + 100 + round(span * self.amperes * 1e3 / 5000)
            kind = 0x00
        words = coarse, fine, 0, 0, 0, 0, round(VOLTS / 4 / 62.5e-6), 0
        return struct.pack(">8H2B", *words, 0, kind)


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    def plugged(device: Any) -> None:
        def find(custom_match: Callable[[Any], bool]) -> Any:
            if isinstance(device, Exception):
                raise device
            return device if device is not None and custom_match(device) else None

        monkeypatch.setattr(usb.core, "find", find)

    return plugged


@pytest.mark.parametrize("amperes", [0.02, 0.5])  # in the fine and in the coarse range
def test_current_in_both_ranges(plug: Callable[[Any], None], amperes: float) -> None:
    device = Usb(amperes)
    plug(device)
    instrument = Monsoon(name="m", at="battery", volts=4.0).open()
    assert instrument.reset() == "Monsoon HVPM 12345"
    assert not device.sampling and device.volts == pytest.approx(4.0)
    before = time.monotonic()
    instrument.start()
    time.sleep(0.3)
    instrument.stop()
    trace = instrument.data()
    assert not device.sampling
    assert trace.channels["voltage_v"] == pytest.approx(VOLTS)
    assert trace.channels["current_a"] == pytest.approx(amperes, rel=0.005)
    found = mean_power(trace)
    assert found["power_w"] == pytest.approx(VOLTS * amperes, rel=0.005)
    assert found["rate_hz"] == pytest.approx(HZ, rel=0.01) and found["lost_share"] == 0
    assert before < trace.t_s[0] and trace.t_s[-1] < time.monotonic()


def test_dropped_packets_are_gaps(plug: Callable[[Any], None]) -> None:
    plug(Usb(0.5, drop=lambda number: number % 50 == 49))
    instrument = Monsoon(name="m", at="battery", serial=12345).open()
    instrument.reset()
    instrument.start()
    time.sleep(0.3)
    instrument.stop()
    found = mean_power(instrument.data())
    assert found["lost_share"] == pytest.approx(0.02, rel=0.2)
    assert found["power_w"] == pytest.approx(2.0, rel=0.005)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (None, "no Monsoon is connected"),
        (usb.core.NoBackendError("No backend available"), "libusb is not here"),
        (usb.core.USBError("Access denied", errno=13), "does not answer .*by a udev rule"),
        (Usb(0.5, vanish_after=5), "the Monsoon was lost .*No such device"),
    ],
)
def test_what_is_wrong(plug: Callable[[Any], None], device: Any, message: str) -> None:
    plug(device)
    instrument = Monsoon(name="m", at="battery").open()
    with pytest.raises(DeviceError, match=f"meter 'm': .*{message}"):
        instrument.reset()
        instrument.start()


def test_another_serial_number(plug: Callable[[Any], None]) -> None:
    plug(Usb(0.5))
    with pytest.raises(DeviceError, match="no Monsoon is connected, or not serial 99"):
        Monsoon(name="m", at="battery", serial=99).open().reset()
    with pytest.raises(UserError, match=r"volts must be from 0\.8 to 13\.5"):
        Monsoon(name="m", at="battery", volts=20.0)
