from __future__ import annotations

import os
import re
from pathlib import Path

import cluster_rules  # noqa: F401  # these two add their rules
import pytest
import training_rules  # noqa: F401
import yaml
from manifest_rules import ROOT, RULES, Manifests, documented_secrets, may_speak
from rendered import render

from hardware_lab.inventory import load_inventory
from pipelines import cluster

K8S = ROOT / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
APPLIED = ["training", *(f"overlays/{name}" for name in OVERLAYS)]
INVALID = sorted((Path(__file__).parent / "invalid").glob("*.yaml"))


@pytest.mark.parametrize("folder", APPLIED)
@pytest.mark.parametrize("rule", RULES)
def test_what_is_applied_meets_the_rules(folder: str, rule: str) -> None:
    assert list(RULES[rule](render(K8S / folder))) == []


@pytest.mark.parametrize("folder", APPLIED)
def test_images_can_be_taken_from_a_registry(folder: str, tmp_path: Path) -> None:
    text = (K8S / "README.md").read_text()
    images = [
        {"name": name, "newName": f"registry.example.org/lab/{name}"}
        for name in re.findall(r"^  ([\w-]+)=registry\.example\.org/", text, re.MULTILINE)
    ]
    base = os.path.relpath(K8S / folder, tmp_path)
    kustomization = {"resources": [base], "images": images}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    found = {
        container["image"].partition(":")[0]
        for pod in render(tmp_path).pods
        for container in pod.containers
    }
    ours = {name for name in found if "coralline-" in name}
    assert ours and all(name.startswith("registry.example.org/lab/") for name in ours)


@pytest.mark.parametrize("file", INVALID, ids=lambda file: file.stem)
def test_a_broken_manifest_is_caught_by_its_rule(file: Path) -> None:
    text = file.read_text()
    expected = text.splitlines()[0].removeprefix("# ")
    manifests = Manifests(list(yaml.safe_load_all(text)), {("default", "documented"): {"a"}})
    faults = list(RULES[file.stem.partition("-")[0]](manifests))
    assert faults
    for fault in faults:
        assert expected in fault


def test_every_rule_has_a_manifest_that_breaks_it() -> None:
    assert {file.stem.partition("-")[0] for file in INVALID} == set(RULES)


@pytest.mark.parametrize("overlay", ["local", "lab"])
def test_only_those_speak_who_must(overlay: str) -> None:
    manifests = render(K8S / "overlays" / overlay)
    ports = {"postgres": "postgres"}
    name = "app.kubernetes.io/name"
    speak = {
        (source.labels[name], target.labels[name])
        for source in manifests.pods
        for target in manifests.pods
        if may_speak(manifests, source, target, ports.get(target.labels[name], "http"))
    }
    assert speak == {
        ("mlflow", "postgres"),
        ("prune", "postgres"),
        ("lab", "postgres"),
        ("lab-prune", "postgres"),
        ("runner", "lab"),
        ("prune", "mlflow"),
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_mlflow_answers_to_the_names_of_its_service(overlay: str) -> None:
    pods = render(K8S / "overlays" / overlay).pods
    (pod,) = [pod for pod in pods if pod.name == "Deployment coralline-mlflow"]
    environment = {v["name"]: v.get("value", "") for v in pod.containers[0]["env"]}
    allowed = environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    name = "coralline-mlflow"
    for suffix in ("", ".coralline", ".coralline.svc", ".coralline.svc.cluster.local"):
        assert f"{name}{suffix}:5000" in allowed


def test_kubeflow_is_told_what_the_pipelines_ask_for() -> None:
    secrets = documented_secrets((K8S / "README.md").read_text())
    assert secrets["kubeflow", cluster.MLFLOW_SECRET] == {"uri"}
    assert secrets["kubeflow", cluster.LAB_SECRET] == {"url", "token"}


def test_inventories_are_good() -> None:
    files = list((K8S / "overlays").rglob("inventories/*.yaml"))
    assert len(files) == 4
    for file in files:
        assert load_inventory(file).boards
