"""A device for adb to connect to, with faults: the device's side of adb's wire protocol.

Spoken over TCP as an Android device's adbd speaks it (packages/modules/adb: protocol.txt,
shell_protocol.h, SYNC.TXT): the transport (CNXN, AUTH, OPEN, OKAY, WRTE, CLSE), the shell with
its exit codes, and the file service. Commands run in this machine's shell, with a few of
Android's own programs put in front of PATH; files land on this machine's disk.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from threading import Event, Lock, Thread

VERSION = 0x01000001  # the first that needs no checksums
MAX_PAYLOAD = 256 * 1024
FEATURES = "shell_v2,cmd,stat_v2,ls_v2"
STDOUT, STDERR, EXIT = 1, 2, 3

PROGRAMS = {
    "getprop": """case "$1" in
ro.product.manufacturer) echo Coralline;; ro.product.model) echo Emulator;;
ro.build.version.release) echo 14;; ro.boot.qemu) echo 1;; sys.boot_completed) echo 1;;
*) echo;; esac""",
    "perfetto": f'exec {sys.executable} {Path(__file__).with_name("perfetto_program.py")} "$@"',
    "cat": """case "$1" in
/proc/sys/kernel/random/boot_id) exec /bin/cat "$(dirname "$0")/boot_id";;
*) exec /bin/cat "$@";; esac""",
    "dumpsys": """case "$1" in
battery) printf "  level: 87\\n  temperature: 312\\n  status: 3\\n";;
thermalservice) echo "IsStatusOverride: false"
echo "Thermal Status: $(cat "$(dirname "$0")/thermal_status")";;
esac""",
}


@dataclass
class AdbDevice:
    """Listens on 127.0.0.1; `serial` is what to give to adb.

    Attributes:
        folder: Holds the device's programs.
        authorised: Whether it takes the computer's key.
        drop_after: It vanishes, and its processes with it, once so many bytes of a file came.
        disk_bytes: What of one file fits on its disk.
        hang_on: A command that holds this text is never answered.
        reboot_on: A command that holds this text restarts the device.
    """

    folder: Path
    authorised: bool = True
    drop_after: int | None = None
    disk_bytes: int | None = None
    hang_on: str = ""
    reboot_on: str = ""
    commands: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        programs = self.folder / "programs"
        programs.mkdir(parents=True)
        for name, text in PROGRAMS.items():
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod(0o755)
        self._boots = programs / "boot_id"
        self._boots.write_text("1")
        (programs / "thermal_status").write_text("0")
        python = str(Path(sys.executable).parent)
        self.environment = {**os.environ, "PATH": f"{programs}:{python}:{os.environ['PATH']}"}
        self._links: set[_Link] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        Thread(target=self._listen, daemon=True).start()

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                link = _Link(self, connection)
                self._links.add(link)
                Thread(target=link.serve, daemon=True).start()

    def vanish(self) -> None:
        """End every connection and every process, as a restart does; it comes back at once."""
        for link in list(self._links):
            link.close()
        self._links.clear()

    def restart(self) -> None:
        """As `adb reboot` asks it to."""
        self._boots.write_text(str(int(self._boots.read_text()) + 1))
        self.vanish()

    def stop(self) -> None:
        with suppress(OSError):  # it has stopped already
            self._listener.shutdown(socket.SHUT_RDWR)  # closing alone leaves `accept` waiting
        self._listener.close()
        self.vanish()


class _Link:
    """One connection of an adb server, with its streams."""

    def __init__(self, device: AdbDevice, connection: socket.socket) -> None:
        self.device, self._connection = device, connection
        self._streams: dict[int, _Stream] = {}
        self._sending = Lock()
        self.processes: set[subprocess.Popen[bytes]] = set()

    def serve(self) -> None:
        with suppress(OSError, EOFError):
            while True:
                command, arg0, arg1, size, _, _ = struct.unpack("<4sIIIII", self._read(24))
                self._received(command, arg0, arg1, self._read(size))
        self.close()

    def _received(self, command: bytes, arg0: int, arg1: int, data: bytes) -> None:
        if command == b"CNXN":
            if self.device.authorised:
                banner = f"device::ro.product.name=coralline;features={FEATURES}"
                self.send(b"CNXN", VERSION, MAX_PAYLOAD, banner.encode())
            else:
                self.send(b"AUTH", 1, 0, bytes(20))
        elif command == b"AUTH":
            if arg0 == 2:  # a signature: ask for another key; the last is public and waits
                self.send(b"AUTH", 1, 0, bytes(20))
        elif command == b"OPEN":
            stream = _Stream(self, local=arg0, remote=arg0)
            self._streams[arg0] = stream
            name = data.rstrip(b"\0").decode()
            Thread(target=stream.run, args=(name,), daemon=True).start()
        elif arg1 in self._streams:
            stream = self._streams[arg1]
            if command == b"WRTE":
                stream.incoming.put(data)
                self.send(b"OKAY", arg1, arg0)
            elif command == b"OKAY":
                stream.may_send.set()
            elif command == b"CLSE":
                stream.end()
                del self._streams[arg1]

    def send(self, command: bytes, arg0: int, arg1: int, data: bytes = b"") -> None:
        magic = int.from_bytes(command, "little") ^ 0xFFFFFFFF
        header = struct.pack("<4sIIIII", command, arg0, arg1, len(data), 0, magic)
        with self._sending:
            self._connection.sendall(header + data)

    def close(self) -> None:
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        for process in list(self.processes):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for stream in self._streams.values():
            stream.end()

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            block = self._connection.recv(size - len(data))
            if not block:
                raise EOFError
            data += block
        return data


class _Stream:
    """One open service. The ids of both sides are the same number."""

    def __init__(self, link: _Link, local: int, remote: int) -> None:
        self._link, self._local, self._remote = link, local, remote
        self.incoming: Queue[bytes] = Queue()
        self.may_send = Event()
        self._ended = False
        self._rest = b""

    def run(self, name: str) -> None:
        with suppress(OSError, EOFError):
            service, _, argument = name.partition(":")
            if service.startswith("shell,v2"):
                self._accept()
                self._shell(argument)
            elif service == "sync":
                self._accept()
                self._sync()
            elif service == "reboot":
                self._accept()
                self._link.device.restart()
            self._link.send(b"CLSE", self._local, self._remote)

    def end(self) -> None:
        self._ended = True
        self.incoming.put(b"")
        self.may_send.set()

    def _accept(self) -> None:
        self._link.send(b"OKAY", self._local, self._remote)
        self.may_send.set()

    def _write(self, data: bytes) -> None:
        for at in range(0, len(data), MAX_PAYLOAD):
            self.may_send.wait()
            if self._ended:
                raise EOFError
            self.may_send.clear()
            self._link.send(b"WRTE", self._local, self._remote, data[at : at + MAX_PAYLOAD])

    def _read(self, size: int) -> bytes:
        while len(self._rest) < size:
            block = self.incoming.get()
            if not block:
                raise EOFError
            self._rest += block
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    # ------------------------------------------------------------ services

    def _shell(self, command: str) -> None:
        device = self._link.device
        device.commands.append(command)
        if device.reboot_on and device.reboot_on in command:
            device.vanish()
            raise EOFError
        if device.hang_on and device.hang_on in command:
            while self.incoming.get():
                pass
            raise EOFError
        process = subprocess.Popen(
            ["sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=device.environment,
            start_new_session=True,
        )
        self._link.processes.add(process)
        assert process.stdout
        while block := os.read(process.stdout.fileno(), 4096):
            self._write(struct.pack("<BI", STDOUT, len(block)) + block)
        code = process.wait()
        process.stdout.close()
        self._link.processes.discard(process)
        code = 128 - code if code < 0 else code
        self._write(struct.pack("<BIB", EXIT, 1, code))

    def _sync(self) -> None:
        while True:
            kind, size = struct.unpack("<4sI", self._read(8))
            path = self._read(size).decode()
            if kind == b"SEND":
                self._receive_file(*path.rsplit(",", 1))
            elif kind == b"RECV":
                self._send_file(Path(path))
            elif kind == b"STAT":
                self._stat(Path(path))
            elif kind == b"LIST":
                self._list(Path(path))
            else:  # QUIT
                return

    def _receive_file(self, path: str, mode: str) -> None:
        device, came, refusal = self._link.device, 0, ""
        try:
            out = open(path, "wb")  # noqa: SIM115
        except OSError as error:
            out, refusal = open(os.devnull, "wb"), error.strerror or ""  # noqa: SIM115
        with out:
            while True:
                kind, size = struct.unpack("<4sI", self._read(8))
                if kind != b"DATA":
                    break
                block = self._read(size)
                came += size
                if device.drop_after is not None and came > device.drop_after:
                    device.vanish()
                    raise EOFError
                if device.disk_bytes is not None and came > device.disk_bytes:
                    refusal = "No space left on device"
                else:
                    out.write(block)
        if refusal:
            Path(path).unlink(missing_ok=True)
            self._write(struct.pack("<4sI", b"FAIL", len(refusal)) + refusal.encode())
        else:
            os.chmod(path, stat.S_IMODE(int(mode)))
            self._write(struct.pack("<4sI", b"OKAY", 0))

    def _send_file(self, path: Path) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            why = (error.strerror or "").encode()
            self._write(struct.pack("<4sI", b"FAIL", len(why)) + why)
            return
        for at in range(0, len(data), 64 * 1024):
            block = data[at : at + 64 * 1024]
            self._write(struct.pack("<4sI", b"DATA", len(block)) + block)
        self._write(struct.pack("<4sI", b"DONE", 0))

    def _stat(self, path: Path) -> None:
        found = path.stat() if path.exists() else None
        facts = (found.st_mode, found.st_size, int(found.st_mtime)) if found else (0, 0, 0)
        self._write(struct.pack("<4sIII", b"STAT", *facts))

    def _list(self, path: Path) -> None:
        for entry in sorted(path.iterdir()) if path.is_dir() else ():
            found, name = entry.stat(), entry.name.encode()
            facts = (found.st_mode, found.st_size, int(found.st_mtime), len(name))
            self._write(struct.pack("<4sIIII", b"DENT", *facts) + name)
        self._write(struct.pack("<4sIIII", b"DONE", 0, 0, 0, 0))
