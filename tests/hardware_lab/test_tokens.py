"""Tokens that are made elsewhere, as a cluster's secrets are."""

from __future__ import annotations

from pathlib import Path

import pytest

from coralline.errors import UserError
from hardware_lab.store import Store

GIVEN = "clab_0a1b2c3d_" + "k" * 43


def test_a_token_that_others_know_already(tmp_path: Path) -> None:
    tokens = Store(tmp_path / "lab").tokens
    assert tokens.add("runners", "run", given=GIVEN) == GIVEN
    with pytest.raises(UserError, match="is there already"):
        tokens.add("runners", "run", given=GIVEN)
    tokens.add("runners", "run", given=GIVEN, replace=True)
    [kept] = tokens.known()
    assert kept.role == "run" and kept.is_that(GIVEN) and not kept.is_that(GIVEN[:-1] + "x")


@pytest.mark.parametrize("given", ["secret", GIVEN[:-1], GIVEN.replace("clab", "blab")])
def test_what_is_no_token(tmp_path: Path, given: str) -> None:
    tokens = Store(tmp_path / "lab").tokens
    with pytest.raises(UserError, match="is no token"):
        tokens.add("runners", "run", given=given)
    assert tokens.known() == []
