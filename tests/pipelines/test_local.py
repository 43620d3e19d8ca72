"""The watcher of a local run, against real KFP runs of a small pipeline."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from coralline.errors import DeviceError, UserError
from pipelines import local

PIPELINE = """
from kfp import compiler, dsl
from components.face import component

@component
def shout(word: str, out: dsl.Output[dsl.Artifact], cost: dsl.Output[dsl.Metrics]):
    from components.steps import progress, step
    from coralline.errors import UserError
    with step("shout", cost):
        progress("shouting", 1, 2)
        if word == "bad":
            raise UserError("bad word; say another")
        if word == "broken":
            raise KeyError("surprise")
        with open(out.path, "w") as file:
            file.write(word.upper())
        progress("shouting", 2, 2)

@component
def join(words: dsl.Input[list[dsl.Artifact]], out: dsl.Output[dsl.Artifact]):
    with open(out.path, "w") as file:
        file.write(" ".join(open(word.path).read() for word in words))

@dsl.pipeline(name="shouting")
def shouting(words: list[str] = ["a", "b"]) -> dsl.Artifact:
    with dsl.ParallelFor(words) as word:
        loud = shout(word=word)
    return join(words=dsl.Collected(loud.outputs["out"])).outputs["out"]

compiler.Compiler().compile(shouting, "shouting.yaml")
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shouting")
    (folder / "shouting.py").write_text(PIPELINE)
    subprocess.run([sys.executable, "shouting.py"], cwd=folder, check=True)
    return folder / "shouting.yaml"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CORALLINE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_run_gives_outputs_and_events_and_a_second_run_reuses(compiled: Path) -> None:
    events: list[local.Event] = []
    outputs, folder = local.run_pipeline(str(compiled), {}, on_event=events.append)
    assert Path(outputs["Output"]).read_text() == "A B"
    assert Path(outputs["Output"]).is_relative_to(folder)
    kinds = [(event.kind, event.step) for event in events]
    assert kinds.count(("started", "shout")) == kinds.count(("ended", "shout")) == 2
    assert local.Event("progress", "shouting", 2, 2) in events

    events.clear()
    again, _ = local.run_pipeline(str(compiled), {}, on_event=events.append)
    assert again == outputs
    assert {event.kind for event in events} == {"reused"}

    events.clear()
    local.run_pipeline(str(compiled), {}, reuse=False, on_event=events.append)
    assert "reused" not in {event.kind for event in events}


def test_a_step_that_finds_bad_input_raises_its_message(compiled: Path) -> None:
    with pytest.raises(UserError, match=r"^shout: bad word; say another \(log: .*pipeline\.log\)$"):
        local.run_pipeline(str(compiled), {"words": ["fine", "bad"]})


def test_a_step_that_breaks_names_the_error_and_the_log(compiled: Path) -> None:
    with pytest.raises(DeviceError, match=r"^shout failed: KeyError: 'surprise'") as raised:
        local.run_pipeline(str(compiled), {"words": ["broken"]})
    log = Path(str(raised.value).split("(log: ")[1].rstrip(")"))
    assert "Traceback" in log.read_text()


def test_lines_that_two_steps_shared() -> None:
    progress = '{"coralline": "progress", "what": "x", "done": 1, "total": 3}'
    line = f"   Task 'a' finished with status SUCCESS  {progress}Executing task 'b'"
    assert list(local._events(line)) == [
        local.Event("ended", "a"),
        local.Event("started", "b"),
        local.Event("progress", "x", 1, 3),
    ]
    assert list(local._events('  {"coralline": "progress", "what": "x", {"coralline": "st')) == []


def test_a_changed_file_is_not_taken_from_an_earlier_run(compiled: Path, tmp_path: Path) -> None:
    file = tmp_path / "word"
    file.write_text("one")
    events: list[local.Event] = []
    for expected in ("started", "reused"):
        events.clear()
        local.run_pipeline(str(compiled), {"words": [str(file)]}, on_event=events.append)
        assert (expected, "shout") in {(event.kind, event.step) for event in events}
    file.write_text("two")
    events.clear()
    local.run_pipeline(str(compiled), {"words": [str(file)]}, on_event=events.append)
    assert "reused" not in {event.kind for event in events}


def test_a_run_ends_with_the_process_that_started_it(compiled: Path, home: Path) -> None:
    code = f"from pipelines.local import run_pipeline; run_pipeline({str(compiled)!r}, {{}})"
    parent = subprocess.Popen([sys.executable, "-c", code])
    limit = time.monotonic() + 60
    while not (logs := list(home.glob("runs/*/pipeline.log"))) and time.monotonic() < limit:
        time.sleep(0.05)
    [runner] = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    runner.wait(timeout=30)
    assert not (logs[0].parent / "outcome.json").exists()
