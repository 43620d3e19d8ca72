"""What the compiled pipeline asks of a cluster, and that a local run does without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.steps import EXECUTION
from pipelines import cluster, local

GOLDEN = Path(__file__).parents[1] / "golden" / "respect.yaml"
NIGHTLY = GOLDEN.with_name("nightly.yaml")


def _compiled(out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Compiled in its own process: the pipeline reads the environment when it is imported."""
    return subprocess.run(
        [Path(sys.executable).with_name("coralline"), "pipeline", "compile", "respect", "-o", out],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def _documents(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    spec, platforms = yaml.safe_load_all(path.read_text())
    executors = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return spec["deploymentSpec"]["executors"], executors


def test_a_lost_pod_of_a_loop_is_tried_again() -> None:
    for golden in (GOLDEN, NIGHTLY):
        components = next(yaml.safe_load_all(golden.read_text()))["components"]
        loops = [component for name, component in components.items() if "for-loop" in name]
        tasks = [task for loop in loops for task in loop["dag"]["tasks"].values()]
        assert len(tasks) == {GOLDEN: 5, NIGHTLY: 3}[golden]
        assert all(task["retryPolicy"]["maxRetryCount"] == 2 for task in tasks)


@pytest.mark.parametrize("golden", [GOLDEN, NIGHTLY])
def test_every_step_has_room_and_an_end(golden: Path) -> None:
    executors, kubernetes = _documents(golden)
    assert set(executors) == set(kubernetes)
    for name, executor in executors.items():
        room = executor["container"]["resources"]
        assert room["resourceMemoryRequest"] == room["resourceMemoryLimit"], name
        assert room["cpuRequest"] > 0
        assert 60 <= int(kubernetes[name]["activeDeadlineSeconds"]) <= 12 * 3600
        assert "accelerator" not in room
        assert "nodeSelector" not in kubernetes[name]


def test_only_what_speaks_with_mlflow_sees_secrets_and_it_is_required() -> None:
    _, kubernetes = _documents(GOLDEN)
    seeing = [name for name, step in kubernetes.items() if "secretAsEnv" in step]
    assert sorted(seeing) == ["exec-judge-policy", "exec-record"]
    for name in seeing:
        secrets = kubernetes[name]["secretAsEnv"]
        required = [secret for secret in secrets if not secret["optional"]]
        assert [secret["secretName"] for secret in required] == [cluster.MLFLOW_SECRET]
        assert required[0]["keyToEnv"] == [{"envVar": "MLFLOW_TRACKING_URI", "secretKey": "uri"}]


def test_every_step_is_told_the_id_of_its_run() -> None:
    _, kubernetes = _documents(GOLDEN)
    for name, step in kubernetes.items():
        [field] = step["fieldPathAsEnv"]
        assert field["name"] == EXECUTION, name
        assert field["fieldPath"] == "metadata.labels['pipeline/runid']"


def test_a_night_needs_the_lab_that_remembers_the_others() -> None:
    _, kubernetes = _documents(NIGHTLY)
    with_secrets = {name for name, step in kubernetes.items() if "secretAsEnv" in step}
    assert with_secrets == {"exec-measure-night", "exec-record-night"}
    [secret] = kubernetes["exec-measure-night"]["secretAsEnv"]
    assert secret["secretName"] == cluster.LAB_SECRET
    assert not secret.get("optional")
    assert secret["keyToEnv"] == [
        {"envVar": "CORALLINE_LAB", "secretKey": "url"},
        {"envVar": "CORALLINE_LAB_TOKEN", "secretKey": "token"},
    ]


def test_the_measuring_step_goes_where_the_environment_says(tmp_path: Path) -> None:
    out = tmp_path / "out.yaml"
    done = _compiled(
        out,
        CORALLINE_ACCELERATOR="smarter-devices/apex_0=2",
        CORALLINE_NODE_SELECTOR="coralline/board=edgetpu-pcie",
        CORALLINE_TOLERATION="coralline/board",
    )
    assert done.returncode == 0, done.stderr
    executors, kubernetes = _documents(out)
    accelerated = {n: e["container"]["resources"].get("accelerator") for n, e in executors.items()}
    accelerator = accelerated.pop("exec-dispatch")
    assert not any(accelerated.values())
    assert accelerator["resourceType"] == "smarter-devices/apex_0"
    assert accelerator["resourceCount"] == "2"
    step = kubernetes.pop("exec-dispatch")
    assert step["nodeSelector"] == {"labels": {"coralline/board": "edgetpu-pcie"}}
    assert step["tolerations"] == [
        {"key": "coralline/board", "operator": "Exists", "effect": "NoSchedule"}
    ]
    assert not any("tolerations" in step for step in kubernetes.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (cluster.ACCELERATOR, "apex"),
        (cluster.ACCELERATOR, "vendor/apex=two"),
        (cluster.ACCELERATOR, "vendor/apex=0"),
        (cluster.NODE_SELECTOR, "board"),
    ],
)
def test_a_malformed_wish_is_one_line(name: str, value: str, tmp_path: Path) -> None:
    done = _compiled(tmp_path / "out.yaml", **{name: value})
    assert done.returncode == 2
    assert done.stderr.startswith(f"coralline: {name}={value}: write ")
    assert done.stderr.count("\n") == 1


def test_a_local_run_leaves_it_out() -> None:
    text = local._without_cluster(GOLDEN, "20261121-094336-2ada47")
    assert "pipeline_job_uuid" in GOLDEN.read_text()
    assert "pipeline_job_uuid" not in text
    assert "20261121-094336-2ada47" in text
    assert "retryPolicy" in GOLDEN.read_text()
    assert "retryPolicy" not in text
    assert "resourceCpuRequest" not in text
    document = yaml.safe_load(text)
    golden = next(yaml.safe_load_all(GOLDEN.read_text()))
    assert document["deploymentSpec"]["executors"].keys() == (
        golden["deploymentSpec"]["executors"].keys()
    )
