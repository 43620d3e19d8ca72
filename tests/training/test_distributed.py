"""Training in two processes on this machine, as it is on two of a cluster."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from coralline.errors import UserError
from coralline.graph.graph_set import write_graph_set
from coralline.graph.synthetic import generate
from coralline.staging.policy import load_policy
from training.distributed import place
from training.labels import LabelOptions, solve_labels

JOINS = """
import sys
from coralline.cli.main import main
from training import policy
train = policy._train

def joined(*arguments):
    print("joined", file=sys.stderr, flush=True)
    return train(*arguments)

policy._train = joined
main()
"""


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    write_graph_set(tmp_path / "graphs.jsonl", generate("branch", 60, 16, 1))
    solve_labels(tmp_path / "graphs.jsonl", tmp_path / "labels", 0, 1, LabelOptions(3))
    return tmp_path


def workers(folder: Path, epochs: int) -> list[subprocess.Popen[str]]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = ["{}:{}".format(*one.getsockname()) for one in sockets]
    for one in sockets:
        one.close()
    started = []
    for index in range(2):
        config = {
            "cluster": {"worker": addresses},
            "task": {"type": "worker", "index": index},
            "environment": "cloud",  # of no use any more, but the operator writes it
        }
        command = "train run --graphs graphs.jsonl --labels labels --time-limit 600 --json".split()
        started.append(
            subprocess.Popen(
                [
                    *(sys.executable, "-c", JOINS),
                    *(*command, "--out", f"policy{index}", "--epochs", str(epochs)),
                ],
                cwd=folder,
                env={**os.environ, "TF_CONFIG": json.dumps(config)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def test_two_processes_train_one_policy(labelled: Path) -> None:
    first, second = workers(labelled, epochs=40)
    said, errors = first.communicate(timeout=240)
    assert first.returncode == 0, errors
    assert second.communicate(timeout=60)[0] == ""
    assert second.returncode == 0
    found = json.loads(said)
    assert len(found["curve"]) == 40
    assert found["greedy_gap"] < found["untrained_gap"]
    load_policy(labelled / "policy0" / "policy.npz")
    assert not list((labelled / "policy1").iterdir())


def test_a_worker_that_dies(labelled: Path) -> None:
    first, second = workers(labelled, epochs=10**6)
    try:
        assert second.stderr is not None
        assert second.stderr.readline() == "joined\n"
        second.send_signal(signal.SIGKILL)
        _, errors = first.communicate(timeout=120)
        assert first.returncode == 1
        assert "worker 0 of 2: another has gone" in errors and "Traceback" not in errors
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "does not say"),
        ('{"cluster": {"worker": ["a:1"]}}', "does not say"),
        (
            '{"cluster": {"ps": ["b:1"], "worker": ["a:1"]}, '
            '"task": {"type": "worker", "index": 0}}',
            "all processes must be workers",
        ),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
            "there are 1 workers, and this is number 1",
        ),
    ],
)
def test_wrong_places(monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match=said):
        place()


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert place() == (0, 1)
