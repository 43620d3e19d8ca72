"""HRNet, which keras.applications lacks: branches of several resolutions side by side.

After Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition",
arXiv 1908.07919: section 3 for the branches, the units and the fusion, appendix A for the
classification head. Every branch runs to the end, so a plan may interleave them in many orders;
the classic networks leave next to no choice.
"""

from __future__ import annotations

from typing import Any

from training.quiet import load_keras

MODULES = (1, 4, 3)
"""Modules of the stages with 2, 3 and 4 branches."""

UNITS = 4
"""Residual units of a branch in one module, and of the first stage."""

HEAD = (32, 64, 128, 256)
"""Width of the head's bottleneck units, a branch; they put out 4 times as many channels."""


def hrnet(width: int, input_shape: tuple[int, int, int]) -> Any:
    """A functional Keras model of HRNet-W`width` for 1000 classes, with random weights.

    Raises:
        ValueError: The sides of the image are no multiples of 32.
    """
    if any(side < 32 or side % 32 for side in input_shape[:2]):
        raise ValueError("the sides of the image must be multiples of 32")
    keras = load_keras()
    layers = keras.layers

    def conv(x: Any, channels: int, kernel: int, strides: int = 1, relu: bool = True) -> Any:
        x = layers.Conv2D(channels, kernel, strides, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        return layers.ReLU()(x) if relu else x

    def unit(x: Any, channels: int) -> Any:
        """Two 3x3 convolutions around a skip."""
        y = conv(conv(x, channels, 3), channels, 3, relu=False)
        return layers.ReLU()(layers.Add()([x, y]))

    def bottleneck(x: Any, channels: int) -> Any:
        """1x1, 3x3 and 1x1 convolutions around a skip, projected where the width changes."""
        y = conv(conv(conv(x, channels, 1), channels, 3), 4 * channels, 1, relu=False)
        if x.shape[-1] != 4 * channels:
            x = conv(x, 4 * channels, 1, relu=False)
        return layers.ReLU()(layers.Add()([x, y]))

    def carry(x: Any, source: int, target: int) -> Any:
        """A branch's tensor at the resolution and width of another branch."""
        if source > target:
            x = conv(x, width << target, 1, relu=False)
            return layers.UpSampling2D(2 ** (source - target), interpolation="nearest")(x)
        for step in range(source + 1, target + 1):
            last = step == target
            x = conv(x, width << (target if last else source), 3, 2, relu=not last)
        return x

    image = keras.Input(input_shape)
    x = conv(conv(image, 64, 3, 2), 64, 3, 2)
    for _ in range(UNITS):
        x = bottleneck(x, 64)
    branches = [conv(x, width, 3)]
    for modules in MODULES:
        branches.append(conv(x, width << len(branches), 3, 2))
        for _ in range(modules):
            for i in range(len(branches)):
                for _ in range(UNITS):
                    branches[i] = unit(branches[i], width << i)
            branches = [
                layers.ReLU()(layers.Add()([carry(b, j, i) for j, b in enumerate(branches)]))
                for i in range(len(branches))
            ]
        x = branches[-1]
    x = bottleneck(branches[0], HEAD[0])
    for branch, channels in zip(branches[1:], HEAD[1:], strict=True):
        x = layers.Add()([bottleneck(branch, channels), conv(x, 4 * channels, 3, 2)])
    x = layers.GlobalAveragePooling2D()(conv(x, 2048, 1))
    x = layers.Dense(1000, activation="softmax")(x)
    return keras.Model(image, x, name=f"hrnet_w{width}")
