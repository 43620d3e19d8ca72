"""The command line in this process: one of its own would spend seconds on starting."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from coralline.cli import main as command_line

Verb = Callable[..., str]
"""Takes the arguments after `coralline`, and the exit code that is expected as `code`; gives what
the verb printed, or why it failed."""


def run_verb(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["coralline", *arguments])
        command_line.main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def verb(capsys: pytest.CaptureFixture[str]) -> Verb:
    """As `run_verb`, for tests that expect an exit code."""

    def call(*arguments: str, code: int = 0) -> str:
        found, said, why = run_verb(capsys, *arguments)
        assert found == code, why
        return said if code == 0 else why

    return call
