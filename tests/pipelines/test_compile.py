"""Golden YAML of every pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from coralline.errors import UserError
from pipelines.registry import NAMES, compile_pipeline

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str, tmp_path: Path) -> None:
    compile_pipeline(name, tmp_path / "out.yaml")
    golden = GOLDEN / f"{name}.yaml"
    assert (tmp_path / "out.yaml").read_text() == golden.read_text(), (
        f"{golden} is out of date: coralline pipeline compile {name} --out {golden}"
    )


def test_an_unknown_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose one of respect"):
        compile_pipeline("respekt", tmp_path / "x.yaml")
    assert list(tmp_path.iterdir()) == []
