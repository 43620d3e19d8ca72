from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tflite_models import DATA

from coralline.cli.main import main
from coralline.graph import read_graph

INT8 = DATA / "small_int8.tflite"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of the command line."""
    monkeypatch.setattr(sys, "argv", ["coralline", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


def test_graph_prints_one_object_and_writes_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "graph.json"
    assert run(monkeypatch, "graph", INT8, "--json", "--out", out) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["nodes"], said["edges"], said["depth"]) == (14, 16, 13)
    assert said["operators"]["CONV_2D"]["count"] == 3
    assert said["macs"] == sum(row["macs"] for row in said["operators"].values())
    assert said["edgetpu_unmapped"] == []
    assert read_graph(out) == read_graph(INT8)
    assert run(monkeypatch, "graph", out, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again == {**said, "edgetpu_unmapped": None}


def test_graph_for_people(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "graph", DATA / "small_float.tflite") == 0
    said = capsys.readouterr().out
    assert "14 operators, 16 edges" in said
    assert "3 x CONV_2D: it works on FLOAT32" in said


@pytest.mark.parametrize("name", ["dynamic", "while", "signatures"])
def test_a_refused_model_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert run(monkeypatch, "graph", DATA / f"{name}.tflite", "--json") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1


def test_split_from_plan_to_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "segments"
    monkeypatch.setenv("PATH", "")
    assert run(monkeypatch, "schedule", INT8, "-k", 3, "-p", "topo-dp", "--out", plan) == 0
    capsys.readouterr()
    assert run(monkeypatch, "split", INT8, "--plan", plan, "--out", out, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bit_equal_inputs"] == 3
    assert len(said["segments"]) == 3
    assert run(monkeypatch, "split", INT8, "--plan", plan, "--out", out) == 0
    said_to_people = capsys.readouterr().out
    assert "bit-equal with the whole model on 3 random inputs" in said_to_people
    assert "edgetpu_compiler is not on PATH" in said_to_people


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ("{", "is not JSON"),
        ("{}", "is not a plan"),
        ('{"schema": "coralline.plan/v1"}', "the plan lacks graph_name"),
    ],
)
def test_a_bad_plan_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    plan: str,
    why: str,
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(plan)
    assert run(monkeypatch, "split", INT8, "--plan", path, "--out", tmp_path / "s") == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
