"""The INA drivers against chips made of registers, behind smbus2's interface."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from coralline.errors import DeviceError, UserError
from coralline.runtime.energy import mean_power
from hardware_lab.meters.ina import Ina, Ina219, Ina226


class Bus:
    """An I2C bus with one chip, whose registers are words with the high byte first."""

    def __init__(self, address: int, shunt: int, bus: int, keeps: bool = True) -> None:
        self.address, self.keeps, self.closed = address, keeps, False
        self.registers = {0x00: 0x0000, 0x01: shunt & 0xFFFF, 0x02: bus}

    def read_i2c_block_data(self, address: int, register: int, length: int) -> list[int]:
        self._reach(address)
        assert length == 2
        return list(self.registers[register].to_bytes(2, "big"))

    def write_i2c_block_data(self, address: int, register: int, data: list[int]) -> None:
        self._reach(address)
        if self.keeps:
            self.registers[register] = int.from_bytes(bytes(data), "big")

    def close(self) -> None:
        self.closed = True

    def _reach(self, address: int) -> None:
        if address != self.address:
            raise OSError(121, "Remote I/O error")


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    def plugged(made: Any) -> None:
        def open_bus(number: int) -> Any:
            assert number == 1
            if isinstance(made, Exception):
                raise made
            return made

        monkeypatch.setattr("smbus2.SMBus", open_bus)

    return plugged


@pytest.mark.parametrize(
    ("meter", "shunt", "bus", "settings", "volts", "amperes"),
    [
        # 5 V is 1250 steps of 4 mV from bit 3 on, 50 mV 5000 of 10 uV; bit 1 says converted.
        (Ina219(name="m", at="rail", shunt_ohm=0.1), 5000, 1250 << 3 | 2, 0x399F, 5.0, 0.5),
        # 5 V is 4000 steps of 1.25 mV, 4 mV 1600 of 2.5 uV.
        (Ina226(name="m", at="rail", shunt_ohm=0.01), 1600, 4000, 0x4097, 5.0, 0.4),
        (Ina226(name="m", at="rail", shunt_ohm=0.01), -1600, 4000, 0x4097, 5.0, -0.4),
    ],
)
def test_registers_to_power(
    plug: Callable[[Any], None],
    meter: Ina,
    shunt: int,
    bus: int,
    settings: int,
    volts: float,
    amperes: float,
) -> None:
    chip = Bus(0x40, shunt, bus)
    plug(chip)
    instrument = meter.open()
    assert instrument.reset() == f"{meter.kind.upper()} at 0x40 on bus 1"
    assert chip.registers[0x00] == settings
    instrument.start()
    time.sleep(0.1)
    instrument.stop()
    trace = instrument.data()
    assert chip.closed
    assert trace.channels["voltage_v"] == pytest.approx(volts)
    assert trace.channels["current_a"] == pytest.approx(amperes)
    assert mean_power(trace)["power_w"] == pytest.approx(volts * amperes)
    assert trace.stale_s == meter.convert_s


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (FileNotFoundError(2, "x"), "there is no /dev/i2c-1; turn I2C on"),
        (PermissionError(13, "x"), "/dev/i2c-1 may not be opened; add the lab's user to the group"),
        (Bus(0x41, 0, 0), "no answer from 0x40 on bus 1 .*check its wires"),
        (Bus(0x40, 0, 0, keeps=False), "the chip at 0x40 on bus 1 is no ina226"),
        (Bus(0x40, 0x7FFF, 4000), "is beyond its range: the current is too great for the shunt"),
    ],
)
def test_what_is_wrong(plug: Callable[[Any], None], made: Any, message: str) -> None:
    plug(made)
    instrument = Ina226(name="m", at="rail", shunt_ohm=0.01).open()
    with pytest.raises(DeviceError, match=f"meter 'm': {message}"):
        instrument.reset()
        instrument.start()


def test_an_overflow_of_the_ina219(plug: Callable[[Any], None]) -> None:
    plug(Bus(0x40, 0, 1250 << 3 | 1))
    instrument = Ina219(name="m", at="rail", shunt_ohm=0.1).open()
    instrument.reset()
    with pytest.raises(DeviceError, match="beyond its range"):
        instrument.start()


@pytest.mark.parametrize("options", [{"shunt_ohm": 0.0}, {"bus": -1}, {"address": 0x20}])
def test_options(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        Ina226(**{"name": "m", "at": "rail", "shunt_ohm": 0.01, **options})
