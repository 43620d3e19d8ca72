"""Which operators of a model an Edge TPU cannot run, by the documented rules.

Rules for every operator (https://coral.ai/docs/edgetpu/models-intro/#model-requirements): its
tensors are 8-bit integers, and only their three innermost dimensions may exceed 1. Operators and
their limits are in data/edgetpu_operators.yaml.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from coralline.graph.tflite_file import (
    NO_TENSOR,
    TfliteFile,
    TfliteOperator,
    damage_reported,
    open_tflite,
)
from coralline.graph.tflite_reader import operator_options


@dataclass(frozen=True)
class Unmapped:
    """An operator that stays on the CPU.

    Attributes:
        node: Its number in the graph.
        reason: Why, as one clause.
    """

    node: int
    name: str
    op: str
    reason: str


def unmapped_operators(path: Path, host: Collection[int] = ()) -> tuple[Unmapped, ...]:
    """Operators of a .tflite model that break a documented rule of the Edge TPU.

    Args:
        host: Numbers of operators that are left to the host, and so left out here.

    Raises:
        UserError: The file cannot be read; see `open_tflite`.
    """
    file = open_tflite(path)
    with damage_reported(path):
        reasons = [_reason(file, operator) for operator in file.operators]
    return tuple(
        Unmapped(i, file.tensors[operator.outputs[0]].name, operator.op, reason)
        for i, (operator, reason) in enumerate(zip(file.operators, reasons, strict=True))
        if reason is not None and i not in host
    )


@cache
def _rules() -> Mapping[str, Any]:
    data = resources.files("coralline.tflite") / "data" / "edgetpu_operators.yaml"
    rules: Mapping[str, Any] = yaml.safe_load(data.read_text(encoding="utf-8"))
    return rules


def _reason(file: TfliteFile, operator: TfliteOperator) -> str | None:
    rules = _rules()
    used = [file.tensors[t] for t in (*operator.inputs, *operator.outputs) if t != NO_TENSOR]
    for tensor in used:
        if tensor.constant:
            continue
        if tensor.dtype not in ("INT8", "UINT8"):
            return f"it works on {tensor.dtype}, not on 8-bit integers"
        if any(side > 1 for side in tensor.shape[:-3]):
            return "a dimension outside the three innermost exceeds 1"
    if operator.op not in rules["operators"]:
        return "the operator is not supported"
    for limit in rules["operators"][operator.op]:
        if _breaks(limit, file, operator):
            return str(rules["limits"][limit])
    return None


def _breaks(limit: str, file: TfliteFile, operator: TfliteOperator) -> bool:
    options = operator_options(operator)
    shape = file.tensors[operator.outputs[0]].shape
    match limit:
        case "plain_activation":
            return options is not None and options.FusedActivationFunction() != 0
        case "even_dilation":
            return options is not None and options.DilationHFactor() != options.DilationWFactor()
        case "unit_stride":
            strides = file.tensors[operator.inputs[3]]
            values = np.frombuffer(file.constant(strides.buffer), np.int32)
            return not strides.constant or bool((values != 1).any())
        case "one_dimensional":
            return sum(side > 1 for side in shape) > 1
        case "softmax_length":
            return file.tensors[operator.outputs[0]].elements > 16000
    raise KeyError(limit)
