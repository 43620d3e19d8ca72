from __future__ import annotations

from dataclasses import replace

from builders import chain, measure, measure_on_host, plan_of

from components.summary import MOST, describe, describe_failure


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
    finding, head, best = text.split("\n\n")
    assert (finding, head) == (r"conv\_1 is \<slower\>", "Fastest plans:")
    simulated, on_host = best.splitlines()
    net = rf"- **net\|a\_1, {exact.n_stages} stages on"
    speed = f"{measure(exact).throughput_fps:.1f} inferences/s"
    assert simulated.startswith(f"{net} edgetpu-usb-sim:** exact, topo-dp: {speed}, p50 ")
    assert simulated.endswith(", simulated")
    assert on_host.startswith(f"{net} host:** uniform: ")
    assert "simulated" not in on_host


def test_what_mlflow_would_cut_off_is_counted() -> None:
    plans = [plan_of(chain(f"net_{i:02}", 9), "topo-dp") for i in range(MOST + 3)]
    *_, last, rest = describe([(plan, measure(plan)) for plan in plans], []).splitlines()
    assert f"net\\_{MOST - 1}" in last
    assert rest == "- and 3 more: see the child runs"


def test_without_measurements_nothing_is_fastest() -> None:
    plan = plan_of(chain("net", 9), "topo-dp")
    assert describe([(plan, None)], []) == ""


def test_a_failure_comes_before_what_was_found() -> None:
    first = describe_failure("train-policy", "no *room*", "")
    assert first == r"**Failed in train-policy:** no \*room\*"
    found = "conv is slower\n\nFastest plans:\n\n- one"
    assert describe_failure("", "x", found) == f"**Failed:** x\n\n{found}"
    assert (
        describe_failure("", "y", describe_failure("", "x", found)) == f"**Failed:** y\n\n{found}"
    )
