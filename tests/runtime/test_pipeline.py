"""The pipeline on real LiteRT: order, bits, what is timed, and what goes wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coralline.devices.model import load_device
from coralline.errors import DeviceError, UserError
from coralline.graph import read_graph
from coralline.graph.tflite_file import open_tflite
from coralline.runtime.interpreter import Model
from coralline.runtime.pipeline import Pipeline, open_segments, run_pipeline
from coralline.staging import StagingProblem, make_plan
from coralline.tflite.segments import SegmentSet
from coralline.tflite.split import split_model

DATA = Path(__file__).parents[1] / "data"
INT8 = DATA / "small_int8.tflite"
FLOAT = DATA / "small_float.tflite"


def split(model: Path, n_stages: int, out: Path) -> SegmentSet:
    problem = StagingProblem(read_graph(model), n_stages, load_device("edgetpu-usb"))
    return split_model(model, make_plan(problem, "uniform"), out)


@pytest.mark.parametrize("model", [INT8, FLOAT])
@pytest.mark.parametrize("n_stages", [1, 3, 14])
def test_every_output_has_the_whole_models_bits(model: Path, n_stages: int, tmp_path: Path) -> None:
    n_stages = min(n_stages, read_graph(model).n_nodes)
    run = run_pipeline(split(model, n_stages, tmp_path / "s"), repetitions=30, warmup=2)
    assert run.outputs_equal
    assert run.latency_ms.shape == run.full_latency_ms.shape == (30,)
    for samples in (run.stage_busy_ms, run.queue_wait_ms, run.transfer_ms):
        assert samples.shape == (n_stages, 30)
        assert (samples >= 0).all()
    assert run.first_inference_ms > 0
    assert sum(p["operators"] for p in run.partitions) == read_graph(model).n_nodes


def test_an_inference_takes_what_its_parts_take(tmp_path: Path) -> None:
    run = run_pipeline(split(INT8, 3, tmp_path / "s"), repetitions=50, warmup=2)
    parts = run.stage_busy_ms + run.queue_wait_ms + run.transfer_ms
    np.testing.assert_allclose(run.full_latency_ms, parts.sum(axis=0), rtol=0, atol=1e-6)
    # No stage can serve more than the time there was.
    assert ((run.stage_busy_ms + run.transfer_ms).sum(axis=1) <= 1.5e3 * run.wall_s).all()


def test_one_item_in_flight_does_not_queue(tmp_path: Path) -> None:
    run = run_pipeline(split(INT8, 3, tmp_path / "s"), repetitions=200, warmup=10)
    assert np.median(run.latency_ms) < np.median(run.full_latency_ms)


def test_a_plain_model_is_a_pipeline_of_one_stage() -> None:
    segments = open_segments(INT8)
    assert len(segments.segments) == 1 and segments.plan["n_stages"] == 1
    assert run_pipeline(segments, repetitions=5, warmup=1).outputs_equal


def test_items_leave_in_the_order_sent(tmp_path: Path) -> None:
    segments = split(INT8, 4, tmp_path / "s")
    rng = np.random.default_rng(1)
    whole = Model(INT8)
    samples = [whole.random_inputs(rng) for _ in range(12)]
    with Pipeline(segments) as pipeline:
        for sample in samples:
            pipeline.send(sample)
        for number, sample in enumerate(samples):
            item = pipeline.receive()
            assert item.number == number
            for name, value in zip(segments.outputs, whole.run(sample), strict=True):
                assert item.buffers[name].tobytes() == value.tobytes()
            pipeline.release(item)


def test_progress_counts_every_inference(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    run = run_pipeline(
        open_segments(INT8),
        repetitions=5,
        warmup=1,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    total = 1 + 2 * (run.warmup + 5)
    assert seen == [(i, total) for i in range(1, total + 1)]


def test_a_segment_with_other_weights_is_found_out(tmp_path: Path) -> None:
    segments = split(INT8, 3, tmp_path / "s")
    path = segments.folder / segments.segments[1].file
    table = open_tflite(path).table
    data = path.read_bytes()
    constants = [table.Buffers(i) for i in range(table.BuffersLength())]
    weights = max((c.DataAsNumpy() for c in constants if not c.DataIsNone()), key=len).tobytes()
    assert data.count(weights) == 1
    data = data.replace(weights, bytes(byte ^ 0x55 for byte in weights))
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(DeviceError, match=r"output .* differs from the whole model's"):
        run_pipeline(segments, repetitions=5, warmup=1)


def test_a_failing_stage_is_raised_by_the_receiver(tmp_path: Path) -> None:
    segments = split(INT8, 3, tmp_path / "s")
    with Pipeline(segments) as pipeline:
        pipeline.send([np.zeros((1, 2), np.int8)])
        with pytest.raises(ValueError):
            pipeline.receive()


def test_segments_that_do_not_fit_together(tmp_path: Path) -> None:
    segments = split(INT8, 3, tmp_path / "s")
    swapped = replace(segments, segments=segments.segments[::-1])
    with pytest.raises(UserError, match="which no earlier segment writes"):
        Pipeline(swapped)


def test_no_repetitions() -> None:
    with pytest.raises(UserError, match="0 repetitions"):
        run_pipeline(open_segments(INT8), repetitions=0, warmup=1)
