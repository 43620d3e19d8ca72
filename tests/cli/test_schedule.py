from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from coralline.cli import main as cli
from coralline.graph import read_graph
from coralline.staging import Plan, planner_names

DATA = Path(__file__).parents[1] / "data"
RESNET50 = str(DATA / "respect_graphs" / "resnet50.json")
MIB = 2**20

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def coralline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line; its exit code, standard output and standard error."""

    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["coralline", *argv])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return int(exit_.value.code or 0), captured.out, captured.err

    return run


@pytest.mark.parametrize(
    "planner", ["auto", "exact", "exact-cpsat", "exact-milp", "topo-dp", "uniform"]
)
def test_json_is_one_object_with_the_plan(coralline: Run, planner: str) -> None:
    code, out, _ = coralline(
        *("schedule", RESNET50, "--stages", "4", "--objective", "peak-memory"),
        *("--planner", planner, "--json"),
    )
    plan = json.loads(out)
    assert code == 0
    assert plan["planner"] == planner and len(plan["stage"]) == 177
    assert {"value", "lower_bound", "gap", "solve_seconds"} <= set(plan)
    if planner.startswith("exact"):
        assert round(plan["value"] / MIB, 4) == 6.0477
        assert plan["proven_optimal"] and plan["lower_bound"] == plan["value"]


@pytest.mark.parametrize("stages", ["1 stage", "4 stages"])
def test_the_table_fits_80_columns_and_carries_the_label(
    coralline: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stages: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out_file = tmp_path / "new" / "plan.json"
    code, out, _ = coralline(
        "schedule", RESNET50, "-k", stages[0], "--planner", "topo-dp", "-o", str(out_file)
    )
    assert code == 0
    assert f"{stages} on edgetpu-usb (simulated" in out and "median error" in out and "…" not in out
    assert max(map(len, out.splitlines())) <= 80
    plan = Plan.from_json(json.loads(out_file.read_text()))
    plan.check_graph(read_graph(Path(RESNET50)))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--stages", "0"], "0 stages: a pipeline has at least 1 stage"),
        (["--stages", "200"], "200 stages for 177 operators"),
        (["--stages", "2", "--planner", "magic"], "planner 'magic' is not known; choose one of"),
        (["--stages", "2", "--device", "abacus"], "device 'abacus' is not known"),
        (["--stages", "2", "--objective", "joy"], "objective 'joy' is not known"),
        (["--stages", "2", "--out", "/dev/null/plan.json"], "cannot be written"),
        (["--stages", "170", "--children-together"], "ask for fewer stages"),
        (["--stages", "2", "--memory-limit", "3"], "no plan keeps each of 2 stages"),
        (["--stages", "2", "--memory-limit", "1"], "alone has 2.250 MiB of parameters"),
        (["--stages", "2", "--memory-limit", "-1"], "holds nothing"),
        (["--stages", "3", "--device", "edgetpu-usb,edgetpu-pcie"], "2 devices for 3 stages"),
        (["--stages", "2", "--device", "host-cpu", "--activation-cache"], "does not say how"),
        (["--stages", "2", "--planner", "policy", "--policy", "none.npz"], "train one with"),
        (["--stages", "2", "--host-operators", "lstm"], "has no operator 'lstm'"),
        (["--stages", "2", "--host-operators", "auto"], "from a .tflite model"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    coralline: Run, argv: list[str], message: str
) -> None:
    code, out, err = coralline("schedule", RESNET50, *argv)
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {
                "nodes": [{"name": n} for n in "abc"],
                "edges": [[0, 1], [1, 2], [2, 1]],
            },
            "cycle b -> c -> b; remove an edge",
        ),
        ({"nodes": [{"name": "a", "param_bytes": -1}], "edges": []}, "nodes[0] ('a'): param_bytes"),
        ({"nodes": [{"name": "a"}], "edges": [[0, 7]]}, "edges[0]: 7 is not an index from 0 to 0"),
    ],
)
def test_a_bad_graph_file_is_one_line_and_exit_code_2(
    coralline: Run, tmp_path: Path, content: dict[str, object], message: str
) -> None:
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(content))
    code, out, err = coralline("schedule", str(path), "--stages", "1")
    assert (code, out) == (2, "")
    assert str(path) in err and message in err and err.count("\n") == 1


def test_every_planner_is_reachable(coralline: Run) -> None:
    for planner in sorted(set(planner_names()) - {"policy"}):
        code, out, _ = coralline("schedule", RESNET50, "-k", "2", "-p", planner, "--json")
        assert (code, json.loads(out)["planner"]) == (0, planner)


def test_auto_chooses_stages_and_copies_and_says_why(coralline: Run) -> None:
    words = ("schedule", RESNET50, "--stages", "auto", "--planner", "topo-dp")
    code, out, _ = coralline(*words, "--accelerators", "3", "--json")
    chosen = json.loads(out)
    assert code == 0
    assert [option["stages"] for option in chosen["options"]] == [1, 2, 3]
    assert chosen["n_stages"] * chosen["replicas"] <= 3
    assert f"{chosen['replicas']} x {chosen['n_stages']} stage" in chosen["reason"]
    code, out, _ = coralline(*words, "--accelerators", "3")
    assert code == 0 and chosen["reason"].split(";")[0] in " ".join(out.split())


@pytest.mark.parametrize("words", [("auto",), ("4", "--accelerators", "3"), ("four",)])
def test_stages_are_a_number_or_auto_with_accelerators(
    coralline: Run, words: tuple[str, ...]
) -> None:
    code, out, err = coralline("schedule", RESNET50, "--stages", *words)
    assert (code, out) == (2, "")
    assert err.startswith("coralline: --stages")


def test_the_options_reach_the_plan(coralline: Run) -> None:
    code, out, _ = coralline(
        *("schedule", RESNET50, "-k", "4", "--planner", "exact", "--json"),
        *("--device", "edgetpu-usb,edgetpu-pcie,edgetpu-pcie,edgetpu-usb"),
        *("--memory-limit", "7.5", "--host-operators", "0,model_0_conv5_block2_2_conv"),
        "--activation-cache",
    )
    plan = json.loads(out)
    assert code == 0
    assert plan["device"] == "edgetpu-usb,edgetpu-pcie,edgetpu-pcie,edgetpu-usb"
    assert plan["host"] == "host-cpu" and len(plan["host_operators"]) == 2
    assert plan["memory_limit_bytes"] == 7.5 * MIB and plan["activation_cache"]
    assert max(plan["stages"]["param_bytes"]) <= 7.5 * MIB


def test_host_operators_can_be_those_that_an_edge_tpu_cannot_run(coralline: Run) -> None:
    code, out, _ = coralline(
        "schedule", f"{DATA}/small_float.tflite", "-k", "2", "--host-operators", "auto", "--json"
    )
    plan = json.loads(out)
    assert code == 0
    # It works on floating point numbers throughout.
    assert plan["host_operators"] == list(range(len(plan["stage"])))
    assert plan["stages"]["param_bytes"] == [0, 0]


def test_a_plan_with_operators_that_an_edge_tpu_cannot_run_says_so(coralline: Run) -> None:
    said = "an Edge TPU cannot run"
    schedule = ("schedule", f"{DATA}/small_float.tflite", "-k", "2", "--json")
    assert said in coralline(*schedule)[2]
    for options in (("--host-operators", "auto"), ("--device", "host-cpu")):
        assert said not in coralline(*schedule, *options)[2]
    assert said not in coralline("schedule", f"{DATA}/small_int8.tflite", "-k", "2")[2]
