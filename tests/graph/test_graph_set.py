import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coralline.errors import UserError
from coralline.graph import synthetic
from coralline.graph.graph_set import count_graphs, read_graph_set, write_graph_set


def test_round_trip_and_ranges(tmp_path: Path) -> None:
    graphs = synthetic.generate("branch", 5, 20, 0) + synthetic.generate("cell", 5, 25, 0)
    path = tmp_path / "graphs.jsonl"
    assert write_graph_set(path, graphs) == 10
    assert count_graphs(path) == 10
    assert read_graph_set(path) == graphs
    assert read_graph_set(path, 3, 7) == graphs[3:7]
    assert read_graph_set(path, 8, 99) == graphs[8:]


def test_bad_files_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "graphs.jsonl"
    with pytest.raises(UserError, match="no such file; give the path of a graph set"):
        read_graph_set(path)
    write_graph_set(path, synthetic.generate("respect", 2, 5, 0))
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[0][:50])
    with pytest.raises(UserError, match="line 3: is not JSON"):
        read_graph_set(path)
    path.write_text(whole + '{"nodes": []}\n')
    with pytest.raises(UserError, match="line 3: `edges` is missing"):
        read_graph_set(path)
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match="is not text"):
        read_graph_set(path)
    path.write_text("")
    with pytest.raises(UserError, match="holds no graphs"):
        count_graphs(path)


def test_a_failure_leaves_the_earlier_set(tmp_path: Path) -> None:
    path = tmp_path / "graphs.jsonl"
    graphs = synthetic.generate("respect", 3, 10, 0)
    write_graph_set(path, graphs)

    def failing():  # type: ignore[no-untyped-def]
        yield graphs[0]
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_graph_set(path, failing())
    assert read_graph_set(path) == graphs
    assert [p.name for p in tmp_path.iterdir()] == ["graphs.jsonl"]


def test_generate_verb(tmp_path: Path) -> None:
    import typer

    from coralline.cli import generate

    app = typer.Typer()
    generate.add(app)
    out = tmp_path / "g.jsonl"
    arguments = ["--family", "respect,cell", "--count", "4", "--nodes", "12", "--out", str(out)]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["graphs"] == 8
    assert read_graph_set(out) == (
        synthetic.generate("respect", 4, 12, 0) + synthetic.generate("cell", 4, 12, 0)
    )
