"""Power switches: the commands that are run, their bounds, and labgrid itself."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
from processes import processes

from coralline.errors import DeviceError, UserError
from hardware_lab import power as power_module
from hardware_lab.commands import run_program
from hardware_lab.power import CommandSwitch, Labgrid, PowerSwitch, Uhubctl, Ykush, cycle

HUB = """#!{python}
# Stands in for a hub's program: keeps the state of one port and every call.
import sys
from pathlib import Path
here = Path(__file__).parent
with open(here / "calls", "a") as calls:
    print(*sys.argv[1:], file=calls)
state = here / "state"
for word, new in {words}.items():
    if word in sys.argv:
        if not (here / "stuck").exists():
            state.write_text(new)
        break
else:
    print({says}[state.read_text()])
"""
UHUBCTL = {
    "on": "Current status for hub 1-1 [05e3:0610, USB 2.10, 4 ports, ppps]\n"
    "  Port 2: 0503 power highspeed enable connect [1a6e:089a]",
    "off": "Current status for hub 1-1 [05e3:0610, USB 2.10, 4 ports, ppps]\n  Port 2: 0000 off",
}
YKUSH = {
    "on": "\n\nDownstream port 3 is ON\n\n",
    "off": "\n\nDownstream port 3 is OFF\n\n",
}


@pytest.fixture
def hub(tmp_path: Path) -> Callable[[dict[str, str], dict[str, str]], Path]:
    def make(words: dict[str, str], says: dict[str, str]) -> Path:
        path = tmp_path / "hub"
        path.write_text(HUB.format(python=sys.executable, words=words, says=says))
        path.chmod(0o755)
        (tmp_path / "state").write_text("on")
        return path

    return make


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


def test_uhubctl(hub: Any, tmp_path: Path) -> None:
    program = hub({"on": "on", "off": "off"}, UHUBCTL)
    switch = Uhubctl("1-1", 2, pause_s=0.0, program=str(program))
    assert switch.is_on() is True
    cycle(switch)
    assert calls(tmp_path) == [
        "-l 1-1 -p 2",
        "-l 1-1 -p 2 -a off",
        "-l 1-1 -p 2",
        "-l 1-1 -p 2 -a on",
        "-l 1-1 -p 2",
    ]
    switch.switch(False)
    assert switch.is_on() is False
    (tmp_path / "stuck").touch()
    with pytest.raises(DeviceError, match="the power is not on, though"):
        cycle(switch)


@pytest.mark.parametrize(
    ("model", "words"), [("ykush", ["-u 3", "-d 3", "-g 3"]), ("ykush3", ["-u 3", "-d 3", "-g 3"])]
)
def test_ykush(hub: Any, tmp_path: Path, model: str, words: list[str]) -> None:
    program = hub({"-u": "on", "-d": "off"}, YKUSH)
    switch = Ykush(3, serial="YK21", model=model, pause_s=0.0, program=str(program))
    cycle(switch)
    named = "-s YK21" if model == "ykush" else f"{model} -s YK21"
    up, down, get = (f"{named} {word}" for word in words)
    assert calls(tmp_path) == [down, get, up, get]


def test_a_ykush_xs_has_one_port(hub: Any, tmp_path: Path) -> None:
    program = hub({"-u": "on", "-d": "off"}, YKUSH)
    Ykush(1, model="ykushxs", program=str(program)).switch(False)
    assert calls(tmp_path) == ["ykushxs -d"]


def test_commands(tmp_path: Path) -> None:
    light = tmp_path / "light"
    switch = CommandSwitch(
        on=f"sh -c 'echo on > {light}'", off=f"sh -c 'echo off > {light}'", state=f"cat {light}"
    )
    switch.switch(False)
    assert switch.is_on() is False
    switch.switch(True)
    assert switch.is_on() is True
    light.write_text("?")
    with pytest.raises(DeviceError, match=r"prints '\?', neither on nor off"):
        switch.is_on()
    with pytest.raises(DeviceError, match=r"exit code 1 \(no such relay\)"):
        CommandSwitch(on="sh -c 'echo no such relay >&2; exit 1'", off="true").switch(True)
    assert CommandSwitch(on="true", off="true").is_on() is None


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Uhubctl("hub", 1), "location 'hub' is not"),
        (lambda: Uhubctl("1-1", 0), "port is 0; it must be from 1"),
        (lambda: Ykush(4), "port is 4"),
        (lambda: Ykush(2, model="ykushxs"), "it must be from 1 to 1"),
        (lambda: Ykush(1, model="ykush9"), "choose ykush, ykushxs, ykush3"),
        (lambda: Labgrid("-x"), "place '-x'"),
        (lambda: CommandSwitch(on="", off="true"), "on is empty"),
        (lambda: CommandSwitch(on="echo '", off="true"), "is not a command line"),
        (lambda: CommandSwitch(on="true", off="true", pause_s=1e4), "from 0 to 60"),
    ],
)
def test_options_that_cannot_be(make: Callable[[], PowerSwitch], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()


# ------------------------------------------------------------------ bounds


def test_a_board_is_never_left_off(tmp_path: Path) -> None:
    light = tmp_path / "light"
    switch = CommandSwitch(
        on=f"sh -c 'echo on > {light}'", off=f"sh -c 'echo off > {light}'", pause_s=60.0
    )
    begun = time.monotonic()
    cycle(switch, stop=light.exists)  # it must be left as soon as it is off
    assert light.read_text() == "on\n" and time.monotonic() - begun < 30


def processes_with(word: str) -> list[psutil.Process]:
    return processes(lambda line: word in line)


def all_end(word: str) -> None:
    """They have been killed; the kernel may take a moment."""
    limit = time.monotonic() + 10
    while processes_with(word):
        assert time.monotonic() < limit, processes_with(word)
        time.sleep(0.01)


@pytest.mark.parametrize("why", ["no answer in 0.5 s", "stopped: nobody waits"])
def test_a_program_that_hangs_is_ended_with_its_children(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, why: str
) -> None:
    word = f"{tmp_path}/hang"  # known by it
    line = f"sh -c 'trap \"\" TERM HUP; (sleep 600; :) & sleep 600; :' {word}"
    if why.startswith("no answer"):
        monkeypatch.setattr(power_module, "COMMAND_S", 0.5)
    begun = time.monotonic()
    with pytest.raises(DeviceError, match=why) as caught:
        CommandSwitch(on=line, off="true").switch(
            True, stop=lambda: why.startswith("stopped") and time.monotonic() > begun + 0.5
        )
    assert caught.value.retryable and time.monotonic() - begun < 15
    all_end(word)


def test_what_a_program_leaves_behind_is_ended(tmp_path: Path) -> None:
    word = f"{tmp_path}/left"
    ended = run_program(
        ["sh", "-c", f"sh -c 'sleep 600; :' {word} & echo out; echo err >&2; exit 3"],
        "here",
        time_limit_s=30,
    )
    assert (ended.code, ended.output, ended.last_words) == (3, "out\n", "err")
    all_end(word)


def test_a_program_that_is_not_here() -> None:
    for switch in (Uhubctl("1-1", 1, program="/none/uhubctl"), Labgrid("p", program="/none/lg")):
        with pytest.raises(DeviceError, match=r"/none/\w+ is not here; install it") as caught:
            switch.switch(True)
        assert not caught.value.retryable


# ------------------------------------------------------------------ labgrid itself

LABGRID = os.environ.get("LABGRID_BIN", "")
"""The folder of labgrid's programs, which lie in an environment of their own."""


def labgrid_program(name: str) -> str | None:
    return shutil.which(name, path=LABGRID or None)


needs_labgrid = pytest.mark.skipif(
    labgrid_program("labgrid-client") is None,
    reason="labgrid-client is not here: install labgrid in an environment of its own and name its "
    "bin folder in LABGRID_BIN",
)


class Relay(BaseHTTPRequestHandler):
    """A network socket as labgrid's `simplerest` drives it: GET /relay/0/1."""

    def do_GET(self) -> None:
        server: Any = self.server
        *_, value = self.path.split("/")
        said = b""
        if self.path.count("/") == 3:
            server.light = value
            server.seen.append(value)
        else:
            said = server.light.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def relay() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Relay)
    server.light, server.seen = "1", []
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def labgrid(relay: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Labgrid]:
    """A coordinator and an exporter of our own, and a place with the relay."""
    folder = tmp_path_factory.mktemp("labgrid")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{probe.getsockname()[1]}"
    (folder / "exporter.yaml").write_text(
        "socket:\n  NetworkPowerPort:\n    model: simplerest\n"
        f"    host: 'http://127.0.0.1:{relay.server_port}/relay/{{index}}/{{value}}'\n"
        "    index: 0\n"
    )
    commands = [
        [labgrid_program("labgrid-coordinator"), "-l", where],
        [labgrid_program("labgrid-exporter"), "-c", where, "-n", "here", "exporter.yaml"],
    ]
    running = []
    log = open(folder / "log", "wb")  # noqa: SIM115
    try:
        for command in commands:
            running.append(
                subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)  # type: ignore[arg-type]
            )
            port = int(where.rpartition(":")[2])
            wait_for(lambda port=port: answers(port), folder / "log")
        client = labgrid_program("labgrid-client")
        assert client
        switch = Labgrid("tpu", coordinator=where, pause_s=0.0, program=client)

        def told(*words: str) -> bool:
            return run_program([client, "-x", where, *words], "test", time_limit_s=60).code == 0

        assert told("-p", "tpu", "create") and told("-p", "tpu", "add-match", "here/*/*")
        wait_for(lambda: told("-p", "tpu", "acquire"), folder / "log")  # the exporter is there
        assert told("-p", "tpu", "release")
        yield switch
    finally:
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        log.close()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], object], log: Path, timeout_s: float = 60.0) -> None:
    limit = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < limit, log.read_text()
        time.sleep(0.1)


@needs_labgrid
def test_labgrid_switches(labgrid: Labgrid, relay: Any) -> None:
    cycle(labgrid)
    assert relay.seen == ["0", "1"]
    # A place that a killed runner left acquired is taken over; one that a person has is not.
    acquire = [labgrid.program, "-x", labgrid.coordinator, "-p", "tpu", "acquire"]
    ours = {**os.environ, "LG_USERNAME": power_module.LABGRID_USER}
    assert run_program(acquire, "test", time_limit_s=60, environment=ours).code == 0
    labgrid.switch(False)
    assert relay.seen == ["0", "1", "0"]
    theirs = {**os.environ, "LG_USERNAME": "ada"}
    assert run_program(acquire, "test", time_limit_s=60, environment=theirs).code == 0
    with pytest.raises(DeviceError, match=r"acquired by .*/ada"):
        labgrid.switch(True)
    assert relay.light == "0"
    assert run_program([*acquire[:-1], "release"], "test", time_limit_s=60, environment=theirs)


@needs_labgrid
def test_labgrid_is_gone(labgrid: Labgrid) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        lost = Labgrid(
            "tpu", coordinator=f"127.0.0.1:{free.getsockname()[1]}", program=labgrid.program
        )
        with pytest.raises(DeviceError):
            lost.switch(True)


@needs_labgrid
def test_labgrid_hangs(labgrid: Labgrid, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(power_module, "COMMAND_S", 3.0)
    coordinator = next(
        process
        for process in psutil.process_iter()
        if f"-l {labgrid.coordinator}" in " ".join(process.cmdline())
    )
    coordinator.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(DeviceError, match="no answer in 3 s") as caught:
            labgrid.switch(True)
    finally:
        coordinator.send_signal(signal.SIGCONT)
    assert caught.value.retryable
    all_end(labgrid.program)
