from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipelines import display
from pipelines.local import Event


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()

    def console(file: object, quiet: bool) -> Console:
        return Console(file=stream, quiet=quiet, force_terminal=True, width=80)

    monkeypatch.setattr(display, "Console", console)
    return stream


def test_a_step_that_runs_twice_at_once_has_one_bar(terminal: io.StringIO) -> None:
    with display.Display(terminal, quiet=False) as shown:
        for kind in ("started", "started", "ended", "ended"):
            shown.show(Event(kind, "solve-labels"))
        shown.show(Event("progress", "labels 0/2", 1, 2))
        shown.show(Event("progress", "labels 0/2", 2, 2))
        shown.show(Event("reused", "train-policy"))
        tasks = shown._progress.tasks
        assert [task.description for task in tasks] == [
            "solve-labels",
            "labels 0/2",
            "train-policy",
        ]
        assert all(task.finished for task in tasks)
        assert [task.fields["note"] for task in tasks] == ["", "2/2", "reused"]


def test_without_a_terminal_steps_are_lines() -> None:
    stream = io.StringIO()
    with display.Display(stream, quiet=False) as shown:
        shown.show(Event("started", "record"))
        shown.show(Event("progress", "measuring", 1, 2))
        shown.show(Event("ended", "record"))
    assert stream.getvalue() == "started  record\nended    record\n"


def test_quiet_is_quiet() -> None:
    stream = io.StringIO()
    with display.Display(stream, quiet=True) as shown:
        shown.show(Event("started", "record"))
    assert stream.getvalue() == ""
