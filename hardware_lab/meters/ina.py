"""`ina219` and `ina226`: Texas Instruments' power monitors on an I2C bus of this machine.

Both measure the voltage of the supply and the voltage over a shunt resistor, in turns, and keep
the last of each in a register. Power is computed here from the two, so that nothing depends on
their calibration register. Registers and conversion times: TI SBOS448G (INA219), SBOS547B
(INA226). Their gain is good to 0.1 % each way (INA226), but the shunt's tolerance and an offset of
up to 10 uV over it add to that, so no accuracy is assumed: for currents near I, give
`accuracy_percent` as shunt tolerance + 0.2 + 100 * 10e-6 / (I * shunt_ohm).

A sample is asked for as often as the chip converts. Whether it has converted since is not asked:
that would cost a third transfer, and a value read twice shows in the trace.

Tested against registers behind smbus2's interface, never on a chip.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from coralline.errors import DeviceError, UserError
from coralline.runtime.power import Trace
from hardware_lab.meters import Meter
from hardware_lab.meters.polled import Poller

CONFIGURATION, SHUNT_VOLTAGE, BUS_VOLTAGE = 0x00, 0x01, 0x02


@dataclass(frozen=True, kw_only=True)
class Ina(Meter):
    """A chip.

    Attributes:
        bus: Number of the I2C bus: 1 is /dev/i2c-1.
        address: On the bus, from 0x40 to 0x4f.
        shunt_ohm: Of the resistor that the chip's inputs lie across.
    """

    shunt_ohm: float
    bus: int = 1
    address: int = 0x40

    convert_s: ClassVar[float]
    """Both conversions, with the settings that `reset` writes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shunt_ohm <= 0:
            raise UserError("shunt_ohm must be above 0")
        if self.bus < 0:
            raise UserError("bus must be at least 0")
        if not 0x40 <= self.address <= 0x4F:
            raise UserError("address must be from 0x40 to 0x4f")

    def open(self) -> InaRegisters:
        """The chip."""
        return InaRegisters(self)

    @abstractmethod
    def settings(self) -> int:
        """For the configuration register: both conversions at their fastest, again and again."""

    @abstractmethod
    def volts(self, shunt: int, bus: int) -> tuple[float, float]:
        """Voltage of the supply and over the shunt, from the two registers."""


@dataclass(frozen=True, kw_only=True)
class Ina219(Ina):
    """12 bit; shunt to 320 mV, supply to 26 V."""

    kind = "ina219"
    convert_s = 2 * 532e-6

    def settings(self) -> int:
        """32 V, gain 1/8, 12 bits each, continuous: what it starts with."""
        return 0x399F

    def volts(self, shunt: int, bus: int) -> tuple[float, float]:
        """4 mV in bits 3 to 15; 10 uV."""
        if bus & 1:
            raise DeviceError("is beyond its range: the current is too great for the shunt")
        return (bus >> 3) * 4e-3, _signed(shunt) * 10e-6


@dataclass(frozen=True, kw_only=True)
class Ina226(Ina):
    """16 bit; shunt to 82 mV, supply to 36 V."""

    kind = "ina226"
    convert_s = 2 * 332e-6

    def settings(self) -> int:
        """No averaging, 332 us each, continuous; bit 14 is always set."""
        return 0x4000 | 0b010 << 6 | 0b010 << 3 | 0b111

    def volts(self, shunt: int, bus: int) -> tuple[float, float]:
        """1.25 mV; 2.5 uV."""
        if _signed(shunt) in (-0x8000, 0x7FFF):
            raise DeviceError("is beyond its range: the current is too great for the shunt")
        return bus * 1.25e-3, _signed(shunt) * 2.5e-6


class InaRegisters:
    """One chip's registers."""

    def __init__(self, meter: Ina) -> None:
        self._meter = meter
        self._where = f"meter {meter.name!r}"

    def reset(self) -> str:
        """Open the bus and set the chip to convert again and again."""
        meter = self._meter
        try:
            from smbus2 import SMBus
        except ImportError:
            raise DeviceError(f"{self._where}: needs smbus2; pip install coralline[lab]") from None
        try:
            self._bus: Any = SMBus(meter.bus)
        except FileNotFoundError:
            raise DeviceError(
                f"{self._where}: there is no /dev/i2c-{meter.bus}; turn I2C on (raspi-config, or "
                "modprobe i2c-dev) or name another `bus`"
            ) from None
        except PermissionError:
            raise DeviceError(
                f"{self._where}: /dev/i2c-{meter.bus} may not be opened; add the lab's user to "
                "the group i2c"
            ) from None
        except OSError as error:
            raise DeviceError(f"{self._where}: /dev/i2c-{meter.bus}: {error}") from None
        self._write(CONFIGURATION, meter.settings())
        # Another kind of chip, or none that keeps what is written, would give numbers too.
        if self._read(CONFIGURATION) != meter.settings():
            raise DeviceError(
                f"{self._where}: the chip at {meter.address:#x} on bus {meter.bus} is no "
                f"{meter.kind}; see i2cdetect -y {meter.bus}"
            )
        self._poller = Poller(self._sample, meter.convert_s)
        return f"{meter.kind.upper()} at {meter.address:#x} on bus {meter.bus}"

    def start(self) -> None:
        """Begin to read."""
        self._poller.start()

    def stop(self) -> None:
        """Read a last time, and close the bus."""
        self._poller.stop()
        self._bus.close()

    def data(self) -> Trace:
        """Power, voltage and current."""
        t_s, (volts, amperes), bound_s = self._poller.samples()
        return Trace(
            t_s,
            power_w=volts * amperes,
            channels={"voltage_v": volts, "current_a": amperes},
            bound_s=bound_s,
            stale_s=self._meter.convert_s,
        )

    def _sample(self) -> tuple[float, float]:
        shunt, bus = self._read(SHUNT_VOLTAGE), self._read(BUS_VOLTAGE)
        try:
            volts, across = self._meter.volts(shunt, bus)
        except DeviceError as error:
            raise DeviceError(f"{self._where}: {error}") from None
        return volts, across / self._meter.shunt_ohm

    # The chip sends the high byte of a word first; SMBus has the low one first.
    def _read(self, register: int) -> int:
        try:
            high, low = self._bus.read_i2c_block_data(self._meter.address, register, 2)
        except OSError as error:
            raise self._silent(error) from None
        return int(high) << 8 | int(low)

    def _write(self, register: int, value: int) -> None:
        try:
            self._bus.write_i2c_block_data(
                self._meter.address, register, [value >> 8, value & 0xFF]
            )
        except OSError as error:
            raise self._silent(error) from None

    def _silent(self, error: OSError) -> DeviceError:
        return DeviceError(
            f"{self._where}: no answer from {self._meter.address:#x} on bus {self._meter.bus} "
            f"({error}); check its wires, and i2cdetect -y {self._meter.bus}"
        )


def _signed(word: int) -> int:
    return word - 0x10000 if word & 0x8000 else word
