"""int8 .tflite models of the Keras applications and of HRNet, without trained weights.

What a model costs depends on its shape, not on what it has learnt, so the weights are random but
seeded. They are made to behave like trained ones where it matters for quantisation: the
statistics of every batch normalisation come from the representative images, and the classifier is
scaled so that its answers differ between images.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from coralline.errors import DeviceError, UserError
from coralline.files import make_folder, write_bytes
from training.hrnet import hrnet
from training.quiet import load_keras, silenced

APPLICATIONS = {
    "convnext_tiny": ("ConvNeXtTiny", 224),
    "densenet121": ("DenseNet121", 224),
    "densenet169": ("DenseNet169", 224),
    "densenet201": ("DenseNet201", 224),
    "efficientnet_b0": ("EfficientNetB0", 224),
    "efficientnet_b1": ("EfficientNetB1", 240),
    "efficientnet_b2": ("EfficientNetB2", 260),
    "efficientnet_b3": ("EfficientNetB3", 300),
    "efficientnet_b4": ("EfficientNetB4", 380),
    "efficientnet_v2_b0": ("EfficientNetV2B0", 224),
    "efficientnet_v2_b1": ("EfficientNetV2B1", 240),
    "efficientnet_v2_b2": ("EfficientNetV2B2", 260),
    "efficientnet_v2_b3": ("EfficientNetV2B3", 300),
    "efficientnet_v2_s": ("EfficientNetV2S", 384),
    "hrnet_w32": ("HRNetW32", 224),
    "inception_resnet_v2": ("InceptionResNetV2", 299),
    "inception_v3": ("InceptionV3", 299),
    "mobilenet": ("MobileNet", 224),
    "mobilenet_v2": ("MobileNetV2", 224),
    "mobilenet_v3_large": ("MobileNetV3Large", 224),
    "mobilenet_v3_small": ("MobileNetV3Small", 224),
    "nasnet_large": ("NASNetLarge", 331),
    "nasnet_mobile": ("NASNetMobile", 224),
    "resnet50": ("ResNet50", 224),
    "resnet50_v2": ("ResNet50V2", 224),
    "resnet101": ("ResNet101", 224),
    "resnet101_v2": ("ResNet101V2", 224),
    "resnet152": ("ResNet152", 224),
    "resnet152_v2": ("ResNet152V2", 224),
    "vgg16": ("VGG16", 224),
    "vgg19": ("VGG19", 224),
    "xception": ("Xception", 299),
}
"""Name: constructor, in keras.applications but for HRNet, and side of its square input in
pixels."""

RECIPE_VERSION = 1
"""Raise it when the same recipe gives another file."""

LOGIT_SPREAD = 3.0
"""Standard deviation of the logits; with 1 or less an int8 softmax rounds 1000 classes to 0."""

_PIXEL_INPUT = ("ConvNeXt", "EfficientNet", "MobileNetV3")
"""Applications that scale pixels of 0 to 255 themselves; the others take -1 to 1."""


@dataclass(frozen=True)
class Recipe:
    """All that decides the content of a model file.

    Attributes:
        input_size: Side of the square input in pixels.
        io_type: Of the model's input and output; `uint8` adds two QUANTIZE operators.
        images: Number of representative images.
    """

    name: str
    input_size: int
    seed: int = 0
    io_type: Literal["int8", "uint8"] = "int8"
    images: int = 8

    @property
    def digest(self) -> str:
        """SHA-256 over the recipe and the versions of what follows it."""
        made_by = {
            "recipe": RECIPE_VERSION,
            "keras": version("keras"),
            "tensorflow": version("tensorflow-cpu"),
        }
        return hashlib.sha256(json.dumps([asdict(self), made_by]).encode()).hexdigest()

    @property
    def file_name(self) -> str:
        """The model's name, with its input size where that is not the usual one."""
        usual = self.input_size == APPLICATIONS[self.name][1]
        return f"{self.name}.tflite" if usual else f"{self.name}_{self.input_size}.tflite"


def zoo_names() -> tuple[str, ...]:
    """Names that `build_model` knows."""
    return tuple(APPLICATIONS)


def cache_folder() -> Path:
    """Where built models are kept: $CORALLINE_CACHE, or ~/.cache/coralline."""
    return Path(os.environ.get("CORALLINE_CACHE") or Path.home() / ".cache" / "coralline")


def new_model(name: str, input_size: int | None = None) -> Any:
    """The Keras model of a name, with random weights: nothing is fetched.

    Raises:
        UserError: Unknown name, or an input size it cannot take.
    """
    if name not in APPLICATIONS:
        raise UserError(f"model {name!r} is not in the zoo; choose {', '.join(zoo_names())}")
    constructor, usual = APPLICATIONS[name]
    size = usual if input_size is None else input_size
    shape = (size, size, 3)
    keras = load_keras()
    try:
        if constructor == "HRNetW32":
            return hrnet(32, shape)
        return getattr(keras.applications, constructor)(weights=None, input_shape=shape)
    except ValueError as error:
        raise UserError(
            f"{name} with input size {size}: {error}; its own size is {usual}"
        ) from None


def build_model(
    name: str,
    folder: Path,
    *,
    input_size: int | None = None,
    seed: int = 0,
    io_type: Literal["int8", "uint8"] = "int8",
) -> Path:
    """Write the int8 .tflite of a model of the zoo into `folder`.

    Fixed batch of 1; one scale per Dense layer, as older runtimes and edgetpu_compiler read it.
    A model built before, by the same recipe, comes from the cache without TensorFlow.

    Args:
        name: One of `zoo_names()`.
        input_size: Side of the square input in pixels; None for the application's own.
        seed: Of weights and representative images.

    Returns:
        The path of the file.

    Raises:
        UserError: Unknown name, an input the application cannot take, or an unwritable folder.
        DeviceError: The converter failed.
    """
    if name not in APPLICATIONS:
        raise UserError(f"model {name!r} is not in the zoo; choose {', '.join(zoo_names())}")
    if io_type not in ("int8", "uint8"):
        raise UserError(f"input and output type {io_type!r}: choose int8 or uint8")
    size = APPLICATIONS[name][1] if input_size is None else input_size
    if size < 1:
        raise UserError(f"input size {size}: it is the side of the image in pixels")
    recipe = Recipe(name, size, seed, io_type)
    path = make_folder(folder) / recipe.file_name
    cached = cache_folder() / "zoo" / f"{recipe.digest}.tflite"
    if not cached.is_file():
        with silenced():
            data = _build(recipe)
        write_bytes(cached, data)
    write_bytes(path, cached.read_bytes())
    return path


def _build(recipe: Recipe) -> bytes:
    keras = load_keras()
    keras.utils.set_random_seed(recipe.seed)
    model = new_model(recipe.name, recipe.input_size)
    images = _images(recipe.images, recipe.input_size, recipe.seed)
    if not APPLICATIONS[recipe.name][0].startswith(_PIXEL_INPUT):
        images = images / np.float32(127.5) - np.float32(1)
    _settle(model, images)
    return _convert(model, images, recipe.io_type)


def _images(n: int, size: int, seed: int) -> NDArray[np.float32]:
    """float32 (n, size, size, 3), 0 to 255: smooth random fields with grain.

    White noise would look the same to a network everywhere, and so would every image of it.
    """
    from scipy.ndimage import zoom

    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (n, 8, 8, 3))
    smooth = zoom(coarse, (1, size / 8, size / 8, 1), order=1, grid_mode=True, mode="nearest")
    return np.clip(smooth + rng.normal(0, 16, smooth.shape), 0, 255).astype(np.float32)


def _settle(model: Any, images: NDArray[np.float32]) -> None:
    """Give random weights the statistics of a trained network on `images`."""
    import keras

    normalisations = [
        layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if normalisations:
        momenta = [layer.momentum for layer in normalisations]
        for layer in normalisations:
            layer.momentum = 0.0
        model(images, training=True)
        for layer, momentum in zip(normalisations, momenta, strict=True):
            layer.momentum = momentum
    # The softmax gives the logits back up to a constant, whatever layers end the network.
    logits = np.log(np.maximum(model(images, training=False).numpy(), 1e-30, dtype=np.float64))
    logits = logits.reshape(len(images), -1)
    logits -= logits.mean(axis=1, keepdims=True)
    common = logits.mean(axis=0)
    scale = LOGIT_SPREAD / (logits - common).std()
    last = [layer for layer in model.layers if hasattr(layer, "kernel")][-1]
    last.bias.assign((last.bias - common) * scale)
    last.kernel.assign(last.kernel * scale)


def _convert(model: Any, images: NDArray[np.float32], io_type: str) -> bytes:
    import tensorflow as tf

    shape = (1, *images.shape[1:])

    def infer(image: Any) -> Any:
        return model(image, training=False)

    # Not from_keras_model: its way through a saved model takes twice as long.
    traced = tf.function(infer).get_concrete_function(tf.TensorSpec(shape, name="image"))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None]] for image in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = getattr(tf, io_type)
    converter._experimental_disable_per_channel_quantization_for_dense_layers = True
    try:
        return bytes(converter.convert())
    except Exception as error:
        raise DeviceError(f"TensorFlow cannot convert {model.name}: {error}") from error
