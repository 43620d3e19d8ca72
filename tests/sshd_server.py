"""A real sshd on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from waiting import wait_for

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")

needs_sshd = pytest.mark.skipif(
    SSHD is None and not os.environ.get("CI"),
    reason="sshd is not here (Debian package openssh-server)",
)


@dataclass
class Server:
    """An sshd of ours, its keys, and what it lets in."""

    folder: Path
    port: int = 0
    settings: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    @property
    def client_key(self) -> Path:
        return self.folder / "client"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known hosts"

    def start(self) -> None:
        assert SSHD, "CI needs sshd: install the Debian package openssh-server"
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd wants it when root runs it
        for key in ("host", "client"):
            make_key(self.folder / key)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.known_hosts.write_text(
            f"[127.0.0.1]:{self.port} {(self.folder / 'host.pub').read_text()}"
        )
        config = self.folder / "sshd_config"
        config.write_text(
            "\n".join(
                [
                    f"Port {self.port}",
                    "ListenAddress 127.0.0.1",
                    f"HostKey {self.folder / 'host'}",
                    f"AuthorizedKeysFile {self.folder / 'client.pub'}",
                    "StrictModes no",
                    "PermitRootLogin prohibit-password",
                    "PasswordAuthentication no",
                    "KbdInteractiveAuthentication no",
                    "UsePAM no",
                    "PidFile none",
                    *self.settings,
                ]
            )
            + "\n"
        )
        self.launch()

    def launch(self) -> None:
        """Again, as it was set up."""
        command = [str(SSHD), "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with open(self.folder / "sshd.log", "ab") as log:
            self.process = subprocess.Popen(command, stderr=log)
        wait_for(self._answers)

    def _answers(self) -> bool:
        assert self.process and self.process.poll() is None, (self.folder / "sshd.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """The board vanishes: the server and its sessions, at once."""
        assert self.process
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return
        self.process.kill()
        for child in found:
            try:
                if "sshd" in child.name():
                    child.kill()
            except psutil.NoSuchProcess:
                pass
        self.process.wait()


def make_key(path: Path) -> None:
    """A pair of keys, the public one in a file of the same name and .pub."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
