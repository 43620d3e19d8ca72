from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from pipelines import nodes


def node(name: str, minute: int, *children: str, state: str = "SUCCEEDED") -> Any:
    """As KFP's client reads it; minute 0 has not come."""
    start = datetime(2026, 11, 21, 2, minute, tzinfo=UTC) if minute else datetime(1970, 1, 1)
    tasks = [SimpleNamespace(pod_name=child) for child in children]
    return SimpleNamespace(display_name=name, start_time=start, child_tasks=tasks, state=state)


# A schedule's workflow: its name has numbers of its own.
THERE = [
    node("nightlyabc-3-77", 1, "nightlyabc-3-77-1"),
    node("root", 1, "nightlyabc-3-77-2"),
    node("root-driver", 1),
    node("alarm", 0),
    node("iteration-iterations(0:0)", 2, "nightlyabc-3-77-3"),
    node("iteration-item", 2),
    node("for-loop-1", 2),
    node("executor", 3, "nightlyabc-3-77-9"),
    node("plan", 3, "nightlyabc-3-77-4"),
    node("build", 2, "nightlyabc-3-77-5"),
]


def test_steps_are_what_a_person_knows_in_order_of_time() -> None:
    assert [step.display_name for step in nodes.steps(THERE)] == ["build", "plan", "alarm"]


def test_pods_are_named_by_workflow_template_and_node() -> None:
    assert list(nodes.pods(THERE)) == [
        ("build", "nightlyabc-3-77-system-container-impl-5"),
        ("plan", "nightlyabc-3-77-system-container-impl-4"),
        ("", "nightlyabc-3-77-retry-system-container-impl-9"),
    ]


def test_the_step_that_failed_first_is_the_cause() -> None:
    def log(step: str, minute: int, error: str) -> str:
        at = f"2026-11-21T02:{minute:02}:00"
        said = f'"step": "{step}", "at": "{at}", "kind": "E", "error": "{error}"'
        return f'Traceback\n  x {{"coralline": "failed", {said}}}\n'

    logs = [log("plan", 9, "again"), log("plan", 3, "once"), log("build", 4, "no")]
    assert nodes.failure(logs) == "plan: again"
    assert nodes.failure(["", '{"coralline": "started", "step": "x"}', "{"]) is None
    assert nodes.step_of(logs[2]) == "build"
    assert nodes.step_of("nothing") == ""


def test_silent_failures() -> None:
    assert nodes.failed(THERE) == ""
    assert nodes.failed([node("plan", 1, state="FAILED")]).startswith("plan left no message")
    driver = node("plan-driver", 1, state="FAILED")
    assert nodes.failed([driver]) == "plan could not be started"
    assert nodes.failed([node("root-driver", 1, state="FAILED")]) == ""
