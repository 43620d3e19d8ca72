"""What a Kubeflow server tells of a run: the nodes of an Argo workflow, most of them machinery.

KFP 2 never fills `error` and `pod_name` of its task details
(https://github.com/kubeflow/pipelines/issues/14007), and gives all of them the workflow's time of
creation (`toModelTasks` in backend/src/apiserver/server/api_converter.go). So the pods are found by
the ids of their nodes, and what failed by their logs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from components.steps import said_in

_MACHINERY = re.compile(
    r"root|.+-driver|executor(\(\d+\))?|iteration-.+"
    r"|(for-loop|condition|condition-branches|exit-handler)-\d+"
)
"""Names that the server's compiler gives to what is no step of a person's: drivers, executors and
iterations (backend/src/v2/compiler/argocompiler/dag.go and container.go), and those that the SDK
gives to groups of steps."""

_TEMPLATES = ("system-container-impl", "retry-system-container-impl")
"""Of the pods in which steps run, without and with retries (argocompiler/container.go)."""


def steps(nodes: Iterable[Any]) -> list[Any]:
    """The nodes of a person's steps, in order of time."""
    there = _in_time(nodes)
    workflows = {_parts(child)[0] for node in there for child in _children(node)}
    return [
        node
        for node in there
        if not _MACHINERY.fullmatch(node.display_name or "") and node.display_name not in workflows
    ]


def pods(nodes: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Names that pods of steps may have, each with its step where that is known.

    Those of a step's only try are its node's children, those of several the children of that
    child, which does not say whose it is; other nodes have children too that have no such pod.
    """
    there = _in_time(nodes)
    for node in steps(there):
        for child in _children(node):
            yield node.display_name, _pod(child, _TEMPLATES[0])
    for node in there:
        if node.display_name == "executor":
            for child in _children(node):
                yield "", _pod(child, _TEMPLATES[1])


def failed(nodes: Iterable[Any]) -> str:
    """The steps that failed, or that could not be started, as a sentence; empty without one."""
    broken = [node for node in nodes if node.state == "FAILED"]
    if names := [node.display_name for node in steps(broken)]:
        return f"{', '.join(names)} left no message: out of memory or time, or its pod is gone"
    for node in _in_time(broken):
        name, driver, _ = str(node.display_name).rpartition("-driver")
        if driver and not _MACHINERY.fullmatch(name):
            return f"{name} could not be started"
    return ""


def failure(logs: Iterable[str]) -> str | None:
    """The message of the step that failed first, as it said it the last time it was tried."""
    said = [found for log in logs for line in log.splitlines() for found in said_in(line)]
    failed = sorted(
        (found for found in said if found["coralline"] == "failed"), key=lambda found: found["at"]
    )
    if not failed:
        return None
    first = failed[0]["step"]
    last = [found for found in failed if found["step"] == first][-1]
    return f"{first}: {last['error']}"


def step_of(log: str) -> str:
    """The step that wrote a log; empty where it does not say so."""
    for line in log.splitlines():
        for said in said_in(line):
            return str(said["step"])
    return ""


def _in_time(nodes: Iterable[Any]) -> list[Any]:
    def began(node: Any) -> str:
        # The server writes year 1 or 1970 for a time that has not come.
        there = node.start_time is not None and node.start_time.year > 1970
        return str(node.start_time) if there else "later"

    return sorted(nodes, key=began)


def _children(node: Any) -> list[str]:
    return [child.pod_name for child in node.child_tasks or () if child.pod_name]


def _parts(node_id: str) -> tuple[str, str]:
    workflow, _, number = node_id.rpartition("-")
    return workflow, number


def _pod(node_id: str, template: str) -> str:
    # As RetrievePodName in backend/src/common/util/workflow.go has it.
    workflow, number = _parts(node_id)
    return f"{workflow}-{template}-{number}"
