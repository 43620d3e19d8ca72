"""The policy network in TensorFlow, for training; coralline.staging.decoder runs it without.

Import this module inside functions only: it loads TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from coralline.staging.policy import CLIP, Arrays, weight_shapes


class Network:
    """Weights and the two computations on them: projections and log-probabilities.

    Graphs of a batch have the same number of nodes; B graphs, V nodes, S decodings of L steps
    a graph, N candidates in all steps together.
    """

    def __init__(self, hidden: int, layers: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.hidden, self.layers = hidden, layers
        self.variables = {
            name: tf.Variable(_initial(name, shape, rng), name=name.replace(".", "_"))
            for name, shape in weight_shapes(hidden, layers).items()
        }

    def weights(self) -> Arrays:
        """A copy of the weights, float32."""
        return {name: variable.numpy() for name, variable in self.variables.items()}

    def assign(self, weights: Arrays) -> None:
        """Take over weights of the same shapes."""
        for name, variable in self.variables.items():
            variable.assign(weights[name])

    def encode(self, features: tf.Tensor, before: tf.Tensor, after: tf.Tensor) -> tf.Tensor:
        """Node embeddings, float32 (B, V, H).

        Args:
            features: float32 (B, V, N_FEATURES).
            before, after: float32 (B, V, V): rows average over predecessors and successors.
        """
        w = self.variables
        h = _normal(tf.nn.relu(features @ w["input.w"] + w["input.b"]))
        for i in range(self.layers):
            update = (
                h @ w[f"layer{i}.self"]
                + (before @ h) @ w[f"layer{i}.predecessors"]
                + (after @ h) @ w[f"layer{i}.successors"]
                + tf.reduce_mean(h, axis=1, keepdims=True) @ w[f"layer{i}.graph"]
                + w[f"layer{i}.b"]
            )
            h = _normal(h + tf.nn.relu(update))
        return h

    def project(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What varies by graph in coralline.staging.decoder.Projection, for a batch.

        `log_target` (B,) is the logarithm of `target_ms` in units of the bound from work.
        """
        w = self.variables
        h = self.encode(batch["features"], batch["before"], batch["after"])
        mean = tf.reduce_mean(h, axis=1)

        def with_row(x: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
            return tf.concat([x, tf.broadcast_to(row, [tf.shape(x)[0], 1, x.shape[2]])], axis=1)

        return {
            "key": with_row(h @ w["key"], w["key.close"]) / self.hidden**0.5,
            "last": with_row(h @ w["query.last"], w["query.start"]),
            "chosen": with_row(h @ w["query.chosen"], tf.zeros(self.hidden)),
            "part": with_row(h @ w["hidden.node"], w["hidden.close"]),
            "graph": mean @ w["query.graph"] + w["query.b"],
            "log_target": tf.linalg.matvec(mean, w["target.w"]) + w["target.b"],
        }

    def log_policy(
        self, batch: Mapping[str, tf.Tensor], projection: Mapping[str, tf.Tensor]
    ) -> tf.Tensor:
        """Log-probability, in every step, of taking one of the good candidates; (B, S, L).

        Args:
            batch: What `encode` reads, and of coralline.staging.decoder.Record all, for the
                whole batch: `step` counts through all decodings of all graphs.
        """
        w = self.variables
        taken, previous = batch["taken"], batch["previous"]
        n = tf.shape(batch["features"])[1]
        shape = tf.shape(taken)
        is_node = (taken >= 0) & (taken < n)
        count = tf.cumsum(tf.cast(is_node, tf.float32), axis=2, exclusive=True)
        chosen = tf.gather(projection["chosen"], tf.where(is_node, taken, n), batch_dims=1)
        mean = tf.cumsum(chosen, axis=2, exclusive=True) / tf.maximum(count, 1.0)[..., None]
        query = tf.nn.relu(
            tf.gather(projection["last"], previous, batch_dims=1)
            + mean
            + projection["graph"][:, None, None, :]
            + batch["context"] @ w["query.context"]
        )
        n_steps = tf.size(taken)
        query = tf.reshape(query, [shape[0], shape[1] * shape[2], self.hidden])
        products = tf.reshape(tf.matmul(query, projection["key"], transpose_b=True), [-1])
        step, node = batch["step"], batch["node"]
        graph = step // (shape[1] * shape[2])
        part = tf.reshape(projection["part"], [-1, projection["part"].shape[2]])
        base = tf.reshape(query @ w["hidden.query"], [n_steps, -1])
        hidden = tf.nn.relu(
            tf.gather(base, step)
            + tf.gather(part, graph * (n + 1) + node)
            + batch["dynamic"] @ w["hidden.dynamic"]
        )
        score = tf.gather(products, step * (n + 1) + node)
        score += tf.linalg.matvec(hidden, w["hidden.out"])
        weight = tf.exp(CLIP * tf.tanh(score / CLIP) - CLIP)
        mass = tf.math.unsorted_segment_sum(weight, step, n_steps)
        good = tf.math.unsorted_segment_sum(weight * batch["good"], step, n_steps)
        real = tf.reshape(taken >= 0, [-1])
        chance = tf.where(real, good, 1.0) / tf.where(real, mass, 1.0)
        return tf.reshape(tf.math.log(chance), shape)


def _initial(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    if name.endswith((".b", ".start", ".close")) or name.startswith("target"):
        return np.zeros(shape, np.float32)
    # Small scores at the start: an untrained policy is close to uniform over the candidates.
    gain = 0.1 if name in ("key", "hidden.out") else 1.0
    return (gain * rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def _normal(h: tf.Tensor) -> tf.Tensor:
    centred = h - tf.reduce_mean(h, axis=-1, keepdims=True)
    return centred / tf.sqrt(tf.reduce_mean(centred**2, axis=-1, keepdims=True) + 1e-5)
