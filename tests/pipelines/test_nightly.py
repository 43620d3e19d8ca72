"""The compiled pipeline over three nights of a small model: the second is really slower."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from components.missing import noted, unless_missing
from components.nightly import alarm, measure_night, read_night, write_night
from components.tracking import tracking_database
from coralline.cli.main import main
from coralline.errors import DeviceError, UserError
from coralline.staging import Effort, StagingProblem, make_plan
from coralline.tflite.split import split_model
from hardware_lab.inventory import load_inventory
from hardware_lab.runner import Runner
from hardware_lab.store import Store

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "data" / "small_int8.tflite"
DEVICE = ROOT.parent / "coralline" / "devices" / "data" / "edgetpu-usb.yaml"
OVERHEAD = "stage_overhead_ms: 0.43"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CORALLINE_HOME", str(tmp_path / "home"))
    for name in ("MLFLOW_TRACKING_URI", "CORALLINE_LAB", "CORALLINE_COMMIT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """Of a simulated board whose device model, `device.yaml` beside it, can be made slower."""
    (tmp_path / "device.yaml").write_text(DEVICE.read_text())
    file = tmp_path / "lab.yaml"
    file.write_text(
        "schema: coralline.inventory/v1\n"
        "boards:\n"
        f"  sim: {{kind: edgetpu-sim, device: {tmp_path / 'device.yaml'}}}\n"
        f"  parked: {{kind: edgetpu-sim, device: {tmp_path / 'device.yaml'}}}\n"
    )
    return file


def slow_down(inventory: Path) -> None:
    device = inventory.with_name("device.yaml")
    text = device.read_text()
    assert OVERHEAD in text
    device.write_text(text.replace(OVERHEAD, "stage_overhead_ms: 0.53"))


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git clone that the test works in."""
    folder = tmp_path / "clone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    git(folder, "init", "--quiet")
    commit(folder, "Begin")
    return folder


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
    said = subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True
    )
    return said.stdout.strip()


def commit(folder: Path, subject: str) -> str:
    git(folder, "commit", "--quiet", "--allow-empty", "-m", subject)
    return git(folder, "rev-parse", "HEAD")


def coralline(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["coralline", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    code: Any = ended.value.code
    return int(code or 0)


def run_night(
    monkeypatch: pytest.MonkeyPatch,
    inventory: Path,
    *boards: str,
    models: Sequence[Path] = (MODEL,),
) -> int:
    """Exit code of the compiled pipeline."""
    settings = {
        "models": f"[{', '.join(map(str, models))}]",
        "boards": f"[{', '.join(boards)}]",
        "planner": "topo-dp",
        "inventory": str(inventory),
        "repetitions": 40,
        "code_version": "test",
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    golden = str(ROOT / "golden" / "nightly.yaml")
    return coralline(monkeypatch, "pipeline", "run", golden, "--json", *words)


@pytest.mark.slow
def test_a_slower_night_ends_red_and_says_since_when(
    home: Path,
    inventory: Path,
    clone: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # There is nothing to compare the first night with.
    assert run_night(monkeypatch, inventory, "sim") == 0
    first = json.loads(capsys.readouterr().out)
    [trend] = first["trends"]
    assert (trend["series"], trend["verdict"]) == ("small_int8/2/sim", "first")
    assert "no good night before" in Path(first["report"]).read_text()

    good = git(clone, "rev-parse", "HEAD")
    commit(clone, "Change something harmless")
    bad = commit(clone, "Check every tensor <twice>")
    slow_down(inventory)
    Store(home / "lab").health.set("parked", "maintenance", "new cable")
    assert run_night(monkeypatch, inventory, "sim", "away", "parked") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "3 of 3 series need a look" in said
    assert "small_int8/2/sim slower: median latency is 1.19" in said
    assert "no runner has board 'away'" in said
    assert "board 'parked' is maintenance: new cable" in said
    page = Path(said.split("page: ")[1].split(" (log")[0])
    text = page.read_text(encoding="utf-8")
    assert "Check every tensor &lt;twice&gt;" in text
    assert "Change something harmless" in text
    assert f"at commit {bad[:10]}" in text
    assert f"commit {good[:10]})" in text
    assert text.index("small_int8") < text.index("board &#39;away&#39;")
    # The measurement is kept although the run is red.
    with sqlite3.connect(tracking_database()) as store:
        metrics = dict(store.execute("select key, value from metrics order by timestamp"))
        assert store.execute("select count(*) from runs").fetchone()[0] == 4
    assert metrics["p50_ms_ratio/small_int8/2/sim"] == pytest.approx(1.19, abs=0.01)
    assert metrics["series_missing"] == 2

    assert coralline(monkeypatch, "lab", "trend", "--board", "sim", "--json") == 0
    [trend] = json.loads(capsys.readouterr().out)["trends"]
    assert [judged["verdict"] for judged in trend["nights"]] == ["first", "slower"]
    assert len(trend["commits"]) == 2

    # A person says that this is how it is now.
    assert coralline(monkeypatch, "lab", "accept", "small_int8/2/sim", "--why", "safer") == 0
    [model] = home.glob("runs/*/steps/*/*/compile-segments/compiled")
    table = home / "third.json"
    measure_night(
        [model], ["sim"], 40, str(inventory), "nightly", "n", "", home / "m", table, lambda *_: None
    )
    [trend] = read_night(table)["trends"]
    assert [judged["verdict"] for judged in trend["nights"]] == ["first", "accepted", "level"]


@pytest.mark.slow
def test_a_model_that_cannot_be_had_is_missing_and_the_others_are_measured(
    home: Path,
    inventory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    truncated = tmp_path / "truncated.tflite"
    truncated.write_bytes(MODEL.read_bytes()[:500])
    absent = tmp_path / "absent.tflite"
    assert run_night(monkeypatch, inventory, "sim", models=[absent, truncated, MODEL]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("coralline: alarm failed: 2 models missing: ")
    assert f"{absent} missing: {absent}: no such file; give the path of a .tflite model" in said
    assert f"{truncated} missing: " in said
    why = said.split(f"{truncated} missing: ")[1].split("; page: ")[0]
    assert "truncated.tflite: is truncated" in why

    page = Path(said.split("page: ")[1].split(" (log")[0])
    table = json.loads(page.with_name("table").read_text())
    assert {one["model"]: (one["step"], one["message"]) for one in table["missing"]} == {
        str(absent): ("build-model", f"{absent}: no such file; give the path of a .tflite model"),
        str(truncated): ("plan-and-partition", why),
    }
    [trend] = table["trends"]
    assert (trend["series"], trend["verdict"]) == ("small_int8/2/sim", "first")
    text = page.read_text(encoding="utf-8")
    assert "<strong>2</strong> models are missing" in text
    assert "absent.tflite: no such file" in text
    assert escape(why) in text
    assert "nothing is missing" not in text

    with sqlite3.connect(tracking_database()) as store:
        metrics = dict(store.execute("select key, value from latest_metrics"))
        notes = store.execute("select value from tags where key = 'mlflow.note.content'").fetchall()
    assert metrics["models_missing"] == 2
    assert metrics["series"] == 1
    assert "no such file" in notes[0][0]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Folder of a model's only split."""
    from coralline.devices.model import load_device
    from coralline.graph import read_graph

    problem = StagingProblem(read_graph(MODEL), 2, load_device("edgetpu-usb"))
    split_model(MODEL, make_plan(problem, "topo-dp", Effort()), tmp_path / "model" / "split")
    return tmp_path / "model"


def test_a_disturbed_measurement_is_made_once_more(
    home: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No machine is so calm that nothing would be said against it, with this limit.
    monkeypatch.setattr("coralline.runtime.statistics.LOADED_CORES", -1.0)
    table = tmp_path / "trends.json"
    measure_night(
        [model], ["host"], 8, "", "calm", "n1", "", tmp_path / "m", table, lambda *_: None
    )
    [trend] = read_night(table)["trends"]
    assert trend["verdict"] == "disturbed"
    assert len(trend["nights"]) == 1
    jobs = Store(home / "lab").jobs(labels={"nightly": "calm"})
    assert [job.state for job in jobs] == ["done", "done"]
    assert trend["nights"][0]["job"] == jobs[1].id
    assert trend["nights"][0]["marks"][0].startswith("loaded")
    write_night(table, {}, "test", tmp_path / "page", tmp_path / "table")
    assert "disturbed" in (tmp_path / "page").read_text()


def test_a_board_of_another_runner_is_waited_for(
    home: Path, model: Path, inventory: Path, tmp_path: Path
) -> None:
    told = Event()
    runner = Thread(
        target=Runner(Store(home / "lab"), load_inventory(inventory)).run, args=(told,), daemon=True
    )
    runner.start()
    try:
        lab = Store(home / "lab")
        limit = time.monotonic() + 60
        while not lab.boards.known() and time.monotonic() < limit:
            time.sleep(0.02)
        table = tmp_path / "trends.json"
        steps: list[tuple[str, int, int]] = []
        measure_night(
            [model],
            ["sim", "edgetpu-usb-sim"],
            8,
            "",
            "shared",
            "n1",
            "",
            tmp_path / "m",
            table,
            lambda *step: steps.append(step),
        )
    finally:
        told.set()
        runner.join()
    found = {trend["board"]: trend["verdict"] for trend in read_night(table)["trends"]}
    assert found == {"sim": "first", "edgetpu-usb-sim": "first"}
    assert steps == [("measuring", 1, 2), ("measuring", 2, 2)]


def test_nights_of_other_names_are_not_compared(home: Path, model: Path, tmp_path: Path) -> None:
    for i, name in enumerate(("one", "two", "one")):
        table = tmp_path / f"{i}.json"
        boards = ["edgetpu-usb-sim"]
        measure_night(
            [model], boards, 8, "", name, f"n{i}", "c", tmp_path / "m", table, lambda *_: None
        )
        [trend] = read_night(table)["trends"]
        assert trend["verdict"] == ("level" if i == 2 else "first")
        assert trend["nights"][-1]["commit"] == "c"


def test_a_night_without_any_model(home: Path, tmp_path: Path) -> None:
    with noted(tmp_path / "gone", "gone_v2"):
        raise UserError("model 'gone_v2' is not in the zoo")
    with noted(tmp_path / "compiled", "gone_v2"):
        unless_missing(tmp_path / "gone")
    table = tmp_path / "trends.json"
    measure_night(
        [tmp_path / "compiled"],
        ["host"],
        8,
        "",
        "n",
        "n",
        "",
        tmp_path / "m",
        table,
        lambda *_: None,
    )
    night = read_night(table)
    assert night["red"]
    assert night["trends"] == []
    assert night["missing"][0]["message"] == "model 'gone_v2' is not in the zoo"
    assert Store(home / "lab").jobs() == []
    write_night(table, {}, "test", tmp_path / "page", tmp_path / "table")
    assert "<strong>1</strong> model is missing" in (tmp_path / "page").read_text()
    with pytest.raises(DeviceError, match=r"^1 model missing: gone_v2 missing: model 'gone_v2'"):
        alarm(tmp_path / "table")


def test_the_same_model_twice_is_refused(home: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="small_int8/2/host is asked for twice"):
        measure_night(
            [model, model], ["host"], 8, "", "n", "n", "", tmp_path, tmp_path / "t", lambda *_: None
        )
