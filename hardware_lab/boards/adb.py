"""One Android device over adb, with a time limit on every call.

adbutils speaks to adb's own server on this machine, which speaks to the device. What adbutils
leaves without a limit or an explanation (shell output, sending files) is done here on the
connections that it opens. The server is adb's and is left running, as adb itself leaves it.
"""

from __future__ import annotations

import shlex
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from coralline.errors import DeviceError
from coralline.runtime.child import STOP_S, Stop, never
from hardware_lab.boards.clock import Reading

CONNECT_S = 10.0
"""Longest wait for the server to start, or for a device to become ready."""
OPEN_TRIES = 3
POLL_S = 0.1
CLOCK_ROUNDS = 8
"""How often a device is asked for its clock; the answer that came fastest counts."""
READ_UPTIME = "read up rest < /proc/uptime"
"""Takes no process of its own in the device's shell."""
UPTIME_S = 0.01
"""The step in which it is told."""
SYNC_BYTES = 64 * 1024
"""Most data bytes in one packet of the file service (adb/file_sync_service.h)."""
_STOPPED = "stopped: nobody waits for it any more"
_STDOUT, _STDERR, _EXIT = 1, 2, 3  # packets of adb's shell protocol (adb/shell_protocol.h)

STATES = {
    "unauthorized": "has not accepted this computer's key: unlock it and allow USB debugging",
    "no permissions": "may not be opened by this user: add udev rules (Debian package "
    "android-sdk-platform-tools-common) or the user to the group plugdev",
    "offline": "is offline: unplug it and plug it in again, or restart its adbd",
    "recovery": "has started its recovery system: restart it",
    "bootloader": "waits in its bootloader: restart it",
}
"""What the states mean in which adb lists a device but cannot use it."""


@dataclass(frozen=True)
class Ran:
    """What a shell command on the device left: its exit code and both outputs, as they came."""

    code: int
    output: str


class _LostError(DeviceError):
    """The server or the device did not answer."""


class Adb:
    """A device by its serial; with a port in it (`phone:5555`), over TCP.

    Args:
        serial: As `adb devices` lists it; empty for the only device.
        where: Begins every message.
        stop: Ends what waits for the device, with a DeviceError that is retryable.
    """

    def __init__(self, serial: str, where: str, stop: Stop = never) -> None:
        from adbutils import AdbClient

        self._serial, self._where, self._stop = serial, where, stop
        # The limit of a call to the server itself; calls to the device have their own.
        self._client = AdbClient(socket_timeout=CONNECT_S)

    def open(self) -> str:
        """Make sure that the device is ready; its serial.

        Raises:
            DeviceError: adb or the device is missing or not ready; says what to do.
        """
        # adb's server (29.0.6) may crash while it connects a device; a new one is started.
        for _ in range(OPEN_TRIES - 1):
            with suppress(_LostError):
                return self._open()
        return self._open()

    def _open(self) -> str:
        self._start_server()
        deadline = time.monotonic() + CONNECT_S
        said = ""
        with self._called(CONNECT_S):
            while True:
                found = {info.serial: info.state for info in self._client.list()}
                serial = self._serial or self._only(found)
                state = found.get(serial)
                if state == "device":
                    self._serial = serial
                    return serial
                if ":" in serial and not said:
                    # An entry that is not ready is stale: adb would not connect it again.
                    self._client.disconnect(serial)
                    said = self._client.connect(serial, timeout=CONNECT_S)
                    continue
                comes = said.startswith(("connected to", "already connected to"))
                if not comes or state == "unauthorized" or time.monotonic() > deadline:
                    self._not_ready(serial, state, said)
                if state is None:  # a new server, which knows nothing of it
                    said = ""
                if self._stop():
                    raise DeviceError(f"{self._where}: {_STOPPED}", retryable=True)
                time.sleep(POLL_S)

    def shell(self, command: str, *, time_limit_s: float) -> Ran:
        """Run a shell command on the device.

        Raises:
            DeviceError: The connection was lost, the time limit reached, or it was stopped; the
                command may still run on the device.
        """
        output = bytearray()
        with self._service(f"shell,v2,raw:{command}", time_limit_s) as line:
            while True:
                kind, size = struct.unpack("<BI", line.read(5))
                data = line.read(size)
                if kind == _EXIT:
                    return Ran(data[0], output.decode(errors="replace"))
                if kind in (_STDOUT, _STDERR):
                    output += data

    def clock(self) -> Reading:
        """What the device's clock, the time since it started, is to this machine's.

        Raises:
            DeviceError: As `shell`.
        """
        readings = []
        for _ in range(CLOCK_ROUNDS):
            asked = time.monotonic()
            said = self.shell(f"{READ_UPTIME}; echo $up", time_limit_s=CONNECT_S).output
            answered = time.monotonic()
            try:
                at_s = float(said) + UPTIME_S / 2  # it is cut off, not rounded
            except ValueError:
                raise DeviceError(
                    f"{self._where}: does not tell its clock ({said.strip()})"
                ) from None
            bound_s = (answered - asked) / 2 + UPTIME_S / 2
            readings.append(Reading(at_s, (asked + answered) / 2 - at_s, bound_s))
        return min(readings, key=lambda reading: reading.bound_s)

    def push(self, path: Path, target: str, *, mode: int, time_limit_s: float) -> None:
        """Send a file, whole or not at all.

        Raises:
            DeviceError: As `shell`; or the device cannot keep it, and why.
        """
        part = f"{target}.part"
        with (
            path.open("rb") as data,
            self._service("sync:", time_limit_s) as line,
        ):
            line.request(b"SEND", f"{part},{stat.S_IFREG | mode}".encode())
            while block := data.read(SYNC_BYTES):
                try:
                    line.request(b"DATA", block)
                except OSError:  # it has refused already, and says why in its last packet
                    break
            else:
                line.send(struct.pack("<4sI", b"DONE", int(path.stat().st_mtime)))
            answer, size = struct.unpack("<4sI", line.read(8))
            if answer != b"OKAY":
                why = line.read(size).decode(errors="replace")
                raise DeviceError(f"{self._where}: cannot keep {path.name} ({why})")
        moved = self.shell(f"mv {shlex.quote(part)} {shlex.quote(target)}", time_limit_s=CONNECT_S)
        if moved.code != 0:
            raise DeviceError(f"{self._where}: cannot keep {path.name} ({moved.output.strip()})")

    def pull(self, source: str, *, time_limit_s: float) -> bytes:
        """Fetch a file.

        Raises:
            DeviceError: As `shell`; or the device cannot read it, and why.
        """
        found = bytearray()
        with self._service("sync:", time_limit_s) as line:
            line.request(b"RECV", source.encode())
            while True:
                kind, size = struct.unpack("<4sI", line.read(8))
                if kind == b"DONE":
                    return bytes(found)
                data = line.read(size)
                if kind != b"DATA":
                    why = data.decode(errors="replace")
                    raise DeviceError(f"{self._where}: cannot send {source} ({why})")
                found += data

    def reconnect(self) -> None:
        """Have the server drop what it holds of the device, and connect anew."""
        self._start_server()
        if ":" in self._serial:
            self._forget()
            return
        which = f"host-serial:{self._serial}" if self._serial else "host"
        with self._called(CONNECT_S), self._client.make_connection(CONNECT_S) as server:
            server.send_command(f"{which}:reconnect")
            server.check_okay()

    def restart(self) -> None:
        """Restart the device; does not wait for that."""
        with self._service("reboot:", CONNECT_S):
            pass
        self._forget()

    def _start_server(self) -> None:
        """Have adbutils start the server where none runs."""
        from adbutils.errors import AdbConnectionError, AdbError, AdbTimeout

        try:
            self._client.server_version()
        except (AdbConnectionError, AdbTimeout, OSError, subprocess.SubprocessError):
            raise DeviceError(
                f"{self._where}: adb's server does not start; `adb start-server` says why",
                retryable=True,
            ) from None
        except AdbError:
            raise DeviceError(
                f"{self._where}: adb is not here; install the Debian package adb"
            ) from None

    def _only(self, found: dict[str, str]) -> str:
        if len(found) > 1:
            raise DeviceError(
                f"{self._where}: several Android devices are connected ({', '.join(found)}); "
                "name one as `serial` in the inventory"
            )
        return next(iter(found), "")

    def _not_ready(self, serial: str, state: str | None, said: str) -> NoReturn:
        if state is None:
            why = f" ({said})" if said else ""
            raise DeviceError(
                f"{self._where}: no Android device {serial or 'is connected'}{why}; connect one "
                "with USB debugging on, or name its address and port as `serial`",
                retryable=bool(serial),
            )
        told = next((text for name, text in STATES.items() if state.startswith(name)), None)
        raise DeviceError(
            f"{self._where}: {serial} {told or f'is in state {state}'}",
            retryable=state == "offline",
        )

    @contextmanager
    def _service(self, name: str, time_limit_s: float) -> Iterator[_Line]:
        with self._called(time_limit_s):
            device = self._client.device(self._serial)
            with device.open_transport(timeout=min(CONNECT_S, time_limit_s)) as connection:
                connection.send_command(name)
                connection.check_okay()
                yield _Line(connection.conn, time.monotonic() + time_limit_s, self._stop)

    @contextmanager
    def _called(self, time_limit_s: float) -> Iterator[None]:
        """Turn what adbutils and sockets raise into a DeviceError."""
        from adbutils.errors import AdbError, AdbTimeout

        try:
            yield
        except (TimeoutError, AdbTimeout):
            # A TCP entry that no longer answers would hold every later call up.
            self._forget()
            raise _LostError(
                f"{self._where}: no answer in {time_limit_s:g} s", retryable=True
            ) from None
        except (AdbError, OSError, EOFError) as error:
            why = str(error) or "the connection was closed"
            raise _LostError(f"{self._where}: connection lost ({why})", retryable=True) from None

    def _forget(self) -> None:
        from adbutils.errors import AdbError

        if ":" in self._serial:
            with suppress(AdbError, OSError):
                self._client.disconnect(self._serial)


class _Line:
    """A connection to a service of the device until a deadline."""

    def __init__(self, connection: socket.socket, deadline: float, stop: Stop) -> None:
        self._connection, self._deadline, self._stop = connection, deadline, stop

    def read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._bound()
            try:
                block = self._connection.recv(size - len(data))
            except TimeoutError:
                continue
            if not block:
                raise EOFError
            data += block
        return bytes(data)

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._bound()
            with suppress(TimeoutError):
                view = view[self._connection.send(view) :]

    def request(self, kind: bytes, data: bytes) -> None:
        self.send(struct.pack("<4sI", kind, len(data)) + data)

    def _bound(self) -> None:
        """Let the next call wait until it is time to look again whether this is to end."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if self._stop():
            raise DeviceError(_STOPPED, retryable=True)
        self._connection.settimeout(min(left, STOP_S))
