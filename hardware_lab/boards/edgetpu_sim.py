"""`edgetpu-sim`: a chain of Edge TPUs that is not here, simulated from a device model."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from coralline.devices.model import load_device
from coralline.errors import UserError
from coralline.graph import read_graph
from coralline.runtime.child import Progress, Stop, never
from coralline.runtime.measurement import Measurement
from coralline.runtime.pipeline import QUEUE_DEPTH, open_segments
from coralline.runtime.simulate import simulate_pipeline, simulated_energy_mj
from coralline.staging import Plan, evaluate
from coralline.tflite.edgetpu import unmapped_operators
from hardware_lab.boards import Task, here


@dataclass(frozen=True)
class SimulatedEdgeTpu:
    """As many devices as the plan has stages. Every number it gives is simulated.

    Attributes:
        device: Name or YAML file of the device model.
    """

    name: str
    device: str

    kind = "edgetpu-sim"

    def __post_init__(self) -> None:
        if not load_device(self.device).simulated:
            raise UserError(f"device {self.device!r} is not marked simulated")

    @property
    def resource(self) -> str:
        """The simulation computes on this machine and must not disturb what the host measures."""
        return here("cpu")

    def check(self, stop: Stop = never) -> str:
        """Which device model it simulates."""
        model = load_device(self.device)
        return f"simulated {model.name}: {model.description} (model {model.digest[:12]})"

    def measure(self, task: Task, on_progress: Progress | None = None) -> Measurement:
        """Simulate the folder's plan on this device, whatever device it was made for."""
        started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        device = load_device(self.device)
        segments = open_segments(task.path)
        plan = Plan.from_json(segments.plan)
        model = segments.folder / segments.model_file
        graph = read_graph(model)
        costs = evaluate(plan.problem(graph, device), plan.stage)
        run = simulate_pipeline(costs, device, repetitions=task.repetitions, warmup=task.warmup)
        if on_progress is not None:
            on_progress(task.repetitions, task.repetitions)
        return Measurement.of_run(
            run,
            segments,
            id=task.id,
            board=self.name,
            board_kind=self.kind,
            simulated=True,
            processor=_processor(device.name, model, plan),
            meter=None,
            started_at=started_at,
            energy_mj_per_inference=simulated_energy_mj(costs, device, run),
            environment={
                "device": device.name,
                "device_digest": device.digest,
                "devices": plan.n_stages,
                "queue_depth": QUEUE_DEPTH,
            },
        )


def _processor(device: str, model: Path, plan: Plan) -> str:
    left = unmapped_operators(model, plan.host_operators)
    if not left:
        return f"simulated {device}"
    return f"simulated {device}, as if it could run the {len(left)} operators that it cannot"
