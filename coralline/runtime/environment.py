"""What must stand beside a number measured on this machine."""

from __future__ import annotations

import os
import platform
import re
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SYSTEM = Path("/sys")
"""Where the kernel tells what it knows."""
_PACKAGES = ("coralline", "ai-edge-litert", "numpy")


def machine() -> dict[str, Any]:
    """Processor, cores, governor, memory, kernel and library versions of this machine.

    A value that the system does not tell is None.
    """
    import psutil

    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "governor": _read(f"{SYSTEM}/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "max_khz": _read(f"{SYSTEM}/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


class Watch:
    """What happened to this machine between making the watch and reading it."""

    def __init__(self) -> None:
        self._load_before = os.getloadavg()[0]
        self._celsius_before = _celsius()
        self._throttled = _throttle_events()
        self._wall, self._busy, self._own = _core_seconds()

    def read(self) -> dict[str, Any]:
        """Load averages and temperatures before and after, the cores that other processes kept
        busy, and how often the processor was slowed down."""
        wall, busy, own = _core_seconds()
        others = (busy - self._busy) - (own - self._own)
        return {
            "load_1min_before": self._load_before,
            "load_1min_after": os.getloadavg()[0],
            "cores_busy_with_others": max(others, 0.0) / max(wall - self._wall, 1e-9),
            "celsius_before": self._celsius_before,
            "celsius_after": _celsius(),
            "throttle_events": _throttle_events() - self._throttled,
        }


def hottest(millidegrees: str) -> float | None:
    """The hottest of what thermal sensors of the kernel print, in degrees Celsius, or None.

    Sensors that are off print numbers that no board survives.
    """
    values = [float(word) / 1e3 for word in re.findall(r"^-?\d+$", millidegrees, re.MULTILINE)]
    return max((value for value in values if 0 < value < 150), default=None)


def celsius() -> float | None:
    """The hottest sensor of this machine; None where it has none."""
    return hottest("\n".join(text for _, text in _sensors()))


def _celsius() -> dict[str, float]:
    """Temperatures by sensor; empty where there is none."""
    return {name: int(text) / 1e3 for name, text in _sensors()}


def _sensors() -> list[tuple[str, str]]:
    """Thermal zones, or without any what hwmon has: names, and thousandths of a degree."""
    for pattern in ("thermal/thermal_zone*/temp", "hwmon/hwmon*/temp*_input"):
        found = []
        for path in sorted((SYSTEM / "class").glob(pattern)):
            text = _read(str(path)) or ""
            if re.fullmatch(r"-?\d+", text):
                sensor = path.name.removesuffix("_input")
                name = path.parent.name
                found.append((name if sensor == "temp" else f"{name}/{sensor}", text))
        if found:
            return found
    return []


def _throttle_events() -> int:
    """How often cores were slowed for heat, where the kernel counts it (Intel)."""
    counts = (SYSTEM / "devices/system/cpu").glob("cpu*/thermal_throttle/core_throttle_count")
    return sum(int(_read(str(path)) or 0) for path in counts)


def _core_seconds() -> tuple[float, float, float]:
    import psutil

    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # `sum` counts guests twice where the system reports them: they are part of user time.
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return time.perf_counter(), sum(times) - idle - guests, time.process_time()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
