"""Measure a split model on this machine's CPU, in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from coralline.runtime import environment
from coralline.runtime.child import Progress, Stop, never, run_in_child, serve
from coralline.runtime.measurement import Measurement
from coralline.runtime.pipeline import open_segments, run_pipeline


@dataclass(frozen=True)
class HostRequest:
    """What to measure.

    Attributes:
        path: A folder that `coralline split` wrote, or a plain .tflite.
        id: Of the measurement.
        board, board_kind: Written into it.
        repetitions: Samples of each mode.
        warmup: Inferences before the first sample of each mode.
        seconds, idle_s: As `run_pipeline` takes them.
        threads_per_stage: CPU threads of each stage.
        seed: Of the random inputs.
    """

    path: str
    id: str
    board: str
    board_kind: str
    repetitions: int
    warmup: int
    seconds: float | None = None
    idle_s: float = 0.0
    threads_per_stage: int = 1
    seed: int = 0


def measure(
    request: HostRequest,
    on_progress: Progress | None = None,
    *,
    time_limit_s: float,
    keep_open: tuple[int, ...] = (),
    stop: Stop = never,
) -> Measurement:
    """Measure in a child process; see `run_in_child` for the arguments.

    Raises:
        UserError: The path holds nothing that can run.
        DeviceError: The runtime crashed, took too long, was stopped, or gave wrong bits.
    """
    answer = run_in_child(
        __name__,
        asdict(request),
        f"{request.path} on {request.board}",
        on_progress,
        time_limit_s=time_limit_s,
        keep_open=keep_open,
        stop=stop,
    )
    return Measurement.from_json(answer)


def _measure_here(data: Mapping[str, Any], on_progress: Progress) -> dict[str, Any]:
    request = HostRequest(**data)
    segments = open_segments(Path(request.path))
    started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
    watch = environment.Watch()
    run = run_pipeline(
        segments,
        repetitions=request.repetitions,
        warmup=request.warmup,
        seconds=request.seconds,
        idle_s=request.idle_s,
        threads_per_stage=request.threads_per_stage,
        seed=request.seed,
        on_progress=on_progress,
    )
    seen = watch.read()
    delegated = sum(p["delegated"] for p in run.partitions)
    operators = sum(p["operators"] for p in run.partitions)
    return Measurement.of_run(
        run,
        segments,
        id=request.id,
        board=request.board,
        board_kind=request.board_kind,
        simulated=False,
        processor=f"CPU; XNNPACK ran {delegated} of {operators} operators",
        meter=None,
        started_at=started_at,
        energy_mj_per_inference=None,
        processor_asked="cpu",
        processor_ran="cpu",
        delegated_share=delegated / operators,
        environment={
            **environment.machine(),
            **seen,
            "threads_per_stage": request.threads_per_stage,
            "seed": request.seed,
            "partitions": list(run.partitions),
        },
    ).to_json()


if __name__ == "__main__":
    serve(_measure_here)
