"""The PPK2's driver, through ppk2-api, against an emulated kit on a pseudo-terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from ppk2_kit import Kit

from coralline.errors import DeviceError, UserError
from coralline.runtime.energy import mean_power
from coralline.runtime.power import Trace
from hardware_lab.meters import ppk2
from hardware_lab.meters.ppk2 import Ppk2
from hardware_lab.meters.process import Recording

Make = Callable[..., Kit]


@pytest.fixture
def make() -> Iterator[Make]:
    kits = []

    def made(*arguments: object, **options: object) -> Kit:
        kits.append(Kit(*arguments, **options))  # type: ignore[arg-type]
        return kits[-1]

    yield made
    for kit in kits:
        kit.close()


def record(meter: Ppk2, kit: Kit, samples: int) -> tuple[str, Trace]:
    recording = Recording(meter)
    try:
        device = recording.identify()
        recording.start()
        deadline = time.monotonic() + 60
        while kit.sent < samples:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return device, recording.stop()
    finally:
        recording.end()


def test_constant_current(make: Make) -> None:
    kit = make(lambda t: 0.1, sending=True)  # somebody left it sending
    before = time.monotonic()
    device, trace = record(Ppk2(name="kit", at="dc-in", volts=3.3, port=kit.port), kit, 50_000)
    assert device == f"PPK2 (hardware 9173) on {kit.port}"
    found = mean_power(trace)
    assert found["power_w"] == pytest.approx(0.33, rel=0.002)
    assert found["rate_hz"] == pytest.approx(1000, rel=0.01) and found["lost_share"] == 0
    assert before < trace.t_s[0] and trace.t_s[-1] < time.monotonic()
    # Stopped, asked, told that it measures alone at 3.3 V, started, stopped.
    assert kit.commands == [b"\x07", b"\x19", b"\x11\x01", b"\x0d\x0c\xe4", b"\x06", b"\x07"]


def test_lost_samples_and_ranges(make: Make) -> None:
    kit = make(lambda t: 0.1 if t < 0.25 else 0.8, drop=lambda number: number % 1000 < 20)
    _, trace = record(
        Ppk2(name="kit", at="dc-in", volts=5.0, mode="source", port=kit.port), kit, 80_000
    )
    assert mean_power(trace)["lost_share"] == pytest.approx(0.02, rel=0.1)
    assert trace.power_w is not None
    assert trace.power_w[:200].mean() == pytest.approx(0.5, rel=0.01)
    assert trace.power_w[-100:].mean() == pytest.approx(4.0, rel=0.01)
    assert b"\x11\x02" in kit.commands and b"\x0c\x01" in kit.commands  # source, switched on


def test_kits_that_do_not_work(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppk2, "FIRST_S", 0.3)
    for port, message in (
        (make(lambda t: 0.1, is_kit=False).port, "gives no calibration; it is no PPK2"),
        (make(lambda t: 0.1, mute=True).port, "the kit sends no samples"),
        ("", "no PPK2 is connected; name one as `port`"),
        ("/dev/ttyNONE", "add the lab's user to the group dialout"),
    ):
        instrument = Ppk2(name="kit", at="dc-in", volts=3.3, port=port).open()
        with pytest.raises(DeviceError, match=f"meter 'kit': .*{message}"):
            instrument.reset()
            instrument.start()
    with pytest.raises(UserError, match=r"volts must be from 0\.8 to 5"):
        Ppk2(name="kit", at="dc-in", volts=12.0)
