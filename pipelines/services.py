"""The servers that pipelines use, on this machine and without containers.

An S3-compatible store that checks signatures, the MLflow server that keeps its artifacts in it, the
service of a lab, and a runner of its jobs. They live on when the command that started them ends,
and so does what they keep, in one folder: a database, objects, a lab, a log and a file with the
process id of each.

A service's processes are known by an environment variable that names the folder, the service and
its settings: so one that was killed in part, or has other settings, is cleared away and started
anew, whatever became of its process ids.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from http.client import HTTPException
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

from components.source import code_version
from coralline.errors import DeviceError, UserError, parse_json, read_text
from coralline.files import make_folder, write_text

if TYPE_CHECKING:
    import psutil

HOST = "127.0.0.1"
BUCKET = "coralline"
START_S = 180.0
"""MLflow makes its tables at its first start; on a loaded machine that takes minutes."""
STOP_S = 20.0

_MARK = "CORALLINE_SERVICE"


@dataclass(frozen=True)
class Settings:
    """Where the services listen, and what MLflow keeps its runs in.

    Attributes:
        mlflow_port, s3_port, lab_port: On this machine's own address.
        database: URL of MLflow's database; empty for an SQLite file in the folder.
        inventory: Path of the runner's boards; empty for those in the package.
    """

    mlflow_port: int = 5000
    s3_port: int = 8441
    lab_port: int = 8440
    database: str = ""
    inventory: str = ""


@dataclass(frozen=True)
class Service:
    """A server.

    Attributes:
        port: Where it is asked for its health.
        option: Of the command line, that gives it another port; empty where the port is not its
            own: the lab's service answers for a runner.
        health: Path that answers when it can work.
        holds: What the answer must hold.
        refusals: Statuses that are as good an answer: S3 has nothing for those without a key.
        environment: Beside this process's own.
    """

    name: str
    port: int
    option: str
    command: tuple[str, ...]
    health: str
    holds: bytes = b""
    refusals: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{HOST}:{self.port}"

    @property
    def digest(self) -> str:
        """Of its settings."""
        text = json.dumps([self.port, self.command, dict(self.environment)])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Status:
    """What `start` found and did.

    Attributes:
        change: `started`, `running` where there was nothing to do, or `restarted` where it had
            been killed, or had other settings or an older version.
    """

    name: str
    url: str
    change: str
    pid: int
    log: Path


def services_folder() -> Path:
    """Where the services keep everything: $XDG_DATA_HOME/coralline, apart from any source tree."""
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "coralline"


def read_settings(folder: Path, **changes: Any) -> Settings:
    """The settings of the last start in this folder, with changes; None changes nothing."""
    file = folder / "settings.json"
    kept = parse_json(read_text(file, "settings"), str(file)) if file.exists() else {}
    return Settings(**{**kept, **{k: v for k, v in changes.items() if v is not None}})


def up(folder: Path, settings: Settings, on_wait: Callable[[str], None]) -> list[Status]:
    """Have all services run; what runs as it should is left alone.

    Args:
        on_wait: Told of each service that is waited for.

    Raises:
        UserError: A setting cannot be used, a port is taken, or the folder cannot be written;
            what runs is then left alone.
        DeviceError: A service does not start; names its log.
    """
    from hardware_lab.artifacts.server import Server

    make_folder(folder)
    _check(settings)
    with _alone(folder):
        s3 = Server(folder / "s3", settings.s3_port, HOST)
        wanted = services(folder, settings, s3.environment)
        for service in wanted:
            _check_free(folder, service)
        found = []
        for service in wanted:
            found.append(start(folder, service, on_wait))
            if service.name == "s3":
                s3.make_bucket(BUCKET)  # signed, so that it checks the keys too
        file = folder / "settings.json"
        write_text(file, json.dumps(asdict(settings)) + "\n")
        file.chmod(0o600)  # a database's URL may hold a password
    return found


def down(folder: Path) -> list[str]:
    """End all services; returns the names of those that ran.

    Raises:
        DeviceError: A process does not end.
    """
    if not folder.exists():
        return []
    with _alone(folder):
        ran = [name for name in ("runner", "lab", "mlflow", "s3") if stop(folder, name)]
    return ran


def services(folder: Path, settings: Settings, s3: Mapping[str, str]) -> list[Service]:
    """The services, in the order in which they need each other."""
    # A service of an older version of the project may not know what its clients ask for.
    code = {"CORALLINE_CODE_VERSION": code_version()}
    program = (sys.executable, "-c", "from coralline.cli.main import main; main()")
    database = settings.database or f"sqlite:///{make_folder(folder / 'mlflow')}/mlflow.db"
    mlflow = (
        *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--workers", "1"),
        *("--port", str(settings.mlflow_port)),
        *("--artifacts-destination", f"s3://{BUCKET}/mlflow"),
    )
    lab = (
        *(*program, "lab", "serve", "--host", HOST, "--port", str(settings.lab_port)),
        *("--lab", str(folder / "lab"), "--artifacts", f"s3://{BUCKET}/lab"),
    )
    runner = (
        *(*program, "lab", "runner", "--lab", f"http://{HOST}:{settings.lab_port}"),
        *(("--inventory", settings.inventory) if settings.inventory else ()),
    )
    store = (sys.executable, "-m", "pipelines.services", str(folder / "s3"), str(settings.s3_port))
    return [
        Service("s3", settings.s3_port, "--s3-port", store, "/", refusals=(404,)),
        Service(
            "mlflow",
            settings.mlflow_port,
            "--mlflow-port",
            mlflow,
            "/health",
            # Not among the arguments, which everybody on the machine can read.
            environment={
                **s3,
                "MLFLOW_S3_ENDPOINT_URL": s3["AWS_ENDPOINT_URL"],
                "MLFLOW_BACKEND_STORE_URI": database,
                "MLFLOW_DISABLE_TELEMETRY": "true",
            },
        ),
        Service("lab", settings.lab_port, "--lab-port", lab, "/readyz", environment={**s3, **code}),
        Service(
            "runner",
            settings.lab_port,
            "",
            runner,
            "/api/v1/boards",
            holds=b'"name"',
            environment=code,
        ),
    ]


def client_environment(settings: Settings) -> dict[str, str]:
    """What a shell must export for pipelines to use the services; no secrets."""
    return {
        "MLFLOW_TRACKING_URI": f"http://{HOST}:{settings.mlflow_port}",
        "CORALLINE_LAB": f"http://{HOST}:{settings.lab_port}",
    }


def start(folder: Path, service: Service, on_wait: Callable[[str], None]) -> Status:
    """Have one service run.

    Raises:
        DeviceError: It does not start; names its log.
    """
    log = folder / f"{service.name}.log"
    there = _processes(folder, service.name)
    leader = _leader(folder, service.name)
    whole = leader in {p.pid for p in there}
    marks = {_mark(p) for p in there} - {""}  # of one that has just ended
    if whole and marks == {_marked(folder, service)} and _healthy(service):
        return Status(service.name, service.url, "running", leader, log)
    if there:
        stop(folder, service.name)
    on_wait(service.name)
    # The variables of a person who uses the services are not the services' own.
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "AWS_"))}
    environment = own | {**service.environment, _MARK: _marked(folder, service)}
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as sink:
        process = subprocess.Popen(
            service.command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    write_text(folder / f"{service.name}.pid", f"{process.pid}\n")
    limit = time.monotonic() + START_S
    while not _healthy(service):
        if process.poll() is not None or time.monotonic() > limit:
            stop(folder, service.name)
            raise DeviceError(f"{service.name} does not start: {_last_line(log)}; see {log}")
        time.sleep(0.1)
    change = "restarted" if leader else "started"
    return Status(service.name, service.url, change, process.pid, log)


def stop(folder: Path, name: str) -> bool:
    """End a service; returns whether any of its processes ran.

    Raises:
        DeviceError: A process does not end.
    """
    import psutil

    ran = False
    for send in (psutil.Process.terminate, psutil.Process.kill):
        # Looked for anew: one that is ending may still have started another.
        while there := _processes(folder, name):
            ran = True
            for process in there:
                with suppress(psutil.NoSuchProcess):
                    send(process)
            if psutil.wait_procs(there, STOP_S)[1]:
                break
    if there:
        raise DeviceError(f"{name} does not end: processes {[p.pid for p in there]}")
    (folder / f"{name}.pid").unlink(missing_ok=True)
    return ran


def _marked(folder: Path, service: Service) -> str:
    return f"{folder.resolve()}:{service.name}:{service.digest}"


def _mark(process: psutil.Process) -> str:
    import psutil

    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        return process.environ().get(_MARK, "")
    except (psutil.Error, OSError):  # of another user, or gone
        return ""


def _processes(folder: Path, name: str) -> list[psutil.Process]:
    import psutil

    prefix = f"{folder.resolve()}:{name}:"
    return [p for p in psutil.process_iter() if _mark(p).startswith(prefix)]


def _leader(folder: Path, name: str) -> int:
    """The process that was started; what it started may outlive it. 0 for none."""
    file = folder / f"{name}.pid"
    return int(read_text(file, "a process id")) if file.exists() else 0


def _healthy(service: Service) -> bool:
    try:
        with urlopen(service.url + service.health, timeout=5) as answer:
            return service.holds in answer.read()
    except HTTPError as error:
        return error.code in service.refusals
    except (OSError, HTTPException):
        return False


def _check(settings: Settings) -> None:
    ports = (settings.mlflow_port, settings.s3_port, settings.lab_port)
    if len(set(ports)) < len(ports):
        raise UserError(
            f"ports {', '.join(map(str, ports))} of mlflow, s3 and lab: give three different ones"
        )
    if settings.database:
        _check_database(settings.database)
    if settings.inventory:
        from hardware_lab.inventory import load_inventory

        load_inventory(Path(settings.inventory))


def _check_database(text: str) -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, DBAPIError

    form = "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
    try:
        url = make_url(text)
    except ArgumentError:
        raise UserError(f"--database is no URL; write {form}") from None
    if url.drivername != "postgresql+psycopg":
        raise UserError(f"--database of {url.drivername!r} is not known; write {form}")
    engine = create_engine(url, connect_args={"connect_timeout": 10})
    try:
        engine.connect().close()
    except DBAPIError as error:
        said = " ".join(str(error.orig).split())
        raise UserError(f"--database {url}: {said}; check that it runs and lets you in") from None
    finally:
        engine.dispose()


def _check_free(folder: Path, service: Service) -> None:
    if not service.option or _processes(folder, service.name):
        return
    with socket.socket() as listener:
        # Connections that have just ended do not count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, service.port))
        except OSError as error:
            raise UserError(
                f"{service.name} cannot listen on port {service.port} ({error.strerror}"
                f"{_owner(service.port)}); give another with {service.option}"
            ) from None


def _owner(port: int) -> str:
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error):
            for socket_ in process.net_connections(kind="inet"):
                if socket_.status == psutil.CONN_LISTEN and socket_.laddr.port == port:
                    return f": process {process.pid}, {process.name()}"
    return ""


def _last_line(log: Path) -> str:
    lines = [line for line in read_text(log, "a log").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _keep_store(folder: Path, port: int) -> None:
    """Be the S3 store: start its processes, and end with them when told, or when one has ended."""
    import psutil

    from hardware_lab.artifacts.server import Server

    told = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    server = Server(folder, port, HOST)
    server.start()
    children = psutil.Process().children()
    while not told.wait(1.0):
        if not all(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in children):
            break
    server.stop()
    sys.exit(0 if told.is_set() else 1)


if __name__ == "__main__":
    _keep_store(Path(sys.argv[1]), int(sys.argv[2]))
