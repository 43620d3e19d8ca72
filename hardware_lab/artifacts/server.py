"""A server of our own that speaks S3 and checks signatures: OpenStack Swift, one copy of all.

For a lab on one machine, and for tests. Four processes of the package `swift`: the proxy, which
clients speak to, and three behind it that listen on this machine only and trust whoever asks.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from coralline.errors import DeviceError, UserError
from coralline.files import make_folder, write_text

REGION = "us-east-1"
START_S = 120.0
STOP_S = 20.0
_BEHIND = {"account": "account", "container": "container", "object": "obj"}
_PROGRAM = """
import os, signal, threading

parent = os.dup(0)

def end_with_parent():
    os.read(parent, 1)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=end_with_parent, daemon=True).start()
from swift.{}.server import main

main()
"""
"""One process of the server; it ends when its standard input does, however its parent ends."""
_RINGS = """
import json, sys
from swift.common.ring import RingBuilder

for path, disk in json.load(sys.stdin).items():
    builder = RingBuilder(6, 1, 0)  # 2 ** 6 parts, of one copy each
    builder.add_dev({"id": 0, "region": 1, "zone": 1, "weight": 1.0, **disk})
    builder.rebalance()
    builder.get_ring().save(path)
"""
"""Says where each part lies. In a process of its own: what it imports, eventlet, changes how a
process forks."""
_PIPELINE = (
    "catch_errors listing_formats s3api tempauth copy slo dlo versioned_writes symlink proxy-server"
)
_FILTERS = {
    "catch_errors": "",
    "listing_formats": "",
    "s3api": f"location = {REGION}\nmax_upload_part_num = 10000\n",
    "copy": "",
    "slo": "max_manifest_segments = 10000\n",
    "dlo": "",
    "versioned_writes": "allow_object_versioning = true\n",
    "symlink": "",
}


class Server:
    """Keeps what it is given in a folder, over any number of starts.

    Args:
        folder: Made when absent; from then on for this user alone.
        port: Of the proxy, on `host`; 0 for one that is free.
        host: Where clients reach it.

    Attributes:
        port: Of the proxy.
        endpoint: As AWS_ENDPOINT_URL takes it.
        access_key, secret_key: Made with the folder.

    Raises:
        UserError: The folder cannot be written, or the package `swift` is not installed.
    """

    def __init__(self, folder: Path, port: int = 0, host: str = "127.0.0.1") -> None:
        try:
            import swift  # noqa: F401
        except ModuleNotFoundError:
            raise UserError("the S3 server needs swift; install coralline[s3]") from None
        self._folder = make_folder(folder).resolve()
        self._host = host
        keys = self._folder / "keys.json"
        if not keys.exists():
            made = {
                "access": "lab:lab",
                "secret": secrets.token_hex(20),
                "hash": secrets.token_hex(),
            }
            self._folder.chmod(0o700)
            write_text(keys, json.dumps(made))
            keys.chmod(0o600)
        found = json.loads(keys.read_text())
        self.access_key, self.secret_key = found["access"], found["secret"]
        self._hash = found["hash"]
        self.port = port or _free_port(host)
        self.endpoint = f"http://{host}:{self.port}"
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> Mapping[str, str]:
        """What boto3 must find in the environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
        }

    def start(self) -> None:
        """Start it, and return when it answers.

        Raises:
            UserError: Another program has its port.
            DeviceError: It does not answer; its log says why.
        """
        if _answers(self._host, self.port):
            raise UserError(f"port {self.port} of {self._host} is taken; give another")
        ports = {name: _free_port("127.0.0.1") for name in _BEHIND}
        self._configure(ports)
        for name, module in (*_BEHIND.items(), ("proxy", "proxy")):
            with open(self._folder / f"{name}.log", "ab") as log:
                self._processes.append(
                    subprocess.Popen(
                        [
                            *(sys.executable, "-c", _PROGRAM.format(module)),
                            *(self._folder / f"{name}.conf", "-v"),
                        ],
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=log,
                    )
                )
        limit = time.monotonic() + START_S
        for name, port in (*ports.items(), ("proxy", self.port)):
            host = self._host if name == "proxy" else "127.0.0.1"
            while not _answers(host, port):
                if time.monotonic() > limit or any(p.poll() is not None for p in self._processes):
                    self.stop()
                    raise DeviceError(f"the S3 server does not start; see {self._folder}/*.log")
                time.sleep(0.05)

    def stop(self) -> None:
        """End it; requests that are being answered are cut off."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin is not None
            process.stdin.close()
        self._processes.clear()

    def make_bucket(self, name: str) -> None:
        """Make a bucket, unless it is there."""
        with suppress(self._client.exceptions.BucketAlreadyOwnedByYou):
            self._client.create_bucket(Bucket=name)

    @cached_property
    def _client(self) -> Any:
        import boto3

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )

    def _configure(self, ports: Mapping[str, int]) -> None:
        disk = make_folder(self._folder / "disks" / "d0")
        write_text(
            self._folder / "swift.conf",
            f"[swift-hash]\nswift_hash_path_suffix = {self._hash}\n"
            "[storage-policy:0]\nname = one\ndefault = yes\n",
        )
        common = (
            f"[DEFAULT]\nswift_dir = {self._folder}\nuser = {_user()}\nworkers = 0\n"
            "log_level = WARNING\n"
        )
        rings = {
            str(self._folder / f"{name}.ring.gz"): {
                "device": disk.name,
                "ip": "127.0.0.1",
                "port": port,
            }
            for name, port in ports.items()
        }
        program = [sys.executable, "-c", _RINGS]
        done = subprocess.run(
            program, input=json.dumps(rings), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise DeviceError(f"the S3 server cannot be set up: {done.stderr.strip()[-300:]}")
        for name, port in ports.items():
            write_text(
                self._folder / f"{name}.conf",
                f"{common}bind_ip = 127.0.0.1\nbind_port = {port}\n"
                f"devices = {disk.parent}\nmount_check = false\n"
                f"[pipeline:main]\npipeline = {name}-server\n"
                f"[app:{name}-server]\nuse = egg:swift#{name}\n",
            )
        filters = "".join(
            f"[filter:{name}]\nuse = egg:swift#{name}\n{options}"
            for name, options in _FILTERS.items()
        )
        write_text(
            self._folder / "proxy.conf",
            f"{common}bind_ip = {self._host}\nbind_port = {self.port}\n"
            f"[pipeline:main]\npipeline = {_PIPELINE}\n{filters}"
            f"[filter:tempauth]\nuse = egg:swift#tempauth\n"
            f"user_{self.access_key.replace(':', '_')} = {self.secret_key} .admin\n"
            "[app:proxy-server]\nuse = egg:swift#proxy\nallow_account_management = true\n"
            "account_autocreate = true\n"
            # There is no other disk to go to while this one recovers.
            "error_suppression_interval = 0\n",
        )


def _answers(host: str, port: int) -> bool:
    connection = HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/healthcheck")
        connection.getresponse()
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
    return True


def _free_port(host: str) -> int:
    with socket.socket() as listener:
        listener.bind((host, 0))
        port: int = listener.getsockname()[1]
        return port


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name
