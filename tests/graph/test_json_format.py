from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from graph_strategies import graphs
from hypothesis import given

from coralline.errors import UserError
from coralline.graph import read_graph
from coralline.graph.compute_graph import MODEL_INPUT, ComputeGraph
from coralline.graph.json_format import from_json, to_json, write_json


@given(graphs(max_nodes=7))
def test_a_graph_survives_the_round_trip(graph: ComputeGraph) -> None:
    assert from_json(json.loads(json.dumps(to_json(graph)))) == graph
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.json"
        write_json(graph, path)
        assert read_graph(path) == graph


def test_what_may_be_left_out() -> None:
    graph = from_json({"nodes": [{"name": "a", "param_bytes": 3}, {}], "edges": [[0, 1]]})
    assert graph.name == "graph"
    assert graph.node_names == ("a", "n1") and graph.ops == ("", "")
    assert graph.macs.tolist() == [0, 0] and graph.tensor_bytes.tolist() == [0, 0]
    assert graph.tensor_is_output.tolist() == [False, True]


def test_several_tensors_inputs_and_outputs() -> None:
    graph = from_json(
        {
            "name": "g",
            "nodes": [
                {"name": "split", "tensor_bytes": [5, 7]},
                {"name": "end", "output_bytes": 2},
            ],
            "edges": [[0, 1, 1]],
            "inputs": [{"bytes": 11, "consumers": [0, 1]}],
            "outputs": [[0, 0], [0, 1], [1, 0]],
        }
    )
    assert graph.tensor_producer.tolist() == [MODEL_INPUT, 0, 0, 1]
    assert graph.tensor_bytes.tolist() == [11, 5, 7, 2]
    assert graph.consumers.tolist() == [0, 1, 1]
    assert graph.tensor_is_output.tolist() == [False, True, True, True]


NODES = [{"name": "a"}, {"name": "b"}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "a graph is a JSON object"),
        ({"schema": "coralline.graph/v9", "nodes": NODES, "edges": []}, "this version reads"),
        ({"edges": []}, "`nodes` is missing"),
        ({"nodes": {}, "edges": []}, "`nodes` is not a list"),
        ({"nodes": [3], "edges": []}, r"nodes\[0\]: is not a JSON object"),
        ({"nodes": [{"name": 3}], "edges": []}, r"nodes\[0\]: name is not a string"),
        (
            {"nodes": [{"name": "a", "macs": 1.5}], "edges": []},
            r"nodes\[0\] \('a'\): macs is 1.5, not a whole number",
        ),
        (
            {"nodes": [{"name": "a", "param_bytes": 2**60}], "edges": []},
            r"nodes\[0\] \('a'\): param_bytes is .*below 2\^48",
        ),
        (
            {"nodes": [{"name": "a", "compute_ms": -1}], "edges": []},
            r"nodes\[0\] \('a'\): compute_ms is -1; it must be 0 or more and below 1e9",
        ),
        (
            {"nodes": [{"name": "a", "compute_ms": "fast"}], "edges": []},
            "compute_ms is 'fast', not a number",
        ),
        ({"nodes": NODES, "edges": [[0]]}, r"edges\[0\]: an edge is \[producer, consumer\]"),
        ({"nodes": NODES, "edges": [[0, 2]]}, r"edges\[0\]: 2 is not an index from 0 to 1"),
        ({"nodes": NODES, "edges": [[0, 1, 1]]}, r"edges\[0\]: 1 is not an index from 0 to 0"),
        ({"nodes": NODES, "edges": [[1, 1]]}, r"node 1 \('b'\) reads its own output; remove it"),
        ({"nodes": NODES, "edges": [], "outputs": [3]}, r"outputs\[0\]: an output is"),
        (
            {"nodes": NODES, "edges": [], "inputs": [{"bytes": 1, "consumers": [9]}]},
            r"inputs\[0\].consumers: 9 is not an index",
        ),
        ({"nodes": NODES, "edges": [[0, 1], [1, 0]]}, "cycle a -> b -> a; remove an edge"),
    ],
)
def test_a_broken_graph_names_the_place(data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_json(data)


def test_a_file_that_is_not_json_names_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    path.write_text('{"nodes": [,]}')
    with pytest.raises(UserError, match=r"graph\.json: is not JSON \(line 1, column 12"):
        read_graph(path)
    with pytest.raises(UserError, match="no such file"):
        read_graph(tmp_path / "nothing.json")
