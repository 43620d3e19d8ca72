"""A phone as a shell on it tells of it, and the folder there in which the lab keeps files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coralline.errors import DeviceError
from hardware_lab.boards.adb import Adb
from hardware_lab.boards.benchmark_output import last_line
from hardware_lab.boards.payload import whole
from hardware_lab.boards.ssh import file_digest

COMMAND_S = 30.0
"""Longest that a short command on the phone may take."""

_FACTS = """
for p in ro.product.manufacturer ro.product.model ro.soc.model ro.build.version.release \
ro.build.fingerprint ro.boot.qemu; do echo "$p=$(getprop $p)"; done
echo "kernel=$(uname -r)"; echo "cores=$(nproc)"
"""
_CONDITIONS = """
echo "load=$(cut -d' ' -f1 /proc/loadavg)"
for z in /sys/class/thermal/thermal_zone*; do
  t=$(cat $z/temp 2>/dev/null) && echo "celsius ${z##*/} $(cat $z/type)=$t"; done
dumpsys battery 2>/dev/null | sed -n 's/^ *\\(level\\|temperature\\|status\\): /battery \\1=/p'
dumpsys thermalservice 2>/dev/null | sed -n 's/^Thermal Status: /thermal_status=/p'
true
"""
_CPU = """
for c in /sys/devices/system/cpu/cpufreq/policy*; do
  g=$(cat $c/scaling_governor 2>/dev/null) && echo "${c##*/}=$(cat $c/related_cpus),$g,\
$(cat $c/cpuinfo_min_freq),$(cat $c/cpuinfo_max_freq)"; done
true
"""
_CLOCKS = """
for c in /sys/devices/system/cpu/cpufreq/policy*; do
  n=$(cat $c/scaling_cur_freq 2>/dev/null) && echo "$n=$(cat $c/scaling_max_freq)"; done
true
"""
_BUSY = "head -n1 /proc/stat && sleep 1 && head -n1 /proc/stat"
_BOOT_ID = '[ "$(getprop sys.boot_completed)" = 1 ] && cat /proc/sys/kernel/random/boot_id'


@dataclass(frozen=True)
class Phone:
    """A phone that is ready.

    Attributes:
        adb: The way to it.
        name: Of the board; begins every message.
        folder: Where files are kept on the phone.
    """

    adb: Adb
    name: str
    folder: str

    def boot_id(self) -> str:
        """What the kernel drew when it started, once Android has started too."""
        ran = self.adb.shell(_BOOT_ID, time_limit_s=COMMAND_S)
        if ran.code != 0:
            raise DeviceError(f"{self.name}: has not started yet", retryable=True)
        return ran.output.strip()

    def facts(self) -> dict[str, str]:
        """What it is: properties of Android by their names, `kernel` and `cores`."""
        return dict(_pairs(self.must(_FACTS)))

    def conditions(self) -> dict[str, Any]:
        """Load, temperatures, battery, and how far the phone is slowed for heat, now.

        `thermal_status` is that of PowerManager, from 0, for not at all, to 6.
        """
        found: dict[str, Any] = {"celsius": {}, "battery": {}}
        for key, value in _pairs(self.must(_CONDITIONS)):
            group, _, name = key.partition(" ")
            if group == "load":
                found["load_1min"] = float(value)
            elif group == "thermal_status":
                found["thermal_status"] = int(value)
            elif group == "celsius":
                # Thousandths of a degree by the kernel's rule; some vendors give degrees.
                degrees = float(value)
                found["celsius"][name] = degrees / 1e3 if abs(degrees) >= 1e3 else degrees
            elif group in found:
                found[group][name] = value
        return found

    def policies(self) -> dict[str, Any]:
        """As `hardware_lab.boards.payload.cpufreq_policies`."""
        found = {}
        for name, told in _pairs(self.must(_CPU)):
            cores, governor, least, most = told.split(",")
            found[name] = {
                "cores": cores.strip(),
                "governor": governor or None,
                "min_khz": whole(least),
                "max_khz": whole(most),
            }
        return found

    def clocks(self) -> list[tuple[int, int]]:
        """As `hardware_lab.boards.payload.clocks_now`; nothing while the phone is silent."""
        try:
            return [(int(now), int(limit)) for now, limit in _pairs(self.must(_CLOCKS))]
        except DeviceError:  # the run itself will say so
            return []

    def cores_busy(self, cores: int) -> float | None:
        """How many cores are busy now; None where the phone does not tell."""
        ran = self.adb.shell(_BUSY, time_limit_s=COMMAND_S)
        rows = [[float(word) for word in row.split()[1:9]] for row in ran.output.splitlines()]
        if ran.code != 0 or len(rows) != 2 or any(len(row) < 5 for row in rows):
            return None
        spent = np.subtract(rows[1], rows[0])
        idle = spent[3] + spent[4]
        return cores * float((spent.sum() - idle) / max(spent.sum(), 1.0))

    def keep(self, files: Sequence[Path], deadline: float) -> None:
        """Send the files that the phone has not, until a deadline, and check what arrived.

        Each may be run there.
        """
        kept = set(self.must(f"ls {self.folder}/files").split())
        for path in files:
            digest = file_digest(path)
            target = f"{self.folder}/files/{digest}"
            if digest not in kept:
                self.adb.push(path, target, mode=0o755, time_limit_s=left_s(deadline))
            said = self.must(f"sha256sum {target}")
            if said.split()[0] != digest:
                self.must(f"rm -f {target}")
                raise DeviceError(
                    f"{self.name}: {path.name} was damaged on the phone; it is removed",
                    retryable=True,
                )

    def clean(self) -> None:
        """End what a job left running, and remove its files."""
        self.must(
            f"for p in {self.folder}/jobs/*/pid; do "
            'pid=$(cat "$p" 2>/dev/null) || continue; '
            f'if grep -q {self.folder}/ "/proc/$pid/cmdline" 2>/dev/null; then kill -9 "$pid"; fi; '
            f"done; rm -rf {self.folder}/jobs {self.folder}/files/*.part",
        )

    def must(self, command: str) -> str:
        """What a short command prints.

        Raises:
            DeviceError: It failed, or as `Adb.shell`.
        """
        ran = self.adb.shell(command, time_limit_s=COMMAND_S)
        if ran.code != 0:
            raise DeviceError(
                f"{self.name}: a command failed on the phone ({last_line(ran.output)}); make room "
                f"in {self.folder} or name another `folder` in the inventory"
            )
        return ran.output


def title(facts: dict[str, str]) -> str:
    """Maker, model, chip and Android of a phone, by its facts."""
    chip = f" ({facts['ro.soc.model']})" if facts["ro.soc.model"] else ""
    maker, model = facts["ro.product.manufacturer"], facts["ro.product.model"]
    return f"{maker} {model}{chip}, Android {facts['ro.build.version.release']}"


def left_s(deadline: float) -> float:
    """How long it is to a deadline of `time.monotonic`; above 0 always."""
    return max(deadline - time.monotonic(), 0.1)


def _pairs(said: str) -> list[tuple[str, str]]:
    found = (line.strip().partition("=") for line in said.splitlines() if "=" in line)
    return [(key, value) for key, _, value in found]
