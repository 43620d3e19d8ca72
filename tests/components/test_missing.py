"""Reasons in the place of results."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.missing import Missing, noted, read_missing, unless_missing
from coralline.errors import DeviceError, PlanError, UserError


@pytest.mark.parametrize("kind", [UserError, PlanError, DeviceError])
def test_a_reason_is_passed_on_as_it_is(kind: type[Exception], tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    with noted(first, "m"):
        raise kind("it is\nbroken")
    for before, after in ((first, second), (second, third)):
        with noted(after, "m"):
            unless_missing(before)
            raise AssertionError("went on without its input")
    reason = read_missing(third)
    assert reason == read_missing(first)
    assert isinstance(reason, Missing)
    assert (reason.model, reason.message) == ("m", "it is broken")


def test_a_result_is_no_reason(tmp_path: Path) -> None:
    with noted(tmp_path, "m"):
        (tmp_path / "result").touch()
    assert read_missing(tmp_path) is None
    assert unless_missing(tmp_path) == tmp_path


def test_errors_are_raised_where_nobody_asked_for_reasons(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="broken"), noted(tmp_path, ""):
        raise UserError("broken")
    assert read_missing(tmp_path) is None


def test_what_may_be_gone_at_the_next_try_is_raised(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="away"), noted(tmp_path, "m"):
        raise DeviceError("the lab is away", retryable=True)
    assert read_missing(tmp_path) is None


def test_faults_of_the_program_are_raised_always(tmp_path: Path) -> None:
    with pytest.raises(KeyError), noted(tmp_path, "m"):
        raise KeyError("surprise")
    assert read_missing(tmp_path) is None
