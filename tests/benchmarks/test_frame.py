import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import frame
from benchmarks.__main__ import main as benchmarks_main
from coralline.errors import UserError

RESULT = frame.BenchResult(
    title="Two | ways",
    columns=("way", "time (ms)", "graphs"),
    rows=(("old", 1234.5678, 10_000), ("new", 0.0123456, None)),
    note="Lower is better.",
    environment={"seed": 7},
)


def test_a_result_is_kept_as_json_and_markdown(tmp_path: Path) -> None:
    frame.write("ways", RESULT, quick=True, seconds=1.5, folder=tmp_path)
    data = json.loads((tmp_path / "ways.json").read_text())
    assert data["schema"] == "coralline.benchmark/v1"
    assert data["rows"] == [["old", 1234.5678, 10000], ["new", 0.0123456, None]]
    assert data["quick"] is True
    assert data["environment"]["seed"] == 7
    assert data["environment"]["cores"] >= 1
    assert data["environment"]["coralline"]
    lines = (tmp_path / "ways.md").read_text().splitlines()
    assert "# Two | ways" in lines
    assert "| old | 1,235 | 10,000 |" in lines
    assert "| new | 0.01235 | – |" in lines
    assert "Lower is better." in lines
    assert "Quick sizes." in lines[-1]


def test_further_tables_figures_and_records_are_kept(tmp_path: Path) -> None:
    other = frame.BenchResult("Others", ("way",), (("older",),), note="Of the same run.")
    result = replace(RESULT, more=(other,), figures={"time": "<svg/>"}, records=({"ms": 1.5},))
    frame.write("ways", result, quick=False, seconds=1.5, folder=tmp_path)
    data = json.loads((tmp_path / "ways.json").read_text())
    assert data["more"] == [
        {"title": "Others", "columns": ["way"], "rows": [["older"]], "note": "Of the same run."}
    ]
    assert data["records"] == [{"ms": 1.5}]
    lines = (tmp_path / "ways.md").read_text().splitlines()
    assert lines.index("## Others") > lines.index("Lower is better.")
    assert "![time](ways-time.svg)" in lines
    assert (tmp_path / "ways-time.svg").read_text() == "<svg/>"


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="has not 2 cells"):
        frame.BenchResult("t", ("a", "b"), ((1,),))


def test_every_benchmark_has_a_run() -> None:
    for name in frame.bench_names():
        assert callable(frame.load(name))


def test_an_unknown_benchmark_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="benchmark 'nope' is not known; choose one of"):
        frame.load("nope")


def test_the_command_runs_writes_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer

    asked = []

    def run(quick: bool) -> frame.BenchResult:
        asked.append(quick)
        return RESULT

    monkeypatch.setattr(frame, "load", lambda name: run)
    app = typer.Typer()
    app.command()(benchmarks_main)
    done = CliRunner().invoke(app, ["--only", "ways", "--quick", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert asked == [True]
    assert "Two | ways" in done.output
    assert "1,235" in done.output
    assert (tmp_path / "ways.json").exists()
