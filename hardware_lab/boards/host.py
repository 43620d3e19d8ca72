"""`host`: the CPU of the machine that runs the lab."""

from __future__ import annotations

from dataclasses import dataclass

from coralline.errors import UserError
from coralline.runtime import environment
from coralline.runtime.child import Progress, Stop, never
from coralline.runtime.host import HostRequest, measure
from coralline.runtime.measurement import Measurement
from hardware_lab.boards import Task, here
from hardware_lab.boards.payload import Clocks, cpufreq_policies
from hardware_lab.meters import Meter
from hardware_lab.meters.metering import metered


@dataclass(frozen=True)
class Host:
    """This machine's CPU under LiteRT.

    Attributes:
        threads_per_stage: CPU threads of each pipeline stage.
        time_limit_s: A measurement that takes longer is ended.
        meter: What measures its power.
    """

    name: str
    threads_per_stage: int = 1
    time_limit_s: float = 3600.0
    meter: Meter | None = None

    kind = "host"

    def __post_init__(self) -> None:
        if self.threads_per_stage < 1:
            raise UserError("threads_per_stage must be at least 1")
        if self.time_limit_s <= 0:
            raise UserError("time_limit_s must be above 0")

    @property
    def resource(self) -> str:
        """The cores, which no two measurements share."""
        return here("cpu")

    def check(self, stop: Stop = never) -> str:
        """Processor, cores and runtime version."""
        machine = environment.machine()
        litert = machine["versions"]["ai-edge-litert"]
        return f"{machine['cpu']}, {machine['cores']} cores, LiteRT {litert}"

    def celsius(self) -> float | None:
        """Its hottest sensor."""
        return environment.celsius()

    def measure(self, task: Task, on_progress: Progress | None = None) -> Measurement:
        """Run the pipeline in a child process."""

        def run(idle_s: float) -> Measurement:
            request = HostRequest(
                path=str(task.path),
                id=task.id,
                board=self.name,
                board_kind=self.kind,
                repetitions=task.repetitions,
                warmup=task.warmup,
                seconds=task.seconds,
                idle_s=idle_s,
                threads_per_stage=self.threads_per_stage,
            )
            return measure(
                request,
                on_progress,
                time_limit_s=self.time_limit_s,
                keep_open=task.keep_open,
                stop=task.stop,
            )

        # Here and not in the child, which nothing may disturb.
        clocks = Clocks()
        try:
            measured = metered(self.meter, task, run)
        finally:
            clocks.end()
        phases = {window.name: (window.begin_s, window.end_s) for window in measured.windows}
        return measured.beside(cpufreq=cpufreq_policies(), cpu_clock=clocks.told(phases))
