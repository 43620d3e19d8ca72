from __future__ import annotations

from dataclasses import replace

from builders import chain, measure, measure_on_host, plan_of

from components.summary import describe, describe_failure


def test_the_fastest_plan_of_each_board_is_named() -> None:
    graph = chain("net|a_1", 9)
    best, other = (plan_of(graph, planner) for planner in ("topo-dp", "uniform"))
    exact = replace(best, planner="exact")
    slow = measure(other, wall_s=2 * measure(best).wall_s)
    text = describe(
        [
            (best, measure(best)),
            (exact, measure(best)),
            (other, slow),
            (other, measure_on_host(other)),
            (other, None),
        ],
        ["conv_1 is <slower>"],
    )
    first, table = text.split("\n\n")
    assert first == r"conv\_1 is \<slower\>"
    simulated, on_host = table.splitlines()[2:]
    speed = f"{measure(best).throughput_fps:.1f}"
    assert simulated.startswith(
        rf"| net\|a\_1 | {best.n_stages} | edgetpu-usb-sim (simulated) | exact, topo-dp | {speed} |"
    )
    assert on_host.startswith(rf"| net\|a\_1 | {best.n_stages} | host | uniform |")


def test_without_measurements_there_is_no_table() -> None:
    plan = plan_of(chain("net", 9), "topo-dp")
    assert describe([(plan, None)], []) == ""


def test_a_failure_names_its_step() -> None:
    assert describe_failure("train-policy", "no *room*") == (
        r"**Failed in train-policy:** no \*room\*"
    )
    assert describe_failure("", "x").startswith("**Failed:** x")
