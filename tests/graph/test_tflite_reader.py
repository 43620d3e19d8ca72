"""Reading .tflite: exact counts, and one line for whatever cannot be planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite_models import DATA, edited, single_operator

from coralline.errors import UserError
from coralline.graph import read_graph
from coralline.graph.json_format import from_json, to_json
from coralline.graph.tflite_reader import read_tflite

INT8 = DATA / "small_int8.tflite"

OPS = (
    "AVERAGE_POOL_2D CONV_2D DEPTHWISE_CONV_2D CONV_2D ADD MAX_POOL_2D CONV_2D CONCATENATION "
    "TRANSPOSE_CONV LOGISTIC MUL MEAN FULLY_CONNECTED SOFTMAX"
).split()


@pytest.mark.parametrize("model", ["small_int8", "small_float"])
def test_counts_are_those_of_the_network(model: str) -> None:
    # By hand from tests/data/make_models.py: 16 x 16 x 3 image.
    graph = read_graph(DATA / f"{model}.tflite")
    assert graph.ops == tuple(OPS)
    assert graph.macs.tolist() == [
        4 * 4 * 3 * (4 * 4),  # average pooling: elements x window
        8 * 8 * 8 * (3 * 3 * 3),
        8 * 8 * 8 * (3 * 3),
        8 * 8 * 8 * 8,
        8 * 8 * 8,  # add
        4 * 4 * 8 * (2 * 2),  # max pooling
        4 * 4 * 4 * (3 * 3 * 8),
        4 * 4 * (8 + 4 + 3),  # concatenation
        4 * 4 * 15 * (3 * 3 * 6),  # transposed: from the input's side
        8 * 8 * 6,
        8 * 8 * 6,
        8 * 8 * 6,  # mean: elements summed
        6 * 5,
        5,
    ]
    chain = [[v, v + 1] for v in range(1, 13)]
    assert graph.edges.tolist() == sorted([*chain, [0, 7], [1, 4], [5, 7], [8, 10]])
    outputs = graph.tensor_producer[graph.tensor_is_output]
    assert outputs.tolist() == [5, 11, 13]


def test_parameter_and_tensor_bytes_follow_the_type() -> None:
    int8, float32 = read_graph(INT8), read_graph(DATA / "small_float.tflite")
    conv = OPS.index("CONV_2D")
    assert int8.param_bytes[conv] == 3 * 3 * 3 * 8 + 4 * 8  # int8 filter, int32 bias
    assert float32.param_bytes[conv] == 4 * (3 * 3 * 3 * 8 + 8)
    assert int8.tensor_bytes[0] == 16 * 16 * 3
    assert (float32.tensor_bytes == 4 * int8.tensor_bytes).all()


def test_a_shared_constant_counts_for_its_first_reader_only() -> None:
    # Three of the convolutions have a bias of eight zeros, which the converter stored once.
    graph = read_graph(INT8)
    assert graph.param_bytes[1:4].tolist() == [3 * 3 * 3 * 8 + 8 * 4, 3 * 3 * 8, 8 * 8]


@pytest.mark.parametrize("transposed", [False, True])
def test_batched_products_know_which_side_is_summed(tmp_path: Path, transposed: bool) -> None:
    from ai_edge_litert import schema_py_generated as schema

    options = schema.BatchMatMulOptionsT()
    options.adjX = transposed
    left = [2, 6, 4] if transposed else [2, 4, 6]
    model = single_operator(tmp_path, 126, [left, [2, 6, 5], [2, 4, 5]], [0, 1], options)
    assert read_graph(model).macs.tolist() == [2 * 4 * 5 * 6]


def test_an_absent_optional_input_is_no_tensor(tmp_path: Path) -> None:
    model = single_operator(tmp_path, 9, [[1, 6], [5, 6], [1, 5]], [0, 1, -1])
    graph = read_graph(model)
    assert graph.macs.tolist() == [5 * 6]
    assert graph.n_tensors == 3


def test_json_gives_the_same_graph_back() -> None:
    graph = read_graph(INT8)
    assert from_json(to_json(graph)) == graph


@pytest.mark.parametrize(
    ("model", "why", "what_to_do"),
    [
        ("dynamic", r"'image' has a dynamic shape \(\[-1, 16, 16, 3\]\)", "fixed input shape"),
        ("while", "operator 0 is WHILE", "export the model without it"),
        ("signatures", r"2 subgraphs \('decode', 'encode'\)", "export each signature"),
    ],
)
def test_what_cannot_be_planned_is_refused(model: str, why: str, what_to_do: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        read_graph(DATA / f"{model}.tflite")
    assert what_to_do in str(caught.value)


def test_variables_are_refused(tmp_path: Path) -> None:
    def make_variable(model: Any) -> None:
        model.subgraphs[0].tensors[0].isVariable = True

    with pytest.raises(UserError, match="keeps state between inferences"):
        read_graph(edited("small_int8", make_variable, tmp_path))


def test_what_lies_outside_the_flatbuffer_is_refused(tmp_path: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema

    def options_behind(model: Any) -> None:
        model.subgraphs[0].operators[0].largeCustomOptionsOffset = 4096

    def weights_elsewhere(model: Any) -> None:
        model.externalBuffers = [schema.ExternalBufferT()]

    with pytest.raises(UserError, match="keeps its options behind the model"):
        read_graph(edited("small_int8", options_behind, tmp_path))
    with pytest.raises(UserError, match="keeps its weights in other files"):
        read_graph(edited("small_int8", weights_elsewhere, tmp_path))


def test_an_edge_tpu_binary_is_refused(tmp_path: Path) -> None:
    def compiled(model: Any) -> None:
        code = model.operatorCodes[model.subgraphs[0].operators[0].opcodeIndex]
        code.builtinCode = code.deprecatedBuiltinCode = 32
        code.customCode = b"edgetpu-custom-op"

    with pytest.raises(UserError, match="is compiled for the Edge TPU already"):
        read_graph(edited("small_int8", compiled, tmp_path))


def test_an_unknown_operator_is_refused(tmp_path: Path) -> None:
    def newer(model: Any) -> None:
        model.operatorCodes[0].builtinCode = 9999

    with pytest.raises(UserError, match="operator of type 9999"):
        read_graph(edited("small_int8", newer, tmp_path))


def test_unknown_rank_is_told_from_a_scalar(tmp_path: Path) -> None:
    def unknown(model: Any) -> None:
        tensor = activation(model)
        tensor.shape, tensor.hasRank = [], False

    def scalar(model: Any) -> None:
        activation(model).shape = []

    with pytest.raises(UserError, match="unknown rank"):
        read_graph(edited("small_int8", unknown, tmp_path))
    assert read_graph(edited("small_int8", scalar, tmp_path)).n_nodes == 14


def test_repeated_and_empty_names_become_unique_and_stable(tmp_path: Path) -> None:
    def rename(model: Any) -> None:
        for tensor in model.subgraphs[0].tensors:
            tensor.name = b"same"
        activation(model).name = b""

    path = edited("small_int8", rename, tmp_path)
    names = read_graph(path).node_names
    assert len(set(names)) == 14
    assert all(name.startswith(("same", "tensor_")) for name in names)
    assert read_graph(path).node_names == names


@pytest.mark.parametrize("content", [b"", b"{}", b"TFL3", b"\0\0\0\0TFL3", b"\xff" * 4 + b"TFL3"])
def test_garbage_is_the_users_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"m\.tflite"):
        read_graph(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_graph(tmp_path / "m.tflite")
    with pytest.raises(UserError, match="is a directory"):
        read_tflite(tmp_path)


@settings(max_examples=300, deadline=None)
@given(keep=st.integers(0, INT8.stat().st_size - 1))
def test_a_truncated_file_never_gives_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, keep: int
) -> None:
    path = tmp_path_factory.mktemp("truncated") / "m.tflite"
    path.write_bytes(INT8.read_bytes()[:keep])
    # Every byte of the small model is used, but the last few are padding.
    try:
        graph = read_tflite(path)
    except UserError:
        return
    assert graph == read_tflite(renamed(INT8, path))


@settings(max_examples=500, deadline=None)
@given(
    flips=st.lists(
        st.tuples(st.integers(8, INT8.stat().st_size - 1), st.integers(0, 255)),
        min_size=1,
        max_size=8,
    )
)
def test_a_damaged_file_never_gives_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(INT8.read_bytes())
    for at, value in flips:
        data[at] = value
    path = tmp_path_factory.mktemp("damaged") / "m.tflite"
    path.write_bytes(data)
    try:
        graph = read_tflite(path)
    except UserError:
        return
    # What is accepted is a sound graph with sums that fit.
    assert graph.macs.min() >= 0
    assert int(graph.macs.astype(object).sum()) < 2**63


def renamed(model: Path, like: Path) -> Path:
    """A copy under another's name, so that the graphs have one name."""
    path = like.parent / "whole" / like.name
    path.parent.mkdir()
    path.write_bytes(model.read_bytes())
    return path


def activation(model: Any) -> Any:
    """The tensor that operator 9 (LOGISTIC) writes."""
    graph = model.subgraphs[0]
    return graph.tensors[graph.operators[9].outputs[0]]
