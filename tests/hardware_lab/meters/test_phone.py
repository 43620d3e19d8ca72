"""Meters of a phone, over a real adb to an emulated one."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import benchmark_program
import perfetto_program
import psutil
import pytest
from adb_device import AdbDevice
from power_sources import write_power

from coralline.errors import DeviceError, UserError
from coralline.runtime.energy import mean_power
from coralline.runtime.power import Trace
from hardware_lab.boards import Task
from hardware_lab.boards.adb import Adb
from hardware_lab.boards.android import Android
from hardware_lab.boards.clock import Reading, Relation
from hardware_lab.meters import Meter
from hardware_lab.meters.battery import Battery
from hardware_lab.meters.process import Recording
from hardware_lab.meters.rails import Rails, energy_of, read_rails
from hardware_lab.meters.replay import Replay

INT8 = Path(__file__).parents[2] / "data" / "small_int8.tflite"


def record(meter: Meter, seconds: float) -> tuple[str, Trace]:
    recording = Recording(meter)
    try:
        device = recording.identify()
        recording.start()
        time.sleep(seconds)
        return device, recording.stop()
    finally:
        recording.end()


@pytest.fixture
def gauge(tmp_path: Path) -> Path:
    folder = tmp_path / "battery"
    folder.mkdir()
    (folder / "voltage_now").write_text("4000000\n")
    (folder / "current_now").write_text("-500000\n")
    (folder / "status").write_text("Discharging\n")
    return folder


@pytest.fixture
def rails(phone: AdbDevice, tmp_path: Path) -> Rails:
    phone.environment[perfetto_program.POWERS] = json.dumps({"cpu.big": 1.5, "gpu.main": 0.5})
    return Rails(name="odpm", serial=phone.serial, poll_ms=100, folder=str(tmp_path), idle_s=0.6)


def is_recording(rails: Rails) -> bool:
    file = f"{rails.folder}/coralline-{rails.name}.pftrace"
    return any(file in (p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))


# ------------------------------------------------------------------ the battery


def test_the_battery(phone: AdbDevice, gauge: Path) -> None:
    meter = Battery(name="fuel", serial=phone.serial, folder=str(gauge), hz=20.0)
    device, trace = record(meter, 0.5)
    assert device == f"fuel gauge of {phone.serial}"
    assert mean_power(trace)["power_w"] == pytest.approx(2.0)  # 4 V and 0.5 A, whatever the sign
    assert 0 < trace.bound_s < 1 and not trace.is_counter and trace.notes == ()


def test_a_battery_that_is_charged_or_closed(phone: AdbDevice, gauge: Path) -> None:
    meter = Battery(name="fuel", serial=phone.serial, folder=str(gauge), hz=20.0)
    (gauge / "status").write_text("Charging\n")
    assert record(meter, 0.2)[1].notes == ("the battery was charging, not discharging alone",)
    (gauge / "current_now").write_text("\n")
    with pytest.raises(DeviceError, match="meter 'fuel': the battery's files hold no numbers"):
        record(meter, 0.0)
    (gauge / "current_now").unlink()
    with pytest.raises(DeviceError, match=r"does not let its battery be read .*No such file"):
        record(meter, 0.0)
    with pytest.raises(UserError, match="`at` must be battery"):
        Battery(name="fuel", at="wall")


# ------------------------------------------------------------------ the rails


def test_the_rails(rails: Rails, tmp_path: Path) -> None:
    before = time.monotonic()
    device, trace = record(rails, 0.6)
    assert device == f"power rails of {rails.serial}"
    found = mean_power(trace)
    assert found["power_w"] == pytest.approx(2.0, rel=0.01) and trace.is_counter
    assert found["seconds"] > 0.6 and found["samples"] > 5
    assert before - 1 < trace.t_s[0] and trace.t_s[-1] < time.monotonic() + 1
    assert set(trace.channels) == {"cpu.big_j", "gpu.main_j"}
    assert not is_recording(rails) and not list(tmp_path.glob("*.pftrace"))


def test_rails_in_a_trace() -> None:
    from perfetto.protos.perfetto.trace import perfetto_trace_pb2

    trace = perfetto_trace_pb2.Trace()
    empty = trace.SerializeToString()
    for second in (3, 1, 1, 2):  # packets come in any order, and twice
        rails = trace.packet.add().power_rails
        rails.energy_data.add(index=4, timestamp_ms=1000 * second, energy=second * second * 10**6)
        rails.energy_data.add(index=5, timestamp_ms=1000 * second - 500, energy=second * 10**6)
    rails.rail_descriptor.add(index=4, rail_name="big")
    rails.rail_descriptor.add(index=5, rail_name="main", subsys_name="gpu")
    data = trace.SerializeToString()
    t_s, joules = read_rails(data)["big"]
    assert t_s.tolist() == [1, 2, 3] and joules.tolist() == [1, 4, 9]
    relation = Relation(Reading(0.0, 100.0, 0.01), Reading(1.0, 100.0, 0.02))
    both = energy_of(data, "", relation)
    assert both.t_s.tolist() == [101, 101.5, 102, 102.5] and both.bound_s == 0.02
    assert both.energy_j is not None and both.energy_j.tolist() == [2.5, 4.5, 6.5, 9.5]
    one = energy_of(data, "gpu.main", relation)
    assert one.t_s.tolist() == [100.5, 101.5, 102.5] and list(one.channels) == ["gpu.main_j"]
    with pytest.raises(DeviceError, match=r"has no rail 'npu'; it has big, gpu\.main"):
        energy_of(data, "npu, big", relation)
    with pytest.raises(DeviceError, match="reports no power rails; few do"):
        energy_of(empty, "", relation)
    with pytest.raises(DeviceError, match="wrote no trace"):
        read_rails(b"\xff\xff\xff")


# ------------------------------------------------------------------ the board


def test_a_metered_phone(rails: Rails, phone: AdbDevice, tmp_path: Path) -> None:
    program = tmp_path / "benchmark_model"
    program.write_text(f"#!{sys.executable}\n{Path(benchmark_program.__file__).read_text()}")
    board = Android(
        "phone",
        binary=str(program),
        serial=phone.serial,
        folder=str(tmp_path / "on_the_phone"),
        time_limit_s=60.0,
        meter=replace(rails, rails="cpu.big"),
    )
    before = time.monotonic()
    found = board.measure(Task("job", INT8, 20_000, warmup=3, scratch=tmp_path))
    idle, alone = found.windows
    assert (idle.name, alone.name, alone.inferences) == ("idle", "alone", 20_000)
    assert idle.end_s - idle.begin_s == pytest.approx(0.6, rel=0.1)
    assert before < idle.begin_s < idle.end_s < alone.begin_s < alone.end_s < time.monotonic()
    assert found.latency_reported_ms is not None
    # The window holds the inferences, and the program's small change.
    assert alone.end_s - alone.begin_s >= 20 * found.latency_reported_ms["mean"] - 0.05
    record = found.energy
    assert record is not None and record.meter.at == "rail", found.marks
    spent = record.windows["alone"]
    assert spent.power_w == pytest.approx(1.5, rel=0.05)
    assert record.idle_w == pytest.approx(1.5, rel=0.05)
    assert found.energy_mj_per_inference == spent.gross_mj
    assert "energy_mj_per_inference" in found.summary()
    assert (tmp_path / "power.parquet").exists() and not is_recording(rails)


def test_a_program_that_fails_when_metered(phone: AdbDevice, tmp_path: Path) -> None:
    program = tmp_path / "benchmark_model"
    program.write_text(f"#!{sys.executable}\n{Path(benchmark_program.__file__).read_text()}")
    meter = Replay(name="m", at="battery", path=str(write_power(tmp_path / "p.csv", 1.0)))
    board = Android(
        "phone",
        binary=str(program),
        serial=phone.serial,
        folder=str(tmp_path / "on_the_phone"),
        meter=meter,
    )
    phone.environment[benchmark_program.FAULTS] = "crash"
    with pytest.raises(DeviceError, match=r"ended with exit code 1 .*GPU delegate"):
        board.measure(Task("job", INT8, 10, warmup=1))


# ------------------------------------------------------------------ clocks


def test_the_clock_of_a_phone(phone: AdbDevice) -> None:
    device = Adb(phone.serial, "phone")
    device.open()
    reading = device.clock()
    up_s = float(Path("/proc/uptime").read_text().split()[0])
    assert abs(reading.ahead_s - (time.monotonic() - up_s)) <= reading.bound_s + 0.02


def test_clocks_that_drift() -> None:
    # The board's clock gains 4 in 10,000, and was 50 s behind at the beginning.
    relation = Relation(Reading(0.0, 50.0, 0.001), Reading(1000.4, 49.6, 0.004))
    assert relation.lab_s([0.0, 500.2, 1000.4]) == pytest.approx([50, 550, 1050])
    (window,) = relation.windows([("alone", 0.0, 1000.4, 7)])
    assert (window.begin_s, window.end_s, window.bound_s) == pytest.approx((50, 1050, 0.004))


def test_readings_close_together_tell_no_drift() -> None:
    relation = Relation(Reading(0.0, 50.0, 0.01), Reading(1.0, 50.01, 0.01))
    assert relation.lab_s([0.0, 1.0]) == pytest.approx([50.00475, 51.00525])
