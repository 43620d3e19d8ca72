"""The steps that work on shards, as KFP runs them: a set that grows keeps what is solved."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from coralline.errors import UserError
from pipelines.local import Event, run_pipeline

PIPELINE = """
from kfp import compiler, dsl
from components.labels import cut_shards, generate_graphs, solve_labels

@dsl.pipeline(name="labelling")
def labelling(count: int, shard_size: int):
    shards = cut_shards(count=count, shard_size=shard_size)
    with dsl.ParallelFor(shards.outputs["Output"]) as shard:
        graphs = generate_graphs(
            family="respect", nodes=6, seed=1, shard=shard, code_version="test"
        )
        solve_labels(
            graphs=graphs.outputs["graphs"],
            stages=2,
            device="edgetpu-usb",
            time_limit_s=10.0,
            code_version="test",
        )

compiler.Compiler().compile(labelling, "labelling.yaml")
"""


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CORALLINE_HOME", str(tmp_path / "home"))
    (tmp_path / "labelling.py").write_text(PIPELINE)
    subprocess.run([sys.executable, "labelling.py"], cwd=tmp_path, check=True)
    return str(tmp_path / "labelling.yaml")


@pytest.mark.slow
def test_a_set_that_grows_keeps_the_shards_that_are_solved(compiled: str) -> None:
    events: list[Event] = []

    def run(count: int) -> Counter[tuple[str, str]]:
        events.clear()
        run_pipeline(compiled, {"count": count, "shard_size": 2}, on_event=events.append)
        return Counter((event.kind, event.step) for event in events)

    assert run(3)["ended", "solve-labels"] == 2
    assert Event("progress", "labels 0-2", 2, 2) in events
    assert Event("progress", "labels 2-3", 1, 1) in events
    again = run(3)
    assert again["reused", "solve-labels"] == again["reused", "generate-graphs"] == 2
    assert ("ended", "solve-labels") not in again
    grown = run(4)
    assert grown["reused", "solve-labels"] == grown["reused", "generate-graphs"] == 1
    assert {event.step for event in events if event.kind == "progress"} == {"labels 2-4"}


def test_too_many_shards_are_one_line(compiled: str) -> None:
    with pytest.raises(UserError, match=r"^cut-shards: 301 graphs in shards of 3 are 101 shards"):
        run_pipeline(compiled, {"count": 301, "shard_size": 3})
