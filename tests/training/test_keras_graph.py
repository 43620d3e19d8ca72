from __future__ import annotations

import numpy as np
import pytest

from coralline.devices.check import published_error
from coralline.devices.model import load_device
from coralline.errors import UserError
from coralline.graph.compute_graph import MODEL_INPUT
from training.device_check import fit, predict
from training.keras_graph import graph_of_model, keras_graph
from training.quiet import load_keras


def test_every_kind_of_layer_costs_what_it_becomes() -> None:
    keras = load_keras()
    layers = keras.layers
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv")(image)
    x = layers.BatchNormalization(name="folded")(x)
    x = layers.ReLU(name="relu")(x)
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Add(name="add")([x, y])
    x = layers.BatchNormalization(name="alone")(x)
    x = layers.SeparableConv2D(6, 3, padding="valid", name="separable")(x)
    x = layers.Activation("sigmoid", name="sigmoid")(x)
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.Conv2DTranspose(5, 2, strides=2, name="transpose")(x)
    x = layers.Conv2D(10, 1, groups=5, name="grouped")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    x = layers.Dense(7, name="dense")(x)
    graph = graph_of_model(keras.Model(image, x), "toy")
    at = {name: i for i, name in enumerate(graph.node_names)}
    expected = {  # MACs or elements, parameter bytes, output bytes
        "conv": (8 * 8 * 4 * 27, 4 * 27 + 16, 256),
        "folded": (0, 0, 256),
        "relu": (0, 0, 256),
        "depthwise": (8 * 8 * 4 * 9, 36 + 16, 256),
        "add": (256, 0, 256),
        "alone": (512, 8, 256),
        "separable": (36 * (36 + 24), 36 + 24 + 16 + 24, 216),
        "sigmoid": (216, 0, 216),
        "pool": (54 * 4, 0, 54),
        "transpose": (54 * 4 * 5, 6 * 4 * 5 + 20, 180),
        "grouped": (360, 10 + 40, 360),
        "mean": (360, 0, 10),
        "dense": (70, 70 + 28, 7),
    }
    found = {
        name: (int(graph.macs[i]), int(graph.param_bytes[i]), int(graph.output_bytes[i]))
        for name, i in at.items()
    }
    assert found == expected
    assert graph.ops[at["separable"]] == "SeparableConv2D"
    assert [at["relu"], at["add"]] in graph.edges.tolist()
    assert graph.tensor_bytes[graph.tensor_producer == MODEL_INPUT].tolist() == [8 * 8 * 3]
    assert graph.tensor_producer[graph.tensor_is_output].tolist() == [at["dense"]]


def test_mobilenet_is_the_published_one() -> None:
    graph = keras_graph("mobilenet")
    kinds = np.array(graph.ops)
    arithmetic = np.isin(kinds, ["Conv2D", "DepthwiseConv2D", "Dense"])
    # 569 million multiply-adds and 4.2 million parameters (Howard et al., arXiv 1704.04861).
    assert round(graph.macs[arithmetic].sum() / 1e6) == 569
    assert round(graph.param_bytes.sum() / 1e6, 1) == 4.3
    assert keras_graph("mobilenet", 192).name == "mobilenet_192"


def test_hrnet_is_the_published_one() -> None:
    graph = keras_graph("hrnet_w32")
    # 41.2 million parameters (arXiv 1908.07919, appendix A); biases take 4 bytes here.
    assert 41.2 < graph.param_bytes.sum() / 1e6 < 41.4
    # A module of b branches brings each tensor up to all finer resolutions.
    assert graph.ops.count("UpSampling2D") == 1 * 1 + 4 * 3 + 3 * 6
    with pytest.raises(UserError, match="multiples of 32; its own size is 224"):
        keras_graph("hrnet_w32", 100)


def test_operations_that_are_no_layers_have_a_place() -> None:
    graph = keras_graph("convnext_tiny")
    assert graph.ops.count("Add") == 18
    # 28.6 million parameters (Liu et al., arXiv 2201.03545); biases take 4 bytes here.
    assert 28.5 < graph.param_bytes.sum() / 1e6 < 28.8


def test_the_stored_predictions_and_fitted_constants_can_be_made_again() -> None:
    for name in ("edgetpu-usb", "edgetpu-pcie"):
        device = load_device(name)
        for p in published_error(name).predictions:
            if p.figure.fitted:
                assert predict(device, p.figure) == pytest.approx(p.predicted, rel=1e-9)
        constants = fit()
        assert device.op_overhead_ms == pytest.approx(constants["op_overhead_ms"], rel=0.01)
        assert device.macs_per_ms["elementwise"] == pytest.approx(
            constants["elementwise"], rel=0.01
        )


def test_wrong_names_and_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="'alexnet' is not in the zoo; choose"):
        keras_graph("alexnet")
    with pytest.raises(UserError, match="its own size is 299"):
        keras_graph("inception_v3", 10)
