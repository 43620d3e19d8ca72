"""Service, runner and board as they are in a lab: processes of their own, which get killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import httpx
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from processes import processes
from service_server import CORALLINE, ServiceProcess
from sshd_server import Server, needs_sshd
from waiting import wait_for

from coralline.devices.model import load_device
from coralline.errors import UserError
from coralline.graph import read_graph
from coralline.staging import StagingProblem, make_plan
from coralline.tflite.split import split_model
from hardware_lab.inventory import Demand
from hardware_lab.jobs import Job, JobOptions
from hardware_lab.lab import open_lab
from hardware_lab.service.transport import CA, TOKEN, TOKEN_FILE
from hardware_lab.store import HOLD_S, Store

INT8 = Path(__file__).parents[2] / "data" / "small_int8.tflite"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORALLINE_HOME", str(tmp_path / "home"))


class RunnerProcess:
    """`coralline lab runner` in a process of its own."""

    def __init__(self, url: str, inventory: Path, log: Path, token: str) -> None:
        self._command = [*CORALLINE, "lab", "runner", "--lab", url, "--inventory", str(inventory)]
        self._environment = {**os.environ, TOKEN: token}
        self.log = log

    def __enter__(self) -> RunnerProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self._command, stderr=log, env=self._environment)


@pytest.fixture
def inventory(server: Server, tmp_path: Path) -> Path:
    path = tmp_path / "lab.yaml"
    path.write_text(
        "schema: coralline.inventory/v1\nboards:\n  pi:\n    kind: ssh\n    host: 127.0.0.1\n"
        f"    port: {server.port}\n    identity_file: {server.client_key}\n"
        f"    known_hosts: {server.known_hosts}\n    python: {sys.executable}\n"
        f"    folder: {tmp_path / 'board'}\n    time_limit_s: 120\n"
        "    cooldown: {max_s: 0, pause_s: 0}\n"
    )
    return path


def on_the_board(folder: Path) -> list[psutil.Process]:
    """The processes of the payload, the first first."""
    files = f"{folder / 'board'}/files/"
    return processes(lambda line: len(line) > 2 and line[1].startswith(files))


@needs_sshd
@pytest.mark.slow
def test_each_process_is_killed_while_it_works(
    tmp_path: Path, inventory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job is submitted, run on a board and asked for over HTTP; nothing is lost or counted
    twice."""
    problem = StagingProblem(read_graph(INT8), 2, load_device("edgetpu-usb"))
    segments = split_model(INT8, make_plan(problem, "uniform"), tmp_path / "segments").folder
    store = Store(tmp_path / "lab")
    tokens = {role: store.tokens.add(role, role) for role in ("submit", "run")}
    token_file = tmp_path / "token"
    token_file.write_text(tokens["submit"])
    monkeypatch.setenv(TOKEN_FILE, str(token_file))

    def works() -> bool:
        return bool(store.leases()) and len(on_the_board(tmp_path)) == 2

    def done(job: Job) -> bool:
        now = store.job(job.id)
        assert now.state in ("queued", "running", "done"), now
        return now.state == "done"

    log = tmp_path / "runner.log"
    with ServiceProcess(tmp_path / "lab") as service:
        lab = open_lab(service.url)
        with RunnerProcess(service.url, inventory, log, tokens["run"]) as runner:
            wait_for(lab.boards.known, 120)
            command = [*CORALLINE, "lab", "submit", str(segments), "--board", "pi", "-n", "2000"]
            said = subprocess.check_output([*command, "--lab", service.url, "--json"])
            first = store.job(json.loads(said)["id"])
            wait_for(works, 120)
            on_the_board(tmp_path)[0].kill()
            wait_for(lambda: done(first), 120)

            second = lab.submit(segments, Demand("pi"), JobOptions(repetitions=2000, warmup=1))
            wait_for(works, 120)
            service.process.kill()
            gone = time.monotonic()
            service.process.wait()
            service.start()
            back_after_s = time.monotonic() - gone
            wait_for(lambda: done(second), 120)

            third = lab.submit(segments, Demand("pi"), JobOptions(repetitions=2000, warmup=1))
            wait_for(works, 120)
            runner.process.kill()
            runner.process.wait()
            runner.start()
            wait_for(lambda: done(third), 120)

            (board,) = lab.boards.known()
            assert (board.board.name, board.board.kind) == ("pi", "ssh")
            runner.process.send_signal(signal.SIGTERM)
            assert runner.process.wait(60) == 0
        jobs = lab.jobs()
        assert [job.id for job in jobs] == [first.id, second.id, third.id]
        assert jobs[0].attempt == jobs[2].attempt == 2
        if back_after_s < HOLD_S / 2:  # else the runner has left the board, as it must
            assert jobs[1].attempt == 1
        for job in jobs:
            measured = lab.measurement(job.id)
            assert measured.id == job.id and len(measured.latency_ms) == 2000
            assert measured.outputs_equal
            assert "samples.parquet" in lab.files(job.id).kept
        metrics = httpx.get(
            f"{service.url}/metrics", headers={"Authorization": f"Bearer {tokens['run']}"}
        ).text
        assert 'coralline_jobs{state="done"} 3.0' in metrics
        assert 'coralline_job_duration_seconds_count{board="pi",state="done"}' in metrics
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == 0
    wait_for(lambda: not on_the_board(tmp_path))
    lines = [json.loads(line) for path in (log, service.log) for line in path.open()]
    assert {"at", "level", "logger", "message"} <= set.intersection(*map(set, lines))
    asked = [line for line in lines if "POST /api/v1/claims 200" in line["message"]]
    assert asked and all(line["request_id"] and line["token"] == "run" for line in asked)
    for secret in tokens.values():
        assert secret not in str(lines)


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = certificate(tmp_path)
    arguments = ("--tls-cert", str(cert), "--tls-key", str(key))
    with ServiceProcess(tmp_path / "lab", *arguments) as service:
        assert service.url.startswith("https://")
        monkeypatch.setenv(CA, str(cert))
        lab = open_lab(service.url)
        job = lab.submit(INT8, Demand("pi"), JobOptions(repetitions=1, warmup=0))
        assert lab.job(job.id) == job
        monkeypatch.delenv(CA)
        with pytest.raises(UserError, match=f"cannot be trusted.*--ca, or set {CA}"):
            open_lab(service.url).jobs()


def certificate(folder: Path) -> tuple[Path, Path]:
    """Of 127.0.0.1, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lab")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return cert_file, key_file
