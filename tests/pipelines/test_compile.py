"""Golden YAML of every pipeline, and what KFP's own checks leave unseen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

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


@pytest.mark.parametrize("name", NAMES)
def test_every_reference_leads_somewhere(name: str) -> None:
    document = next(yaml.safe_load_all((GOLDEN / f"{name}.yaml").read_text()))
    components, executors = document["components"], document["deploymentSpec"]["executors"]
    for key, component in components.items():
        if "executorLabel" in component:
            assert component["executorLabel"] in executors, key
    for dag in _dags(document):
        for task in dag["tasks"].values():
            assert task["componentRef"]["name"] in components
            assert set(task.get("dependentTasks", ())) <= set(dag["tasks"])
            inputs = task.get("inputs", {})
            for source in (
                *inputs.get("artifacts", {}).values(),
                *inputs.get("parameters", {}).values(),
            ):
                for producer in ("taskOutputArtifact", "taskOutputParameter"):
                    if producer in source:
                        assert source[producer]["producerTask"] in dag["tasks"]


def _dags(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield document["root"]["dag"]
    yield from (c["dag"] for c in document["components"].values() if "dag" in c)


def test_an_unknown_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose one of respect"):
        compile_pipeline("respekt", tmp_path / "x.yaml")
    assert list(tmp_path.iterdir()) == []
