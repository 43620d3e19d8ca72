"""What the compiled pipeline asks of a cluster, and that a local run does without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.failures import PIPELINE
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


def _secrets(step: dict[str, Any], *, optional: bool) -> dict[str, set[str]]:
    """The variables that each secret gives."""
    found: dict[str, set[str]] = {}
    for secret in step["secretAsEnv"]:
        if bool(secret.get("optional")) == optional:
            names = {key["envVar"] for key in secret["keyToEnv"]}
            found.setdefault(secret["secretName"], set()).update(names)
    return found


ACCOUNT = {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}


@pytest.mark.parametrize(
    ("golden", "writing"),
    [(GOLDEN, {"exec-judge-policy", "exec-record"}), (NIGHTLY, {"exec-record-night"})],
)
def test_every_step_may_leave_its_failure_and_what_writes_to_mlflow_needs_it(
    golden: Path, writing: set[str]
) -> None:
    _, kubernetes = _documents(golden)
    for name, step in kubernetes.items():
        required = _secrets(step, optional=False)
        required.pop(cluster.LAB_SECRET, None)
        if name in writing:
            assert required == {cluster.MLFLOW_SECRET: {"MLFLOW_TRACKING_URI"}}
            assert _secrets(step, optional=True) == {
                cluster.MLFLOW_SECRET: ACCOUNT,
                cluster.S3_SECRET: {
                    "AWS_ACCESS_KEY_ID",
                    "AWS_SECRET_ACCESS_KEY",
                    "MLFLOW_S3_ENDPOINT_URL",
                },
            }
        else:
            assert required == {}
            optional = _secrets(step, optional=True)
            optional.pop(cluster.LAB_SECRET, None)
            assert optional == {cluster.MLFLOW_SECRET: {"MLFLOW_TRACKING_URI", *ACCOUNT}}


@pytest.mark.parametrize("golden", [GOLDEN, NIGHTLY])
def test_every_step_says_what_it_does(golden: Path) -> None:
    executors, _ = _documents(golden)
    for name, executor in executors.items():
        step = name.removeprefix("exec-")
        assert f'with step("{step}"' in executor["container"]["command"][-1], name


@pytest.mark.parametrize("golden", [GOLDEN, NIGHTLY])
def test_every_step_is_told_the_name_of_its_pipeline(golden: Path) -> None:
    executors, _ = _documents(golden)
    for name, executor in executors.items():
        [variable] = executor["container"]["env"]
        assert variable == {"name": PIPELINE, "value": golden.stem}, name


def test_every_step_is_told_the_id_of_its_run() -> None:
    _, kubernetes = _documents(GOLDEN)
    for name, step in kubernetes.items():
        [field] = step["fieldPathAsEnv"]
        assert field["name"] == EXECUTION, name
        assert field["fieldPath"] == "metadata.labels['pipeline/runid']"


@pytest.mark.parametrize(
    ("golden", "needing", "using"),
    [
        (GOLDEN, set(), {"exec-build-model", "exec-dispatch"}),
        (NIGHTLY, {"exec-measure-night"}, {"exec-build-model"}),
    ],
)
def test_only_a_night_needs_the_lab_that_remembers_the_others(
    golden: Path, needing: set[str], using: set[str]
) -> None:
    _, kubernetes = _documents(golden)
    for optional, expected in ((False, needing), (True, using)):
        found = {
            name: secrets[cluster.LAB_SECRET]
            for name, step in kubernetes.items()
            if cluster.LAB_SECRET in (secrets := _secrets(step, optional=optional))
        }
        assert found == {key: {"CORALLINE_LAB", "CORALLINE_LAB_TOKEN"} for key in expected}


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
