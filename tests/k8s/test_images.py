from __future__ import annotations

import re
import subprocess
import tomllib
from itertools import takewhile

import pytest
from manifest_rules import ROOT
from rendered import render

from coralline import __version__

IMAGES = ROOT / "k8s" / "images"
DOCKERFILE = (IMAGES / "Dockerfile").read_text()
SMOKE = (IMAGES / "smoke").read_text()


def _pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([^ ;]+)", (ROOT / name).read_text(), re.MULTILINE))


def _stages() -> dict[str, str]:
    found = re.findall(r"^FROM (\S+) AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S)
    assert len(found) == DOCKERFILE.count("\nFROM ")
    return {name: f"{base}\n{body}" for base, name, body in found}


def test_the_base_is_pinned_by_its_digest() -> None:
    (base,) = re.findall(r"^ARG BASE=(\S+)", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", base)
    bases = {body.partition("\n")[0] for body in _stages().values()}
    assert bases <= {"${BASE}", *_stages()}


@pytest.mark.parametrize("target", ["project", "runner"])
def test_an_image_ends_as_another_user_than_root(target: str) -> None:
    text = _stages()["run"] + _stages()[target]
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] == "10001:10001"
    assert "HEALTHCHECK" in text
    assert "pip install" not in text


def test_the_runner_has_the_versions_of_the_project_and_little_of_it() -> None:
    runner, project = _pins("k8s/images/requirements-runner.txt"), _pins("requirements.txt")
    assert runner.items() < project.items()
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = wanted["dependencies"] + wanted["optional-dependencies"]["lab"]
    assert {re.split(r"[\[><=]", text)[0] for text in wanted} <= runner.keys()
    assert not runner.keys() & {"tensorflow-cpu", "mlflow", "kfp", "great-expectations"}


@pytest.mark.parametrize("folder", ["training", "overlays/local", "overlays/lab", "overlays/cloud"])
def test_the_smoke_test_runs_what_the_manifests_run(folder: str) -> None:
    project, runner = SMOKE.partition('if [ "$kind" = project ]')[2].split("\nelse\n")
    for pod in render(ROOT / "k8s" / folder).pods:
        for container in pod.containers:
            if container["image"].startswith("coralline-") and container["command"][0] != "sleep":
                verbs = list(takewhile(lambda word: word[0] != "-", container["command"]))
                run = project if container["image"].startswith("coralline-python") else runner
                assert " ".join(verbs) in run


def test_images_have_the_version_of_the_project() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.findall(r"^VERSION := (\S+)", makefile, re.MULTILINE) == [__version__]


def test_a_missing_engine_is_named() -> None:
    done = subprocess.run(
        ["make", "images", "ENGINE=no-such-engine"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "no-such-engine is missing" in done.stdout
