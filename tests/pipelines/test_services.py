"""The manager of servers with a small one of its own, and once with the real ones."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from builders import a_policy

from components.tracking import connected
from coralline.cli.main import main
from coralline.errors import DeviceError, UserError
from pipelines import services
from pipelines.services import Service, Settings, start, stop

PROGRAM = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler
).serve_forever()
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def a_service(port: int, program: str = PROGRAM, **environment: str) -> Service:
    command = (sys.executable, "-c", program, str(port))
    return Service("toy", port, "--toy-port", command, "/", environment=environment)


def quiet(name: str) -> None:
    pass


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    stop(tmp_path, "toy")


def test_a_service_is_started_once_and_ends_whole(folder: Path) -> None:
    service, waited = a_service(free_port()), []
    first = start(folder, service, waited.append)
    assert (first.change, first.url, waited) == ("started", service.url, ["toy"])
    assert (folder / "toy.pid").read_text() == f"{first.pid}\n"
    again = start(folder, service, waited.append)
    assert (again.change, again.pid, waited) == ("running", first.pid, ["toy"])
    both = services._processes(folder, "toy")
    assert len(both) == 2
    assert stop(folder, "toy")
    assert not any(process.is_running() for process in both)
    assert not (folder / "toy.pid").exists()
    assert not stop(folder, "toy")


@pytest.mark.parametrize("victim", ["parent", "child"])
def test_what_is_left_of_a_killed_service_is_cleared_away(folder: Path, victim: str) -> None:
    service = a_service(free_port())
    first = start(folder, service, quiet)
    parent = psutil.Process(first.pid)
    [child] = parent.children()
    (parent if victim == "parent" else child).kill()
    second = start(folder, service, quiet)
    if victim == "child":  # The server answers, which is what counts.
        assert second.pid == first.pid
        return
    assert second.change == "restarted"
    assert not child.is_running()
    assert second.pid != first.pid


def test_other_settings_start_it_anew(folder: Path) -> None:
    port = free_port()
    first = start(folder, a_service(port), quiet)
    second = start(folder, a_service(port, COLOUR="red"), quiet)
    assert second.change == "restarted"
    assert not psutil.pid_exists(first.pid)


def test_a_taken_port_is_named(folder: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} .*process {os.getpid()}.*--toy-port"):
            services._check_free(folder, a_service(port))


def test_a_service_that_ends_at_once_says_why(folder: Path) -> None:
    service = a_service(free_port(), "raise SystemExit('no database')")
    with pytest.raises(DeviceError, match=r"toy does not start: no database; see .*toy\.log"):
        start(folder, service, quiet)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(mlflow_port=8440), "ports 8440, 8441, 8440 .*three different"),
        (Settings(database="words"), "--database is no URL"),
        (Settings(database="mysql://u:hush@h/d"), "'mysql' is not known; write postgresql"),
        (
            Settings(database="postgresql+psycopg://u:hush@127.0.0.1:1/d"),
            r"--database postgresql\+psycopg://u:\*\*\*@127.0.0.1:1/d: .*refused",
        ),
        (Settings(inventory="/nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_settings_that_cannot_be_used_leave_all_alone(
    settings: Settings, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        services.up(tmp_path, settings, quiet)
    assert not list(tmp_path.iterdir())


def test_settings_last(tmp_path: Path) -> None:
    assert services.read_settings(tmp_path) == Settings()
    (tmp_path / "settings.json").write_text(json.dumps({"mlflow_port": 5005, "database": "d"}))
    kept = services.read_settings(tmp_path, s3_port=9000, database=None)
    assert kept == Settings(mlflow_port=5005, s3_port=9000, database="d")


def test_secrets_are_not_among_arguments_and_not_told(tmp_path: Path) -> None:
    keys = {"AWS_ENDPOINT_URL": "http://s3", "AWS_SECRET_ACCESS_KEY": "hush"}
    settings = Settings(database="postgresql+psycopg://mlflow:hush@db/mlflow")
    for service in services.services(tmp_path, settings, keys):
        assert "hush" not in " ".join(service.command)
    assert "hush" not in str(services.client_environment(settings))


@pytest.mark.slow
def test_up_and_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def coralline(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["coralline", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert not ended.value.code, err
        return str(out)

    folder = tmp_path / "services"
    monkeypatch.setenv("CORALLINE_SERVICES", str(folder))
    ports = [f"--{name}-port={free_port()}" for name in ("mlflow", "s3", "lab")]
    try:
        found = json.loads(coralline("up", "--json", *ports))
        pids = {one["name"]: one["pid"] for one in found["services"]}
        assert set(pids) == {"s3", "mlflow", "lab", "runner"}
        for file in ("settings.json", "s3/keys.json", "mlflow.log"):
            assert stat.S_IMODE((folder / file).stat().st_mode) == 0o600, file

        lines = coralline("up", "--env").splitlines()
        exports = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        assert exports == found["environment"]
        with connected(exports["MLFLOW_TRACKING_URI"]) as client:
            run = client.create_run(client.create_experiment("e"))
            client.log_artifact(run.info.run_id, str(a_policy(tmp_path / "policy.npz")))
            kept = Path(client.download_artifacts(run.info.run_id, "policy.npz", str(tmp_path)))
            assert kept.read_bytes() == (tmp_path / "policy.npz").read_bytes()
        # It lies in the store, which gives nothing to those without its keys.
        from hardware_lab.artifacts.server import Server

        store = Server(folder / "s3", services.read_settings(folder).s3_port)
        listed = store._client.list_objects_v2(Bucket=services.BUCKET)["Contents"]
        assert [o["Key"] for o in listed if o["Key"].endswith("/artifacts/policy.npz")]

        from hardware_lab.lab import open_lab

        boards = {board.board.name for board in open_lab(exports["CORALLINE_LAB"]).boards.known()}
        assert {"host", "edgetpu-usb-sim"} <= boards
        psutil.Process(pids["s3"]).kill()
        again = json.loads(coralline("up", "--json"))
        changes = {one["name"]: one["change"] for one in again["services"]}
        assert changes.pop("s3") == "restarted"
        assert set(changes.values()) == {"running"}
        with connected(exports["MLFLOW_TRACKING_URI"]) as client:
            assert client.list_artifacts(run.info.run_id)[0].path == "policy.npz"
    finally:
        ended = json.loads(coralline("down", "--json"))
    assert ended == {"ended": ["runner", "lab", "mlflow", "s3"]}
    assert not any(services._processes(folder, name) for name in pids)
    assert coralline("down") == "nothing ran\n"
