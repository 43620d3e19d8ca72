"""The manifests of distributed training, as the operator and its workers read them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from manifest_rules import ROOT, Doc, Manifests, may_speak
from rendered import render
from training_rules import tf_config

from training.distributed import VARIABLE, place


@pytest.fixture(scope="module")
def manifests() -> Manifests:
    return render(ROOT / "k8s" / "training")


@pytest.fixture(scope="module")
def job(manifests: Manifests) -> Doc:
    (job,) = manifests.of("TFJob")
    return job


def test_each_worker_finds_its_place(job: Doc, monkeypatch: pytest.MonkeyPatch) -> None:
    count = job["spec"]["tfReplicaSpecs"]["Worker"]["replicas"]
    for index in range(count):
        monkeypatch.setenv(VARIABLE, tf_config(job, index))
        assert place() == (index, count)


def test_workers_are_named_as_their_services(job: Doc) -> None:
    found = json.loads(tf_config(job, 0))
    assert found["cluster"]["worker"][1] == "coralline-policy-worker-1.coralline-training.svc:2222"


def test_workers_speak_with_each_other_alone(manifests: Manifests) -> None:
    pods = {pod.name: pod for pod in manifests.pods}
    worker, files = pods["TFJob coralline-policy"], pods["Job coralline-files"]
    assert may_speak(manifests, worker, worker, "tfjob-port")
    assert not may_speak(manifests, files, worker, "tfjob-port")
    assert not may_speak(manifests, worker, files, "tfjob-port")


def test_all_read_and_the_first_writes_on_the_shared_volume(manifests: Manifests) -> None:
    (claim,) = manifests.of("PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in manifests.pods:
        (container,) = pod.containers
        (mount,) = [m for m in container["volumeMounts"] if m["name"] == "training"]
        (volume,) = [v for v in pod.spec["volumes"] if v["name"] == "training"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        named = [Path(word) for word in container["command"] if word.startswith("/")]
        assert all(path.parent == Path(mount["mountPath"]) for path in named)


def test_documented_commands_name_what_is_there(manifests: Manifests, job: Doc) -> None:
    text = (ROOT / "docs" / "scale.md").read_text()
    (files,) = manifests.of("Job")
    assert job["spec"]["runPolicy"]["suspend"]
    for name in (
        f"tfjob/{job['metadata']['name']}",
        f"job/{files['metadata']['name']}",
        f"-n {job['metadata']['namespace']}",
        f"{job['metadata']['name']}-worker-0",
    ):
        assert name in text
