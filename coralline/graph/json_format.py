"""`coralline.graph/v1`: a ComputeGraph as JSON.

    {"schema": "coralline.graph/v1", "name": "...",
     "nodes": [{"name", "op", "param_bytes", "macs", "output_bytes", "compute_ms"?,
                "tensor_bytes"?}],
     "edges": [[producer, consumer], ...],
     "inputs"?: [{"bytes", "consumers"}], "outputs"?: [[node, tensor of the node], ...]}

A node has one output tensor of `output_bytes` unless it lists several in `tensor_bytes`; an
edge then has a third number, the index in that list. `op`, `macs` and `output_bytes` default
to "", 0 and 0. Without `outputs`, the tensors that nobody reads are the outputs. A file
without `schema` is read as v1.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from coralline.errors import UserError, parse_json, read_text
from coralline.files import write_text
from coralline.graph.compute_graph import MODEL_INPUT, ComputeGraph

SCHEMA = "coralline.graph/v1"


def read_json(path: Path) -> ComputeGraph:
    """Read a graph JSON file.

    Raises:
        UserError: The file is missing, is not JSON, or breaks the schema; names file and node.
    """
    data = parse_json(read_text(path, "a graph JSON file"), str(path))
    try:
        return from_json(data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def write_json(graph: ComputeGraph, path: Path) -> None:
    """Write a graph JSON file, whole or not at all."""
    write_text(path, json.dumps(to_json(graph)) + "\n")


def to_json(graph: ComputeGraph) -> dict[str, Any]:
    """The graph as a JSON object; `from_json` gives an equal graph back."""
    own: list[list[int]] = [[] for _ in range(graph.n_nodes)]
    slot = [0] * graph.n_tensors
    inputs, edges, outputs, plain_outputs = [], [], [], True
    for t, producer in enumerate(graph.tensor_producer.tolist()):
        if producer != MODEL_INPUT:
            slot[t] = len(own[producer])
            own[producer].append(t)
    for t, producer in enumerate(graph.tensor_producer.tolist()):
        readers = graph.consumers[graph.consumer_start[t] : graph.consumer_start[t + 1]].tolist()
        is_output = bool(graph.tensor_is_output[t])
        plain_outputs &= is_output == (not readers)
        if producer == MODEL_INPUT:
            inputs.append({"bytes": int(graph.tensor_bytes[t]), "consumers": readers})
            if is_output:
                outputs.append([MODEL_INPUT, len(inputs) - 1])
            continue
        several = len(own[producer]) > 1
        edges += [[producer, r, slot[t]] if several else [producer, r] for r in readers]
        if is_output:
            outputs.append([producer, slot[t]])
    nodes = []
    for i, tensors in enumerate(own):
        node: dict[str, Any] = {
            "name": graph.node_names[i],
            "op": graph.ops[i],
            "param_bytes": int(graph.param_bytes[i]),
            "macs": int(graph.macs[i]),
            "output_bytes": int(graph.output_bytes[i]),
        }
        if not math.isnan(graph.compute_ms[i]):
            node["compute_ms"] = float(graph.compute_ms[i])
        if len(tensors) > 1:
            node["tensor_bytes"] = graph.tensor_bytes[tensors].tolist()
        nodes.append(node)
    data: dict[str, Any] = {"schema": SCHEMA, "name": graph.name, "nodes": nodes, "edges": edges}
    if inputs:
        data["inputs"] = inputs
    if not plain_outputs:
        data["outputs"] = outputs
    return data


def from_json(data: Any) -> ComputeGraph:
    """The graph that a JSON object describes.

    Tensors are numbered: the model's inputs first, then node by node.

    Raises:
        UserError: Names the node or edge that breaks the schema.
    """
    if not isinstance(data, dict):
        raise UserError("a graph is a JSON object with `nodes` and `edges`")
    if data.get("schema", SCHEMA) != SCHEMA:
        raise UserError(f"schema {data['schema']!r} is not known; this version reads {SCHEMA}")
    nodes = _list(data, "nodes")
    inputs = _list(data, "inputs") if "inputs" in data else []
    producer, size, readers, first = [], [], [], []
    for i, item in enumerate(inputs):
        where = f"inputs[{i}]"
        producer.append(MODEL_INPUT)
        size.append(_integer(_object(item, where), "bytes", where, 0))
        readers.append(
            [_index(v, f"{where}.consumers", len(nodes)) for v in _list(item, "consumers")]
        )
    names, ops, params, macs, compute = [], [], [], [], []
    for i, node in enumerate(nodes):
        where = f"nodes[{i}]"
        names.append(_string(_object(node, where), "name", where, f"n{i}"))
        where = f"nodes[{i}] ({names[-1]!r})"
        ops.append(_string(node, "op", where, ""))
        params.append(_integer(node, "param_bytes", where, 0))
        macs.append(_integer(node, "macs", where, 0))
        compute.append(_milliseconds(node, where))
        sizes = (
            [
                _integer({"k": v}, "k", f"{where}.tensor_bytes", 0)
                for v in _list(node, "tensor_bytes")
            ]
            if "tensor_bytes" in node
            else [_integer(node, "output_bytes", where, 0)]
        )
        first.append(len(size))
        size += sizes
        producer += [i] * len(sizes)
        readers += [[] for _ in sizes]
    first.append(len(size))
    for i, edge in enumerate(_list(data, "edges")):
        if not isinstance(edge, list) or len(edge) not in (2, 3):
            raise UserError(
                f"edges[{i}]: an edge is [producer, consumer] or [producer, consumer, k]"
            )
        u, v = (_index(x, f"edges[{i}]", len(nodes)) for x in edge[:2])
        if u == v:
            raise UserError(f"edges[{i}]: node {u} ({names[u]!r}) reads its own output; remove it")
        k = _index(edge[2], f"edges[{i}]", first[u + 1] - first[u]) if len(edge) == 3 else 0
        readers[first[u] + k].append(v)
    is_output = None
    if "outputs" in data:
        is_output = np.zeros(len(size), bool)
        for i, pair in enumerate(_list(data, "outputs")):
            if not isinstance(pair, list) or len(pair) != 2:
                raise UserError(f"outputs[{i}]: an output is [node, tensor of the node]")
            if pair[0] == MODEL_INPUT:
                is_output[_index(pair[1], f"outputs[{i}]", len(inputs))] = True
                continue
            u = _index(pair[0], f"outputs[{i}]", len(nodes))
            is_output[first[u] + _index(pair[1], f"outputs[{i}]", first[u + 1] - first[u])] = True
    return ComputeGraph.build(
        _string(data, "name", "graph", "graph"),
        node_names=names,
        ops=ops,
        param_bytes=params,
        macs=macs,
        compute_ms=compute,
        tensor_bytes=size,
        tensor_producer=producer,
        consumers=readers,
        tensor_is_output=is_output,
    )


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: is not a JSON object")
    return value


def _list(data: dict[str, Any], key: str) -> list[Any]:
    value = data.get(key)
    if not isinstance(value, list):
        raise UserError(f"`{key}` is {'missing' if value is None else 'not a list'}")
    return value


def _string(data: dict[str, Any], key: str, where: str, default: str) -> str:
    value = data.get(key, default)
    if not isinstance(value, str):
        raise UserError(f"{where}: {key} is not a string")
    return value


def _integer(data: dict[str, Any], key: str, where: str, default: int) -> int:
    value = data.get(key, default)
    whole = isinstance(value, float) and value.is_integer()
    if isinstance(value, bool) or not (isinstance(value, int) or whole):
        raise UserError(f"{where}: {key} is {value!r}, not a whole number")
    # The limit keeps every sum over a graph inside int64.
    if not 0 <= value < 2**48:
        raise UserError(f"{where}: {key} is {value!r}; it must be 0 or more and below 2^48")
    return int(value)


def _milliseconds(node: dict[str, Any], where: str) -> float:
    value = node.get("compute_ms")
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{where}: compute_ms is {value!r}, not a number")
    # The limit, eleven days, keeps every sum over a graph finite.
    if not 0 <= value < 1e9:
        raise UserError(f"{where}: compute_ms is {value!r}; it must be 0 or more and below 1e9")
    return float(value)


def _index(value: Any, where: str, n: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < n:
        raise UserError(f"{where}: {value!r} is not an index from 0 to {n - 1}")
    return value
