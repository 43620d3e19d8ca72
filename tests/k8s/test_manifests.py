from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml
from manifest_rules import ROOT, RULES, Manifests, documented_secrets, may_speak

from hardware_lab.inventory import load_inventory
from pipelines import cluster

K8S = ROOT / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
INVALID = sorted((Path(__file__).parent / "invalid").glob("*.yaml"))


def _kustomize() -> list[str]:
    if kubectl := shutil.which("kubectl"):
        return [kubectl, "kustomize"]
    if kustomize := shutil.which("kustomize"):
        return [kustomize, "build"]
    # In CI too: Debian 12 has kubectl 1.20 alone, whose kustomize is too old for the overlays.
    pytest.skip("neither kubectl nor kustomize is installed")


@cache
def _rendered(overlay: str) -> Manifests:
    command = [*_kustomize(), str(K8S / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    secrets = documented_secrets((K8S / "README.md").read_text())
    return Manifests(list(yaml.safe_load_all(done.stdout)), secrets)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("rule", RULES)
def test_overlays_meet_the_rules(overlay: str, rule: str) -> None:
    assert list(RULES[rule](_rendered(overlay))) == []


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
    manifests = _rendered(overlay)
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
    (pod,) = [pod for pod in _rendered(overlay).pods if pod.name == "Deployment coralline-mlflow"]
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
