"""Measure a split model on this machine's CPU, in a process of its own.

LiteRT can abort the whole process on a model it does not like. So the measurement runs in a
child that speaks lines of JSON: one request in; progress and one answer out. The child ends when
its standard input does, hence with its parent, however that one ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread, Timer
from time import perf_counter
from typing import Any

from coralline.errors import DeviceError, UserError
from coralline.runtime import environment
from coralline.runtime.measurement import Measurement
from coralline.runtime.pipeline import Progress, open_segments, run_pipeline


@dataclass(frozen=True)
class HostRequest:
    """What to measure.

    Attributes:
        path: A folder that `coralline split` wrote, or a plain .tflite.
        id: Of the measurement.
        board, board_kind: Written into it.
        repetitions: Samples of each mode.
        warmup: Inferences before the first sample of each mode.
        threads_per_stage: CPU threads of each stage.
        seed: Of the random inputs.
    """

    path: str
    id: str
    board: str
    board_kind: str
    repetitions: int
    warmup: int
    threads_per_stage: int = 1
    seed: int = 0


def measure(request: HostRequest, on_progress: Progress | None = None) -> Measurement:
    """Measure in this process.

    Raises:
        UserError: The path holds nothing that can run.
        DeviceError: An inference failed or gave wrong bits.
    """
    segments = open_segments(Path(request.path))
    started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
    watch = environment.LoadWatch()
    run = run_pipeline(
        segments,
        repetitions=request.repetitions,
        warmup=request.warmup,
        threads_per_stage=request.threads_per_stage,
        seed=request.seed,
        on_progress=on_progress,
    )
    delegated = sum(p["delegated"] for p in run.partitions)
    operators = sum(p["operators"] for p in run.partitions)
    return Measurement.of_run(
        run,
        segments,
        id=request.id,
        board=request.board,
        board_kind=request.board_kind,
        simulated=False,
        processor=f"cpu, XNNPACK ran {delegated} of {operators} operators",
        meter=None,
        started_at=started_at,
        energy_mj_per_inference=None,
        environment={
            **environment.machine(),
            "threads_per_stage": request.threads_per_stage,
            "seed": request.seed,
            **watch.read(),
            "partitions": list(run.partitions),
        },
    )


def measure_in_child(
    request: HostRequest,
    on_progress: Progress | None = None,
    *,
    time_limit_s: float,
    keep_open: tuple[int, ...] = (),
) -> Measurement:
    """Measure in a child process, so that a crash there is an error here.

    Args:
        time_limit_s: The child is killed after it.
        keep_open: File descriptors the child holds too; a lock on one lasts until it has ended.

    Raises:
        UserError: As `measure`.
        DeviceError: As `measure`, or the child crashed (not retryable) or took too long.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "coralline.runtime.host"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=keep_open,
    )
    assert child.stdin and child.stdout and child.stderr
    said: deque[str] = deque(maxlen=20)
    listener = Thread(target=said.extend, args=(child.stderr,), daemon=True)
    listener.start()
    timer = Timer(time_limit_s, child.kill)
    timer.start()
    answer: dict[str, Any] = {}
    try:
        child.stdin.write(json.dumps(asdict(request)) + "\n")
        child.stdin.flush()
        for line in child.stdout:
            answer = json.loads(line)
            if on_progress is not None and "progress" in answer:
                on_progress(*answer["progress"])
        child.wait()
    except BrokenPipeError:
        child.wait()  # the child is gone already; its exit code says why
    finally:
        timed_out = timer.finished.is_set()
        timer.cancel()
        child.kill()
        child.wait()
        listener.join()
        for stream in (child.stdin, child.stdout, child.stderr):
            with suppress(BrokenPipeError):
                stream.close()
    if "measurement" in answer:
        return Measurement.from_json(answer["measurement"])
    if "error" in answer:
        raise _error(answer["error"])
    where = f"{request.path} on {request.board}"
    if timed_out:
        raise DeviceError(
            f"{where}: not finished after {time_limit_s:g} s; ask for fewer repetitions or raise "
            "the board's time_limit_s"
        )
    raise DeviceError(f"{where}: the runtime crashed ({_ending(child.returncode, said)})")


def _error(data: Mapping[str, Any]) -> Exception:
    if data["user"]:
        return UserError(data["message"])
    return DeviceError(data["message"], retryable=data["retryable"])


def _ending(code: int, said: deque[str]) -> str:
    ending = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"{ending}: {said[-1].strip()}" if said else ending


def _child() -> None:
    request = HostRequest(**json.loads(sys.stdin.readline()))
    Thread(target=_end_with_parent, daemon=True).start()
    told = 0.0

    def progress(done: int, total: int) -> None:
        # Seldom: a line for each inference would disturb what is measured.
        nonlocal told
        if perf_counter() - told > 0.25:
            told = perf_counter()
            _say(progress=[done, total])

    try:
        measurement = measure(request, progress)
    except UserError as error:
        _say(error={"user": True, "message": str(error)})
    except DeviceError as error:
        _say(error={"user": False, "message": str(error), "retryable": error.retryable})
    else:
        _say(measurement=measurement.to_json())


def _end_with_parent() -> None:
    sys.stdin.read()  # nothing more is ever sent: this ends when the parent does
    os._exit(1)


def _say(**answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _child()
