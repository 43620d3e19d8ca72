"""Measurements with a meter beside them, end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from power_sources import meter_processes, rapl_tree, write_power
from scripted_board import measurement

from coralline.errors import DeviceError, UserError
from coralline.runtime.child import Progress, Stop, never
from coralline.runtime.energy import Identity, energy_record
from coralline.runtime.measurement import Measurement
from coralline.runtime.power import Trace, Window, read_trace, write_trace
from hardware_lab.boards import Task
from hardware_lab.boards.host import Host
from hardware_lab.cli import boards
from hardware_lab.compare import Comparison, compare
from hardware_lab.inventory import load_inventory
from hardware_lab.meters import process
from hardware_lab.meters.metering import metered
from hardware_lab.meters.rapl import Rapl
from hardware_lab.meters.replay import Replay
from hardware_lab.meters_cli import meters
from hardware_lab.show import print_result

INT8 = Path(__file__).parents[2] / "data" / "small_int8.tflite"
FLOAT = INT8.with_name("small_float.tflite")
HEAD = "schema: coralline.inventory/v1\n"


def replay(path: Path, **options: Any) -> Replay:
    known = {"name": "m", "at": "dc-in", "accuracy_percent": 0.5, "idle_s": 0.3, **options}
    return Replay(path=str(path), **known)


def task(scratch: Path | None = None) -> Task:
    return Task("job", INT8, repetitions=50, warmup=5, scratch=scratch)


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


def working(idle_s: float) -> Measurement:
    """What a board does: nothing at first, then inferences alone, then with the pipeline full."""
    windows = []
    for name, seconds, inferences in (("idle", idle_s, 0), ("alone", 0.1, 50), ("full", 0.1, 100)):
        begin_s = time.monotonic()
        time.sleep(seconds)
        windows.append(Window(name, begin_s, time.monotonic(), inferences))
    return measurement(simulated=False, windows=tuple(windows))


def test_host_with_a_counter(tmp_path: Path) -> None:
    with rapl_tree(tmp_path / "powercap", 10.0) as counters:
        meter = Rapl(name="cpu", folder=str(counters.folder), hz=100.0, idle_s=0.5)
        asked = Task("job", INT8, 20_000, warmup=5, seconds=0.5, scratch=tmp_path)
        measured = Host("host", meter=meter).measure(asked)
    record = measured.energy
    assert record is not None and measured.meter == "cpu" and measured.energy_source == "meter"
    idle, alone, full = measured.windows
    assert [w.name for w in measured.windows] == ["idle", "alone", "full"]
    assert idle.end_s <= alone.begin_s < alone.end_s <= full.begin_s < full.end_s
    # The samples begin and end in the window, and fill it but for the checks between them.
    assert 1e3 * (alone.end_s - alone.begin_s) >= sum(measured.latency_ms)
    assert full.end_s - full.begin_s == pytest.approx(measured.wall_s)
    assert alone.inferences == full.inferences == len(measured.latency_ms)
    kept = read_trace(tmp_path / "power.parquet")
    missed = counters.step_j + 10.0 * 2 * kept.bound_s
    for spent in record.windows.values():
        joules = spent.gross_mj * spent.inferences / 1e3
        assert joules == pytest.approx(10.0 * spent.seconds, abs=missed)
    assert record.idle_w * 0.5 == pytest.approx(5.0, abs=missed + 0.1)
    assert measured.energy_mj_per_inference == record.windows["full"].gross_mj
    assert not any("lost" in mark or "Hz" in mark for mark in measured.marks)
    assert kept.is_counter and kept.t_s[0] <= idle.begin_s
    back = Measurement.from_json(json.loads(json.dumps(measured.to_json())))
    assert back.energy == record and back.windows == measured.windows


@pytest.mark.parametrize("step", ["start", "stop"])
def test_a_meter_that_fails_costs_the_energy_alone(tmp_path: Path, step: str) -> None:
    meter = (
        Rapl(name="m", folder=str(tmp_path / "none"), idle_s=0.3)
        if step == "start"
        else replay(tmp_path / "none.csv")
    )
    asked: list[float] = []

    def run(idle_s: float) -> Measurement:
        asked.append(idle_s)
        return working(idle_s)

    measured = metered(meter, task(), run)
    assert measured.latency_ms == measurement().latency_ms
    assert asked == [0.0 if step == "start" else 0.3]
    assert measured.energy is None and measured.energy_mj_per_inference is None
    assert measured.meter is None and measured.energy_source is None
    assert any(mark.startswith("no energy: ") and "none" in mark for mark in measured.marks)
    assert not meter_processes()


def test_a_meter_that_hangs_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "never.csv")

    def run(idle_s: float) -> Measurement:
        monkeypatch.setattr(process, "START_S", 0.5)
        return working(idle_s)

    measured = metered(replay(tmp_path / "never.csv"), task(), run)
    assert measured.latency_ms and measured.energy is None
    assert any("no energy: meter 'm': no answer in 0.5 s" in mark for mark in measured.marks)
    assert not meter_processes()


def test_a_trace_that_ends_too_soon_is_no_energy(tmp_path: Path) -> None:
    path = write_power(tmp_path / "p.csv", 3.0, seconds=0.1)
    measured = metered(replay(path), task(tmp_path), working)
    assert measured.energy is None
    assert any("not record the whole of window 'idle'" in mark for mark in measured.marks)
    assert (tmp_path / "power.parquet").exists()


def test_a_board_that_tells_no_windows_has_no_energy(tmp_path: Path) -> None:
    path = write_power(tmp_path / "p.csv", 3.0)
    measured = metered(replay(path), task(), lambda idle_s: measurement(simulated=False))
    assert any("no energy: board 'b0' has not told when" in mark for mark in measured.marks)


def test_a_board_that_fails_ends_its_meter(tmp_path: Path) -> None:
    def run(idle_s: float) -> Measurement:
        raise DeviceError("the board is on fire")

    with pytest.raises(DeviceError, match="on fire"):
        metered(replay(write_power(tmp_path / "p.csv", 3.0)), task(), run)
    assert not meter_processes()


@dataclass(frozen=True)
class Metered:
    """A board at 3 W whose meter has been read; B's inferences take twice as long as A's."""

    name: str = "m0"
    kind = "scripted"
    resource = "m0"

    def check(self, stop: Stop = never) -> str:
        return "scripted"

    def measure(self, task: Task, on_progress: Progress | None = None) -> Measurement:
        seconds = 10.0 if task.path == INT8 else 20.0
        windows = Window("idle", 1.0, 11.0), Window("alone", 12.0, 12.0 + seconds, 100)
        trace = Trace(np.arange(0.0, 40.0, 0.002), power_w=np.full(20000, 3.0))
        assert task.scratch is not None
        write_trace(trace, task.scratch / "power.parquet", windows)
        record = energy_record(trace, windows, Identity("m", "replay", "it", "dc-in", 0.5))
        return measurement(
            simulated=False,
            meter="m",
            energy=record,
            energy_mj_per_inference=record.whole.gross_mj,
            windows=windows,
        )


def test_energies_are_compared(tmp_path: Path) -> None:
    asked = Task("job", INT8, repetitions=16, warmup=0, scratch=tmp_path)
    found = compare(Metered(), asked, FLOAT)
    ratio = found.ratios["energy_mj_per_inference"]
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))
    assert found.a.energy is not None and found.b.energy is not None
    assert found.a.energy.whole.inferences == 800
    assert found.b.energy_mj_per_inference == pytest.approx(600.0)
    assert found.b.energy.whole.gross_uncertainty_mj["total"] == pytest.approx(3.0)
    traces = sorted(path.parent.name for path in tmp_path.rglob("power.parquet"))
    assert len(traces) == 16 and traces[:2] == ["turn-00-a", "turn-01-b"]
    assert Comparison.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_one_turn_without_energy_leaves_none() -> None:
    whole = measurement(simulated=False, energy_mj_per_inference=None)
    failed = replace(whole, environment={"meter_failure": "unplugged"})
    merged = Measurement.merged([failed, whole])
    assert merged.energy is None and "no energy: unplugged" in merged.marks


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


def test_lab_meters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_power(tmp_path / "p.csv", 3.0, seconds=2)
    lab = tmp_path / "lab.yaml"
    lab.write_text(
        HEAD + "meters:\n"
        "  bench: {kind: replay, at: dc-in, path: p.csv}\n"
        "  cpu: {kind: rapl, folder: nowhere}\n"
        "boards:\n"
        "  host: {kind: host, meter: bench}\n"
    )
    with pytest.raises(typer.Exit):
        meters(name=None, seconds=1.0, inventory=lab, json=True)
    found = json.loads(capsys.readouterr().out)["meters"]
    assert [(m["name"], m["boards"], m["works"]) for m in found] == [
        ("bench", ["host"], True),
        ("cpu", [], False),
    ]
    assert "load the kernel's module intel_rapl_msr" in found[1]["says"]
    meters(name="bench", seconds=0.1, inventory=lab, json=False)
    assert "3 W, mean of 1000 samples in 2.00 s (500.0 Hz), 0.00% lost" in capsys.readouterr().out
    with pytest.raises(UserError, match="meter 'x' is not known; choose bench, cpu"):
        meters(name="x", seconds=1.0, inventory=lab, json=False)
    boards(inventory=lab, json=True)
    assert json.loads(capsys.readouterr().out)["boards"][0]["meter"] == "bench"


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
            "meters:\n  m: {kind: rapl}\nboards:\n  a: {kind: host, meter: m}\n"
            "  b: {kind: ssh, host: pi, meter: m}\n",
            6,
            "board 'b': meter 'm' is on board 'a' already, and would see both",
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
