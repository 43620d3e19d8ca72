"""The policy network in TensorFlow, for training; coralline.staging.policy runs it without.

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

    Graphs of a batch have the same number of nodes; B graphs, V nodes, S orders a graph.
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

    def project(self, batch: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, ...]:
        """As coralline.staging.policy.project, for a batch: the parts that vary by graph."""
        w = self.variables
        h = self.encode(batch["features"], batch["before"], batch["after"])
        return (
            h @ w["key"] / self.hidden**0.5,
            h @ w["query.last"],
            h @ w["query.chosen"],
            tf.reduce_mean(h, axis=1) @ w["query.graph"] + w["query.b"],
        )

    def log_policy(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Log-probability of every choice at every step, float32 (B, S, V, V).

        Args:
            batch: What `encode` reads, and of the orders `order` int32 (B, S, V), `context`,
                `dynamic` and `ready` as in coralline.staging.policy.Rollouts.
        """
        w = self.variables
        keys, last, chosen, graph = self.project(batch)
        order = batch["order"]
        n = tf.shape(order)[2]
        taken_last = tf.gather(last, order[:, :, :-1], batch_dims=1)
        shape = tf.shape(taken_last)
        first = tf.broadcast_to(w["query.start"], [shape[0], shape[1], 1, shape[3]])
        summed = tf.cumsum(tf.gather(chosen, order, batch_dims=1), axis=2, exclusive=True)
        steps = tf.cast(tf.maximum(tf.range(n), 1), tf.float32)[:, None]
        query = tf.nn.relu(
            tf.concat([first, taken_last], axis=2)
            + summed / steps
            + graph[:, None, None, :]
            + batch["context"] @ w["query.context"]
        )
        score = tf.einsum("bsth,bvh->bstv", query, keys)
        score += tf.einsum("bstd,bstvd->bstv", query @ w["dynamic"], batch["dynamic"])
        score = CLIP * tf.tanh(score / CLIP)
        return tf.nn.log_softmax(tf.where(batch["ready"], score, -1e9), axis=-1)


def _initial(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    if name.endswith((".b", ".start")):
        return np.zeros(shape, np.float32)
    # Small scores at the start: an untrained policy is close to uniform over ready nodes.
    gain = 0.1 if name in ("key", "dynamic") else 1.0
    return (gain * rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def _normal(h: tf.Tensor) -> tf.Tensor:
    centred = h - tf.reduce_mean(h, axis=-1, keepdims=True)
    return centred / tf.sqrt(tf.reduce_mean(centred**2, axis=-1, keepdims=True) + 1e-5)
