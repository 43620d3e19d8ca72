"""KFP's real client against a stub of the API that checks every request."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp_stub import Stub

from coralline.errors import DeviceError, UserError
from pipelines import server as module
from pipelines.arguments import read_arguments
from pipelines.package import check_package
from pipelines.server import Access, Server

GOLDEN = Path(__file__).parents[1] / "golden" / "respect.yaml"
CRON = "0 0 2 * * *"


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    for name in (module.TOKEN, module.COOKIE, "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setattr(module, "_PAUSES_S", (0.0, 0.0))
    stub = Stub()
    yield stub
    stub.close()
    assert stub.errors == []


def _submit(server: Server, **arguments: Any) -> dict[str, Any]:
    return server.submit(GOLDEN, "respect", arguments, experiment="coralline")


def test_submitting_twice_uploads_once_and_runs_twice(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(Access(stub.host))
    first = _submit(server, stages=[2], label_time_limit_s=1.5)
    again = _submit(server)
    assert first["state"] == "PENDING"
    assert first["version"] == again["version"]
    assert first["run_id"] != again["run_id"]
    kept = stub.kept["runs"][0]
    assert kept["runtime_config"]["parameters"] == {"stages": [2], "label_time_limit_s": 1.5}
    named = [v for v in stub.kept["versions"] if v["display_name"] == first["version"]]
    assert (
        kept["pipeline_version_reference"]["pipeline_version_id"]
        == (named[0]["pipeline_version_id"])
    )
    assert [len(stub.kept[kind]) for kind in ("pipelines", "experiments", "runs")] == [1, 1, 2]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "request_", ["pipelines/upload", "pipelines/upload_version", "experiments", "runs"]
)
@pytest.mark.parametrize("fault", ["lost", 503, 502, 429])
def test_a_try_that_fails_is_repeated_and_makes_nothing_twice(
    stub: Stub, request_: str, fault: int | str
) -> None:
    told: list[str] = []
    server = Server(Access(stub.host), lambda why, pause_s: told.append(why))
    stub.faults[f"POST /apis/v2beta1/{request_}"] = [fault, fault]
    _submit(server)
    assert told and stub.host in told[0]
    assert [len(stub.kept[kind]) for kind in ("pipelines", "experiments", "runs")] == [1, 1, 1]


def test_what_does_not_pass_ends_with_the_host_and_what_it_said(stub: Stub) -> None:
    server = Server(Access(stub.host))
    stub.faults["/experiments"] = [503, 503, 503]
    with pytest.raises(DeviceError, match=f"{stub.host} answers 503: injected 503; try") as raised:
        _submit(server)
    assert raised.value.retryable


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "--token-file"), (403, "--namespace"), (500, "log")]
)
def test_a_refusal_is_not_repeated(stub: Stub, status: int, advice: str) -> None:
    stub.faults["/healthz"] = [status]
    with pytest.raises(DeviceError, match=f"answers {status}: .*{advice}"):
        Server(Access(stub.host))
    assert len(stub.requests) == 1


def test_a_login_page_is_seen(stub: Stub) -> None:
    server = Server(Access(stub.host))
    _submit(server)
    stub.faults["/experiments"] = ["page"]
    with pytest.raises(DeviceError, match="web page; log in"):
        server.runs(experiment="coralline", count=5)


def test_a_server_that_hangs_is_left(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    _submit(Server(Access(stub.host)))  # which takes a busy machine longer than what follows
    monkeypatch.setattr(module, "_TIMEOUT_S", (1.0, 1.0))
    stub.faults["/healthz"] = ["hang"]
    told: list[str] = []
    server = Server(Access(stub.host), lambda why, pause_s: told.append(why))
    assert "does not answer in time" in told[0]
    stub.faults["/experiments"] = ["hang"] * 3
    with pytest.raises(DeviceError, match="does not answer in time"):
        server.runs(experiment="coralline", count=1)


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, stub: Stub) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{free.getsockname()[1]}"
    told: list[str] = []
    with pytest.raises(DeviceError, match=f"{host} refuses the connection; .*port-forward"):
        Server(Access(host), lambda why, pause_s: told.append(why))
    assert len(told) == 2
    with pytest.raises(UserError, match="write it with http"):
        Server(Access("localhost:8888"))


def test_looking_makes_nothing(stub: Stub) -> None:
    server = Server(Access(stub.host))
    for look in (
        lambda: server.runs(experiment="none", count=1),
        lambda: server.unschedule("respect", experiment="none"),
    ):
        with pytest.raises(UserError, match=f"{stub.host} has no experiment 'none'; name another"):
            look()
    assert stub.kept["experiments"] == []


def test_credentials(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _submit(Server(Access(stub.host)))
    monkeypatch.setenv(module.COOKIE, "authservice_session=abc")
    Server(Access(stub.host)).runs(experiment="coralline", count=1)
    assert stub.headers["cookie"] == "authservice_session=abc"
    assert "authorization" not in stub.headers

    projected = tmp_path / "projected"
    projected.write_text("from-the-pod\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(projected))
    Server(Access(stub.host))
    assert stub.headers["authorization"] == "Bearer from-the-pod"

    monkeypatch.setenv(module.TOKEN, "from-env")
    Server(Access(stub.host))
    assert stub.headers["authorization"] == "Bearer from-env"

    file = tmp_path / "token"
    file.write_text("one\n")
    server = Server(Access(stub.host, token_file=file))
    assert stub.headers["authorization"] == "Bearer one"
    file.write_text("two\n")
    server.runs(experiment="coralline", count=1)
    assert stub.headers["authorization"] == "Bearer two"
    with pytest.raises(UserError, match="no such file; give the path of a token"):
        Server(Access(stub.host, token_file=tmp_path / "none"))


def _schedule(server: Server, cron: str = CRON, **arguments: Any) -> dict[str, Any]:
    return server.schedule(GOLDEN, "respect", arguments, cron, experiment="coralline")


def test_a_schedule_is_made_kept_and_replaced(stub: Stub) -> None:
    server = Server(Access(stub.host))
    made = _schedule(server, stages=[2, 4])
    (kept,) = stub.kept["recurringruns"]
    assert made["change"] == "created"
    assert kept["trigger"] == {"cron_schedule": {"cron": CRON}}
    assert (kept["max_concurrency"], kept["no_catchup"], kept["mode"]) == (1, True, "ENABLE")
    assert kept["runtime_config"]["parameters"] == {"stages": [2, 4]}

    # The server gives back what it was sent in forms of its own.
    kept["max_concurrency"] = "1"
    kept["runtime_config"]["parameters"] = {"stages": [2.0, 4.0]}
    same = _schedule(server, stages=[2, 4])
    assert (same["change"], same["recurring_run_id"]) == ("unchanged", made["recurring_run_id"])

    other = _schedule(server, "0 0 3 * * *", stages=[2, 4])
    assert other["change"] == "updated"
    (kept,) = stub.kept["recurringruns"]
    assert kept["recurring_run_id"] == other["recurring_run_id"] != made["recurring_run_id"]

    kept["mode"] = "DISABLE"
    assert _schedule(server, "0 0 3 * * *", stages=[2, 4])["change"] == "updated"
    assert server.unschedule("respect", experiment="coralline") == 1
    assert stub.kept["recurringruns"] == []


def test_a_schedule_whose_answer_is_lost_is_one(stub: Stub) -> None:
    server = Server(Access(stub.host))
    stub.faults["POST /apis/v2beta1/recurringruns"] = ["lost"]
    _schedule(server)
    stub.faults["POST /apis/v2beta1/recurringruns"] = ["lost"]
    _schedule(server, "0 0 3 * * *")
    (kept,) = stub.kept["recurringruns"]
    assert kept["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"


WORKFLOW = "respect-x7k2p"
WHY = "dispatch: board usb0 is away"


def _node(
    name: str, state: str, minute: int, *children: int, ended: str = "2026-11-21T02:04:00Z"
) -> dict[str, Any]:
    """A task as KFP 2 gives it: one time of creation for all, no pod, no error."""
    return {
        "run_id": "r",
        "task_id": f"{name}-{minute}",
        "display_name": name,
        "state": state,
        "create_time": "2026-11-21T02:00:00Z",
        "start_time": f"2026-11-21T02:{minute:02}:00Z" if minute else "1970-01-01T00:00:00Z",
        "end_time": ended,
        "child_tasks": [{"pod_name": f"{WORKFLOW}-{number}"} for number in children],
    }


def _said(event: str, step: str, at: str, **facts: str) -> str:
    return json.dumps({"coralline": event, "execution": "r", "step": step, "at": at, **facts})


def _finish(stub: Stub, state: str) -> None:
    run = stub.kept["runs"][0]
    run |= {
        "state": state,
        "created_at": "2026-11-21T02:00:00Z",
        "finished_at": "2026-11-21T02:05:00Z",
        "run_details": {
            "task_details": [
                _node("executor", "SUCCEEDED", 1, 5, ended="2026-11-21T02:02:00Z"),
                _node("record", "PENDING", 0, ended="1970-01-01T00:00:00Z"),
                _node("dispatch", "FAILED", 3, 6),
                _node("executor", "FAILED", 3, 7, 8),  # of three tries, this is what repeats them
                _node("executor(0)", "FAILED", 3),
                _node("executor(1)", "FAILED", 4),
                _node("dispatch-driver", "SUCCEEDED", 2, 9),
                _node("generate-graphs", "SUCCEEDED", 1, 4, ended="1970-01-01T00:00:00Z"),
                _node("generate-graphs-driver", "SUCCEEDED", 1, 3),
                _node("root", "FAILED", 1, 2),
                _node(WORKFLOW, "FAILED", 1, 1),
            ]
        },
    }
    stub.logs[f"{WORKFLOW}-system-container-impl-4"] = "[1, 2]"
    for number, (at, error) in {
        7: ("02:03", "no route"),
        8: ("02:04", "board usb0 is away"),
    }.items():
        stub.logs[f"{WORKFLOW}-retry-system-container-impl-{number}"] = "\n".join(
            (
                f"launcher speaking {_said('started', 'dispatch', at)}",
                _said("failed", "dispatch", at, kind="DeviceError", error=error),
                "Traceback",
            )
        )


def test_a_run_is_followed_to_its_end(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(Access(stub.host))
    run_id = _submit(server)["run_id"]
    states = iter(["RUNNING", "CANCELING", "CANCELED"])
    monkeypatch.setattr(
        module.time, "sleep", lambda s: stub.kept["runs"][0].update(state=next(states))
    )
    seen = [run["state"] for run in server.follow(run_id, 1.0)]
    assert seen == ["PENDING", "RUNNING", "CANCELING", "CANCELED"]


@pytest.mark.parametrize("gone_status", [500, 200])
def test_a_failed_run_says_why(stub: Stub, gone_status: int) -> None:
    stub.gone_status = gone_status
    server = Server(Access(stub.host))
    run_id = _submit(server)["run_id"]
    _finish(stub, "FAILED")
    run = server.run(run_id)
    assert run["error"] == "dispatch: board usb0 is away"
    assert [(s["step"], s["state"], s["seconds"]) for s in run["steps"]] == [
        ("generate-graphs", "SUCCEEDED", None),
        ("dispatch", "FAILED", 60.0),
        ("record", "PENDING", None),
    ]
    assert run["seconds"] == 300
    # A log that happens to be JSON stays text.
    logs = list(server.logs(run_id))
    pods = [f"{WORKFLOW}-retry-system-container-impl-{number}" for number in (7, 8)]
    assert logs[0] == ("generate-graphs", f"{WORKFLOW}-system-container-impl-4", "[1, 2]")
    assert [(name, pod) for name, pod, _ in logs[1:]] == [("dispatch", pod) for pod in pods]
    assert [pod for _, pod, _ in server.logs(run_id, "dispatch")] == pods
    with pytest.raises(
        UserError, match=r"no step 'plan'; it has dispatch, generate-graphs, record"
    ):
        list(server.logs(run_id, "plan"))
    with pytest.raises(UserError, match="has no run nothing; see `coralline pipeline runs`"):
        server.run("nothing")


def test_a_failed_run_whose_pods_say_nothing_names_the_step(stub: Stub) -> None:
    server = Server(Access(stub.host))
    run_id = _submit(server)["run_id"]
    _finish(stub, "FAILED")
    stub.logs.clear()
    error = server.run(run_id)["error"]
    assert error.startswith("dispatch left no message: out of memory or time")
    assert f"kubectl describe pod -l pipeline/runid={run_id}" in error
    assert list(server.logs(run_id)) == []
    stub.faults["/log"] = [403]
    assert server.run(run_id)["error"] == error
    details = stub.kept["runs"][0]["run_details"]
    details["task_details"] = [_node(WORKFLOW, "FAILED", 1, 1), _node("plan-driver", "FAILED", 1)]
    assert server.run(run_id)["error"].startswith("plan could not be started; look at")
    details["task_details"] = []
    assert server.run(run_id)["error"].startswith("no step began; look at")


def test_what_a_newer_server_says_of_a_step_is_believed(stub: Stub) -> None:
    server = Server(Access(stub.host))
    run_id = _submit(server)["run_id"]
    _finish(stub, "FAILED")
    [dispatch] = [
        node
        for node in stub.kept["runs"][0]["run_details"]["task_details"]
        if node["display_name"] == "dispatch"
    ]
    dispatch["error"] = {"code": 13, "message": "Pod lifecycle failure: OOMKilled"}
    assert server.run(run_id)["error"] == "Pod lifecycle failure: OOMKilled"


def test_cancelling(stub: Stub) -> None:
    server = Server(Access(stub.host))
    run_id = _submit(server)["run_id"]
    stub.faults[":terminate"] = ["lost"]
    assert server.cancel(run_id)["state"] == "CANCELING"
    _finish(stub, "SUCCEEDED")
    stub.requests.clear()
    assert server.cancel(run_id)["state"] == "SUCCEEDED"
    assert not any("terminate" in request for request in stub.requests)


def test_runs_come_newest_first_over_pages(stub: Stub) -> None:
    server = Server(Access(stub.host))
    ids = [_submit(server)["run_id"] for _ in range(3)]
    assert [run["run_id"] for run in server.runs(experiment="coralline", count=2)] == ids[:0:-1]
    stub.kept["runs"] *= 50
    assert len(server.runs(experiment="coralline", count=120)) == 120


def _loop_over_artifacts(spec: dict[str, Any]) -> None:
    task = spec["root"]["dag"]["tasks"]["for-loop-1"]
    del task["parameterIterator"]
    task["artifactIterator"] = {"itemInput": "x", "items": {"inputArtifact": "y"}}


def _resolve(spec: dict[str, Any]) -> None:
    spec["deploymentSpec"]["executors"]["exec-record"] = {"resolver": {}}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda spec: spec.update(schemaVersion="2.0.0"), "schemaVersion is '2.0.0'"),
        (lambda spec: spec["pipelineInfo"].update(name="Ä"), "pipelineInfo.name 'Ä'"),
        (lambda spec: spec.pop("root"), "has no root"),
        (lambda spec: spec["components"].update(root=spec["root"]), "called root"),
        (_loop_over_artifacts, "for-loop-1 loops over artifacts"),
        (_resolve, "exec-record is a resolver"),
    ],
)
def test_what_a_server_refuses_is_refused_before_it_is_sent(
    stub: Stub, tmp_path: Path, fault: Callable[[dict[str, Any]], object], message: str
) -> None:
    documents = list(yaml.safe_load_all(GOLDEN.read_text()))
    fault(documents[0])
    package = tmp_path / "respect.yaml"
    package.write_text(yaml.safe_dump_all(documents))
    with pytest.raises(UserError, match=message):
        check_package(package)
    with pytest.raises(DeviceError, match="the server refused it as invalid"):
        Server(Access(stub.host)).submit(package, "respect", {}, experiment="coralline")
    stub.errors.clear()


@pytest.mark.parametrize("arguments", [{"seed": "x"}, {"seeds": 1}, {"models": "resnet50"}])
def test_arguments_that_a_server_refuses(stub: Stub, arguments: dict[str, Any]) -> None:
    server = Server(Access(stub.host))
    [(name, value)] = arguments.items()
    with pytest.raises(UserError, match=name):
        read_arguments("respect", [f"{name}={json.dumps(value)}"])
    with pytest.raises(DeviceError, match="the server refused it as invalid"):
        _submit(server, **arguments)
    stub.errors.clear()


def _main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    from coralline.cli.main import main

    monkeypatch.setattr(sys, "argv", ["coralline", "pipeline", *words])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_verbs(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", stub.host)

    def told(*words: str, code: int = 0) -> dict[str, Any]:
        assert _main(monkeypatch, *words, "--json") == code
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    run = told("submit", "respect", "--set", "stages=[2]")
    parameters = stub.kept["runs"][0]["runtime_config"]["parameters"]
    assert parameters["stages"] == [2]
    assert len(parameters["code_version"]) == 12
    monkeypatch.delenv("CORALLINE_LAB", raising=False)
    from coralline.devices import model
    from hardware_lab import inventory as lab

    inventory = next(Path(lab.__file__).parent.glob("data/*.yaml"))
    device = next(Path(model.__file__).parent.glob("data/*.yaml"))
    for unreachable, said in (
        ("models=[net.tflite]", "net.tflite: no such file"),
        ("models=[resnet]", "'resnet' is not in the zoo"),
        (f"inventory={inventory}", "--set inventory: no pod can read it"),
        (f"device={device}", "--set device: no pod can read it; choose"),
    ):
        assert _main(monkeypatch, "submit", "respect", "--set", unreachable) == 2
        assert said in capsys.readouterr().err
    assert len(stub.kept["runs"]) == 1
    scheduled = told("schedule", "respect", "--cron", CRON)
    assert scheduled["change"] == "created"
    assert "T02:00:00" in scheduled["next_utc"]
    assert told("schedule", "nightly", "--cron", CRON)["change"] == "created"
    assert told("runs")["runs"][0]["run_id"] == run["run_id"]
    assert told("status", run["run_id"])["state"] == "PENDING"
    assert told("cancel", run["run_id"])["state"] == "CANCELING"
    _finish(stub, "FAILED")
    assert told("logs", run["run_id"], "--step", "generate-graphs")["logs"][0]["log"] == "[1, 2]"
    assert told("status", run["run_id"], "--watch", code=1)["error"] == WHY
    assert told("schedule", "respect", "--off") == {"name": "respect", "deleted": 1}

    for words in (
        ("submit", "respect"),
        ("schedule", "respect", "--cron", CRON),
        ("runs",),
        ("logs", run["run_id"]),
        ("cancel", run["run_id"]),
    ):
        assert _main(monkeypatch, *words) == 0
    printed = capsys.readouterr().out
    assert "next run: " in printed
    assert f"==> dispatch ({WORKFLOW}-retry-system-container-impl-7)" in printed
    assert _main(monkeypatch, "status", run["run_id"], "--watch") == 1
    shown = capsys.readouterr()
    assert "FAILED    dispatch" in shown.err
    assert shown.out.splitlines()[1] == WHY
    assert shown.err.splitlines()[-1].endswith(f"failed: {WHY}")
    stub.logs.clear()
    assert _main(monkeypatch, "logs", run["run_id"]) == 0
    assert "no log is there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("submit", "respect", "--set", "stagse=[2]"), "no argument 'stagse'"),
        (
            ("submit", "respect", "--set", "stages=2"),
            "2 is not of type List[Integer]; write stages=[2]",
        ),
        (("submit", "respect", "--set", "planners=[magic]"), "planner 'magic' is not known"),
        (("submit", "nightly", "--set", "planner=magic"), "planner 'magic' is not known"),
        (("submit", "respect", "--set", "device=magic"), "device 'magic' is not known"),
        (("submit", "respect", "--set", "inventory=nowhere.yaml"), "nowhere.yaml"),
        (("submit", "respect", "--set", "stages=[two]"), "'two' in the list is not of type int"),
        (("submit", "respect", "--set", "seed"), "write NAME=VALUE"),
        (("submit", "respekt"), "choose one of respect"),
        (("submit", "none.yaml"), "no such file"),
        (("submit", "My_Pipeline.yaml"), "pipeline name 'My_Pipeline': use at most 114"),
        (("submit", f"{'x' * 115}.yaml"), "use at most 114 lower-case letters"),
        (("submit", "respect", "--experiment", ""), "--experiment: use 1 to 128"),
        (("submit", "respect", "--kube-context", "nowhere"), "--kube-context nowhere: "),
        (("schedule", "respect", "--cron", "0 2 * * *"), "has 5 fields, not six"),
        (("schedule", "respect"), "either --cron EXPRESSION or --off"),
    ],
)
def test_what_cannot_succeed_is_not_sent(
    stub: Stub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    assert _main(monkeypatch, *words, "--host", stub.host) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert stub.requests == []
