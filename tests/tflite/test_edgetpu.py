from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tflite_models import DATA, edited

from coralline.tflite.edgetpu import unmapped_operators


def test_the_small_int8_model_maps_whole() -> None:
    assert unmapped_operators(DATA / "small_int8.tflite") == ()


def test_no_float_operator_maps() -> None:
    unmapped = unmapped_operators(DATA / "small_float.tflite")
    assert [u.node for u in unmapped] == list(range(14))
    assert {u.reason for u in unmapped} == {"it works on FLOAT32, not on 8-bit integers"}


def fuse_relu(model: Any) -> None:
    model.subgraphs[0].operators[5].builtinOptions.fusedActivationFunction = 1


def dilate_one_way(model: Any) -> None:
    model.subgraphs[0].operators[6].builtinOptions.dilationWFactor = 2


def hard_swish(model: Any) -> None:
    logistic = model.subgraphs[0].operators[9]
    model.operatorCodes[logistic.opcodeIndex].builtinCode = 117
    model.operatorCodes[logistic.opcodeIndex].deprecatedBuiltinCode = 117


def batch_of_rows(model: Any) -> None:
    graph = model.subgraphs[0]
    graph.tensors[graph.operators[12].outputs[0]].shape = [5, 5]


@pytest.mark.parametrize(
    ("edit", "node", "reason"),
    [
        (fuse_relu, 5, "it has a fused activation"),
        (dilate_one_way, 6, "its dilation differs between height and width"),
        (hard_swish, 9, "the operator is not supported"),
        (batch_of_rows, 12, "its output has more than one dimension above 1"),
    ],
)
def test_a_broken_limit_is_named(
    tmp_path: Path, edit: Callable[[Any], None], node: int, reason: str
) -> None:
    [found] = unmapped_operators(edited("small_int8", edit, tmp_path))
    assert (found.node, found.reason) == (node, reason)


def test_what_the_host_runs_is_no_matter() -> None:
    model = DATA / "small_float.tflite"
    first, *others = unmapped_operators(model)
    assert unmapped_operators(model, [first.node]) == tuple(others)
