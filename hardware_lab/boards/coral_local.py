"""`coral-local`: Edge TPUs in this machine, one a stage.

Runs the file that the `ssh` board sends away, here: it opens the accelerators through Google's
pycoral where that is importable, else through libedgetpu. This has not been run on an Edge TPU:
tests cover which device and library are chosen, and what is said when they are missing.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from coralline.errors import DeviceError, UserError
from coralline.runtime.child import Progress, Stop, converse, never
from coralline.runtime.environment import hottest
from coralline.runtime.measurement import Measurement
from coralline.runtime.pipeline import open_segments
from hardware_lab.boards import Task, here, payload
from hardware_lab.boards.ssh import (
    COMMAND_S,
    END_S,
    HEARTBEAT_S,
    PAYLOAD,
    file_digest,
    make_measurement,
    make_request,
    references_and_models,
)
from hardware_lab.meters import Meter
from hardware_lab.meters.metering import metered


@dataclass(frozen=True)
class CoralLocal:
    """USB, PCIe or M.2 accelerators of this machine.

    Attributes:
        devices: Which accelerator runs which stage, as libedgetpu selects them: `usb:0, pci:1`.
            A plan with fewer stages uses the first ones.
        threads_per_stage: CPU threads of what the accelerator does not run.
        time_limit_s: A measurement that takes longer is ended.
        meter: What measures the power of the accelerators, or of the machine.
    """

    name: str
    devices: str = ":0"
    threads_per_stage: int = 1
    time_limit_s: float = 3600.0
    meter: Meter | None = None

    kind = "coral-local"

    def __post_init__(self) -> None:
        for selector in self.selectors:
            if not re.fullmatch(r"(usb|pci)?:\d+", selector):
                raise UserError(f"device {selector!r} is not known; write usb:0, pci:1 or :0")
        if len(set(self.selectors)) < len(self.selectors):
            raise UserError(f"devices {self.devices!r} names one twice")
        if self.threads_per_stage < 1:
            raise UserError("threads_per_stage must be at least 1")
        if self.time_limit_s <= 0:
            raise UserError("time_limit_s must be above 0")

    @property
    def selectors(self) -> tuple[str, ...]:
        """The devices in the order of the stages."""
        return tuple(selector.strip() for selector in self.devices.split(","))

    @property
    def resource(self) -> str:
        """The accelerators; libedgetpu opens each for one process."""
        return here("coral")

    def check(self, stop: Stop = never) -> str:
        """Runtime and accelerators; opens each of them."""
        command = [sys.executable, str(PAYLOAD), "probe", *self.selectors]
        found = self._converse(command, {}, time_limit_s=COMMAND_S, stop=stop)
        return f"{found['runtime']}, Edge TPU {', '.join(self.selectors)} open"

    def celsius(self) -> float | None:
        """The hottest PCIe accelerator, whose driver tells; USB accelerators have no sensor."""
        sensors = Path(payload.SYSTEM, "class/apex").glob("apex_*/temp")
        return hottest("".join(sensor.read_text(encoding="ascii") for sensor in sensors))

    def measure(self, task: Task, on_progress: Progress | None = None) -> Measurement:
        """Run the compiled segments on the accelerators."""
        started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        segments = open_segments(task.path)
        if len(segments.segments) > len(self.selectors):
            raise UserError(
                f"{task.path}: has {len(segments.segments)} stages and board {self.name!r} "
                f"{len(self.selectors)} accelerators; plan for as many stages, or name more "
                "`devices` in the inventory"
            )
        with tempfile.TemporaryDirectory() as folder:
            references, models = references_and_models(segments, Path(folder), compiled=True)
            files = Path(folder) / "files"
            files.mkdir()
            for path in (PAYLOAD, references, *models):
                shutil.copyfile(path, files / file_digest(path))
            request = make_request(
                task,
                segments,
                references,
                models,
                threads_per_stage=self.threads_per_stage,
                devices=self.selectors[: len(models)],
            )

            def run(idle_s: float) -> Measurement:
                answer = self._converse(
                    [sys.executable, str(files / file_digest(PAYLOAD)), "run"],
                    {**request, "idle_s": idle_s},
                    on_progress,
                    time_limit_s=self.time_limit_s,
                    keep_open=task.keep_open,
                    stop=task.stop,
                )
                return make_measurement(answer, segments, task, self, started_at)

            return metered(self.meter, task, run)

    def _converse(
        self,
        command: list[str],
        request: Mapping[str, Any],
        on_progress: Progress | None = None,
        **limits: Any,
    ) -> Any:
        said = converse(
            command, request, on_progress, heartbeat_s=HEARTBEAT_S, grace_s=END_S, **limits
        )
        if said.timed_out and "answer" not in said.last:
            raise DeviceError(
                f"{self.name}: not finished after {limits['time_limit_s']:g} s, the time limit"
            )
        if not said.has_answer:
            raise DeviceError(f"{self.name}: ended with exit code {said.code} ({said.last_words})")
        try:
            return said.answer()
        except DeviceError as error:
            raise DeviceError(f"{self.name}: {error}", retryable=error.retryable) from None
