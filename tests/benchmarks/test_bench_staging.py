from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean

import pytest

from benchmarks import bench_staging, frame
from benchmarks.staging import keras_graphs, measure, sets, tables
from benchmarks.staging.measure import Journal, Record
from benchmarks.staging.processes import Started
from benchmarks.staging.sets import Attempt, ProblemSet, Size
from coralline.devices.model import load_device
from coralline.errors import DeviceError
from coralline.graph import synthetic
from coralline.graph.compute_graph import ComputeGraph
from coralline.graph.json_format import write_json
from coralline.staging import StagingProblem, make_plan, planner_names

SMALL = Size(
    models=("resnet50",),
    stages=(4,),
    operators=("mobilenet",),
    wide={"nasnet_mobile": 0.5},
    wide_times_s=(0.02,),
    synthetic={12: (2, 0.01, 0.5)},
    solver_limits_s=dict.fromkeys(sets.SOLVERS, 0.3),
    operator_limit_s=0.3,
    scaling=(50,),
    started=("uniform",),
    process_runs=1,
    repetitions=2,
)


def graphs_of(models: Iterable[keras_graphs.Model], folder: Path) -> dict:
    """Small graphs in place of those that TensorFlow makes."""
    models = list(models)
    made = synthetic.generate("cell", len(models), 20, seed=3)
    return dict(zip(models, made, strict=True))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CORALLINE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_small_run_fills_every_table(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets, "keras_graphs", graphs_of)
    result = bench_staging.bench(SMALL)
    frame.write("staging", result, quick=True, seconds=1.0, folder=tmp_path)
    data = json.loads((tmp_path / "staging.json").read_text())
    planned = [record for record in data["records"] if "set" in record]
    assert {record["planner"] for record in planned} == set(planner_names())
    names = {record["set"] for record in planned}
    assert names == {sets.PUBLISHED, sets.LAYERS, sets.OPERATORS, sets.WIDE, sets.SYNTHETIC}
    aims = {row[0]: row[3] for row in data["rows"]}
    assert aims["`exact`, RESPECT models: proven"] == "yes"
    text = (tmp_path / "staging.md").read_text()
    assert text.count("(ms, simulated)") >= 4
    assert "median error" in text
    assert all(part.rows for part in result.more)
    for figure in ("time", "growth"):
        assert "</svg>" in (tmp_path / f"staging-{figure}.svg").read_text()
    assert not list(home.rglob("journal.jsonl"))


def a_set(name: str, *attempts: Attempt) -> ProblemSet:
    graph = synthetic.generate("respect", 1, 15, seed=0)[0]
    problem = StagingProblem(graph, 3, load_device(sets.DEVICE))
    return ProblemSet(name, (problem,), attempts)


def test_an_interrupted_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    some = a_set("some", Attempt("topo-dp", 1.0))
    first = measure.measure([some], SMALL, Journal(SMALL))
    path = Journal(SMALL).folder / "journal.jsonl"
    path.write_text(path.read_text() + '["half', encoding="utf-8")
    monkeypatch.setattr(measure, "make_plan", lambda *args: pytest.fail("measured again"))
    journal = Journal(SMALL)
    assert journal.found == 1
    assert measure.measure([some], SMALL, journal) == first
    journal.close()
    assert Journal(SMALL).found == 0


def test_another_size_starts_from_nothing() -> None:
    Journal(SMALL).keep("a", lambda: 1)
    assert Journal(SMALL).found == 1
    assert Journal(replace(SMALL, repetitions=3)).found == 0


def test_a_planner_that_is_done_early_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    def counted(problem: StagingProblem, planner: str, effort):  # type: ignore[no-untyped-def]
        seeds.append(effort.seed)
        return replace(make_plan(problem, planner, effort), solve_seconds=0.03)

    monkeypatch.setattr(measure, "make_plan", counted)
    some = a_set("some", Attempt("annealing", 0.1, fills=True))
    (record,) = measure.measure([some], SMALL, Journal(SMALL))
    assert seeds == [0, 1, 2, 3]
    assert record.seconds == pytest.approx(0.12)
    assert record.runs == 1
    seeds.clear()
    some = a_set("other", Attempt("exact", 0.1, fills=True))
    (record,) = measure.measure([some], SMALL, Journal(SMALL))
    assert record.proven
    assert seeds == [0]


def record(planner: str, value: float | None, bound: float, seconds: float, **other) -> Record:  # type: ignore[no-untyped-def]
    proven = value is not None and value <= bound
    defaults = {
        "crossings": 3,
        "crossings_proven": proven,
        "set": "s",
        "graph": "g",
        "digest": "d",
        "nodes": 9,
        "stages": 4,
        "runs": 1,
    }
    return Record(
        planner=planner,
        limit_s=2.0,
        fills=False,
        value=value,
        lower_bound=bound,
        proven=proven,
        seconds=seconds,
        **{**defaults, **other},
    )


def test_a_solver_that_was_stopped_gives_a_bound_on_the_ratio() -> None:
    records = [
        record("exact", 10.0, 10.0, 0.01),
        record("slow", 11.0, 8.0, 2.0),
        record("none", None, 0.0, 2.0),
        record("exact", 10.0, 10.0, 0.01, digest="e"),
        record("slow", 10.0, 10.0, 1.0, digest="e"),
        record("none", 10.0, 8.0, 2.0, digest="e"),
    ]
    cases = tables.Cases(records)("s")
    assert [str(r) for r in tables.ratios(cases, "slow", "exact")] == ["≥ 200", "100"]
    both = tables.overall(tables.ratios(cases, "slow", "exact"), geometric_mean)
    assert str(both) == "≥ 141"
    assert str(tables.Bounded(12345.0, False)) == "12,345"
    assert cases[0].gap(cases[0].of("slow")) == pytest.approx(10.0)
    assert cases[0].gap(cases[0].of("none")) == float("inf")
    assert cases[0].proven


def test_gaps_are_to_the_best_known_value_where_nothing_is_proven() -> None:
    records = [record("a", 12.0, 6.0, 1.0), record("b", 10.0, 8.0, 1.0)]
    (case,) = tables.Cases(records)("s")
    assert not case.proven
    assert case.bound == 8.0
    assert case.gap(case.of("a")) == pytest.approx(20.0)
    assert case.optimal(case.of("b"))


def test_growth_is_a_power_of_the_number_of_nodes() -> None:
    def run(nodes: int, solve_s: float, memory_mib: float) -> Started:
        return Started("g", nodes, "policy", False, 1.0, solve_s, memory_mib, 9.0, 0.5, False)

    rows = tables.growth([run(100, 0.1, 50.0), run(1000, 1.0, 50.0), run(2000, 4.0, 150.0)]).rows
    assert [row[3] for row in rows] == [None, 1.0, 2.0]
    assert [row[6] for row in rows] == [None, 0.0, 102.4]


def test_graphs_of_keras_models_are_made_once_in_another_process(tmp_path: Path) -> None:
    wanted = ("layers", "mobilenet")
    (graph,) = keras_graphs.keras_graphs([wanted], tmp_path).values()
    assert graph.ops.count("DepthwiseConv2D") == 13
    (path,) = tmp_path.glob("*.json")
    other = synthetic.generate("cell", 1, 10, seed=0)[0]
    write_json(other, path)
    assert keras_graphs.keras_graphs([wanted], tmp_path)[wanted] == other


def test_a_failure_in_the_other_process_is_told(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="could not be made"):
        keras_graphs.keras_graphs([("layers", "lenet")], tmp_path)


def test_the_classic_models_are_in_the_zoo() -> None:
    from training.zoo import zoo_names

    assert len(sets.CLASSIC) >= 20
    assert {*sets.CLASSIC, *sets.RESPECT, *Size().wide} <= set(zoo_names())


def test_published_graphs_are_found() -> None:
    graphs: list[ComputeGraph] = sets._published(("resnet50",))
    assert graphs[0].n_nodes == 177
