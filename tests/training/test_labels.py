import json
from pathlib import Path

import pytest

from coralline.errors import UserError
from coralline.graph import synthetic
from coralline.graph.graph_set import read_graph_set, write_graph_set
from coralline.staging import Effort
from training.labels import LabelOptions, read_labelled, read_labels, solve_labels

FAST = LabelOptions(n_stages=3, planner="topo-dp")


@pytest.fixture
def graphs(tmp_path: Path) -> Path:
    path = tmp_path / "graphs.jsonl"
    write_graph_set(path, synthetic.generate("branch", 10, 12, 0))
    return path


def stages(folder: Path) -> list[tuple[int, ...]]:
    return [plan.stage for plan in read_labels(folder)]


def test_shards_cover_the_set_in_order(graphs: Path, tmp_path: Path) -> None:
    solve_labels(graphs, tmp_path / "one", 0, 1, FAST)
    names = [solve_labels(graphs, tmp_path / "four", i, 4, FAST).name for i in (3, 1, 0, 2)]
    assert sorted(names)[0] == "labels-00000-of-00004.jsonl"
    assert stages(tmp_path / "four") == stages(tmp_path / "one")
    digests = [g.digest for g in synthetic.generate("branch", 10, 12, 0)]
    assert [plan.graph_digest for plan in read_labels(tmp_path / "four")] == digests


def test_exact_labels_say_that_they_are_proven(graphs: Path, tmp_path: Path) -> None:
    options = LabelOptions(n_stages=3)
    solve_labels(graphs, tmp_path / "exact", 0, 2, options, Effort(workers=1))
    solve_labels(graphs, tmp_path / "exact", 1, 2, options, Effort(workers=1))
    solve_labels(graphs, tmp_path / "fast", 0, 1, FAST)
    exact, fast = read_labels(tmp_path / "exact"), read_labels(tmp_path / "fast")
    assert all(plan.proven_optimal for plan in exact)
    assert all(a.value <= b.value * (1 + 1e-6) for a, b in zip(exact, fast, strict=True))


def test_a_killed_run_is_taken_up_again(graphs: Path, tmp_path: Path) -> None:
    def kill_at_four(done: int, total: int) -> None:
        assert total == 10
        if done == 4:
            raise KeyboardInterrupt

    folder = tmp_path / "labels"
    with pytest.raises(KeyboardInterrupt):
        solve_labels(graphs, folder, 0, 1, FAST, on_label=kill_at_four)
    with pytest.raises(UserError, match="holds no labels"):
        read_labels(folder)
    (part,) = folder.iterdir()
    first_four = part.read_text()
    part.write_text(first_four + first_four.splitlines()[0][:-7])

    solved = []
    whole = solve_labels(graphs, folder, 0, 1, FAST, on_label=lambda done, _: solved.append(done))
    assert solved == [5, 6, 7, 8, 9, 10]
    assert whole.read_text().startswith(first_four)
    assert [p.name for p in folder.iterdir()] == ["labels-00000-of-00001.jsonl"]
    solve_labels(graphs, tmp_path / "unbroken", 0, 1, FAST)
    assert stages(folder) == stages(tmp_path / "unbroken")

    solve_labels(graphs, folder, 0, 1, FAST, on_label=lambda done, _: solved.append(done))
    assert len(solved) == 6


def test_labels_of_something_else_are_not_mixed_in(graphs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    path = solve_labels(graphs, folder, 0, 1, FAST)
    kept = path.read_bytes()
    for other in (
        LabelOptions(n_stages=4, planner="topo-dp"),
        LabelOptions(n_stages=3, planner="uniform"),
        LabelOptions(n_stages=3, planner="topo-dp", objective="latency"),
    ):
        with pytest.raises(UserError, match="labels of other graphs or another problem"):
            solve_labels(graphs, folder, 0, 1, other)
    write_graph_set(graphs, synthetic.generate("branch", 10, 12, 1))
    with pytest.raises(UserError, match="labels of other graphs or another problem"):
        solve_labels(graphs, folder, 0, 1, FAST)
    assert path.read_bytes() == kept


def test_bad_requests(graphs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shard 2 of 2"):
        solve_labels(graphs, tmp_path / "l", 2, 2, FAST)
    with pytest.raises(UserError, match="planner 'best' is not known"):
        solve_labels(graphs, tmp_path / "l", 0, 1, LabelOptions(planner="best"))
    with pytest.raises(UserError, match="13 stages for 12 operators"):
        solve_labels(graphs, tmp_path / "l", 0, 1, LabelOptions(n_stages=13))
    assert not (tmp_path / "l").exists()
    solve_labels(graphs, tmp_path / "half", 0, 2, FAST)
    with pytest.raises(UserError, match="1 whole shards of 00002"):
        read_labels(tmp_path / "half")
    path = solve_labels(graphs, tmp_path / "bad", 0, 1, FAST)
    path.write_text(path.read_text() + json.dumps({"schema": "coralline.plan/v1"}) + "\n")
    with pytest.raises(UserError, match="line 11: the plan lacks"):
        read_labels(tmp_path / "bad")


def test_what_is_learned_from_is_not_what_judges(tmp_path: Path) -> None:
    graphs = tmp_path / "graphs.jsonl"
    write_graph_set(graphs, synthetic.generate("respect", 5, 8, seed=0))
    solve_labels(graphs, tmp_path / "labels", 0, 1, LabelOptions(2))
    learned, judging = (
        read_labelled(graphs, tmp_path / "labels", 0.8, held_out=held_out)
        for held_out in (False, True)
    )
    assert len(learned[0]) == 4 and len(judging[0]) == 1
    assert learned[0] + judging[0] == read_graph_set(graphs)
    for part, plans in (learned, judging):
        for graph, plan in zip(part, plans, strict=True):
            plan.check_graph(graph)
