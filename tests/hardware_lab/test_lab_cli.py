"""The verbs `lab` and `bench`, as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coralline.runtime.measurement import Measurement

INT8 = Path(__file__).parents[1] / "data" / "small_int8.tflite"


@pytest.fixture
def call(tmp_path: Path) -> Any:
    def run(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from coralline.cli.main import main; main()", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


def test_bench_prints_one_measurement(call: Any, tmp_path: Path) -> None:
    out = tmp_path / "m.json"
    said = json.loads(
        call("bench", str(INT8), "--board", "host", "-n", "20", "--json", "--out", str(out))
    )
    assert said == json.loads(out.read_text())
    measurement = Measurement.from_json(said)
    assert measurement.outputs_equal and len(measurement.latency_ms) == 20
    assert said["summary"] == pytest.approx(measurement.summary())


def test_bench_says_simulated_wherever_it_is(call: Any) -> None:
    said = call("bench", str(INT8), "--board", "edgetpu-usb-sim", "-n", "20")
    for line in said.splitlines():
        if "mJ" in line or "inferences/s" in line or " ms" in line:
            assert "simulated" in line


def test_submit_run_jobs_show(call: Any) -> None:
    job = json.loads(call("lab", "submit", str(INT8), "-b", "edgetpu-pcie-sim", "--json"))
    assert job["state"] == "queued"
    ran = json.loads(call("lab", "run", "--json"))
    assert [j["state"] for j in ran["jobs"]] == ["done"]
    listed = json.loads(call("lab", "jobs", "--state", "done", "--json"))
    assert [j["id"] for j in listed["jobs"]] == [job["id"]]
    shown = json.loads(call("lab", "show", job["id"], "--json"))
    assert shown["measurement"]["id"] == job["id"]
    assert "simulated" in call("lab", "show", job["id"])


def test_boards_and_health(call: Any) -> None:
    names = ["host", "edgetpu-usb-sim", "edgetpu-pcie-sim"]
    boards = json.loads(call("lab", "boards", "--json"))["boards"]
    assert [board["name"] for board in boards] == names
    health = json.loads(call("lab", "health", "--json"))["boards"]
    assert [(board["board"], board["good"]) for board in health] == [(n, True) for n in names]


def test_bad_input_is_one_line_and_exit_2(call: Any, tmp_path: Path) -> None:
    truncated = tmp_path / "truncated.tflite"
    truncated.write_bytes(INT8.read_bytes()[:2000])
    for arguments, message in [
        (["bench", str(INT8), "--board", "coral"], "board 'coral' is not known"),
        (["bench", str(truncated)], "truncated or damaged"),
        (["bench", str(INT8), "-n", "0"], "repetitions is 0"),
        (["lab", "show", "nope"], "'nope' is not in"),
        (["lab", "jobs", "--state", "lost"], "choose queued, running, done, failed"),
        (["lab", "boards", "--inventory", "none.yaml"], "no such file"),
    ]:
        said = call(*arguments, code=2)
        assert message in said and len(said.splitlines()) == 1
