"""The Joulescope driver through the real package joulescope, its USB driver replaced."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from threading import Event, Thread
from typing import Any

import joulescope.v1.driver
import pytest

from coralline.errors import DeviceError, UserError
from coralline.runtime.energy import mean_power
from hardware_lab.meters import joulescope as driver
from hardware_lab.meters.joulescope import Joulescope

WATTS = 1.25


class Driver:
    """pyjoulescope_driver's Driver with these devices; they tell statistics as a JS220 does."""

    def __init__(self, *paths: str, mute: bool = False, opens: bool = True) -> None:
        self.paths, self.mute, self.opens = paths, mute, opens
        self.published: dict[str, Any] = {}
        self.tellers: dict[str, tuple[Event, Thread]] = {}
        self.opened: set[str] = set()

    def device_paths(self) -> list[str]:
        return list(self.paths)

    def open(self, path: str, mode: Any = None, timeout: Any = None) -> None:
        if not self.opens:
            raise RuntimeError("jsdrv_open failed 14 IN_USE")
        self.opened.add(path)

    def close(self, path: str, timeout: Any = None) -> None:
        self.opened.remove(path)

    def publish(self, topic: str, value: Any, timeout: Any = None) -> None:
        self.published[topic] = value

    def subscribe(
        self, topic: str, flags: Any, fn: Callable[..., None], timeout: Any = None
    ) -> None:
        if topic.endswith("/s/stats/value") and not self.mute:
            over = Event()
            thread = Thread(target=self._tell, args=(topic, fn, over), daemon=True)
            self.tellers[topic] = over, thread
            thread.start()

    def unsubscribe(self, topic: str, fn: Callable[..., None], timeout: Any = None) -> None:
        over, thread = self.tellers.pop(topic)
        over.set()
        thread.join()

    def finalize(self) -> None:
        pass

    def _tell(self, topic: str, fn: Callable[..., None], over: Event) -> None:
        """A statistic an interval of `s/stats/scnt` millionths of a second, on time."""
        interval_s = self.published[topic.replace("value", "scnt")] / 1e6
        began, number = time.monotonic(), 0
        while not over.wait(max(began + (number + 1) * interval_s - time.monotonic(), 0)):
            ends = [1_000_000 + round(2e6 * interval_s * n) for n in (number, number + 1)]
            number += 1
            fn(
                topic,
                {
                    "time": {"samples": {"value": ends, "units": "samples"}},
                    "signals": {
                        name: {key: {"value": value, "units": ""} for key in ("avg", "std")}
                        for name, value in (("voltage", 5.0), ("current", 0.25), ("power", WATTS))
                    },
                    "accumulators": {
                        "charge": {"value": 7 + number * interval_s * 0.25, "units": "C"},
                        "energy": {"value": 70 + number * interval_s * WATTS, "units": "J"},
                    },
                },
            )


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Driver], None]]:
    wrapper = joulescope.v1.driver.DriverWrapper

    def plugged(made: Driver) -> None:
        monkeypatch.setattr(joulescope.v1.driver, "Driver", lambda: made)
        monkeypatch.setattr(joulescope.v1.driver.atexit, "register", lambda function: None)
        wrapper.__singleton__ = None

    yield plugged
    wrapper.__singleton__ = None


def test_energy_is_the_instruments(plug: Callable[[Driver], None]) -> None:
    usb = Driver("u/js220/000415", "u/js220/000416")
    plug(usb)
    instrument = Joulescope(name="js", at="usb-vbus", serial="000416").open()
    assert instrument.reset() == "JS220-000416"
    assert usb.published["u/js220/000416/s/stats/scnt"] == 10_000  # a hundred a second
    assert usb.published["u/js220/000416/s/i/range/mode"] == "auto"
    before = time.monotonic()
    instrument.start()
    began = time.monotonic()
    time.sleep(0.3)
    ended = time.monotonic()
    instrument.stop()
    trace = instrument.data()
    assert trace.is_counter and trace.energy_j is not None and trace.energy_j[0] == 0
    found = mean_power(trace)
    assert found["power_w"] == pytest.approx(WATTS, rel=0.01)
    assert found["rate_hz"] == pytest.approx(100, rel=0.02)
    assert set(trace.channels["voltage_v"]) == {5.0}
    # It holds the time between start and stop.
    assert before <= trace.t_s[0] <= began + trace.bound_s and trace.t_s[-1] >= ended
    assert not usb.opened and not usb.tellers


@pytest.mark.parametrize(
    ("usb", "serial", "message"),
    [
        (Driver(), "", "no Joulescope is connected; name one as `serial`"),
        (Driver("u/js220/1", "u/js110/2"), "", "2 Joulescopes are connected"),
        (Driver("u/js220/1"), "2", "Joulescope 2 is not connected; JS220-1 is"),
        (Driver("u/js220/1", opens=False), "", "cannot be opened .*IN_USE.*udev rules"),
        (Driver("u/js220/1", mute=True), "", "JS220-1 tells nothing; it may be unplugged"),
    ],
)
def test_what_is_wrong(
    plug: Callable[[Driver], None],
    monkeypatch: pytest.MonkeyPatch,
    usb: Driver,
    serial: str,
    message: str,
) -> None:
    plug(usb)
    monkeypatch.setattr(driver, "WAIT_S", 0.2)
    instrument = Joulescope(name="js", at="usb-vbus", serial=serial).open()
    with pytest.raises(DeviceError, match=f"meter 'js': .*{message}"):
        instrument.reset()
        instrument.start()


def test_options() -> None:
    with pytest.raises(UserError, match="hz must be one of 1, 2, 5"):
        Joulescope(name="js", at="usb-vbus", hz=1000)
