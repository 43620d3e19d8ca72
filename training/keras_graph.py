"""Layer graphs of the models of the zoo, with exact MACs and int8 bytes, without converting them.

A node is a Keras layer; the input layer is the model's input tensor. What a node costs is what
its layer becomes in an int8 .tflite model, so that these graphs and converted models are priced
alike (coralline.graph.tflite_reader counts MACs the same way):

- convolutions and dense layers: multiply-accumulates of the arithmetic as written; one byte a
  weight and a 4-byte bias for each output channel, which every TFLite convolution has.
- a batch normalisation that alone reads a convolution is folded into it: it costs nothing. Any
  other becomes a multiplication and an addition, 2 x output elements, with a byte for each
  factor and each term.
- ReLU and its kind are fused into the operator before: they cost nothing, as do layers that
  only rename or pass on data.
- pooling: output elements x window, over a whole image: input elements.
- everything else: output elements.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from coralline.graph.compute_graph import MODEL_INPUT, ComputeGraph
from training.zoo import APPLICATIONS, new_model

_CONVOLUTIONS = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose", "Dense")
_FUSED = ("ReLU", "Dropout", "Flatten", "Reshape")
_FUSED_ACTIVATIONS = ("linear", "relu", "relu6")


def keras_graph(name: str, input_size: int | None = None) -> ComputeGraph:
    """The layer graph of a model of the zoo.

    Args:
        name: One of `training.zoo.zoo_names()`.
        input_size: Side of the square input in pixels; None for the application's own.

    Raises:
        UserError: Unknown name, or an input size the model cannot take.
    """
    model = new_model(name, input_size)
    usual = input_size in (None, APPLICATIONS[name][1])
    return graph_of_model(model, name if usual else f"{name}_{input_size}")


def graph_of_model(model: Any, name: str) -> ComputeGraph:
    """The graph of a functional Keras model whose layers are each called once."""
    layers = [layer for layer in model.operations if type(layer).__name__ != "InputLayer"]
    number = {layer.name: i for i, layer in enumerate(layers)}
    readers: dict[str, list[int]] = {layer.name: [] for layer in model.operations}
    for i, layer in enumerate(layers):
        for tensor in _tensors(layer.input):
            readers[tensor._keras_history.operation.name].append(i)
    params, macs = [], []
    for layer in layers:
        before = [t._keras_history.operation for t in _tensors(layer.input)]
        folded = (
            type(layer).__name__ == "BatchNormalization"
            and type(before[0]).__name__ in _CONVOLUTIONS
            and len(readers[before[0].name]) == 1
        )
        params.append(0 if folded else _param_bytes(layer))
        macs.append(0 if folded else _macs(layer))
    outputs = {tensor._keras_history.operation.name for tensor in model.outputs}
    # In the graph's numbering the model's inputs come first; `operations` has them anywhere.
    written = sorted(model.operations, key=lambda layer: number.get(layer.name, MODEL_INPUT))
    return ComputeGraph.build(
        name,
        node_names=[layer.name for layer in layers],
        ops=[type(layer).__name__ for layer in layers],
        param_bytes=params,
        macs=macs,
        tensor_bytes=[_elements(layer.output) for layer in written],
        tensor_producer=[number.get(layer.name, MODEL_INPUT) for layer in written],
        consumers=[readers[layer.name] for layer in written],
        tensor_is_output=[layer.name in outputs for layer in written],
    )


def _tensors(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _elements(tensor: Any) -> int:
    """Elements of one sample: one byte each in int8."""
    return math.prod(tensor.shape[1:])


def _param_bytes(layer: Any) -> int:
    kind = type(layer).__name__
    if kind == "BatchNormalization":
        return 2 * layer.output.shape[-1]
    if kind == "SeparableConv2D":
        depthwise, pointwise = (tuple(w.shape) for w in layer.weights[:2])
        channels = depthwise[2] * depthwise[3]
        return int(math.prod(depthwise) + math.prod(pointwise) + 4 * (channels + pointwise[3]))
    if kind in _CONVOLUTIONS:
        return int(np.prod(layer.kernel.shape)) + 4 * layer.output.shape[-1]
    # An addition written with + is an operation, no layer, and has no `weights`.
    return sum(math.prod(w.shape) for w in getattr(layer, "weights", ()))


def _macs(layer: Any) -> int:
    out = _elements(layer.output)
    match type(layer).__name__:
        case "Conv2D":  # kernel: height, width, in channels of the group, out channels
            return out * math.prod(layer.kernel.shape[:3])
        case "DepthwiseConv2D":  # height, width, in channels, outputs per channel
            return out * math.prod(layer.kernel.shape[:2])
        case "SeparableConv2D":
            depthwise, pointwise = (tuple(w.shape) for w in layer.weights[:2])
            pixels = out // pointwise[3]
            return pixels * (math.prod(depthwise) + math.prod(pointwise))
        case "Conv2DTranspose":  # height, width, out channels, in channels
            return _elements(layer.input) * math.prod(layer.kernel.shape[:3])
        case "Dense":
            return out * layer.kernel.shape[0]
        case "BatchNormalization" | "CustomScaleLayer":
            return 2 * out
        case "Activation" if layer.activation.__name__ in _FUSED_ACTIVATIONS:
            return 0
        case kind if kind in _FUSED:
            return 0
        case "MaxPooling2D" | "AveragePooling2D":
            return out * math.prod(layer.pool_size)
        case "GlobalAveragePooling2D" | "GlobalMaxPooling2D":
            return _elements(layer.input)
        case _:
            return out
