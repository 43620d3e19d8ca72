"""How far the device models are from published measurements of the real devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np

from coralline.devices.check import Figure, Prediction, published_figures
from coralline.devices.model import MIB, DeviceModel, load_device, operator_kind
from coralline.graph.compute_graph import ComputeGraph
from coralline.staging import Evaluation, StagingProblem, evaluate, make_plan
from training.keras_graph import graph_of_model, keras_graph
from training.quiet import load_keras


def check_device(
    device: DeviceModel, on_figure: Callable[[Figure], None] | None = None
) -> tuple[Prediction, ...]:
    """Predict every published figure of the device.

    Args:
        on_figure: Called with each figure before it is predicted; building a model takes seconds.
    """
    predictions = []
    for figure in published_figures(device.name):
        if on_figure is not None:
            on_figure(figure)
        predictions.append(Prediction(figure, predict(device, figure)))
    return tuple(predictions)


def predict(device: DeviceModel, figure: Figure) -> float:
    """What the device model says where the figure was measured."""
    result = _planned(device, figure)
    if figure.quantity == "latency_ms":
        return float(result.stage_ms.sum())
    beyond = np.maximum(result.param_bytes - device.parameter_cache_bytes, 0)
    return float(beyond.sum() / MIB)


def fit() -> Mapping[str, float]:
    """The constants of the Edge TPU models that no source gives, fitted to the fitted figures.

    Least squares of the relative error with an overhead per operator and a time per element of
    0 or more; the predicted time is linear in both. The same chip sits in both devices, so
    they share them. An operator has the same cost wherever it runs, so no plan matters here.

    Returns:
        `op_overhead_ms` and `elementwise`, in elements per ms.
    """
    from scipy.optimize import nnls

    rows, target = [], []
    for name in ("edgetpu-usb", "edgetpu-pcie"):
        shipped = load_device(name)
        free = replace(
            shipped,
            op_overhead_ms=0.0,
            macs_per_ms={**shipped.macs_per_ms, "elementwise": np.inf},
        )
        for figure in published_figures(name):
            if figure.fitted:
                graph = _graph(figure.model, figure.input_size)
                elementwise = [operator_kind(op) == "elementwise" for op in graph.ops]
                known = predict(free, figure)
                rows.append([(graph.macs > 0).sum(), graph.macs[elementwise].sum()])
                rows[-1] = [value / figure.value for value in rows[-1]]
                target.append(1 - known / figure.value)
    (overhead, element_ms), _ = nnls(np.array(rows), np.array(target))
    return {"op_overhead_ms": float(overhead), "elementwise": 1 / float(element_ms)}


def _planned(device: DeviceModel, figure: Figure) -> Evaluation:
    problem = StagingProblem(_graph(figure.model, figure.input_size), figure.stages, device)
    return evaluate(problem, make_plan(problem, "edgetpu-compiler").stage)


@cache
def _graph(model: str, input_size: int) -> ComputeGraph:
    if model == "sparta":
        return _sparta_graph(input_size)
    return keras_graph(model, input_size)


def _sparta_graph(input_size: int, width: int = 32, depth: int = 32) -> ComputeGraph:
    """SPARTA's sequential network, as its generator describes it.

    A strided convolution and a pooling, four stages of `depth` 3x3 convolutions at 1, 2, 4 and
    8 times the width with a strided convolution between them, and a classifier of 100. Source:
    https://github.com/mouad-zouhdi/sparta-edgetpu, synthetic/src/models.py.
    """
    keras = load_keras()
    layers = keras.layers

    def convolution(x: object, channels: int, strides: int) -> object:
        x = layers.Conv2D(channels, 3, strides=strides, padding="same", use_bias=False)(x)
        return layers.ReLU(6.0)(layers.BatchNormalization()(x))

    image = keras.Input((input_size, input_size, 3))
    x = layers.MaxPooling2D(3, strides=2, padding="same")(convolution(image, width, 2))
    for stage in range(4):
        channels = width << stage
        if stage > 0:
            x = convolution(x, channels, 2)
        for _ in range(depth):
            x = convolution(x, channels, 1)
    x = layers.Dense(100)(layers.GlobalAveragePooling2D()(x))
    return graph_of_model(keras.Model(image, x), f"sparta_sequential_{input_size}")
