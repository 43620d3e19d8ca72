from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from coralline.errors import UserError
from pipelines.acceptance import check_names, refused

GOLDEN = Path(__file__).parents[1] / "golden"

Documents = list[dict[str, Any]]


@pytest.fixture
def documents() -> Documents:
    """A loop, of which one task ends what the other does."""
    step = {"componentRef": {"name": "comp-step"}}
    spec = {
        "schemaVersion": "2.1.0",
        "pipelineInfo": {"name": "small.one"},
        "root": {
            "dag": {
                "tasks": {
                    "for-loop-1": {
                        "componentRef": {"name": "comp-for-loop-1"},
                        "parameterIterator": {"itemInput": "item"},
                    }
                }
            }
        },
        "components": {
            "comp-for-loop-1": {
                "dag": {
                    "tasks": {
                        "step": step,
                        "end": {
                            **step,
                            "triggerPolicy": {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"},
                        },
                    }
                }
            },
            "comp-step": {"executorLabel": "exec-step"},
        },
        "deploymentSpec": {"executors": {"exec-step": {"container": {"image": "a:1"}}}},
    }
    return [spec, {"platforms": {"kubernetes": {}}}]


def _tasks(documents: Documents) -> dict[str, Any]:
    tasks: dict[str, Any] = documents[0]["components"]["comp-for-loop-1"]["dag"]["tasks"]
    return tasks


def _loop(documents: Documents) -> dict[str, Any]:
    loop: dict[str, Any] = documents[0]["root"]["dag"]["tasks"]["for-loop-1"]
    return loop


def _executor(documents: Documents, **executor: Any) -> None:
    documents[0]["deploymentSpec"]["executors"]["exec-step"] = executor


def _import_under_a_condition(documents: Documents) -> None:
    _executor(documents, importer={})
    _tasks(documents)["step"]["triggerPolicy"] = {"condition": "true"}


def _rename(documents: Documents, name: str) -> None:
    _tasks(documents)[name] = _tasks(documents).pop("step")


def _rename_loop(documents: Documents, name: str) -> None:
    components = documents[0]["components"]
    components[name] = components.pop("comp-for-loop-1")
    _loop(documents)["componentRef"]["name"] = name


def test_a_sound_pipeline(documents: Documents) -> None:
    assert list(refused(documents)) == []


@pytest.mark.parametrize("name", ["respect", "nightly"])
def test_our_own(name: str) -> None:
    documents = list(yaml.safe_load_all((GOLDEN / f"{name}.yaml").read_text()))
    assert list(refused(documents)) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d[0].update(schemaVersion="2.2.0"), "schemaVersion is '2.2.0'"),
        (lambda d: d[0]["pipelineInfo"].update(name="-x"), "pipelineInfo.name '-x' is not"),
        (lambda d: d[0]["pipelineInfo"].update(name="Small"), "pipelineInfo.name 'Small' is not"),
        (lambda d: d[0].pop("pipelineInfo"), "pipelineInfo.name None is not"),
        (lambda d: d.append(d[1]), "settings for Kubernetes in more than one document"),
        (lambda d: d[0]["components"].update(root=d[0]["root"]), "called root, which is reserved"),
        (lambda d: d[0]["components"]["comp-step"].clear(), "comp-step has neither tasks nor"),
        (
            lambda d: _tasks(d)["step"].update(componentRef={"name": "comp-for-loop-1"}),
            "comp-for-loop-1 -> comp-for-loop-1 goes round in a circle",
        ),
        (lambda d: _tasks(d).pop("step"), "comp-for-loop-1 has no task but for what is done at"),
        (lambda d: _executor(d, customJob={}), "exec-step is a customJob, and Kubeflow runs"),
        (lambda d: _executor(d, resolver={}), "exec-step is a resolver, and Kubeflow runs"),
        (_import_under_a_condition, "task step imports under a condition"),
        (lambda d: _loop(d).update(artifactIterator={}), "task for-loop-1 loops over artifacts"),
        (lambda d: _rename(d, "a.b"), "task a.b becomes 'a.b-driver' in Argo"),
        (lambda d: _rename(d, "x" * 122), "-driver' in Argo, which takes at most 128"),
        (lambda d: _rename_loop(d, "y" * 109), "-for-loop-1-iterator' in Argo"),
    ],
)
def test_what_is_refused(
    documents: Documents, change: Callable[[Documents], object], told: str
) -> None:
    change(documents)
    found = list(refused(documents))
    assert any(told in fault for fault in found), found


def test_an_importer_without_a_condition(documents: Documents) -> None:
    _executor(documents, importer={})
    assert list(refused(documents)) == []


@pytest.mark.parametrize("name", ["a", "a-b.c", "9", "x" * 114])
def test_names(name: str) -> None:
    check_names(name, "our experiment")


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a..b", "ä", "x" * 115])
def test_other_names(name: str) -> None:
    with pytest.raises(UserError, match="pipeline name"):
        check_names(name, "e")


@pytest.mark.parametrize("name", ["", "x" * 129, "ä" * 65])
def test_names_of_experiments(name: str) -> None:
    with pytest.raises(UserError, match="--experiment"):
        check_names("a", name)
