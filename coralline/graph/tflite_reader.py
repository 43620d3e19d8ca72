"""ComputeGraph of a .tflite model.

What counts as a multiply-accumulate (MAC), per inference:

- CONV_2D, DEPTHWISE_CONV_2D, CONV_3D: output elements x filter elements per output channel.
- TRANSPOSE_CONV: input elements x filter elements per input channel.
- FULLY_CONNECTED, BATCH_MATMUL: output elements x length of the summed dimension.

These are exact for the arithmetic as written: padding counts as data, biases and fused
activations do not count. Other operators have no MACs to speak of; what is counted is what the
device models price (coralline.devices):

- pooling: output elements x window; sums over axes (MEAN, SUM, REDUCE_...): input elements,
  which is the same thing.
- everything else: output elements.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coralline.graph.compute_graph import MODEL_INPUT, ComputeGraph
from coralline.graph.tflite_file import (
    LARGEST_COUNT,
    NO_TENSOR,
    TfliteFile,
    TfliteOperator,
    TfliteTensor,
    damage_reported,
    enum_names,
    open_tflite,
    schema,
)

_POOLING = frozenset(["AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D"])
_REDUCING = frozenset(
    "MEAN SUM REDUCE_MAX REDUCE_MIN REDUCE_PROD REDUCE_ANY REDUCE_ALL ARG_MAX ARG_MIN".split()
)


def read_tflite(path: Path) -> ComputeGraph:
    """The graph of a .tflite model: node i is operator i of the file.

    A node is named after the first tensor it writes. Its parameter bytes are the constants it
    reads; one that several operators read, or whose buffer several tensors share, counts for
    the first operator in the file's order.

    Raises:
        UserError: The file cannot be read or planned; see `open_tflite`.
    """
    file = open_tflite(path)
    with damage_reported(path):
        return graph_of(file)


def graph_of(file: TfliteFile) -> ComputeGraph:
    """The graph of an opened model."""
    params = []
    counted: set[int] = set()
    producer = dict.fromkeys(file.inputs, MODEL_INPUT)
    readers: dict[int, list[int]] = {t: [] for t in file.inputs}
    for i, operator in enumerate(file.operators):
        own = 0
        for t in operator.inputs:
            if t == NO_TENSOR:
                continue
            tensor = file.tensors[t]
            if not tensor.constant:
                readers[t].append(i)
            elif tensor.buffer not in counted:
                counted.add(tensor.buffer)
                own += file.buffer_bytes[tensor.buffer]
        params.append(own)
        for t in operator.outputs:
            producer[t] = i
            readers[t] = []
    outputs = set(file.outputs)
    return ComputeGraph.build(
        file.name,
        node_names=[file.tensors[operator.outputs[0]].name for operator in file.operators],
        ops=[operator.op for operator in file.operators],
        param_bytes=params,
        macs=[_macs(file, operator) for operator in file.operators],
        tensor_bytes=[file.tensors[t].n_bytes for t in producer],
        tensor_producer=list(producer.values()),
        consumers=[readers[t] for t in producer],
        tensor_is_output=[t in outputs for t in producer],
    )


def _macs(file: TfliteFile, operator: TfliteOperator) -> int:
    out = file.tensors[operator.outputs[0]].elements

    def read(k: int) -> TfliteTensor:
        return file.tensors[operator.inputs[k]]

    match operator.op:
        case "CONV_2D":  # filter: out channels, height, width, in channels of the group
            count = out * read(1).elements // max(read(1).shape[0], 1)
        case "DEPTHWISE_CONV_2D":  # filter: 1, height, width, out channels
            count = out * read(1).elements // max(read(1).shape[3], 1)
        case "CONV_3D":  # filter: depth, height, width, in channels, out channels
            count = out * read(1).elements // max(read(1).shape[4], 1)
        case "TRANSPOSE_CONV":  # inputs: output shape, filter (as CONV_2D), data
            count = read(2).elements * read(1).elements // max(read(1).shape[3], 1)
        case "FULLY_CONNECTED":  # filter: out, in
            count = out * read(1).shape[-1]
        case "BATCH_MATMUL":
            options = operator_options(operator)
            count = out * read(0).shape[-2 if options and options.AdjX() else -1]
        case op if op in _POOLING:
            options = operator_options(operator)
            count = out * (options.FilterHeight() * options.FilterWidth() if options else 1)
        case op if op in _REDUCING:
            count = read(0).elements
        case _:
            count = out
    if not 0 <= count < LARGEST_COUNT:
        raise ValueError(f"{operator.op} would need {count} multiply-accumulates")
    return count


def operator_options(operator: TfliteOperator) -> Any:
    """The schema's lazy table of a builtin operator's options; None without any."""
    table = operator.table.BuiltinOptions()
    if table is None:
        return None
    options = getattr(schema(), enum_names("BuiltinOptions")[operator.table.BuiltinOptionsType()])()
    options.Init(table.Bytes, table.Pos)
    return options
