"""Splitting: the chain of segments has the model's bits, for every feasible staging."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite_models import DATA, edited, weights_at_the_end

from coralline.devices.model import load_device
from coralline.errors import CorallineError, DeviceError, PlanError, UserError
from coralline.graph import read_graph
from coralline.graph.tflite_file import open_tflite
from coralline.staging import StagingProblem, make_plan
from coralline.staging.problem import Plan
from coralline.tflite import split as split_module
from coralline.tflite.edgetpu import unmapped_operators
from coralline.tflite.segments import SegmentSet
from coralline.tflite.split import split_model
from coralline.tflite.verify import chain_of, random_inputs, run_chain

INT8 = DATA / "small_int8.tflite"
FLOAT = DATA / "small_float.tflite"


def plan_of(model: Path, stage: list[int] | None = None, n_stages: int = 3) -> Plan:
    """A plan with these stages; without them a uniform one."""
    problem = StagingProblem(read_graph(model), n_stages, load_device("edgetpu-usb"))
    plan = make_plan(problem, "uniform")
    if stage is None:
        return plan
    return Plan.from_json({**plan.to_json(), "stage": stage, "n_stages": max(stage) + 1})


@st.composite
def stagings(draw: st.DrawFn) -> list[int]:
    """Any monotone staging of the small network without an empty stage."""
    graph = read_graph(INT8)
    stage = [0] * graph.n_nodes
    for v in graph.topological_order.tolist():
        lowest = max((stage[u] for u in graph.predecessors[v]), default=0)
        stage[v] = draw(st.integers(lowest, 5))
    used = sorted(set(stage))
    return [used.index(s) for s in stage]


@settings(max_examples=60, deadline=None)
@given(stage=stagings(), seed=st.integers(0, 2**32))
def test_every_feasible_staging_gives_the_models_bits(
    tmp_path_factory: pytest.TempPathFactory, stage: list[int], seed: int
) -> None:
    out = tmp_path_factory.mktemp("split") / "segments"
    for model in (INT8, FLOAT):
        segments = split_model(model, plan_of(model, stage), out, verify_inputs=0)
        assert run_chain(chain_of(segments, 2, seed)) is None


def test_folder_names_and_manifest(tmp_path: Path) -> None:
    segments = split_model(INT8, plan_of(INT8), tmp_path / "s")
    assert [s.file for s in segments.segments] == [
        f"small_int8_segment_{i}_of_3.tflite" for i in range(3)
    ]
    assert (tmp_path / "s" / "small_int8.tflite").read_bytes() == INT8.read_bytes()
    assert segments.bit_equal_inputs == 3
    assert SegmentSet.read(tmp_path / "s") == segments
    assert segments.inputs == segments.segments[0].inputs == ("image",)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]


def test_a_skip_over_stages_and_a_late_reader_of_the_input(tmp_path: Path) -> None:
    # The average pooling (operator 0) reads the image; only the concatenation (7) reads it.
    stage = [2, 0, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3]
    segments = split_model(INT8, plan_of(INT8, stage), tmp_path / "s")
    first, second, third, last = segments.segments
    assert "image" in third.inputs
    skip = first.outputs[0]
    assert skip in second.inputs
    assert skip in third.inputs
    assert second.outputs[0] in third.inputs
    assert len(last.inputs) == 1


def test_segments_keep_only_their_own_constants(tmp_path: Path) -> None:
    plan = plan_of(INT8)
    segments = split_model(INT8, plan, tmp_path / "s")
    graph = read_graph(INT8)
    for i, segment in enumerate(segments.segments):
        part = read_graph(tmp_path / "s" / segment.file)
        own = np.flatnonzero(np.array(plan.stage) == i)
        assert part.param_bytes.tolist() == graph.param_bytes[own].tolist()
        assert part.macs.tolist() == graph.macs[own].tolist()
        assert part.ops == tuple(graph.ops[v] for v in own)


def test_a_plan_for_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="made for 'small_float'"):
        split_model(INT8, plan_of(FLOAT), tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stage", "why"),
    [
        ([0] * 7 + [1] + [0] * 6, "goes backwards"),
        ([0] * 7 + [2] * 7, "does not use each of its 3 stages"),
        ([0, 1], "has 2 operators and small_int8 has 14"),
    ],
)
def test_an_infeasible_plan_is_refused(tmp_path: Path, stage: list[int], why: str) -> None:
    with pytest.raises(PlanError, match=why):
        split_model(INT8, plan_of(INT8, stage), tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_split_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "s"
    split_model(INT8, plan_of(INT8, n_stages=4), out, verify_inputs=0)
    split_model(INT8, plan_of(INT8, n_stages=2), out, verify_inputs=0)
    assert len(list(out.glob("*_segment_*"))) == 2
    (out / "measurement.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds 'measurement\.json', which no split wrote"):
        split_model(INT8, plan_of(INT8), out, verify_inputs=0)
    assert len(list(out.glob("*_segment_*"))) == 2
    with pytest.raises(UserError, match="is a file"):
        split_model(INT8, plan_of(INT8), out / "measurement.json")


def test_a_failure_leaves_the_earlier_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s"
    before = split_model(INT8, plan_of(INT8, n_stages=4), out, verify_inputs=0)

    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(split_module, "_pack", full)
    with pytest.raises(UserError, match="No space left on device"):
        split_model(INT8, plan_of(INT8), out, verify_inputs=0)
    assert SegmentSet.read(out) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]


def test_segments_that_compute_something_else_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = split_module._pack

    def swapped(model: object) -> bytes:
        for buffer in model.buffers:  # type: ignore[attr-defined]
            if len(buffer.data) > 16:
                buffer.data = bytes(buffer.data)[::-1]
        return pack(model)

    monkeypatch.setattr(split_module, "_pack", swapped)
    with pytest.raises(DeviceError, match="do not compute what the model computes"):
        split_model(INT8, plan_of(INT8), tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_litert_aborts_on_is_the_users_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The child stands for LiteRT that ends its process; Python itself is made to do so.
    monkeypatch.setattr(
        "coralline.tflite.verify.COMMAND", ["-c", "import os; os.kill(os.getpid(), 6)"]
    )
    with pytest.raises(UserError, match=r"cannot run the whole model of small_int8.*Aborted"):
        split_model(INT8, plan_of(INT8), tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_random_inputs_suit_their_type() -> None:
    details = [
        {"shape": [1000], "dtype": np.int8},
        {"shape": [1000], "dtype": np.int32},
        {"shape": [2, 500], "dtype": np.float32},
        {"shape": [1000], "dtype": np.bool_},
    ]
    small, wide, real, truth = random_inputs(details, np.random.default_rng(0))
    assert (small.min(), small.max(), small.dtype) == (-128, 127, np.int8)
    assert set(wide.tolist()) == {0, 1}
    assert real.shape == (2, 500)
    assert -1 <= real.min() < real.max() <= 1
    assert truth.dtype == np.bool_


@settings(max_examples=200, deadline=None)
@given(
    flips=st.lists(
        st.tuples(st.integers(8, INT8.stat().st_size - 1), st.integers(0, 255)),
        min_size=1,
        max_size=4,
    )
)
def test_a_damaged_model_never_gives_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(INT8.read_bytes())
    for at, value in flips:
        data[at] = value
    folder = tmp_path_factory.mktemp("damaged")
    model = folder / "m.tflite"
    model.write_bytes(data)
    with contextlib.suppress(CorallineError):
        unmapped_operators(model)
        split_model(model, plan_of(model), folder / "s", verify_inputs=0)
        assert SegmentSet.read(folder / "s").model == "m"


def append_output(model: Any, tensor: int) -> None:
    """Give one more tensor to the caller."""
    graph = model.subgraphs[0]
    graph.outputs = [*graph.outputs, tensor]


def a_constant_output(model: Any) -> None:
    append_output(model, model.subgraphs[0].operators[1].inputs[1])


def an_input_that_is_an_output(model: Any) -> None:
    append_output(model, model.subgraphs[0].inputs[0])


def an_output_twice(model: Any) -> None:
    append_output(model, model.subgraphs[0].outputs[0])


def an_operator_nobody_reads(model: Any) -> None:
    graph = model.subgraphs[0]
    graph.outputs = [t for t in graph.outputs if t != graph.operators[13].outputs[0]]


def a_second_input_given_first(model: Any) -> None:
    graph = model.subgraphs[0]
    pooled = graph.operators.pop(0).outputs[0]
    graph.inputs = [pooled, *graph.inputs]


def no_names(model: Any) -> None:
    for tensor in model.subgraphs[0].tensors:
        tensor.name = b""


def one_name(model: Any) -> None:
    for tensor in model.subgraphs[0].tensors:
        tensor.name = b"same"


@pytest.mark.parametrize("name", ["small_int8", "small_float"])
@pytest.mark.parametrize(
    "edit",
    [
        a_constant_output,
        an_input_that_is_an_output,
        an_output_twice,
        an_operator_nobody_reads,
        a_second_input_given_first,
        no_names,
        one_name,
    ],
)
def test_unusual_models_split_into_single_operators(
    tmp_path: Path, name: str, edit: Callable[[Any], None]
) -> None:
    model = edited(name, edit, tmp_path)
    plan = plan_of(model, list(range(read_graph(model).n_nodes)))
    segments = split_model(model, plan, tmp_path / "s", verify_inputs=0)
    assert run_chain(chain_of(segments, 2, seed=1)) is None


def test_unpacked_weights_stay_with_their_readers(tmp_path: Path) -> None:
    # float16 constants: XNNPACK cannot run a DEQUANTIZE of them apart from its reader.
    model = DATA / "small_float16.tflite"
    plan = plan_of(model, list(range(22)))
    segments = split_model(model, plan, tmp_path / "s")
    assert all(not s.inputs and not s.outputs for s in segments.segments[:8])
    conv = read_graph(segments.folder / segments.segments[9].file)
    assert conv.ops == ("DEQUANTIZE", "DEQUANTIZE", "CONV_2D")


@pytest.mark.parametrize("name", ["small_int8", "small_float"])
def test_weights_after_the_flatbuffer_are_brought_in(tmp_path: Path, name: str) -> None:
    model = weights_at_the_end(name, tmp_path)
    assert read_graph(model) == read_graph(DATA / f"{name}.tflite")
    segments = split_model(model, plan_of(model), tmp_path / "s")
    for segment in segments.segments:
        assert b"TFL3" in (segments.folder / segment.file).read_bytes()[:8]


def test_constants_are_aligned(tmp_path: Path) -> None:
    segments = split_model(FLOAT, plan_of(FLOAT), tmp_path / "s", verify_inputs=0)
    for segment in segments.segments:
        file = open_tflite(segments.folder / segment.file)
        base = np.frombuffer(file.data, np.uint8).ctypes.data
        for i, n_bytes in enumerate(file.buffer_bytes):
            if n_bytes:
                constant = file.table.Buffers(i).DataAsNumpy()
                assert (constant.ctypes.data - base) % 16 == 0
