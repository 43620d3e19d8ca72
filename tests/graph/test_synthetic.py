from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coralline.devices.model import load_device
from coralline.errors import UserError
from coralline.graph import synthetic
from coralline.graph.compute_graph import MODEL_INPUT, ComputeGraph
from coralline.staging import StagingProblem, make_plan

FAMILIES = st.sampled_from(synthetic.family_names())


def in_degrees(graph: ComputeGraph) -> list[int]:
    return [len(p) for p in graph.predecessors]


@settings(max_examples=60)
@given(FAMILIES, st.integers(1, 4), st.integers(2, 120), st.integers(0, 2**32))
def test_every_family_gives_acyclic_graphs_of_the_size_asked(
    family: str, count: int, nodes: int, seed: int
) -> None:
    graphs = synthetic.generate(family, count, nodes, seed)
    assert [g.n_nodes for g in graphs] == [nodes] * count
    for graph in graphs:
        u, v = graph.edges.T
        assert (u < v).all()
        assert max(in_degrees(graph)) <= 6
        sources = [i for i, p in enumerate(graph.predecessors) if not p]
        assert graph.tensor_producer[0] == MODEL_INPUT
        assert graph.consumers[: graph.consumer_start[1]].tolist() == sources
        assert graph.param_bytes.sum() > 0 and graph.macs.sum() > 0


@settings(max_examples=30)
@given(st.sampled_from(["respect", "branch", "skip"]), st.integers(2, 6), st.integers(0, 999))
def test_the_limit_on_inputs_is_kept_and_reached(family: str, limit: int, seed: int) -> None:
    graphs = synthetic.generate(family, 100, 30, seed, max_in_degree=limit)
    assert max(max(in_degrees(g)) for g in graphs) == limit


@settings(max_examples=20)
@given(FAMILIES, st.integers(2, 60), st.integers(0, 999), st.integers(1, 9))
def test_a_seed_fixes_the_graphs_and_their_number_does_not_matter(
    family: str, nodes: int, seed: int, count: int
) -> None:
    longer = synthetic.generate(family, count + 3, nodes, seed)
    shorter = synthetic.generate(family, count, nodes, seed)
    assert [g.digest for g in shorter] == [g.digest for g in longer[:count]]
    assert len({g.digest for g in longer}) == count + 3
    assert synthetic.generate(family, 1, nodes, seed + 1)[0].param_bytes.tolist() != (
        longer[0].param_bytes.tolist()
    )


@settings(max_examples=40, deadline=None)
@given(
    FAMILIES,
    st.sampled_from([2, 30, 700, 1700]),
    st.integers(0, 2**32),
    st.integers(1, 25),
    st.integers(1, 11),
)
def test_a_set_made_in_parts_is_the_set_made_at_once(
    family: str, nodes: int, seed: int, count: int, part: int
) -> None:
    # 700 and 1,700 nodes: batches of ten and five, so that parts begin and end amid them.
    whole = synthetic.generate(family, count, nodes, seed)
    parts = [
        graph
        for start in range(0, count, part)
        for graph in synthetic.generate(family, min(part, count - start), nodes, seed, start=start)
    ]
    assert [(g.name, g.digest) for g in parts] == [(g.name, g.digest) for g in whole]


def test_a_part_far_into_a_set_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    family = synthetic._FAMILIES["respect"]

    def counted(rng: np.random.Generator, g: int, v: int, limit: int | None) -> Any:
        drawn.append(g)
        return family(rng, g, v, limit)

    monkeypatch.setitem(synthetic._FAMILIES, "respect", counted)
    [graph] = synthetic.generate("respect", 1, 30, 0, start=999_999)
    assert graph.name == "respect-30-s0-999999"
    assert sum(drawn) < 300


def test_the_respect_family_has_the_published_depths_and_limits() -> None:
    graphs = synthetic.generate("respect", 500, 30, 0)
    levels = {int(g.level.max()) + 1 for g in graphs}
    assert levels == set(range(10, 26))
    for limit in range(2, 7):
        of_this_limit = graphs[limit - 2 :: 5]
        assert max(max(in_degrees(g)) for g in of_this_limit) == limit


def test_a_cell_adds_two_states_and_joins_the_unused_ones() -> None:
    graph = synthetic.generate("cell", 1, 1 + 3 * 16, 7)[0]
    for cell in range(3):
        first = 1 + 16 * cell
        for block in range(5):
            add = first + 3 * block + 2
            assert graph.predecessors[add] == (add - 2, add - 1)
            assert len(graph.predecessors[add - 1]) == len(graph.predecessors[add - 2]) == 1
        adds = {first + 3 * block + 2 for block in range(5)}
        joined = set(graph.predecessors[first + 15])
        inside = range(first, first + 15)
        assert joined == {a for a in adds if not any(w in inside for w in graph.successors[a])}


@pytest.mark.parametrize("family", synthetic.family_names())
def test_ten_thousand_nodes(family: str) -> None:
    graph = synthetic.generate(family, 1, 10_000, 3)[0]
    assert graph.n_nodes == 10_000
    assert max(in_degrees(graph)) <= 6


@pytest.mark.parametrize("family", synthetic.family_names())
def test_the_costs_make_a_plan_worth_choosing(family: str) -> None:
    """Transfers, compute and streaming each matter in some graph, and equal counts lose."""
    device = load_device("edgetpu-usb")
    share, lost = [], []
    for graph in synthetic.generate(family, 30, 30, 1):
        problem = StagingProblem(graph, 4, device)
        best, plain = make_plan(problem, "topo-dp"), make_plan(problem, "uniform")
        slowest = int(np.argmax(best.stages["stage_ms"]))
        total = best.stages["stage_ms"][slowest]
        share.append([best.stages[f"{p}_ms"][slowest] / total for p in ("compute", "out")])
        lost.append(plain.value / best.value)
    assert np.mean(share, axis=0).min() > 0.05
    assert np.median(lost) > 1.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tree", 1, 30, 0), "not known; choose branch, cell, pyramid, respect, skip"),
        (("respect", 0, 30, 0), "0 graphs"),
        (("respect", 1, 1, 0), "1 nodes: a synthetic graph has 2 to 10000"),
        (("respect", 1, 10_001, 0), "10001 nodes"),
        (("respect", 1, 30, -1), "seed -1"),
    ],
)
def test_bad_arguments(arguments: tuple[str, int, int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        synthetic.generate(*arguments)
    with pytest.raises(UserError, match="max_in_degree 7"):
        synthetic.generate("respect", 1, 30, 0, max_in_degree=7)
    with pytest.raises(UserError, match="no option degree"):
        synthetic.generate("respect", 1, 30, 0, degree=7)
    with pytest.raises(UserError, match="start -1"):
        synthetic.generate("respect", 1, 30, 0, start=-1)
