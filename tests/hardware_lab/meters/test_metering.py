"""Measurements with a meter beside them, end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from power_sources import rapl_tree, write_power

from coralline.errors import DeviceError, UserError
from coralline.runtime.measurement import Measurement
from coralline.runtime.power import read_trace
from hardware_lab import compare as turns
from hardware_lab.boards import Task
from hardware_lab.boards.host import Host
from hardware_lab.compare import Comparison, compare
from hardware_lab.inventory import load_inventory
from hardware_lab.meters import process
from hardware_lab.meters.rapl import Rapl
from hardware_lab.meters.replay import Replay
from hardware_lab.show import print_result

INT8 = Path(__file__).parents[2] / "data" / "small_int8.tflite"
FLOAT = INT8.with_name("small_float.tflite")
HEAD = "schema: coralline.inventory/v1\n"


def replay(path: Path, **options: Any) -> Replay:
    known = {"name": "m", "at": "dc-in", "accuracy_percent": 0.5, "idle_s": 0.3, **options}
    return Replay(path=str(path), **known)


def task(scratch: Path | None = None, seconds: float = 0.5) -> Task:
    return Task("job", INT8, repetitions=100_000, warmup=5, seconds=seconds, scratch=scratch)


def call(*arguments: str, cwd: Path, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from coralline.cli.main import main; main()", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "CORALLINE_HOME": str(cwd / "home")},
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if done.stdout else done.stderr


def test_host_with_a_counter(tmp_path: Path) -> None:
    with rapl_tree(tmp_path / "powercap", lambda: 10.0) as folder:
        meter = Rapl(name="cpu", folder=str(folder), hz=100.0, idle_s=0.5)
        measured = Host("host", meter=meter).measure(task(tmp_path))
    record = measured.energy
    assert record is not None and measured.meter == "cpu" and measured.energy_source == "meter"
    assert [w.name for w in measured.windows] == ["idle", "alone", "full"]
    for spent in record.windows.values():
        assert spent.power_w == pytest.approx(10.0, rel=0.2)
        assert spent.gross_mj == pytest.approx(
            1e3 * spent.power_w * spent.seconds / spent.inferences
        )
    assert record.windows["alone"].inferences == len(measured.latency_ms)
    assert record.idle_w == pytest.approx(10.0, rel=0.2)
    assert measured.energy_mj_per_inference == record.windows["full"].gross_mj
    assert not any("lost" in mark or "Hz" in mark for mark in measured.marks)
    kept = read_trace(tmp_path / "power.parquet")
    assert kept.is_counter and kept.t_s[0] <= measured.windows[0].begin_s
    back = Measurement.from_json(json.loads(json.dumps(measured.to_json())))
    assert back.energy == record and back.windows == measured.windows


def test_windows_bound_what_they_say(tmp_path: Path) -> None:
    measured = Host("host", meter=replay(write_power(tmp_path / "p.csv", 3.0))).measure(task())
    idle, alone, full = measured.windows
    assert idle.end_s - idle.begin_s == pytest.approx(0.3, abs=0.2)
    assert idle.end_s <= alone.begin_s < alone.end_s <= full.begin_s < full.end_s
    # The samples begin and end in the window, and fill it but for the checks between them.
    assert 1e3 * (alone.end_s - alone.begin_s) >= sum(measured.latency_ms)
    assert full.end_s - full.begin_s == pytest.approx(measured.wall_s)
    assert alone.inferences == full.inferences == len(measured.latency_ms)


@pytest.mark.parametrize("step", ["start", "stop"])
def test_a_meter_that_fails_costs_the_energy_alone(tmp_path: Path, step: str) -> None:
    meter = (
        Rapl(name="m", folder=str(tmp_path / "none"), idle_s=0.3)
        if step == "start"
        else replay(tmp_path / "none.csv")
    )
    measured = Host("host", meter=meter).measure(task())
    assert measured.latency_ms and measured.outputs_equal
    assert measured.energy is None and measured.energy_mj_per_inference is None
    assert measured.meter is None and measured.energy_source is None
    assert any(mark.startswith("no energy: ") and "none" in mark for mark in measured.marks)
    assert not psutil.Process().children()


def test_a_meter_that_hangs_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "never.csv")
    monkeypatch.setattr(process, "START_S", 3.0)
    measured = Host("host", meter=replay(tmp_path / "never.csv")).measure(task())
    assert measured.latency_ms and measured.energy is None
    assert any("no energy: meter 'm': no answer in 3 s" in mark for mark in measured.marks)
    assert not psutil.Process().children()


def test_a_trace_that_ends_too_soon_is_no_energy(tmp_path: Path) -> None:
    path = write_power(tmp_path / "p.csv", 3.0, seconds=0.1)
    measured = Host("host", meter=replay(path)).measure(task(tmp_path))
    assert measured.energy is None
    assert any("in window 'idle'" in mark for mark in measured.marks)
    assert (tmp_path / "power.parquet").exists()


def test_a_board_that_fails_ends_its_meter(tmp_path: Path) -> None:
    board = Host("host", time_limit_s=0.01, meter=replay(write_power(tmp_path / "p.csv", 3.0)))
    with pytest.raises(DeviceError, match="time limit"):
        board.measure(task())
    assert not psutil.Process().children()


def test_energies_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "BLOCKS", 2)
    board = Host("host", meter=replay(write_power(tmp_path / "p.csv", 3.0), idle_s=0.1))
    asked = Task("job", INT8, repetitions=20_000, warmup=5, seconds=2.0, scratch=tmp_path / "kept")
    found = compare(board, asked, FLOAT)
    assert found.a.energy is not None and found.b.energy is not None
    ratio = found.ratios["energy_mj_per_inference"]
    # Power is the same all the time, so energies differ as times do.
    times = found.b.wall_s / found.a.wall_s
    assert ratio.low <= ratio.value <= ratio.high
    assert found.b.energy.whole.gross_mj / found.a.energy.whole.gross_mj == pytest.approx(
        times, rel=0.05
    )
    assert found.a.energy.windows["alone"].inferences == len(found.a.latency_ms)
    traces = sorted(path.parent.name for path in (tmp_path / "kept").rglob("power.parquet"))
    assert len(traces) == 4 * found.blocks and traces[:2] == ["turn-00-a", "turn-01-b"]
    assert Comparison.from_json(found.to_json()) == found


def test_bench_of_a_metered_board(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_power(tmp_path / "p.csv", 3.0)
    (tmp_path / "lab.yaml").write_text(
        HEAD + "meters:\n"
        "  bench: {kind: replay, at: dc-in, path: p.csv, accuracy_percent: 0.5, idle_s: 0.3}\n"
        "boards:\n"
        "  host: {kind: host, meter: bench}\n"
    )
    asked = ("--inventory", "lab.yaml", "-n", "20000", "--out", "m.json")
    said = json.loads(call("bench", str(INT8), *asked, "--json", cwd=tmp_path))
    energy = said["energy"]
    assert energy["meter"] == {
        "name": "bench",
        "kind": "replay",
        "device": "recorded in p.csv",
        "at": "dc-in",
        "accuracy_percent": 0.5,
    }
    full = energy["windows"]["full"]
    assert full["gross_mj"] == pytest.approx(1e3 * 3.0 * said["wall_s"] / 20000)
    assert full["net_mj"] == pytest.approx(0, abs=1e-6) and energy["idle_w"] == pytest.approx(3)
    assert said["energy_source"] == "meter" and said["summary"]["energy_mj_per_inference"] > 0
    assert any("s and 20000 inferences only (full)" in mark for mark in said["marks"])
    trace = read_trace(tmp_path / "m.power.parquet")
    assert trace.power_w is not None and set(trace.power_w) == {3.0}
    print_result(Measurement.from_json(said))
    text = capsys.readouterr().out
    assert "pipeline full" in text and "recorded in p.csv) at dc-in; idle draws 3 W" in text


def test_lab_meters(tmp_path: Path) -> None:
    write_power(tmp_path / "p.csv", 3.0, seconds=2)
    (tmp_path / "lab.yaml").write_text(
        HEAD + "meters:\n"
        "  bench: {kind: replay, at: dc-in, path: p.csv}\n"
        "  cpu: {kind: rapl, folder: nowhere}\n"
        "boards:\n"
        "  host: {kind: host, meter: bench}\n"
    )
    where = ("--inventory", "lab.yaml")
    found = json.loads(call("lab", "meters", *where, "--json", cwd=tmp_path, code=1))["meters"]
    assert [(m["name"], m["boards"], m["works"]) for m in found] == [
        ("bench", ["host"], True),
        ("cpu", [], False),
    ]
    assert "load the kernel's module intel_rapl_msr" in found[1]["says"]
    read = json.loads(
        call("lab", "meters", "bench", *where, "--seconds", "0.1", "--json", cwd=tmp_path)
    )
    assert read["power_w"] == pytest.approx(3.0) and read["rate_hz"] == pytest.approx(500)
    boards = json.loads(call("lab", "boards", *where, "--json", cwd=tmp_path))["boards"]
    assert boards[0]["meter"] == "bench"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("meters: []\n", 2, "`meters` must be a mapping"),
        ("meters:\n  m: {at: wall}\n", 3, "meter 'm' has no `kind`; choose "),
        ("meters:\n  m: {kind: ammeter}\n", 3, "meter 'm' is of kind 'ammeter', which this"),
        ("meters:\n  m: {kind: replay, at: wall}\n", 3, "meter 'm' lacks 'path'"),
        ("meters:\n  m:\n    kind: rapl\n    volts: 5\n", 5, "option 'volts' is not known"),
        ("meters:\n  m: {kind: rapl, hz: 0}\n", 3, "meter 'm': hz must be"),
        ("meters:\n  m: {kind: rapl, accuracy_percent: good}\n", 3, "must be a number"),
        ("boards:\n  a:\n    kind: host\n    meter: m\n", 5, "meter is 'm'; choose none is under"),
        (
            "meters:\n  m: {kind: rapl}\nboards:\n  a:\n    kind: host\n    meter: [m]\n",
            7,
            r"meter is \['m'\]; choose m",
        ),
        (
            "boards:\n  s: {kind: edgetpu-sim, device: edgetpu-usb, meter: m}\n",
            3,
            "'meter' is not known",
        ),
    ],
)
def test_inventories_that_are_wrong(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(HEAD + text + ("" if "boards" in text else "boards: {h: {kind: host}}\n"))
    with pytest.raises(UserError, match=f"lab.yaml:{line}: .*{message}"):
        load_inventory(path)


def test_a_meter_by_name(tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(HEAD + "meters: {m: {kind: rapl}}\nboards: {host: {kind: host}}\n")
    assert load_inventory(path).meter("m") == Rapl(name="m")
    with pytest.raises(UserError, match="meter 'x' is not known; choose m"):
        load_inventory(path).meter("x")


def test_two_boards_of_one_machine_may_share_a_meter(tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(
        HEAD + "meters:\n  m: {kind: rapl}\nboards:\n"
        "  one: {kind: host, meter: m}\n  two: {kind: host, threads_per_stage: 2, meter: m}\n"
    )
    boards = load_inventory(path).boards
    assert all(getattr(board, "meter", None) == Rapl(name="m") for board in boards.values())
