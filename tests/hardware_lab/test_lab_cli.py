"""The verbs `lab` and `bench`, as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from verbs import Verb, verb

from coralline.runtime.measurement import Measurement
from hardware_lab.cli import _samples
from hardware_lab.store import Store

INT8 = Path(__file__).parents[1] / "data" / "small_int8.tflite"


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Verb:
    monkeypatch.chdir(tmp_path)
    return verb(capsys)


def test_bench_prints_one_measurement(call: Verb, tmp_path: Path) -> None:
    out = tmp_path / "m.json"
    said = json.loads(
        call("bench", str(INT8), "--board", "host", "-n", "20", "--json", "--out", str(out))
    )
    assert said == json.loads(out.read_text())
    measurement = Measurement.from_json(said)
    assert measurement.outputs_equal and len(measurement.latency_ms) == 20
    assert said["summary"] == pytest.approx(measurement.summary())


def test_bench_says_simulated_wherever_it_is(call: Verb) -> None:
    said = call("bench", str(INT8), "--board", "edgetpu-usb-sim", "-n", "20")
    for line in said.splitlines():
        if "mJ" in line or "inferences/s" in line or " ms" in line:
            assert "simulated" in line


def test_a_simulation_says_what_the_device_could_not_run(call: Verb) -> None:
    able, unable = (
        call("bench", str(model), "--board", "edgetpu-usb-sim", "-n", "20", "--json")
        for model in (INT8, INT8.with_name("small_float.tflite"))
    )
    assert json.loads(able)["processor"] == "simulated edgetpu-usb"
    assert "operators that it cannot" in json.loads(unable)["processor"]


def test_bench_against(call: Verb, tmp_path: Path) -> None:
    out = tmp_path / "c.json"
    pcie = ("--board", "edgetpu-usb-sim", "-n", "20", "--against", str(INT8))
    found = json.loads(call("bench", str(INT8), *pcie, "--json", "--out", str(out)))
    assert found == json.loads(out.read_text())
    # A device model has no moods: the same plan twice differs by nothing.
    ratio = found["ratios"]["latency_p50_ms"]
    assert ratio["value"] == ratio["low"] == ratio["high"] == 1
    assert out.with_suffix(".a.parquet").exists() and out.with_suffix(".b.parquet").exists()
    shown = call("lab", "show", found["a"]["id"])
    assert "4 blocks of A B B A" in shown and "p50, ms" in shown


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ((None, None, None), (1024, 60.0)),
        ((20, None, None), (20, None)),
        ((None, 5.0, None), (1024, 5.0)),
        ((None, None, 99.0), (662, None)),
        ((100, None, 90.0), (100, None)),
    ],
)
def test_how_many_samples_a_job_asks_for(options: Any, asked: Any) -> None:
    found = _samples(*options)
    assert (found["repetitions"], found["seconds"]) == asked


def test_submit_run_jobs_show(call: Verb) -> None:
    job = json.loads(call("lab", "submit", str(INT8), "-b", "edgetpu-pcie-sim", "--json"))
    assert job["state"] == "queued"
    ran = json.loads(call("lab", "run", "--json"))
    assert [j["state"] for j in ran["jobs"]] == ["done"]
    listed = json.loads(call("lab", "jobs", "--state", "done", "--json"))
    assert [j["id"] for j in listed["jobs"]] == [job["id"]]
    shown = json.loads(call("lab", "show", job["id"], "--json"))
    assert shown["measurement"]["id"] == job["id"]
    assert "simulated" in call("lab", "show", job["id"])


def test_jobs_by_tag_and_group(call: Verb, tmp_path: Path) -> None:
    inventory = tmp_path / "lab.yaml"
    inventory.write_text(
        "schema: coralline.inventory/v1\nboards:\n"
        "  small: {kind: edgetpu-sim, device: edgetpu-usb, tags: {edgetpu: 1}}\n"
        "  large: {kind: edgetpu-sim, device: edgetpu-usb, tags: {edgetpu: 4, pcie: 1}}\n"
    )
    lab = ("--inventory", str(inventory))
    submit = ("lab", "submit", str(INT8), *lab, "--json")
    assert "edgetpu 4, pcie 1" in call("lab", "boards", *lab)
    wanted = ("--need", "edgetpu=2", "--need", "pcie", "--group", "a", "--priority", "3")
    job = json.loads(call(*submit, *wanted, "--deadline", "8h"))
    assert job["demand"] == {"board": None, "needs": {"edgetpu": 2, "pcie": 1}}
    assert (job["priority"], job["group"]) == (3, "a") and job["deadline_at"] > job["submitted_at"]
    other = json.loads(call(*submit, "--board", "small", "--group", "b"))
    ran = json.loads(call("lab", "run", *lab, "--group", "a", "--json"))["jobs"]
    assert [(j["id"], j["board"], j["state"]) for j in ran] == [(job["id"], "large", "done")]
    cancelled = json.loads(call("lab", "cancel", "--group", "b", "--json"))["jobs"]
    assert [(j["id"], j["state"]) for j in cancelled] == [(other["id"], "cancelled")]
    assert json.loads(call("lab", "run", *lab, "--json")) == {"jobs": []}
    for arguments, said in [
        ([*submit, "--need", "edgetpu=8"], "no board is any with edgetpu 8"),
        ([*submit, "--need", "pcie", "--deadline", "8"], "write 90s, 30m, 8h or 2d"),
        (["lab", "cancel"], "nothing to cancel"),
    ]:
        assert said in call(*arguments, code=2)


def test_a_runner_takes_jobs_until_it_is_told_to_end(call: Verb, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from coralline.cli.main import main; main()"]
    process = subprocess.Popen(
        [*command, "lab", "runner"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    job = json.loads(call("lab", "submit", str(INT8), "--board", "edgetpu-usb-sim", "--json"))
    store = Store(tmp_path / ".coralline" / "lab")
    limit = time.monotonic() + 60
    while store.job(job["id"]).state != "done" and time.monotonic() < limit:
        time.sleep(0.1)
    process.terminate()
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 0, said
    assert f"job {job['id']}: done" in said and "ended" in said.splitlines()[-1]


def test_boards_and_health(call: Verb, tmp_path: Path) -> None:
    names = ["host", "edgetpu-usb-sim", "edgetpu-pcie-sim"]
    boards = json.loads(call("lab", "boards", "--json"))["boards"]
    assert [board["name"] for board in boards] == names
    health = json.loads(call("lab", "health", "--json"))["boards"]
    assert sorted((b["board"], b["state"]) for b in health) == sorted((n, "good") for n in names)
    call("lab", "health", "host", "--set", "maintenance", "--why", "a new fan")
    said = call("bench", str(INT8), "--board", "host", "-n", "20", code=1)
    assert "board 'host' is maintenance: a new fan; once that is put right" in said
    call("lab", "submit", str(INT8), "--board", "host")
    left = call("lab", "run", code=1)
    assert "is left in the queue: board 'host' is maintenance: a new fan" in left
    assert "a new fan" in call("lab", "jobs"), "why the first was cancelled"
    shown = json.loads(call("lab", "health", "host", "--json"))
    assert [(line["state"]) for line in shown["log"]] == ["good", "maintenance"]
    # What became of a board is known without the inventory that had it.
    other = tmp_path / "other.yaml"
    other.write_text("schema: coralline.inventory/v1\nboards: {desk: {kind: host}}\n")
    told = call("lab", "health", "host", "--inventory", str(other), code=0)
    assert "maintenance: a new fan" in told
    call("lab", "health", "host", "--set", "unknown", "--why", "so", "--inventory", str(other))
    assert "needs the name" in call("lab", "health", "--set", "bad", "--why", "so", code=2)


def test_bad_input_is_one_line_and_exit_2(call: Verb, tmp_path: Path) -> None:
    truncated = tmp_path / "truncated.tflite"
    truncated.write_bytes(INT8.read_bytes()[:2000])
    for arguments, message in [
        (["bench", str(INT8), "--board", "coral"], "board 'coral' is not known"),
        (["bench", str(truncated)], "truncated or damaged"),
        (["bench", str(INT8), "-n", "0"], "repetitions is 0"),
        (["lab", "show", "nope"], "'nope' is not in"),
        (["lab", "jobs", "--state", "lost"], "choose queued, running, done, invalid, failed"),
        (["lab", "boards", "--inventory", "none.yaml"], "no such file"),
    ]:
        said = call(*arguments, code=2)
        assert message in said and len(said.splitlines()) == 1


def test_the_files_of_a_job(call: Verb, tmp_path: Path) -> None:
    ran = json.loads(
        call(
            "bench",
            str(INT8),
            "-b",
            "edgetpu-usb-sim",
            "-n",
            "20",
            "--against",
            str(INT8),
            "--json",
        )
    )
    job, out = ran["a"]["id"], tmp_path / "raw"
    shown = json.loads(call("lab", "show", job, "--json"))
    assert list(shown["files"]["kept"]) == ["samples.a.parquet", "samples.b.parquet"]
    assert "samples.b.parquet" in call("lab", "show", job)
    fetched = json.loads(call("lab", "fetch", job, "--out", str(out), "--json"))["files"]
    assert fetched == {f"samples.{x}.parquet": str(out / f"samples.{x}.parquet") for x in "ab"}
    assert pq.read_table(out / "samples.a.parquet")["latency_ms"].to_pylist() == pytest.approx(
        ran["a"]["latency_ms"]
    )
    assert call("lab", "fetch", job, "model", "-o", str(out)).strip() == str(out / INT8.name)
    assert (out / INT8.name).read_bytes() == INT8.read_bytes()
    said = call("lab", "fetch", job, "model", "-o", str(out), code=2)
    assert "is there already" in said
    said = call("lab", "fetch", job, "power.parquet", "-o", str(out), code=2)
    assert "it has samples.a.parquet, samples.b.parquet, model, against" in said
    pruned = json.loads(call("lab", "prune", "--older-than", "90d", "--json"))
    assert pruned == {"artifacts": [], "unfinished": 0, "size_bytes": 0, "dry_run": False}
    assert "write 90s, 30m, 8h or 2d" in call("lab", "prune", "--older-than", "old", code=2)
