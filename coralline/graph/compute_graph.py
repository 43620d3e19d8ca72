"""ComputeGraph: operators, the tensors between them, and what each costs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coralline.errors import UserError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MODEL_INPUT = -1
"""The producer of a tensor that the caller of the model provides."""


@dataclass(frozen=True, eq=False)
class ComputeGraph:
    """A directed acyclic graph of operators and tensors. Immutable.

    V operators (nodes), T tensors. Build one with `ComputeGraph.build`, which validates.

    A producer has a smaller number than its consumers only if the source had it so; use
    `topological_order`.

    Attributes:
        name: Of the model.
        node_names: V names, for people and for messages.
        ops: V operator types (`CONV_2D`, `Conv2D`, ...); empty where unknown.
        param_bytes: int64 (V,): constants the operator owns. A constant shared by several
            operators counts for the first of them only.
        macs: int64 (V,): multiply-accumulates for one inference.
        compute_ms: float64 (V,): a measured time that overrides the device model; NaN without one.
        tensor_bytes: int64 (T,).
        tensor_producer: int64 (T,): the node that writes the tensor, or MODEL_INPUT.
        consumer_start: int64 (T + 1,): tensor t is read by
            `consumers[consumer_start[t]:consumer_start[t + 1]]`, distinct nodes in rising order.
        consumers: int64 (C,).
        tensor_is_output: bool (T,): whether the caller of the model gets the tensor.
    """

    name: str
    node_names: tuple[str, ...]
    ops: tuple[str, ...]
    param_bytes: Ints
    macs: Ints
    compute_ms: Floats
    tensor_bytes: Ints
    tensor_producer: Ints
    consumer_start: Ints
    consumers: Ints
    tensor_is_output: NDArray[np.bool_]

    @staticmethod
    def build(
        name: str,
        *,
        param_bytes: ArrayLike,
        tensor_bytes: ArrayLike,
        tensor_producer: ArrayLike,
        consumers: Sequence[Iterable[int]],
        node_names: Sequence[str] | None = None,
        ops: Sequence[str] | None = None,
        macs: ArrayLike | None = None,
        compute_ms: ArrayLike | None = None,
        tensor_is_output: ArrayLike | None = None,
    ) -> ComputeGraph:
        """Validate and freeze; tensors are renumbered by producer, the model's inputs first.

        Args:
            consumers: For each tensor the nodes that read it; repeats are dropped.
            tensor_is_output: Without it, the tensors that no node reads.

        Raises:
            UserError: Names the node or tensor that is wrong.
        """
        params = _frozen(param_bytes, np.int64)
        n = len(params)
        names = tuple(node_names) if node_names is not None else tuple(f"n{i}" for i in range(n))
        producer = np.asarray(tensor_producer, np.int64)
        if len(producer) != len(consumers):
            raise UserError(f"graph {name!r}: the tensor arrays differ in length")
        # One canonical numbering, so that a graph and its JSON have the same digest.
        canonical = np.argsort(producer, kind="stable")
        readers = [sorted(set(consumers[t])) for t in canonical]
        start = np.zeros(len(readers) + 1, np.int64)
        np.cumsum([len(r) for r in readers], out=start[1:])
        flat = np.fromiter((v for r in readers for v in r), np.int64, int(start[-1]))
        return ComputeGraph.from_arrays(
            name=name,
            node_names=names,
            ops=tuple(ops) if ops is not None else ("",) * n,
            param_bytes=params,
            macs=np.zeros(n) if macs is None else macs,
            compute_ms=np.full(n, np.nan) if compute_ms is None else compute_ms,
            tensor_bytes=np.asarray(tensor_bytes)[canonical],
            tensor_producer=producer[canonical],
            consumer_start=start,
            consumers=flat,
            tensor_is_output=(
                np.diff(start) == 0
                if tensor_is_output is None
                else np.asarray(tensor_is_output)[canonical]
            ),
        )

    @staticmethod
    def from_arrays(
        *,
        name: str,
        node_names: tuple[str, ...],
        ops: tuple[str, ...],
        param_bytes: ArrayLike,
        macs: ArrayLike,
        compute_ms: ArrayLike,
        tensor_bytes: ArrayLike,
        tensor_producer: ArrayLike,
        consumer_start: ArrayLike,
        consumers: ArrayLike,
        tensor_is_output: ArrayLike,
    ) -> ComputeGraph:
        """Copy, freeze and validate arrays that are as the attributes say.

        Tensors must be in the order of their producers, the model's inputs first, and the
        readers of a tensor distinct and rising; `build` sees to it.

        Raises:
            UserError: Names the node or tensor that is wrong.
        """
        graph = ComputeGraph(
            name=name,
            node_names=node_names,
            ops=ops,
            param_bytes=_frozen(param_bytes, np.int64),
            macs=_frozen(macs, np.int64),
            compute_ms=_frozen(compute_ms, float),
            tensor_bytes=_frozen(tensor_bytes, np.int64),
            tensor_producer=_frozen(tensor_producer, np.int64),
            consumer_start=_frozen(consumer_start, np.int64),
            consumers=_frozen(consumers, np.int64),
            tensor_is_output=_frozen(tensor_is_output, np.bool_),
        )
        graph._validate()
        return graph

    @property
    def n_nodes(self) -> int:
        """V."""
        return len(self.node_names)

    @property
    def n_tensors(self) -> int:
        """T."""
        return len(self.tensor_bytes)

    @cached_property
    def consumer_tensor(self) -> Ints:
        """int64 (C,): the tensor that each entry of `consumers` reads."""
        return _frozen(np.repeat(np.arange(self.n_tensors), np.diff(self.consumer_start)), np.int64)

    @cached_property
    def edges(self) -> Ints:
        """int64 (E, 2): distinct (producer, consumer) pairs in rising order."""
        producer = self.tensor_producer[self.consumer_tensor]
        inner = producer != MODEL_INPUT
        keys = np.unique(producer[inner] * self.n_nodes + self.consumers[inner])
        return _frozen(np.stack(np.divmod(keys, max(self.n_nodes, 1)), axis=1), np.int64)

    @cached_property
    def successors(self) -> tuple[tuple[int, ...], ...]:
        """For each node the nodes that read one of its tensors, rising."""
        return _adjacency(self.edges[:, 0], self.edges[:, 1], self.n_nodes)

    @cached_property
    def predecessors(self) -> tuple[tuple[int, ...], ...]:
        """For each node the nodes whose tensors it reads, rising."""
        return _adjacency(self.edges[:, 1], self.edges[:, 0], self.n_nodes)

    @cached_property
    def topological_order(self) -> Ints:
        """int64 (V,): producers before consumers; the smallest ready index first.

        For a .tflite model this is the file's own order.
        """
        order = self._sorted_prefix()
        if len(order) < self.n_nodes:
            raise UserError(f"graph {self.name!r}: cycle {self._a_cycle(order)}; remove an edge")
        return _frozen(order, np.int64)

    @cached_property
    def level(self) -> Ints:
        """int64 (V,): number of edges on the longest path from a node without predecessors."""
        level = [0] * self.n_nodes
        for v in self.topological_order.tolist():
            for w in self.successors[v]:
                level[w] = max(level[w], level[v] + 1)
        return _frozen(level, np.int64)

    @cached_property
    def output_bytes(self) -> Ints:
        """int64 (V,): bytes of all tensors that each node writes."""
        inner = self.tensor_producer != MODEL_INPUT
        return _frozen(
            np.bincount(
                self.tensor_producer[inner],
                weights=self.tensor_bytes[inner],
                minlength=self.n_nodes,
            ),
            np.int64,
        )

    @cached_property
    def activation_bytes(self) -> Ints:
        """int64 (V,): the largest tensor that each node reads or writes."""
        largest = np.zeros(self.n_nodes, np.int64)
        np.maximum.at(largest, self.consumers, self.tensor_bytes[self.consumer_tensor])
        inner = self.tensor_producer != MODEL_INPUT
        np.maximum.at(largest, self.tensor_producer[inner], self.tensor_bytes[inner])
        return _frozen(largest, np.int64)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, costs and structure: the identity a plan refers to.

        Measured operator times are left out: a plan made with them fits the model as it is.
        """
        digest = hashlib.sha256()
        for text in (self.name, *self.node_names, *self.ops):
            digest.update(text.encode() + b"\0")
        for array in (
            self.param_bytes,
            self.macs,
            self.tensor_bytes,
            self.tensor_producer,
            self.consumer_start,
            self.consumers,
            self.tensor_is_output,
        ):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ComputeGraph)
            and self.digest == other.digest
            and np.array_equal(self.compute_ms, other.compute_ms, equal_nan=True)
        )

    def __hash__(self) -> int:
        return hash(self.digest)

    def with_compute_ms(self, compute_ms: ArrayLike) -> ComputeGraph:
        """The same graph with measured operator times, float64 (V,), in ms."""
        graph = replace(self, compute_ms=_frozen(compute_ms, float))
        graph._validate()
        return graph

    def _validate(self) -> None:
        n, t = self.n_nodes, self.n_tensors
        where = f"graph {self.name!r}"
        if n == 0:
            raise UserError(f"{where}: has no operators")
        lengths = {
            "ops": len(self.ops),
            "param_bytes": len(self.param_bytes),
            "macs": len(self.macs),
            "compute_ms": len(self.compute_ms),
        }
        for field, length in lengths.items():
            if length != n:
                raise UserError(f"{where}: {field} has {length} entries for {n} operators")
        if not (
            len(self.tensor_producer) == len(self.tensor_is_output) == len(self.consumer_start) - 1
            and len(self.tensor_producer) == t
        ):
            raise UserError(f"{where}: the tensor arrays differ in length")
        for field in ("param_bytes", "macs", "compute_ms"):
            bad = np.flatnonzero(getattr(self, field) < 0)
            if len(bad):
                raise UserError(f"{where}: {field} of {self._node(bad[0])} is negative")
        if np.isinf(self.compute_ms).any():
            bad = np.flatnonzero(np.isinf(self.compute_ms))
            raise UserError(f"{where}: compute_ms of {self._node(bad[0])} is infinite")
        if (self.tensor_bytes < 0).any():
            bad = np.flatnonzero(self.tensor_bytes < 0)
            raise UserError(f"{where}: tensor {bad[0]} has a negative size")
        bad = np.flatnonzero((self.tensor_producer < MODEL_INPUT) | (self.tensor_producer >= n))
        if len(bad):
            raise UserError(
                f"{where}: tensor {bad[0]} names producer {self.tensor_producer[bad[0]]}; "
                f"operators are numbered 0 to {n - 1}"
            )
        bad = np.flatnonzero((self.consumers < 0) | (self.consumers >= n))
        if len(bad):
            raise UserError(
                f"{where}: tensor {self.consumer_tensor[bad[0]]} names consumer "
                f"{self.consumers[bad[0]]}; operators are numbered 0 to {n - 1}"
            )
        silent = np.setdiff1d(np.arange(n), self.tensor_producer)
        if len(silent):
            raise UserError(f"{where}: {self._node(silent[0])} writes no tensor")
        _ = self.topological_order

    def _node(self, index: int) -> str:
        return f"node {index} ({self.node_names[index]!r})"

    def _sorted_prefix(self) -> list[int]:
        edges = self.edges
        missing = np.bincount(edges[:, 1], minlength=self.n_nodes)
        if (edges[:, 0] < edges[:, 1]).all():
            return list(range(self.n_nodes))
        import heapq

        waiting = missing.tolist()
        ready = np.flatnonzero(missing == 0).tolist()
        order = []
        while ready:
            v = heapq.heappop(ready)
            order.append(v)
            for w in self.successors[v]:
                waiting[w] -= 1
                if waiting[w] == 0:
                    heapq.heappush(ready, w)
        return order

    def _a_cycle(self, sorted_nodes: list[int]) -> str:
        left = set(range(self.n_nodes)) - set(sorted_nodes)
        # Every node left has a predecessor left, so walking back must repeat one.
        walk, v = [], min(left)
        while v not in walk:
            walk.append(v)
            v = next(u for u in self.predecessors[v] if u in left)
        cycle = [*walk[walk.index(v) :], v][::-1]
        return " -> ".join(self.node_names[u] for u in cycle)


def _adjacency(key: Ints, value: Ints, n: int) -> tuple[tuple[int, ...], ...]:
    rows: list[list[int]] = [[] for _ in range(n)]
    for k, v in zip(key.tolist(), value.tolist(), strict=True):
        rows[k].append(v)
    return tuple(map(tuple, rows))


def _frozen(values: ArrayLike, dtype: type) -> NDArray[Any]:
    array: NDArray[Any] = np.array(values, dtype=dtype)
    array.setflags(write=False)
    return array
