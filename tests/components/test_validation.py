from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from builders import chain, measure, measure_on_host, plan_of

from components.validation import (
    read_measurements,
    validate_graphs,
    validate_labels,
    validate_measurements,
)
from coralline.errors import UserError
from coralline.graph import ComputeGraph
from coralline.graph.graph_set import write_graph_set
from coralline.runtime.measurement import Measurement
from coralline.staging import Plan

GRAPHS = [chain(f"net{i}", 8 + i, seed=i) for i in range(6)]


def graph_set(folder: Path, graphs: Sequence[ComputeGraph] = GRAPHS) -> Path:
    path = folder / "graphs.jsonl"
    write_graph_set(path, graphs)
    return path


def labels(folder: Path, plans: Sequence[Plan]) -> Path:
    out = folder / "labels"
    out.mkdir()
    for shard in range(2):
        lines = [json.dumps(plan.to_json()) + "\n" for plan in plans[shard::2]]
        (out / f"labels-{shard:05}-of-00002.jsonl").write_text("".join(lines))
    return out


def measurements(folder: Path, items: Sequence[Measurement]) -> Path:
    out = folder / "measurements"
    out.mkdir()
    for i, item in enumerate(items):
        (out / f"{i:03}.json").write_text(json.dumps(item.to_json()))
    return out


def proven(graph: ComputeGraph) -> Plan:
    plan = plan_of(graph)
    return replace(plan, lower_bound=plan.value, gap=0.0, proven_optimal=True)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    return tmp_path / "docs"


def test_a_good_graph_set_passes_and_leaves_data_docs(tmp_path: Path, docs: Path) -> None:
    found = validate_graphs(graph_set(tmp_path), docs)
    assert found.rows == len(GRAPHS)
    assert found.expectations >= 9
    assert found.docs == docs / "index.html"
    pages = [page.read_text() for page in docs.rglob("validations/**/*.html")]
    assert len(pages) == 1
    assert "param_bytes" in pages[0]
    assert json.dumps(found.to_json())


def test_a_graph_that_is_there_twice_is_named(tmp_path: Path, docs: Path) -> None:
    path = graph_set(tmp_path, [*GRAPHS, GRAPHS[2]])
    with pytest.raises(UserError) as error:
        validate_graphs(path, docs)
    assert "expected that every graph is in the set once" in str(error.value)
    assert "row 2 (net2)" in str(error.value)
    assert "row 6 (net2)" in str(error.value)
    assert "row 1" not in str(error.value)
    assert str(docs / "index.html") in str(error.value)
    assert (docs / "index.html").exists()


def test_a_graph_without_parameters_or_edges_is_named(tmp_path: Path, docs: Path) -> None:
    bare = ComputeGraph.build(
        "bare",
        param_bytes=[0, 0, 0],
        tensor_bytes=[8, 8, 8],
        tensor_producer=[0, 1, 2],
        consumers=[[], [], []],
    )
    with pytest.raises(UserError) as error:
        validate_graphs(graph_set(tmp_path, [GRAPHS[0], bare]), docs)
    assert "a graph has parameters, not so in row 1 (bare: param_bytes 0)" in str(error.value)
    assert "as many edges as a tree" in str(error.value)
    assert "row 0" not in str(error.value)


def test_an_empty_graph_set_says_so(tmp_path: Path, docs: Path) -> None:
    (tmp_path / "graphs.jsonl").write_text("")
    with pytest.raises(UserError, match="graphs: there are none to validate"):
        validate_graphs(tmp_path / "graphs.jsonl", docs)


def test_good_labels_pass(tmp_path: Path, docs: Path) -> None:
    found = validate_labels(
        labels(tmp_path, [proven(g) for g in GRAPHS]), graph_set(tmp_path), docs
    )
    assert found.rows == len(GRAPHS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lower_bound": 1e9}, "value is no smaller than the proven lower bound"),
        ({"gap": -0.5}, "gap is 0 or more, not so in row"),
        ({"objective": "speed"}, "objective is one of bottleneck, peak-memory, latency"),
        ({"graph_digest": "0" * 64}, "the label's graph is in the graph set"),
        ({"n_stages": 4}, "stages run from 0 to n_stages - 1 and none is empty"),
        ({"stage": (2, 1, 0, 0, 0, 0, 0, 0)}, "no edge goes back"),
        ({"stage": (0, 1, 2)}, "one stage an operator"),
    ],
)
def test_a_bad_label_is_named(
    changes: dict[str, object], message: str, tmp_path: Path, docs: Path
) -> None:
    plans = [proven(g) for g in GRAPHS]
    plans[0] = replace(plans[0], **changes)
    with pytest.raises(UserError) as error:
        validate_labels(labels(tmp_path, plans), graph_set(tmp_path), docs)
    assert message in str(error.value)
    assert "row 0 (net0" in str(error.value)
    assert "row 1 " not in str(error.value)


def test_a_label_without_a_value_is_refused_when_it_is_read(tmp_path: Path, docs: Path) -> None:
    plans = [proven(g) for g in GRAPHS]
    folder = labels(tmp_path, [replace(plans[0], value=None), *plans[1:]])
    with pytest.raises(UserError, match=r"jsonl: line 1: the plan's `value` must be a number"):
        validate_labels(folder, graph_set(tmp_path), docs)


def test_a_problem_labelled_twice_is_named(tmp_path: Path, docs: Path) -> None:
    plans = [proven(g) for g in [*GRAPHS, GRAPHS[5]]]
    with pytest.raises(UserError, match=r"every problem is labelled once, not so in .*net5"):
        validate_labels(labels(tmp_path, plans), graph_set(tmp_path), docs)


def test_too_few_proofs_are_refused(tmp_path: Path, docs: Path) -> None:
    folder = labels(
        tmp_path,
        [proven(g) for g in GRAPHS[:3]]
        + [replace(proven(g), proven_optimal=False) for g in GRAPHS[3:]],
    )
    path = graph_set(tmp_path)
    with pytest.raises(UserError, match=r"at least 90 % of labels are proven optimal, found 0\.5"):
        validate_labels(folder, path, docs)
    assert validate_labels(folder, path, docs, min_proven_share=0.5).rows == 6


def test_good_measurements_pass_and_come_back(tmp_path: Path, docs: Path) -> None:
    plan = plan_of(GRAPHS[0])
    items = [measure(plan), measure_on_host(plan), measure_on_host(plan, id="m", meter="ina219")]
    folder = measurements(tmp_path, items)
    assert validate_measurements(folder, docs).rows == 3
    assert [m.id for m in read_measurements(folder)] == [m.id for m in items]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latency_ms": (1.0, -2.0) * 20}, "latency_min_ms is positive and finite"),
        ({"latency_ms": (1.0, float("inf")) * 20}, "latency_max_ms is positive and finite"),
        ({"latency_ms": (1.0, float("nan")) * 20}, "latency_max_ms is a number"),
        ({"latency_ms": (1.0,) * 3}, "at least 20 latency samples, not so in row 1"),
        ({"simulated": False}, "simulated is true exactly on boards of a kind that ends in -sim"),
        ({"outputs_equal": False}, "outputs_equal is not False"),
        ({"wall_s": float("inf")}, "throughput_fps is positive"),
        ({"stage_busy_ms": ((1.0,) * 40,)}, "every stage has one sample an inference"),
        ({"simulated": False, "board_kind": "host"}, "energy is given only with a meter"),
    ],
)
def test_a_bad_measurement_is_named(
    changes: dict[str, object], message: str, tmp_path: Path, docs: Path
) -> None:
    plan = plan_of(GRAPHS[0])
    folder = measurements(tmp_path, [measure_on_host(plan), replace(measure(plan), **changes)])
    with pytest.raises(UserError) as error:
        validate_measurements(folder, docs)
    assert message in str(error.value)
    assert "row 1 (net0, 3 stages, topo-dp, edgetpu-usb-sim" in str(error.value)
    assert "row 0" not in str(error.value)


def test_many_bad_rows_are_counted(tmp_path: Path, docs: Path) -> None:
    plan = plan_of(GRAPHS[0])
    items = [measure(plan, id=str(i), outputs_equal=False) for i in range(8)]
    with pytest.raises(UserError, match=r"row 4 \([^)]*\) and 3 more"):
        validate_measurements(measurements(tmp_path, items), docs)


def test_a_damaged_measurement_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no measurement"):
        read_measurements(tmp_path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json: is not JSON"):
        read_measurements(tmp_path)
    (tmp_path / "a.json").write_text('{"schema": "coralline.plan/v1"}')
    with pytest.raises(UserError, match=r"a\.json: is not a measurement"):
        read_measurements(tmp_path)
