"""Power that is known, for meters to measure."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import psutil

RANGE_UJ = 2_000_000


@dataclass
class Counters:
    """A powercap tree of files.

    Attributes:
        folder: Where it is.
        step_j: By how much all counters together have grown at once, at most: what they tell is
            late by no more.
    """

    folder: Path
    step_j: float = 0.0


@contextmanager
def rapl_tree(folder: Path, power_w: float, packages: int = 2) -> Iterator[Counters]:
    """A powercap tree as the kernel lays it out, whose packages share the power.

    Its counters grow every millisecond or so and begin again after RANGE_UJ.
    """
    made = Counters(folder)
    zones = []
    for i in range(packages):
        for name, text in ((f"intel-rapl:{i}", f"package-{i}"), (f"intel-rapl:{i}:0", "core")):
            zone = folder / name
            zone.mkdir(parents=True)
            (zone / "name").write_text(f"{text}\n")
            (zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
            (zone / "energy_uj").write_text("0\n")
        zones.append(folder / f"intel-rapl:{i}")
    over = Event()

    def count() -> None:
        energy_uj, then = 0.9 * RANGE_UJ, time.monotonic()  # the first wrap comes soon
        while not over.wait(1e-3):
            now = time.monotonic()
            energy_uj += 1e6 * power_w * (now - then) / packages
            made.step_j = max(made.step_j, power_w * (now - then))
            then = now
            for zone in zones:
                part = zone / "part"
                part.write_text(f"{int(energy_uj % RANGE_UJ)}\n")
                os.replace(part, zone / "energy_uj")  # the kernel never gives half a number

    thread = Thread(target=count, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        over.set()
        thread.join()


def meter_processes() -> list[psutil.Process]:
    """Those that this process has started, and not ended."""
    return [
        child
        for child in psutil.Process().children()
        if "hardware_lab.meters.process" in child.cmdline()
    ]


def write_power(path: Path, power_w: float, seconds: float = 60.0, hz: float = 500.0) -> Path:
    """A CSV trace of constant power."""
    rows = "".join(f"{i / hz:.6f},{power_w}\n" for i in range(int(seconds * hz)))
    path.write_text(f"t_s,power_w\n{rows}")
    return path
