"""`ssh`: a Linux board that the system's OpenSSH client reaches.

What a job needs is kept on the board by its SHA-256 and sent only when it is not there yet. Then
one ssh session runs `payload.py` there; that file says how it ends with this process, with the
network, or at the time limit. Host keys are always checked, and no password is ever asked for.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

import numpy as np

from coralline.errors import DeviceError, UserError
from coralline.runtime.child import Progress, Stop, converse, never
from coralline.runtime.environment import hottest
from coralline.runtime.measurement import Measurement
from coralline.runtime.pipeline import PipelineRun, open_segments
from coralline.runtime.power import Window
from coralline.runtime.references import write_references
from coralline.tflite.segments import SegmentSet
from hardware_lab.boards import Board, Task
from hardware_lab.boards.clock import Reading, Relation
from hardware_lab.commands import Ended, run_program
from hardware_lab.meters import Meter
from hardware_lab.meters.metering import metered

PAYLOAD = Path(__file__).with_name("payload.py")
DELEGATES = ("none", "edgetpu")

CONNECT_S = 10
ALIVE_S = 5
ALIVE_COUNT = 3
COMMAND_S = 60.0
"""Longest that a short command on the board may take."""

HEARTBEAT_S = 5.0
END_S = 10.0
"""How long the payload may take to kill its worker and clean up."""

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
_SENSORS = (
    "cat /sys/class/thermal/thermal_zone*/temp /sys/class/hwmon/hwmon*/temp*_input "
    "/sys/class/apex/apex_*/temp 2>/dev/null; true"
)
_CONNECTION_FAILED = 255  # exit code of ssh itself
_OPTIONS = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "UpdateHostKeys=no",
    "PreferredAuthentications=publickey",
    f"ConnectTimeout={CONNECT_S}",
    f"ServerAliveInterval={ALIVE_S}",
    f"ServerAliveCountMax={ALIVE_COUNT}",
    # A session of its own: a shared one would outlive this process.
    "ControlMaster=no",
    "ControlPath=none",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "LogLevel=INFO",
)


class _TooLongError(DeviceError):
    """The payload was not finished in time."""


@dataclass(frozen=True)
class Ssh:
    """A Linux board with Python 3.7 or newer, numpy and a TFLite runtime.

    Attributes:
        host: Name or address; a name of the user's ssh configuration serves too.
        user: To log in as; empty for ssh's choice.
        port: Of the SSH server.
        identity_file: Private key; empty for ssh's choice.
        known_hosts: File of host keys; empty for the user's and the system's.
        python: The board's Python.
        delegate: `none` (the board's CPU) or `edgetpu`: one Edge TPU a stage, in the order in
            which libedgetpu counts them.
        threads_per_stage: CPU threads of each pipeline stage.
        time_limit_s: A measurement, or sending one file, that takes longer is ended.
        folder: Where files are kept on the board; relative to the user's home there.
        reboot: Command that restarts the board, as `sudo -n reboot`; empty when the lab must not.
        meter: What measures its power.
    """

    name: str
    host: str
    user: str = ""
    port: int = 22
    identity_file: str = ""
    known_hosts: str = ""
    python: str = "python3"
    delegate: str = "none"
    threads_per_stage: int = 1
    time_limit_s: float = 3600.0
    folder: str = ".cache/coralline"
    reboot: str = ""
    meter: Meter | None = None

    kind = "ssh"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:%-]*", self.host):
            raise UserError(f"host {self.host!r} is not a host name or address")
        if not re.fullmatch(r"([A-Za-z0-9_][A-Za-z0-9_.@-]*)?", self.user):
            raise UserError(f"user {self.user!r} is not a user name")
        if not 0 < self.port < 65536:
            raise UserError("port must be from 1 to 65535")
        if '"' in self.known_hosts:
            raise UserError('known_hosts must not hold a "')
        if self.delegate not in DELEGATES:
            raise UserError(
                f"delegate {self.delegate!r} is not known; choose {', '.join(DELEGATES)}"
            )
        if self.threads_per_stage < 1:
            raise UserError("threads_per_stage must be at least 1")
        if self.time_limit_s <= 0:
            raise UserError("time_limit_s must be above 0")

    @property
    def resource(self) -> str:
        """Boards with the same host and port are one machine."""
        return f"ssh-{self.host.lower()}-{self.port}"

    def check(self, stop: Stop = never) -> str:
        """Processor, cores, Python and runtime of the board, as it tells."""
        limits: dict[str, Any] = {"time_limit_s": COMMAND_S, "stop": stop}
        payload = self._keep({file_digest(PAYLOAD): PAYLOAD}, self._kept(stop), **limits)
        devices = ":0" if self.delegate == "edgetpu" else ""
        command = f"{self._python(payload)} probe {devices}"
        try:
            found = self._converse(command, {}, **limits)
        except _TooLongError as error:  # so short a task must end in time: the board hangs
            raise DeviceError(f"{error}", retryable=True) from None
        runtime = f"{found['runtime']} {found['versions'][found['runtime']] or ''}".strip()
        tpu = ", Edge TPU opens" if self.delegate == "edgetpu" else ""
        return f"{found['cpu']}, {found['cores']} cores, {runtime}{tpu}"

    def measure(self, task: Task, on_progress: Progress | None = None) -> Measurement:
        """Send what the board lacks, run the pipeline there, and fetch the samples."""
        started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        segments = open_segments(task.path)
        edgetpu = self.delegate == "edgetpu"
        with tempfile.TemporaryDirectory() as folder:
            references, models = references_and_models(segments, Path(folder), compiled=edgetpu)
            files = {file_digest(path): path for path in (PAYLOAD, references, *models)}
            self._keep(
                files,
                self._kept(task.stop),
                time_limit_s=self.time_limit_s,
                keep_open=task.keep_open,
                stop=task.stop,
            )
            request = make_request(
                task,
                segments,
                references,
                models,
                threads_per_stage=self.threads_per_stage,
                devices=[f":{stage}" for stage in range(len(models))] if edgetpu else [],
            )

        def run(idle_s: float) -> Measurement:
            answer = self._converse(
                f"{self._python(file_digest(PAYLOAD))} run",
                {**request, "idle_s": idle_s},
                on_progress,
                time_limit_s=self.time_limit_s,
                keep_open=task.keep_open,
                stop=task.stop,
            )
            return make_measurement(answer, segments, task, self, started_at)

        return metered(self.meter, task, run)

    def celsius(self) -> float | None:
        """The hottest sensor that the board's kernel has."""
        return hottest(self._run(_SENSORS, "read sensors", time_limit_s=COMMAND_S))

    @property
    def may_restart(self) -> bool:
        """Whether the inventory has a command for it."""
        return bool(self.reboot)

    def reconnect(self) -> None:
        """Every call opens a connection of its own: there is none to drop."""

    def boot_id(self) -> str:
        """What the kernel drew when it started."""
        return self._run(BOOT_ID, "read the boot id", time_limit_s=COMMAND_S).strip()

    def restart(self) -> None:
        """Run the command that restarts it."""
        code = self._call(self.reboot, time_limit_s=COMMAND_S).code
        if code not in (0, _CONNECTION_FAILED):  # it may be gone before it has answered
            raise DeviceError(f"{self._where}: `{self.reboot}` ended with exit code {code}")

    def _kept(self, stop: Stop = never) -> set[str]:
        """Digests of the files that the board has."""
        files = shlex.quote(f"{self.folder}/files")
        command = f"mkdir -p {files} && ls {files}"
        said = self._run(command, "keep files", time_limit_s=COMMAND_S, stop=stop)
        return set(said.split())

    def _keep(
        self,
        files: Mapping[str, Path],
        kept: set[str],
        *,
        time_limit_s: float,
        keep_open: tuple[int, ...] = (),
        stop: Stop = never,
    ) -> str:
        """Send the files that the board has not; the digest of the first one."""
        for digest, path in files.items():
            if digest in kept:
                continue
            target = f"{self.folder}/files/{digest}"
            part = shlex.quote(f"{target}.{uuid4().hex}.part")
            # A connection that breaks ends the input too: the size tells.
            command = (
                f"cat > {part} && [ $(wc -c < {part}) -eq {path.stat().st_size} ] "
                f"&& mv {part} {shlex.quote(target)} || {{ rm -f {part}; exit 1; }}"
            )
            self._run(
                command,
                f"keep {path.name}",
                path,
                time_limit_s=time_limit_s,
                keep_open=keep_open,
                stop=stop,
            )
        return next(iter(files))

    def _python(self, payload: str) -> str:
        return f"exec {shlex.quote(self.python)} {shlex.quote(f'{self.folder}/files/{payload}')}"

    def _run(self, command: str, purpose: str, stdin: Path | None = None, **limits: Any) -> str:
        """What a short shell command on the board prints; `limits` are those of `_call`."""
        ended = self._call(command, stdin, **limits)
        if ended.code == _CONNECTION_FAILED:
            self._connection_failed(ended.errors)
        if ended.code != 0:
            raise DeviceError(
                f"{self._where}: cannot {purpose} in {self.folder} ({ended.last_words}); make room "
                "there or name another `folder` in the inventory"
            )
        return ended.output

    def _call(
        self,
        command: str,
        stdin: Path | None = None,
        *,
        time_limit_s: float,
        keep_open: tuple[int, ...] = (),
        stop: Stop = never,
    ) -> Ended:
        with open(stdin or os.devnull, "rb") as data:
            return run_program(
                self._ssh(command),
                self._where,
                time_limit_s=time_limit_s,
                stop=stop,
                stdin=data,
                environment=_environment(),
                keep_open=keep_open,
            )

    def _converse(
        self,
        command: str,
        request: Mapping[str, Any],
        on_progress: Progress | None = None,
        *,
        time_limit_s: float,
        keep_open: tuple[int, ...] = (),
        stop: Stop = never,
    ) -> Any:
        """What the payload answers."""
        said = converse(
            self._ssh(command),
            request,
            on_progress,
            time_limit_s=time_limit_s,
            keep_open=keep_open,
            stop=stop,
            environment=_environment(),
            heartbeat_s=HEARTBEAT_S,
            grace_s=END_S,
        )
        if said.timed_out and "answer" not in said.last:
            raise _TooLongError(
                f"{self._where}: not finished after {time_limit_s:g} s, the time limit; it is ended"
            )
        if said.has_answer:
            try:
                return said.answer()
            except DeviceError as error:
                raise DeviceError(f"{self._where}: {error}", retryable=error.retryable) from None
        if said.code == _CONNECTION_FAILED:
            self._connection_failed("\n".join(said.errors))
        if said.code in (126, 127):
            raise DeviceError(
                f"{self._where}: has no {self.python} ({said.last_words}); install it there or "
                "name another `python` in the inventory"
            )
        raise DeviceError(
            f"{self._where}: the payload ended with exit code {said.code} ({said.last_words})"
        )

    def _ssh(self, command: str) -> list[str]:
        options = list(_OPTIONS)
        if self.known_hosts:
            path = str(_path(self.known_hosts)).replace("%", "%%")
            options += [f'UserKnownHostsFile="{path}"', "GlobalKnownHostsFile=/dev/null"]
        arguments = ["ssh", "-T", "-p", str(self.port)]
        for option in options:
            arguments += ["-o", option]
        if self.user:
            arguments += ["-l", self.user]
        if self.identity_file:
            arguments += ["-i", str(_path(self.identity_file)), "-o", "IdentitiesOnly=yes"]
        # The user's shell there may be any; `sh` is one.
        return [*arguments, "--", self.host, f"exec sh -c {shlex.quote(command)}"]

    def _connection_failed(self, said: str) -> NoReturn:
        known = f"`known_hosts` ({self.known_hosts})" if self.known_hosts else "your known_hosts"
        if "IDENTIFICATION HAS CHANGED" in said:
            raise DeviceError(
                f"{self._where}: its host key has changed: it is another machine, or was set up "
                f"anew. If you know that it was, remove the old key from {known} "
                f"(ssh-keygen -R) and add the new one"
            )
        if "Host key verification failed" in said:
            raise DeviceError(
                f"{self._where}: its host key is not known; look at the key on the board itself "
                f"(ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then add it to {known} "
                f"(ssh-keyscan -p {self.port} {self.host})"
            )
        if "Permission denied" in said:
            key = self.identity_file or "your key"
            raise DeviceError(
                f"{self._where}: does not let you in with {key}; add its public part to "
                "~/.ssh/authorized_keys there (ssh-copy-id), or name another `user` or "
                "`identity_file`"
            )
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        why = lines[-1] if lines else "the connection was closed"
        raise DeviceError(f"{self._where}: connection lost or refused ({why})", retryable=True)

    @property
    def _where(self) -> str:
        return f"{self.name} ({self.host}:{self.port})"


def references_and_models(
    segments: SegmentSet, folder: Path, *, compiled: bool
) -> tuple[Path, list[Path]]:
    """The references, written into `folder`, and the file of each stage.

    Raises:
        UserError: The segments are to be compiled for the Edge TPU and are not.
    """
    models = []
    for segment in segments.segments:
        if compiled and segment.compiled is None:
            raise UserError(
                f"{segments.folder / segment.file}: is not compiled for the Edge TPU; put "
                "edgetpu_compiler on PATH and run `coralline split` again"
            )
        file = str(segment.compiled["file"]) if compiled and segment.compiled else segment.file
        models.append(segments.folder / file)
    references = folder / "references.npz"
    write_references(segments, references)
    return references, models


def make_request(
    task: Task,
    segments: SegmentSet,
    references: Path,
    models: Sequence[Path],
    *,
    threads_per_stage: int,
    devices: Sequence[str],
) -> dict[str, Any]:
    """What the payload is asked, but for `idle_s`; its files are known by their digest.

    Args:
        devices: The Edge TPU of each stage, as libedgetpu selects them; empty for the CPU.
    """
    return {
        "job": task.id,
        "files": [file_digest(path) for path in (references, *models)],
        "stages": [
            {"file": file_digest(path), "inputs": s.inputs, "outputs": s.outputs}
            for path, s in zip(models, segments.segments, strict=True)
        ],
        "inputs": segments.inputs,
        "outputs": segments.outputs,
        "references": file_digest(references),
        "repetitions": task.repetitions,
        "warmup": task.warmup,
        "seconds": task.seconds,
        "threads_per_stage": threads_per_stage,
        "devices": list(devices),
    }


def make_measurement(
    answer: Mapping[str, Any], segments: SegmentSet, task: Task, board: Board, started_at: str
) -> Measurement:
    """The measurement that the payload's answer makes."""
    conditions = answer["conditions"]
    run = PipelineRun(
        warmup=answer["warmup"],
        first_inference_ms=answer["first_inference_ms"],
        latency_ms=np.array(answer["latency_ms"]),
        at_s=np.array(answer["at_s"]),
        full_latency_ms=np.array(answer["full_latency_ms"]),
        wall_s=answer["wall_s"],
        stage_busy_ms=np.array(answer["stage_busy_ms"]),
        queue_wait_ms=np.array(answer["queue_wait_ms"]),
        transfer_ms=np.array(answer["transfer_ms"]),
        outputs_equal=answer["bit_equal"] or None,
        windows=_windows(answer),
    )
    proof = _proof(answer, segments)
    return Measurement.of_run(
        run,
        segments,
        id=task.id,
        board=board.name,
        board_kind=board.kind,
        simulated=False,
        processor=proof.told,
        meter=None,
        started_at=started_at,
        energy_mj_per_inference=None,
        environment={
            **answer["board"],
            "load_1min_before": conditions["before"]["load_1min"],
            "load_1min_after": conditions["after"]["load_1min"],
            "celsius_before": conditions["before"]["celsius"],
            "celsius_after": conditions["after"]["celsius"],
            "throttle_events": conditions["after"]["throttle_events"]
            - conditions["before"]["throttle_events"],
            "cores_busy_with_others": answer["cores_busy_with_others"],
            "cpu_clock": answer["cpu_clock"],
            "threads_per_stage": answer["threads_per_stage"],
            "devices": answer["devices"],
            "partitions": answer["partitions"],
            "largest_output_difference": answer["largest_difference"],
        },
        processor_asked=proof.processor,
        processor_ran=proof.processor,
        delegated_share=proof.share,
    )


def _windows(answer: Mapping[str, Any]) -> tuple[Window, ...]:
    """The board's windows on this machine's clock; none when the lab could not be asked."""
    if None in answer["clock"]:
        return ()
    before, after = (Reading(**reading) for reading in answer["clock"])
    return Relation(before, after).windows(answer["windows"])


@dataclass(frozen=True)
class _Proof:
    """Which processor ran, in words and as `Measurement` has it.

    It is always the one that was asked for: the payload fails where an Edge TPU takes no compiled
    operator, and which operators the CPU runs beside it is settled when segments are compiled.
    """

    told: str
    processor: str
    share: float | None


def _proof(answer: Mapping[str, Any], segments: SegmentSet) -> _Proof:
    told = [p for p in answer["partitions"] if p is not None]
    if len(told) < len(answer["partitions"]):
        return _Proof("CPU; the runtime does not tell which operators a delegate ran", "cpu", None)
    if answer["devices"]:
        compiled = [s.compiled or {} for s in segments.segments]
        mapped = sum(c.get("mapped_operators", 0) for c in compiled)
        left = sum(c.get("unmapped_operators", 0) for c in compiled)
        return _Proof(
            f"Edge TPU; it ran {mapped} of {mapped + left} operators, the CPU the others",
            "edgetpu+cpu" if left else "edgetpu",
            mapped / (mapped + left) if mapped else None,
        )
    delegated, operators = (sum(p[key] for p in told) for key in ("delegated", "operators"))
    text = f"CPU; XNNPACK ran {delegated} of {operators} operators"
    return _Proof(text, "cpu", delegated / operators)


def _path(text: str) -> Path:
    path = Path(text).expanduser().absolute()
    if not path.is_file():
        raise UserError(f"{path}: no such file; the inventory names it")
    return path


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}
