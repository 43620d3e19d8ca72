"""What the command line says and returns when things go wrong, in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hardware_lab.store import Store

ROOT = Path(__file__).parents[1]
MODEL = str(ROOT / "data" / "small_int8.tflite")
COMMAND = [sys.executable, "-c", "from coralline.cli.main import main; main()"]
GRAPH = {
    "schema": "coralline.graph/v1",
    "name": "[bold]g[/red]",
    "nodes": [{"name": f"n{i}", "op": "[/a]", "macs": 1} for i in range(3)],
    "edges": [[0, 1], [1, 2]],
}


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [*COMMAND, *arguments],
        **{"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["graph"], "`coralline graph --help`"),
        (["nothing"], "No such command 'nothing'"),
        (["schedule", MODEL, "--stages"], "'--stages' requires an argument"),
        (["schedule", MODEL, "--stages", "2", "--seed", "-1"], "'--seed'"),
        (["schedule", MODEL, "--stages", "2", "--time-limit", "nan"], "'--time-limit'"),
        (["bench", MODEL, "--lab", "lab", "--repetitions", "10" * 20], "at most"),
    ],
)
def test_a_usage_error_is_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    ended = run(*arguments, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("coralline: ") and said in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_verb_that_needs_another_prints_its_help() -> None:
    ended = run("lab")
    assert ended.returncode == 2
    assert "Example:" in ended.stdout and ended.stderr == ""


def test_names_that_look_like_markup_are_printed_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    path.write_text("\ufeff" + json.dumps(GRAPH), encoding="utf-8")
    for arguments in (["graph", str(path)], ["schedule", str(path), "--stages", "2"]):
        ended = run(*arguments)
        assert ended.returncode == 0, ended.stderr
        assert "[bold]g[/red]" in ended.stdout


def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        ended = run("graph", MODEL, "--json", stdout=full)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1 and "No space left" in ended.stderr


def test_an_interrupted_bench_ends_at_once_and_withdraws_its_job(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [*COMMAND, "bench", MODEL, "--repetitions", "1000000", "--lab", "lab"],
        cwd=tmp_path,
        text=True,
        stderr=subprocess.PIPE,
        # A test runner in the background may ignore interrupts, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    store = Store(tmp_path / "lab")
    limit = time.monotonic() + 60
    while not store.jobs(state="running") and time.monotonic() < limit:
        time.sleep(0.1)
    os.kill(child.pid, signal.SIGINT)
    said = child.communicate(timeout=30)[1]
    assert (child.returncode, said) == (130, "coralline: interrupted\n")
    assert [(job.state, job.error) for job in store.jobs()] == [("cancelled", "interrupted")]
