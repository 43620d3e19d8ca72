"""Run the segments of a split model as a pipeline with LiteRT, and time it.

One thread a stage: LiteRT releases the interpreter lock while it runs an inference, so the
stages run at once without the copies between processes. An item is a set of buffers, one for
each tensor that crosses stages, allocated once and used again. A tensor that crosses is copied
out of the stage that writes it and into each stage that reads it, and never otherwise.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue, SimpleQueue
from threading import Thread
from time import perf_counter, sleep
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coralline.devices.model import load_device
from coralline.errors import DeviceError, UserError
from coralline.graph import read_graph
from coralline.graph.tflite_file import open_tflite
from coralline.runtime.child import Progress
from coralline.runtime.interpreter import Array, Model
from coralline.runtime.power import Window
from coralline.staging import StagingProblem, make_plan
from coralline.tflite.segments import Segment, SegmentSet

QUEUE_DEPTH = 2
"""Items that may wait before a stage. One keeps a stage busy; the second absorbs jitter."""

CHECKED_INPUTS = 4
"""Different random inputs sent in turn; each output is compared with the whole model's."""


@dataclass(frozen=True)
class PipelineRun:
    """Samples of one run. Times in ms; K stages, N repetitions.

    Attributes:
        warmup: Inferences before the first sample of each mode.
        first_inference_ms: Of the fresh pipeline.
        latency_ms: float64 (N,): one item in flight, from entering the first stage to leaving
            the last.
        at_s: float64 (N,): when each of these began, from the first.
        full_latency_ms: float64 (N,): the same with the pipeline kept full, so with queueing.
        wall_s: With the pipeline full: from the exit of the item before the first sample to the
            exit of the last sample.
        stage_busy_ms: float64 (K, N): inference of each stage, pipeline full.
        queue_wait_ms: float64 (K, N): from leaving the stage before (entering, for the first)
            to the start of this one, pipeline full.
        transfer_ms: float64 (K, N): copying in and out, pipeline full.
        outputs_equal: Whether every output had the whole model's bits; None when nothing ran.
        partitions: For each stage, what `Model.partitions` says.
        windows: What was done when: `idle` if asked for, `alone` and `full`, samples only.
    """

    warmup: int
    first_inference_ms: float
    latency_ms: NDArray[np.float64]
    at_s: NDArray[np.float64]
    full_latency_ms: NDArray[np.float64]
    wall_s: float
    stage_busy_ms: NDArray[np.float64]
    queue_wait_ms: NDArray[np.float64]
    transfer_ms: NDArray[np.float64]
    outputs_equal: bool | None
    partitions: tuple[dict[str, Any], ...] = ()
    windows: tuple[Window, ...] = ()


@dataclass
class _Item:
    """One inference in flight: buffers by tensor name, and what the stages noted of it."""

    buffers: dict[str, Array]
    number: int = 0
    # For each stage: left the stage before, started, inputs copied, inference done, left.
    times: list[tuple[float, float, float, float, float]] = field(default_factory=list)
    left: float = 0.0
    failure: Exception | None = None


class Pipeline:
    """Segments loaded into one thread each. Use as a context manager.

    Args:
        segments: The split model.
        threads_per_stage: CPU threads of each stage's interpreter.

    Raises:
        UserError: The segments do not fit together, or LiteRT cannot load one.
    """

    def __init__(self, segments: SegmentSet, threads_per_stage: int = 1) -> None:
        self.segments = segments
        self.models = tuple(
            Model(segments.folder / segment.file, threads_per_stage)
            for segment in segments.segments
        )
        self._wiring = [(s.inputs, s.outputs) for s in segments.segments]
        # Enough to fill every queue and every stage, and one to be refilled meanwhile.
        self.n_items = len(self.models) * (1 + QUEUE_DEPTH) + 1
        self.sent = 0
        self._free: SimpleQueue[_Item] = SimpleQueue()
        for _ in range(self.n_items):
            self._free.put(_Item(self._buffers()))
        self._queues: list[Queue[_Item | None]] = [Queue(QUEUE_DEPTH) for _ in self.models]
        self._done: SimpleQueue[_Item] = SimpleQueue()
        self._threads = [
            Thread(target=self._work, args=(stage,), name=f"stage-{stage}", daemon=True)
            for stage in range(len(self.models))
        ]

    def __enter__(self) -> Pipeline:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queues[0].put(None)
        for thread in self._threads:
            thread.join()

    def send(self, inputs: Sequence[Array]) -> None:
        """Start one inference; waits while the first queue is full."""
        item = self._free.get()
        for name, array in zip(self.segments.inputs, inputs, strict=True):
            # The caller's array itself: the first stage copies it into its interpreter.
            item.buffers[name] = array
        item.number = self.sent
        self.sent += 1
        item.times.clear()
        item.left = perf_counter()
        self._queues[0].put(item)

    def receive(self) -> _Item:
        """The next finished inference, in the order sent; give it back with `release`."""
        item = self._done.get()
        if item.failure is not None:
            raise item.failure
        return item

    def release(self, item: _Item) -> None:
        """Let the item's buffers be used again."""
        self._free.put(item)

    def _work(self, stage: int) -> None:
        model, (reads, writes) = self.models[stage], self._wiring[stage]
        source = self._queues[stage]
        last = stage == len(self.models) - 1
        while (item := source.get()) is not None:
            started = perf_counter()
            if item.failure is None:
                try:
                    model.feed([item.buffers[name] for name in reads])
                    fed = perf_counter()
                    model.invoke()
                    done = perf_counter()
                    model.fetch([item.buffers[name] for name in writes])
                    left = perf_counter()
                    item.times.append((item.left, started, fed, done, left))
                    item.left = left
                except Exception as error:  # handed to the thread that receives
                    item.failure = error
            if last:
                self._done.put(item)
            else:
                self._queues[stage + 1].put(item)
        if not last:
            self._queues[stage + 1].put(None)

    def _buffers(self) -> dict[str, Array]:
        buffers: dict[str, Array] = {}
        known = set(self.segments.inputs)
        for segment, model in zip(self.segments.segments, self.models, strict=True):
            missing = set(segment.inputs) - known
            if missing:
                raise UserError(
                    f"{self.segments.folder / segment.file}: reads {sorted(missing)[0]!r}, which "
                    "no earlier segment writes; run `coralline split` again"
                )
            buffers |= zip(segment.outputs, model.empty_outputs(), strict=True)
            known |= set(segment.outputs)
        return buffers


def run_pipeline(
    segments: SegmentSet,
    *,
    repetitions: int,
    warmup: int,
    seconds: float | None = None,
    idle_s: float = 0.0,
    threads_per_stage: int = 1,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> PipelineRun:
    """Time a split model: first inference, then one item in flight, then the pipeline full.

    Args:
        segments: The split model; the whole model lies beside the segments.
        repetitions: Samples, N, of each of the two modes.
        warmup: Inferences before the first sample of each mode; at least what fills the
            pipeline is used.
        seconds: After so long one item in flight gives no more samples, and the full pipeline
            as many as it gave.
        idle_s: How long to do nothing after the first inference, for a power meter.
        threads_per_stage: CPU threads of each stage.
        seed: Of the random inputs.
        on_progress: Called after each inference.

    Raises:
        UserError: The segments do not fit together.
        DeviceError: An inference failed, or an output differs from the whole model's.
    """
    if repetitions < 1:
        raise UserError(f"{repetitions} repetitions: ask for at least 1")
    whole = Model(segments.folder / segments.model_file)
    rng = np.random.default_rng(seed)
    inputs = [whole.random_inputs(rng) for _ in range(CHECKED_INPUTS)]
    expected = [[a.tobytes() for a in whole.run(arrays)] for arrays in inputs]
    del whole

    with Pipeline(segments, threads_per_stage) as pipeline:
        warmup = max(warmup, pipeline.n_items)
        total = 1 + 2 * (warmup + repetitions)
        received = 0

        def run(count: int, in_flight: int, until: float = math.inf) -> NDArray[np.float64]:
            """float64 (count, K, 5): `_Item.times` of `count` inferences, fewer if late."""
            nonlocal received
            start, times = received, []
            for i in range(count):
                if i > warmup and perf_counter() > until:
                    break
                while pipeline.sent < min(start + count, start + i + in_flight):
                    pipeline.send(inputs[pipeline.sent % CHECKED_INPUTS])
                item = pipeline.receive()
                wanted = expected[received % CHECKED_INPUTS]
                for name, bits in zip(segments.outputs, wanted, strict=True):
                    if item.number != received or item.buffers[name].tobytes() != bits:
                        raise DeviceError(
                            f"{segments.model}: output {name!r} of inference {received} differs "
                            "from the whole model's; run `coralline split` again"
                        )
                times.append(list(item.times))
                pipeline.release(item)
                received += 1
                if on_progress is not None:
                    on_progress(received, total)
            return np.array(times)

        first = run(1, 1)
        windows = []
        if idle_s:
            began = perf_counter()
            sleep(idle_s)
            windows.append(Window("idle", began, perf_counter()))
        until = math.inf if seconds is None else perf_counter() + seconds
        alone = run(warmup + repetitions, 1, until)
        full = run(len(alone), pipeline.n_items)
        partitions = tuple(model.partitions() for model in pipeline.models)

    for name, times in (("alone", alone), ("full", full)):
        exits = times[:, -1, 4]
        n_samples = len(times) - warmup
        windows.append(Window(name, float(exits[warmup - 1]), float(exits[-1]), n_samples))
    before, started, fed, done, left = np.moveaxis(full[warmup:], (2, 1), (0, 1))
    return PipelineRun(
        warmup=warmup,
        first_inference_ms=float(_latency_ms(first)[0]),
        latency_ms=_latency_ms(alone[warmup:]),
        at_s=alone[warmup:, 0, 0] - alone[warmup, 0, 0],
        full_latency_ms=_latency_ms(full[warmup:]),
        wall_s=float(full[-1, -1, 4] - full[warmup - 1, -1, 4]),
        stage_busy_ms=1e3 * (done - fed),
        queue_wait_ms=1e3 * (started - before),
        transfer_ms=1e3 * ((fed - started) + (left - done)),
        outputs_equal=True,
        partitions=partitions,
        windows=tuple(windows),
    )


def open_segments(path: Path) -> SegmentSet:
    """A folder that `coralline split` wrote, or a plain .tflite as a pipeline of one stage.

    Raises:
        UserError: The path is neither.
    """
    if path.is_dir():
        return SegmentSet.read(path)
    file = open_tflite(path)
    problem = StagingProblem(read_graph(path), 1, load_device("host-cpu"))
    inputs, outputs = file.names(file.inputs), file.names(file.outputs)
    return SegmentSet(
        folder=path.parent,
        model=file.name,
        model_file=path.name,
        model_digest=hashlib.sha256(file.data).hexdigest(),
        inputs=inputs,
        outputs=outputs,
        segments=(Segment(path.name, inputs, outputs),),
        plan=make_plan(problem, "uniform").to_json(),
        bit_equal_inputs=0,
    )


def _latency_ms(times: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1e3 * (times[:, -1, 4] - times[:, 0, 0])
