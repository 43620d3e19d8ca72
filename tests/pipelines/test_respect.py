"""The compiled pipeline, executed at its smallest size, and what it leaves."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from components.tracking import tracking_database
from hardware_lab.store import Store
from pipelines.local import run_pipeline
from pipelines.results import print_results, read_results

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "data" / "small_int8.tflite"


@pytest.mark.slow
def test_the_compiled_pipeline_runs_and_a_second_run_measures_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CORALLINE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    arguments = {
        "graph_count": 24,
        "shard_size": 9,
        "graph_nodes": 12,
        "training_epochs": 1,
        "models": [str(MODEL)],
        "stages": [2],
        "planners": ["topo-dp", "policy", "exact-cpsat", "edgetpu-compiler"],
        "repetitions": 20,
        "code_version": "test",
    }
    steps: list[tuple[str, str]] = []
    outputs, folder = run_pipeline(
        str(ROOT / "golden" / "respect.yaml"),
        arguments,
        on_event=lambda event: steps.append((event.kind, event.step)),
    )
    results = read_results(Path(outputs["Output"]), folder)
    assert steps.count(("started", "solve-labels")) == 3

    rows = {row["planner"]: row for row in results["rows"]}
    assert set(rows) == set(arguments["planners"])
    assert rows["exact-cpsat"]["proven_optimal"]
    for row in rows.values():
        assert (row["model"], row["stages"]) == ("small_int8", 2)
        assert row["bottleneck_ms"] >= row["lower_bound"] > 0
        boards = {board["board"]: board for board in row["boards"]}
        assert {name: b["simulated"] for name, b in boards.items()} == {
            "host": False,
            "edgetpu-usb-sim": True,
        }
        assert boards["host"]["predicted_over_measured"] > 0
        assert "energy_mj_per_inference" not in boards["host"]
        assert boards["edgetpu-usb-sim"]["energy_mj_per_inference"] > 0
        # The simulated pipeline is as fast as its slowest stage.
        fps = boards["edgetpu-usb-sim"]["throughput_fps"]
        assert fps == pytest.approx(1000 / row["bottleneck_ms"], rel=0.01)

    page = Path(results["report"]).read_text(encoding="utf-8")
    assert "small_int8" in page
    assert "simulated" in page
    assert "5 graphs are too few to judge by" in page
    assert "plan-and-partition" in page
    print_results(results)
    printed = capsys.readouterr().out
    assert "Measured on host" in printed
    assert "Simulated on edgetpu-usb-sim" in printed
    assert results["report"] in printed

    with sqlite3.connect(tracking_database()) as store:
        runs = store.execute("select count(*) from runs").fetchone()[0]
        tags = dict(store.execute("select key, value from tags").fetchall())
        metrics = dict(store.execute("select key, value from latest_metrics").fetchall())
        parameters = dict(store.execute("select key, value from params").fetchall())
    assert (parameters["graph_count"], parameters["repetitions"]) == ("24", "20")
    assert runs == 1 + 2 * len(rows)
    assert tags["execution"] == folder.name
    assert tags["policy_verdict"] == "kept back"
    assert tags["policy_reason"].startswith("5 graphs are too few to judge by")
    assert metrics["gate_gap"] > 0
    assert metrics["seconds/train-policy"] > 0
    assert metrics["peak_bytes/dispatch"] > 2**20

    jobs = len(Store(tmp_path / "lab").jobs())
    steps.clear()
    run_pipeline(
        str(ROOT / "golden" / "respect.yaml"),
        arguments,
        on_event=lambda event: steps.append((event.kind, event.step)),
    )
    assert steps.count(("reused", "solve-labels")) == 3
    assert ("reused", "train-policy") in steps
    assert ("started", "dispatch") in steps
    assert len(Store(tmp_path / "lab").jobs()) == 2 * jobs
    with sqlite3.connect(tracking_database()) as store:
        assert store.execute("select count(*) from runs").fetchone()[0] == 2 * runs


@pytest.mark.slow
def test_a_damaged_model_ends_the_run_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from coralline.cli.main import main

    monkeypatch.setenv("CORALLINE_HOME", str(tmp_path))
    damaged = tmp_path / "truncated.tflite"
    damaged.write_bytes(MODEL.read_bytes()[:500])
    settings = {"graph_count": 12, "graph_nodes": 10, "training_epochs": 1}
    words = [w for k, v in settings.items() for w in ("--set", f"{k}={v}")]
    arguments = ["coralline", "pipeline", "run", "respect", *words]
    monkeypatch.setattr("sys.argv", [*arguments, "--set", f"models=[{damaged}]"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("coralline: ")
    assert "truncated.tflite" in last
    with sqlite3.connect(tracking_database()) as store:
        tags = dict(store.execute("select key, value from tags").fetchall())
        assert store.execute("select status from runs").fetchall() == [("FAILED",)]
    assert tags["failed_step"] == "plan-and-partition"
    assert "truncated.tflite" in tags["error"]


def test_results_are_json(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    (tmp_path / "page.html").write_text("<p>page</p>")
    table.write_text(json.dumps({"rows": [], "report": str(tmp_path / "page.html")}))
    folder = tmp_path / "run"
    folder.mkdir()
    results = read_results(table, folder)
    assert Path(results["report"]).read_text() == "<p>page</p>"
    assert results["tracking_uri"].startswith("sqlite:///")
