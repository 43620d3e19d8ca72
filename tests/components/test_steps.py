from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components import steps
from coralline.errors import UserError


class Metrics:
    """What KFP gives for an output of that type."""

    def __init__(self, path: Path) -> None:
        self.path, self.logged = str(path), {}

    def log_metric(self, name: str, value: float) -> None:
        self.logged[name] = value


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(autouse=True)
def execution(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(steps.EXECUTION, "run-1")
    return "run-1"


def test_a_step_says_what_it_does_and_what_it_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cost = Metrics(tmp_path / "cost.json")
    with steps.step("plan", cost):
        held = bytearray(64 * 2**20)
        held[:: 2**10] = b"x" * len(held[:: 2**10])
        sum(i * i for i in range(10**6))
        steps.progress("plan net", 1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    started, progress, ended = lines(err)
    for line in (started, progress, ended):
        assert (line["execution"], line["step"]) == ("run-1", "plan")
    assert started["coralline"] == "started"
    assert (progress["what"], progress["done"], progress["total"]) == ("plan net", 1, 2)
    assert ended["coralline"] == "ended"
    assert ended["cpu_seconds"] > 0
    assert ended["peak_bytes"] > len(held)
    assert cost.logged == {k: ended[k] for k in ("seconds", "cpu_seconds", "peak_bytes")}
    assert list(steps.said_in(f"   {err.splitlines()[1]}  noise")) == [progress]


def test_a_step_that_fails_says_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cost = Metrics(tmp_path / "cost.json")
    for error, kind, text in (
        (UserError("no such\nboard"), "UserError", "no such board"),
        (KeyError("x"), "KeyError", "KeyError: 'x'"),
    ):
        with pytest.raises(type(error)), steps.step("dispatch", cost):
            raise error
        failed = lines(capsys.readouterr().err)[-1]
        assert (failed["coralline"], failed["kind"], failed["error"]) == ("failed", kind, text)
    assert not (tmp_path / "cost.json").exists()


def test_a_step_without_a_cost_says_so_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    with steps.step("sum-costs"):
        pass
    assert [line["coralline"] for line in lines(capsys.readouterr().err)] == ["started", "ended"]


def test_costs_are_summed_by_step_and_know_what_was_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for i, (name, run) in enumerate(
        [("label", "run-0"), ("label", "run-1"), ("train", "run-1"), ("graphs", "run-0")]
    ):
        monkeypatch.setenv(steps.EXECUTION, run)
        files.append(tmp_path / f"{i}.json")
        with steps.step(name, Metrics(files[-1])):
            pass
    monkeypatch.setenv(steps.EXECUTION, "run-1")
    steps.write_costs(reversed(files), tmp_path / "costs.json")
    found = steps.read_costs(tmp_path / "costs.json")
    assert [(c.name, c.times, c.reused) for c in found] == [
        ("label", 2, 1),
        ("train", 1, 0),
        ("graphs", 1, 1),
    ]
    assert found[2].started_at is None
    assert found[0].started_at < found[1].started_at
    written = [json.loads(file.read_text()) for file in files]
    assert found[0].peak_bytes == max(one["peak_bytes"] for one in written[:2])
    assert found[0].seconds == pytest.approx(sum(one["seconds"] for one in written[:2]))
    with pytest.raises(UserError, match="schema"):
        steps.read_costs(files[0])


def test_whole_numbers_are_written_as_such() -> None:
    given = {
        "count": "24.0",
        "share": "0.05",
        "seconds": "10.05",
        "low": "-1.0",
        "version": "1.0.1",
    }
    wanted = {**given, "count": "24", "low": "-1"}
    assert steps.whole_numbers(given) == wanted
