"""Makes the small .tflite models beside this file: `python tests/data/make_models.py`.

small_int8.tflite     convolutions, a residual skip, a concatenation, an input that is read late,
                      three outputs of which one is read again inside
small_float.tflite    the same network in float32
small_float16.tflite  the same with float16 constants, each behind a DEQUANTIZE
dynamic.tflite        batch size left open
while.tflite          a WHILE loop
signatures.tflite     two signatures, hence two subgraphs
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

SIDE = 16
FOLDER = Path(__file__).parent


def network(batch: int | None) -> keras.Model:
    image = keras.Input(batch_shape=(batch, SIDE, SIDE, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu6")(image)
    skip = x
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu")(x)
    x = layers.Conv2D(8, 1)(x)
    x = layers.Add()([x, skip])
    early = layers.MaxPooling2D(2)(x)
    branch = layers.Conv2D(4, 3, padding="same", activation="relu")(early)
    late = layers.AveragePooling2D(4)(image)
    x = layers.Concatenate()([early, branch, late])
    x = layers.Conv2DTranspose(6, 3, strides=2, padding="same")(x)
    x = layers.Multiply()([x, layers.Activation("sigmoid")(x)])
    pooled = layers.GlobalAveragePooling2D()(x)
    scores = layers.Dense(5, activation="softmax")(pooled)
    return keras.Model(image, [scores, early, pooled])


def frozen(model: keras.Model, batch: int | None) -> tf.lite.TFLiteConverter:
    traced = tf.function(lambda image: model(image, training=False)).get_concrete_function(
        tf.TensorSpec((batch, SIDE, SIDE, 3), name="image")
    )
    return tf.lite.TFLiteConverter.from_concrete_functions(
        [convert_variables_to_constants_v2(traced)]
    )


class Loop(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((1, 4))])
    def double_until_large(self, x: tf.Tensor) -> tf.Tensor:
        return tf.while_loop(lambda y: tf.reduce_sum(y) < 100.0, lambda y: (y * 2.0,), [x])[0]


class TwoSignatures(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((1, 4))])
    def encode(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.relu(x) * 3.0

    @tf.function(input_signature=[tf.TensorSpec((1, 4))])
    def decode(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.tanh(x) + 1.0


def main() -> None:
    keras.utils.set_random_seed(0)
    model = network(1)
    images = np.random.default_rng(0).normal(size=(16, 1, SIDE, SIDE, 3)).astype(np.float32)

    int8 = frozen(model, 1)
    int8.optimizations = [tf.lite.Optimize.DEFAULT]
    int8.representative_dataset = lambda: ([image] for image in images)
    int8.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    int8.inference_input_type = int8.inference_output_type = tf.int8
    int8._experimental_disable_per_channel_quantization_for_dense_layers = True

    float16 = frozen(model, 1)
    float16.optimizations = [tf.lite.Optimize.DEFAULT]
    float16.target_spec.supported_types = [tf.float16]

    loop, two = Loop(), TwoSignatures()
    saved = FOLDER / ".two"
    tf.saved_model.save(
        two,
        str(saved),
        signatures={
            "encode": two.encode.get_concrete_function(),
            "decode": two.decode.get_concrete_function(),
        },
    )
    two_converter = tf.lite.TFLiteConverter.from_saved_model(str(saved))
    converters = {
        "small_int8": int8,
        "small_float": frozen(model, 1),
        "small_float16": float16,
        "dynamic": frozen(network(None), None),
        "while": tf.lite.TFLiteConverter.from_concrete_functions(
            [loop.double_until_large.get_concrete_function()], loop
        ),
        "signatures": two_converter,
    }
    for name, converter in converters.items():
        path = FOLDER / f"{name}.tflite"
        path.write_bytes(converter.convert())
        print(path.name, path.stat().st_size, file=sys.stderr)
    tf.io.gfile.rmtree(str(saved))


if __name__ == "__main__":
    main()
