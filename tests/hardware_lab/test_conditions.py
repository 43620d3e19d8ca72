"""What stands beside a number: clocks, temperatures, links and loads, as the kernel tells them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_board import measurement

from coralline.runtime import environment
from coralline.runtime.measurement import Measurement
from hardware_lab.boards import Task, payload
from hardware_lab.boards.coral_local import CoralLocal
from hardware_lab.boards.host import Host

INT8 = Path(__file__).parents[1] / "data" / "small_int8.tflite"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, object]], Path]:
    """A /sys with these files."""
    root = tmp_path / "sys"
    monkeypatch.setattr(payload, "SYSTEM", str(root))
    monkeypatch.setattr(environment, "SYSTEM", root)

    def write(files: dict[str, object]) -> Path:
        for name, value in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value}\n")
        return root

    return write


def policy(name: str, cores: str, now: int, limit: int, least: int = 300_000) -> dict[str, object]:
    base = f"devices/system/cpu/cpufreq/{name}"
    return {
        f"{base}/related_cpus": cores,
        f"{base}/scaling_governor": "schedutil",
        f"{base}/cpuinfo_min_freq": least,
        f"{base}/cpuinfo_max_freq": 2_400_000,
        f"{base}/scaling_cur_freq": now,
        f"{base}/scaling_max_freq": limit,
    }


def usb(port: str, ids: str, speed: object) -> dict[str, object]:
    vendor, product = ids.split(":")
    base = f"bus/usb/devices/{port}"
    return {f"{base}/idVendor": vendor, f"{base}/idProduct": product, f"{base}/speed": speed}


def test_clocks_of_cores(tree: Any) -> None:
    tree(policy("policy0", "0 1 2 3", 600_000, 1_800_000) | policy("policy4", "4 5", 1, 2_400_000))
    assert payload.cpufreq_policies()["policy0"] == {
        "cores": "0 1 2 3",
        "governor": "schedutil",
        "min_khz": 300_000,
        "max_khz": 2_400_000,
    }
    assert payload.clocks_now() == [(600_000, 1_800_000), (1, 2_400_000)]


def test_a_machine_that_tells_nothing(tree: Any, tmp_path: Path) -> None:
    assert payload.cpufreq_policies() == {} and payload.clocks_now() == []
    assert payload.coral_usb() == [] and payload.temperatures() == {}
    assert payload.Clocks().told({"alone": (0.0, 1.0)}) is None
    assert environment.celsius() is None


def clocks_of(*looks: list[tuple[int, int]]) -> payload.Clocks:
    """Clocks that have been looked at once a second, from 0 s on."""
    made = payload.Clocks(look=lambda: looks[0], every_s=3600.0)
    made.seen = [
        (float(at), max(now for now, _ in look), [limit for _, limit in look])
        for at, look in enumerate(looks)
    ]
    return made


def marks_of(clock: Any, **facts: Any) -> tuple[str, ...]:
    return measurement(environment={"cpu_clock": clock, **facts}, board_kind="ssh").marks


def test_a_clock_that_falls_under_load() -> None:
    full, slow = (2_400_000, 2_400_000), (1_600_000, 2_400_000)
    idle = (600_000, 2_400_000)
    told = clocks_of([idle], *[[full]] * 6, *[[slow]] * 6).told(
        {"alone": (1.0, 6.0), "full": (4.0, 12.0)}
    )
    assert told["before_khz"] == 600_000
    assert told["phases"]["alone"] == {
        "first_khz": 2_400_000,
        "last_khz": 2_400_000,
        "least_khz": 2_400_000,
        "samples": 6,
    }
    assert told["phases"]["full"]["last_khz"] == 1_600_000
    assert marks_of(told) == (
        "throttled: its clock fell from 2.40 to 1.60 GHz",
        *measurement(environment={}).marks,
    )
    # More busy cores share less of a turbo: two phases may differ.
    apart = clocks_of(*[[full]] * 6, *[[slow]] * 6).told({"alone": (0, 5.5), "full": (5.5, 12)})
    # Six looks at least.
    short = clocks_of([full], [full], [slow], [slow]).told({"alone": (0, 4)})
    for fine in (apart, short):
        assert not any("throttled" in mark for mark in marks_of(fine))


def test_a_limit_that_is_lowered() -> None:
    """By the kernel, to cool one of two groups of cores down; for a single look."""
    told = clocks_of(
        [(600_000, 1_800_000), (600_000, 2_400_000)],
        [(1_800_000, 1_800_000), (1_500_000, 1_500_000)],
        [(1_800_000, 1_800_000), (2_400_000, 2_400_000)],
    ).told({"alone": (0, 3)})
    assert (told["limit_before_khz"], told["limit_least_khz"]) == (2_400_000, 1_500_000)
    assert "throttled: its clock fell from 2.40 to 1.50 GHz" in marks_of(told)


def test_clocks_are_looked_at_beside_a_run(tree: Any) -> None:
    tree(policy("policy0", "0", 600_000, 2_400_000))
    clocks = payload.Clocks(every_s=0.01)
    begun = time.perf_counter()
    tree(policy("policy0", "0", 2_400_000, 2_400_000))
    limit = time.monotonic() + 30
    while len(clocks.seen) < 10:
        assert time.monotonic() < limit
        time.sleep(0.01)
    told = clocks.told({"alone": (begun, time.perf_counter())})
    assert told["before_khz"] == 600_000
    assert told["phases"]["alone"]["last_khz"] == 2_400_000
    assert not clocks.thread.is_alive()


def test_of_the_turns_of_a_comparison_the_worst_is_kept() -> None:
    def part(least: int) -> Measurement:
        clock = {"limit_before_khz": 100, "limit_least_khz": least, "phases": {}}
        return measurement(environment={"cpu_clock": clock})

    merged = Measurement.merged([part(100), part(60), part(80)])
    assert merged.environment["cpu_clock"]["limit_least_khz"] == 60


def test_temperatures(tree: Any) -> None:
    tree({"class/hwmon/hwmon0/temp1_input": 61_000, "class/hwmon/hwmon0/temp2_input": 58_500})
    hwmon = {"hwmon0/temp1": 61.0, "hwmon0/temp2": 58.5}
    assert payload.temperatures() == environment._celsius() == hwmon
    tree({"class/thermal/thermal_zone0/temp": 48_200, "class/apex/apex_0/temp": 55_100})
    assert payload.temperatures() == {"thermal_zone0": 48.2, "apex_0": 55.1}
    assert environment._celsius() == {"thermal_zone0": 48.2}
    assert environment.celsius() == 48.2
    assert CoralLocal("tpu").celsius() == 55.1


def test_usb_links_of_accelerators(tree: Any) -> None:
    tree(
        usb("1-1", "1d6b:0002", 480)
        | usb("2-1", "18d1:9302", 5000)
        | usb("1-2", "1a6e:089a", 480)
        | usb("1-3", "046d:c52b", 12)
    )
    found = payload.coral_usb()
    assert found == [
        {"port": "1-2", "state": "not used since it was plugged in", "mbit_s": 480.0},
        {"port": "2-1", "state": "ready", "mbit_s": 5000.0},
    ]
    mark = "usb2: a Coral accelerator is linked at 480 Mbit/s, not 5000"
    assert mark in marks_of(None, usb=found)
    assert not any("usb2" in mark for mark in marks_of(None, usb=found[1:]))
    assert payload.board([":0"])["usb"] == found
    assert "usb" not in payload.board(["pci:0"]) and "usb" not in payload.board([])


def test_the_host_tells_its_clocks(tree: Any) -> None:
    tree(policy("policy0", "0", 2_400_000, 2_400_000))
    found = Host("host").measure(Task("ab", INT8, repetitions=3, warmup=1))
    assert found.environment["cpufreq"]["policy0"]["governor"] == "schedutil"
    assert found.environment["cpu_clock"]["before_khz"] == 2_400_000
