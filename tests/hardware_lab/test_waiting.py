"""What is asked of a service is done by its runners, and whoever asks waits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest
from scripted_board import scripted_lab
from service_server import serving
from verbs import Verb, verb

from components.measuring import dispatch
from coralline.devices.model import load_device
from coralline.graph import read_graph
from coralline.staging import StagingProblem, make_plan
from coralline.tflite.split import split_model
from hardware_lab import waiting
from hardware_lab.lab import open_lab
from hardware_lab.runner import Runner
from hardware_lab.store import Store

INT8 = Path(__file__).parents[1] / "data" / "small_int8.tflite"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CORALLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(waiting, "POLL_S", 0.05)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "lab")


@pytest.fixture
def service(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serving(store) as url:
        monkeypatch.setenv("CORALLINE_LAB", url)
        yield url


@pytest.fixture
def runner(service: str, tmp_path: Path) -> Iterator[None]:
    """A runner of the service with boards b0 and b1."""
    over = Event()
    there = Runner(open_lab(service), scripted_lab(tmp_path, 2))
    thread = Thread(target=there.run, kwargs={"until": over})
    thread.start()
    yield
    over.set()
    thread.join(60)
    assert not thread.is_alive()


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Verb:
    return verb(capsys)


@pytest.mark.usefixtures("runner")
def test_bench(store: Store, call: Verb) -> None:
    wait_until_known(store, "b1")
    said = call("bench", str(INT8), "--board", "b1", "-n", "20", "--json")
    assert json.loads(said)["board"] == "b1"
    said = call("bench", str(INT8), "--board", "host", code=2)
    assert "board 'host' is not known; choose b0, b1" in said
    said = call("lab", "submit", str(INT8), "--board", "b0", "--inventory", "lab.yaml", code=2)
    assert "leave --inventory out" in said
    assert len(store.jobs()) == 1


@pytest.mark.usefixtures("runner")
def test_dispatch(store: Store, tmp_path: Path) -> None:
    wait_until_known(store, "b1")
    problem = StagingProblem(read_graph(INT8), 2, load_device("edgetpu-usb"))
    split = split_model(INT8, make_plan(problem, "uniform"), tmp_path / "split").folder
    seen: list[tuple[str, int, int]] = []
    dispatch([split], ["b0", "b1"], 20, "", tmp_path / "out", lambda *said: seen.append(said))
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert seen[-1] == ("measuring", 2, 2)


@pytest.mark.usefixtures("service")
def test_no_runner_is_there(store: Store, call: Verb) -> None:
    said = call("bench", str(INT8), "--board", "b0", code=2)
    assert "board 'b0' is not known; there is none at all" in said
    assert store.jobs() == []


@pytest.mark.usefixtures("runner")
def test_a_board_that_is_retired(store: Store, call: Verb) -> None:
    wait_until_known(store, "b0")
    store.health.set("b0", "retired", "sold")
    said = call("bench", str(INT8), "--board", "b0", "-n", "20", code=1)
    assert "board 'b0' is retired: sold" in said
    assert [job.state for job in store.jobs()] == ["cancelled"]


def wait_until_known(store: Store, board: str) -> None:
    turn = Event()
    while board not in {known.board.name for known in store.boards.known()}:
        assert not turn.wait(0.05)
