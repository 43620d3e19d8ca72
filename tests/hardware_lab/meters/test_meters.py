"""Meters in their process: what they record and say, and that none outlives its use."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from power_sources import meter_processes, rapl_tree, write_power

from coralline.errors import DeviceError, UserError
from coralline.runtime.energy import mean_power
from coralline.runtime.power import Trace
from hardware_lab.meters import Meter, process
from hardware_lab.meters.polled import Poller
from hardware_lab.meters.process import Recording
from hardware_lab.meters.rapl import Rapl
from hardware_lab.meters.replay import Replay


def record(meter: Meter, seconds: float) -> tuple[str, Trace]:
    recording = Recording(meter)
    try:
        device = recording.identify()
        recording.start()
        time.sleep(seconds)
        return device, recording.stop()
    finally:
        recording.end()


# ------------------------------------------------------------------ the process


def test_one_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "never.csv")  # who reads it waits for a writer
    meter = Replay(name="stuck", at="wall", path=str(tmp_path / "never.csv"))
    recording = Recording(meter)
    try:
        recording.identify()
        recording.start()
        monkeypatch.setattr(process, "START_S", 0.5)
        with pytest.raises(DeviceError, match=r"meter 'stuck': no answer in 0\.5 s"):
            recording.stop()
    finally:
        recording.end()
    assert not meter_processes()


def test_nobody_waits_for_one_that_is_not_wanted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never.csv")
    wanted = True
    meter = Replay(name="m", at="wall", path=str(tmp_path / "never.csv"))
    recording = Recording(meter, stop=lambda: not wanted)
    try:
        recording.identify()
        recording.start()
        wanted = False
        with pytest.raises(DeviceError, match="stopped"):
            recording.stop()
    finally:
        recording.end()


def test_one_that_dies_says_why(tmp_path: Path) -> None:
    recording = Recording(Replay(name="m", at="wall", path="x.csv"))
    try:
        recording.identify()
        (child,) = meter_processes()
        child.kill()
        with pytest.raises(DeviceError, match="meter 'm': its driver ended"):
            recording.start()
    finally:
        recording.end()


def test_it_ends_with_the_lab(tmp_path: Path) -> None:
    code = (
        "import time\n"
        "from hardware_lab.meters.process import Recording\n"
        "from hardware_lab.meters.replay import Replay\n"
        "recording = Recording(Replay(name='m', at='wall', path='x.csv'))\n"
        "recording.identify()\n"
        "recording.start()\n"
        "print(recording._child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    lab = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert lab.stdout
    meter = psutil.Process(int(lab.stdout.readline()))
    lab.kill()
    lab.wait()
    lab.stdout.close()
    gone, alive = psutil.wait_procs([meter], timeout=60)
    assert gone and not alive


# ------------------------------------------------------------------ replay


def test_replay_begins_when_it_is_started(tmp_path: Path) -> None:
    path = write_power(tmp_path / "own.csv", 2.5, seconds=5)
    before = time.monotonic()
    device, trace = record(Replay(name="m", at="wall", path=str(path), bound_s=0.01), 0.0)
    assert device == "recorded in own.csv"
    assert before < trace.t_s[0] < time.monotonic()
    assert mean_power(trace)["power_w"] == pytest.approx(2.5) and trace.bound_s == 0.01


def test_replay_on_other_clocks(tmp_path: Path) -> None:
    path = write_power(tmp_path / "own.csv", 2.5, seconds=5)
    meter = Replay(name="m", at="wall", path=str(path), clock="monotonic")
    assert record(meter, 0.0)[1].t_s[0] == 0
    unix = record(replace(meter, clock="unix"), 0.0)[1].t_s[0]
    assert unix == pytest.approx(time.monotonic() - time.time(), abs=1.0)
    with pytest.raises(UserError, match="clock 'gps' is not known"):
        replace(meter, clock="gps")


# ------------------------------------------------------------------ RAPL


def test_rapl_adds_up_packages_over_their_wraps(tmp_path: Path) -> None:
    with rapl_tree(tmp_path, 20.0) as counters:
        device, trace = record(Rapl(name="cpu", folder=str(tmp_path), hz=50.0), 0.5)
    assert device == "RAPL package-0, package-1"
    assert trace.is_counter and trace.energy_j is not None and trace.stale_s > 0
    seconds = trace.t_s[-1] - trace.t_s[0]
    # 10 J in half a second is two wraps of each counter, none of them seen twice.
    missed = counters.step_j + 20.0 * 2 * trace.bound_s
    assert trace.energy_j[-1] - trace.energy_j[0] == pytest.approx(20.0 * seconds, abs=missed)


def test_rapl_that_is_missing_or_forbidden(tmp_path: Path) -> None:
    instrument = Rapl(name="cpu", folder=str(tmp_path / "powercap")).open()
    with pytest.raises(DeviceError, match="has no package of a processor: load the kernel"):
        instrument.reset()
    with rapl_tree(tmp_path / "powercap", 0.0):
        pass
    (tmp_path / "powercap" / "intel-rapl:1" / "energy_uj").unlink()
    with pytest.raises(DeviceError, match="intel-rapl:1/energy_uj may not be read"):
        instrument.reset()
    with pytest.raises(UserError, match="`at` must be package"):
        Rapl(name="cpu", at="wall")


# ------------------------------------------------------------------ what they share


def test_a_poller_keeps_its_pace_and_its_times() -> None:
    poller = Poller(lambda: [time.monotonic()], 0.002)
    poller.start()
    time.sleep(0.2)
    poller.stop()
    t_s, values, bound_s = poller.samples()
    assert len(t_s) >= 3 and (np.diff(t_s) > 0).all()
    assert np.median(np.abs(values[0] - t_s)) <= bound_s < 0.05
    assert np.median(np.diff(t_s)) >= 0.0019


def test_a_poller_fails_when_its_instrument_does() -> None:
    calls: list[float] = []

    def read() -> list[float]:
        calls.append(0.0)
        if len(calls) == 3:
            raise DeviceError("unplugged")
        return [1.0]

    poller = Poller(read, 0.001)
    poller.start()
    with pytest.raises(DeviceError, match="unplugged"):
        while True:
            time.sleep(0.01)
            if len(calls) >= 3:
                poller.stop()


def test_options_that_all_have() -> None:
    for options, message in (
        ({"at": "socket"}, "at 'socket' is not known; choose usb-vbus, rail"),
        ({"accuracy_percent": 0.0}, "accuracy_percent must be above 0"),
        ({"idle_s": 0.0}, "idle_s must be above 0"),
    ):
        with pytest.raises(UserError, match=message):
            Replay(**{"name": "m", "at": "wall", "path": "x.csv", **options})
