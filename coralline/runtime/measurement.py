"""`coralline.measurement/v1`: what a board said of a split model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coralline.errors import UserError
from coralline.runtime import statistics
from coralline.runtime.energy import EnergyRecord
from coralline.runtime.power import Window
from coralline.runtime.statistics import Estimate

if TYPE_CHECKING:
    from coralline.runtime.pipeline import PipelineRun
    from coralline.tflite.segments import SegmentSet

SCHEMA = "coralline.measurement/v1"


@dataclass(frozen=True)
class Measurement:
    """Raw samples of one pipeline on one board, with what must stand beside them.

    Attributes:
        id: Unique; a job keeps its measurement's id over restarts.
        model: Name, with `model_digest` (SHA-256 of the .tflite).
        plan: The plan that was run, `coralline.plan/v1`.
        board: Name in the inventory.
        board_kind: `host`, `edgetpu-sim`, ...
        simulated: Whether the times come from a device model.
        processor: What really ran the operators, as the runtime reports it.
        meter: Name of the power meter, or None.
        started_at: ISO 8601, UTC.
        warmup: Inferences excluded before the first sample of each mode.
        first_inference_ms: Of a fresh pipeline, reported apart.
        latency_ms: One sample an inference, from entering the first stage to leaving the last,
            with one inference in flight: no queueing.
        full_latency_ms: The same with the pipeline kept full: with queueing.
        wall_s: With the pipeline full, from the exit of the last warm-up inference to the exit
            of the last sample.
        stage_busy_ms: For each stage one sample an inference, pipeline full.
        queue_wait_ms: For each stage, from leaving the stage before to the start of this one,
            one sample an inference, pipeline full.
        transfer_ms: For each stage, copying in and out, one sample an inference, pipeline full.
        energy_mj_per_inference: Gross, with the pipeline full where it was. Only when metered or
            simulated: `energy_source` tells which.
        outputs_equal: Whether every output that was checked had the whole model's bits: all were,
            but on a phone one a segment. None when the board cannot run the model, or where its
            own kernels round otherwise than this machine's.
        environment: Processor, kernel, library versions, load, threads.
        processor_asked: `cpu`, `gpu`, `nnapi`, `npu`, `edgetpu`, or several joined by `+`.
        processor_ran: Likewise, by proof of the runtime.
        delegated_share: Of the model's operators, those that the runtime's delegate for the
            processor asked for ran; for the CPU that delegate is XNNPACK. None if untold.
        latency_reported_ms: What the board's own program reports where it gives no samples, with
            one inference in flight: `count`, `mean` and, where known, `min`, `max`, `std`, `p5`,
            `p50`, `p95`. None where there are samples.
        at_s: When each sample with one inference in flight began, from the first.
        windows: What was done when, on the clock of the lab's host; empty where it is not told.
        energy: What the meter saw in these windows; None without one, or when it failed.
    """

    id: str
    model: str
    model_digest: str
    plan: Mapping[str, Any]
    board: str
    board_kind: str
    simulated: bool
    processor: str
    meter: str | None
    started_at: str
    warmup: int
    first_inference_ms: float
    latency_ms: tuple[float, ...]
    full_latency_ms: tuple[float, ...]
    wall_s: float
    stage_busy_ms: tuple[tuple[float, ...], ...]
    queue_wait_ms: tuple[tuple[float, ...], ...]
    transfer_ms: tuple[tuple[float, ...], ...]
    energy_mj_per_inference: float | None
    outputs_equal: bool | None
    environment: Mapping[str, Any]
    processor_asked: str | None = None
    processor_ran: str | None = None
    delegated_share: float | None = None
    latency_reported_ms: Mapping[str, float] | None = None
    at_s: tuple[float, ...] = ()
    windows: tuple[Window, ...] = ()
    energy: EnergyRecord | None = None

    @staticmethod
    def of_run(run: PipelineRun, segments: SegmentSet, **facts: Any) -> Measurement:
        """The samples of a run with the facts (the other fields) that must stand beside them."""

        def rows(samples: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
            return tuple(map(tuple, samples.tolist()))

        return Measurement(
            model=segments.model,
            model_digest=segments.model_digest,
            plan=segments.plan,
            warmup=run.warmup,
            first_inference_ms=run.first_inference_ms,
            latency_ms=tuple(run.latency_ms.tolist()),
            full_latency_ms=tuple(run.full_latency_ms.tolist()),
            at_s=tuple(run.at_s.tolist()),
            wall_s=run.wall_s,
            stage_busy_ms=rows(run.stage_busy_ms),
            queue_wait_ms=rows(run.queue_wait_ms),
            transfer_ms=rows(run.transfer_ms),
            outputs_equal=run.outputs_equal,
            **{"windows": run.windows, **facts},
        )

    @staticmethod
    def merged(parts: Sequence[Measurement]) -> Measurement:
        """One measurement of several of the same plan on the same board, in their order.

        The first inference is the median of theirs; of what stands beside the samples, the last
        part's is kept, and for what `marks` reads the mean, the sum or the worst.

        Args:
            parts: At least one.
        """
        first, last = parts[0], parts[-1]
        begun = [datetime.fromisoformat(part.started_at) for part in parts]
        energies = [part.energy_mj_per_inference for part in parts]
        known = [energy for energy in energies if energy is not None]
        records = [part.energy for part in parts if part.energy is not None]
        energy = EnergyRecord.merged(records) if len(records) == len(parts) else None
        if energy is not None:
            whole: float | None = energy.whole.gross_mj
        else:
            whole = sum(known) / len(known) if len(known) == len(parts) else None
        environment = {**last.environment, "turns": len(parts)}
        for name, combine in (
            ("cores_busy_with_others", np.mean),
            ("throttle_events", sum),
            ("lost_samples", sum),
        ):
            if name in environment:
                environment[name] = float(combine([part.environment[name] for part in parts]))
        clocks = [
            part.environment["cpu_clock"] for part in parts if part.environment.get("cpu_clock")
        ]
        if clocks:
            environment["cpu_clock"] = min(clocks, key=statistics.clock_kept)
        for part in parts:
            if "meter_failure" in part.environment:
                environment["meter_failure"] = part.environment["meter_failure"]

        def joined(name: str) -> tuple[Any, ...]:
            return tuple(value for part in parts for value in getattr(part, name))

        def rows(name: str) -> tuple[tuple[float, ...], ...]:
            by_stage = zip(*(getattr(part, name) for part in parts), strict=True)
            return tuple(tuple(value for row in stage for value in row) for stage in by_stage)

        return replace(
            first,
            first_inference_ms=float(np.median([part.first_inference_ms for part in parts])),
            latency_ms=joined("latency_ms"),
            full_latency_ms=joined("full_latency_ms"),
            at_s=tuple(
                (start - begun[0]).total_seconds() + at
                for part, start in zip(parts, begun, strict=True)
                for at in part.at_s
            ),
            wall_s=sum(part.wall_s for part in parts),
            stage_busy_ms=rows("stage_busy_ms"),
            queue_wait_ms=rows("queue_wait_ms"),
            transfer_ms=rows("transfer_ms"),
            energy_mj_per_inference=whole,
            energy=energy,
            windows=joined("windows"),
            outputs_equal=first.outputs_equal
            if all(part.outputs_equal == first.outputs_equal for part in parts)
            else None,
            environment=environment,
            processor_ran=next(
                (part.processor_ran for part in parts if part.fell_back), first.processor_ran
            ),
            latency_reported_ms=_reported(parts),
        )

    def beside(self, **facts: Any) -> Measurement:
        """This, with facts added to its environment."""
        return replace(self, environment={**self.environment, **facts})

    @property
    def fell_back(self) -> bool:
        """Whether another processor ran operators than the one asked for."""
        return self.processor_asked != self.processor_ran

    @property
    def energy_source(self) -> str | None:
        """Where the energy comes from: `meter`, `model` (it is simulated), or None."""
        if self.energy_mj_per_inference is None:
            return None
        if self.meter is not None:
            return "meter"
        return "model" if self.simulated else None

    def latency_percentile_ms(self, percent: float) -> float:
        """A percentile of the latency with one inference in flight (linear interpolation)."""
        return float(np.percentile(self.latency_ms, percent))

    @property
    def throughput_fps(self) -> float:
        """Inferences per second with the pipeline full."""
        return len(self.full_latency_ms) / self.wall_s

    @property
    def measured_bottleneck_ms(self) -> float:
        """Median busy and transfer time of the slowest stage, pipeline full."""
        busy = np.asarray(self.stage_busy_ms) + np.asarray(self.transfer_ms)
        return float(np.median(busy, axis=1).max())

    def summary(self) -> dict[str, float]:
        """The metrics that tables and MLflow show."""
        if self.latency_reported_ms is not None:
            reported = {f"latency_{k}_ms": v for k, v in self.latency_reported_ms.items()}
            del reported["latency_count_ms"]
            return {**reported, "first_inference_ms": self.first_inference_ms, **self._energies()}
        return {
            "latency_p50_ms": self.latency_percentile_ms(50),
            "latency_p90_ms": self.latency_percentile_ms(90),
            "latency_p99_ms": self.latency_percentile_ms(99),
            "throughput_fps": self.throughput_fps,
            "first_inference_ms": self.first_inference_ms,
            "measured_bottleneck_ms": self.measured_bottleneck_ms,
            **self._energies(),
        }

    def _energies(self) -> dict[str, float]:
        if self.energy_mj_per_inference is None:
            return {}
        found = {"energy_mj_per_inference": self.energy_mj_per_inference}
        if self.energy is not None:
            found["energy_net_mj_per_inference"] = self.energy.whole.net_mj
        return found

    @property
    def marks(self) -> tuple[str, ...]:
        """What speaks against it: see `coralline.runtime.statistics.marks`, and for the energy
        `EnergyRecord.marks`."""
        # What a device model computes does not depend on the state of this machine.
        if self.board_kind == "edgetpu-sim":
            return ()
        found = statistics.marks(self._drift, self.environment)
        if self.energy is not None:
            found = (*found, *self.energy.marks)
        if self.fell_back:
            found = (
                f"fell back: {self.processor_asked} was asked for and {self.processor_ran} ran",
                *found,
            )
        return found

    def statistics(self) -> dict[str, Any]:
        """Percentiles of the latency with one inference in flight, and how sure they are.

        Returns:
            For `p50`, `p90` and `p99`: `value`, `low` and `high` (95 % bootstrap interval), and
            `at_most`, which the percentile does not exceed with a confidence of 99 % (MLPerf's
            early stopping; None with too few samples). `drift`: last minute over first. Empty
            where the board gives no samples.
        """
        if not self.latency_ms:
            return {}
        found: dict[str, Any] = {
            f"p{percent}": {
                **statistics.percentile(self.latency_ms, percent).to_json(),
                "at_most": statistics.early_stopping_ms(self.latency_ms, percent),
            }
            for percent in (50, 90, 99)
        }
        return {**found, "drift": self._drift and self._drift.to_json()}

    @cached_property
    def _drift(self) -> Estimate | None:
        return statistics.drift(self.at_s, self.latency_ms)

    def to_json(self) -> dict[str, Any]:
        """A `coralline.measurement/v1` object; what follows from it is added for readers."""
        # `asdict` would copy every sample.
        values = {name: getattr(self, name) for name in Measurement.__dataclass_fields__}
        return {
            "schema": SCHEMA,
            **values,
            "windows": [asdict(window) for window in self.windows],
            "energy": None if self.energy is None else self.energy.to_json(),
            "energy_source": self.energy_source,
            "summary": self.summary(),
            "statistics": self.statistics(),
            "marks": list(self.marks),
        }

    @staticmethod
    def from_json(data: Any) -> Measurement:
        """Read what `to_json` wrote.

        Raises:
            UserError: Names the field that is missing.
        """
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise UserError(f"is not a measurement; its `schema` must be {SCHEMA}")
        known = Measurement.__dataclass_fields__.values()
        missing = [f.name for f in known if f.name not in data and f.default is MISSING]
        if missing:
            raise UserError(f"the measurement lacks {', '.join(missing)}")
        values = {field.name: data[field.name] for field in known if field.name in data}
        for name in ("latency_ms", "full_latency_ms", "at_s"):
            values[name] = tuple(values.get(name, ()))
        for name in ("stage_busy_ms", "queue_wait_ms", "transfer_ms"):
            values[name] = tuple(tuple(row) for row in values[name])
        values["windows"] = tuple(Window(**window) for window in values.get("windows", ()))
        if values.get("energy") is not None:
            values["energy"] = EnergyRecord.from_json(values["energy"])
        return Measurement(**values)


def _reported(parts: Sequence[Measurement]) -> Mapping[str, float] | None:
    """What programs without samples reported, together; percentiles cannot be put together."""
    found = [part.latency_reported_ms for part in parts]
    told = [report for report in found if report is not None]
    if len(told) < len(parts):
        return None
    counts = [report["count"] for report in told]
    together = {
        "count": sum(counts),
        "mean": float(np.average([report["mean"] for report in told], weights=counts)),
    }
    for name, combine in (("min", min), ("max", max)):
        if all(name in report for report in told):
            together[name] = combine(report[name] for report in told)
    return together
