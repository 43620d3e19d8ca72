"""`android`: a phone over adb, measured with TFLite's or LiteRT's own benchmark program.

The inventory names the program, built for Android: `benchmark_model` (google-ai-edge/LiteRT,
tflite/tools/benchmark) or `benchmark_litert_model` (litert/tools). It is sent to the phone with
the segments, each file once, by its SHA-256. It gives a summary of its inferences and no
samples: so does the measurement, and says so.

Asked for a processor it cannot use, either program runs on the CPU and ends well. Which processor
ran is therefore read from what the runtime logs of each delegate, and nothing else counts.
"""

from __future__ import annotations

import re
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from coralline.errors import DeviceError, UserError
from coralline.runtime.child import Progress, Stop, never
from coralline.runtime.measurement import Measurement
from coralline.runtime.pipeline import open_segments
from coralline.runtime.references import write_stage_references
from coralline.tflite.segments import SegmentSet
from hardware_lab.boards import Task
from hardware_lab.boards.adb import READ_UPTIME, Adb
from hardware_lab.boards.benchmark_output import (
    last_line,
    parse_asked,
    parse_delegates,
    parse_latency,
    parse_profile,
    parse_stamped,
)
from hardware_lab.boards.clock import Relation
from hardware_lab.boards.payload import BoardError, Check, Clocks
from hardware_lab.boards.phone import Phone, left_s, title
from hardware_lab.boards.ssh import file_digest
from hardware_lab.meters import Meter
from hardware_lab.meters.metering import metered

RUNTIMES = ("tflite", "litert")
PROCESSORS = ("cpu", "gpu", "nnapi", "npu")
PROFILED_RUNS = 50
"""Inferences of the run that is profiled; it is not timed, since profiling slows it."""

DELEGATES = {
    "TfLiteXNNPackDelegate": "cpu",
    "TfLiteGpuDelegateV2": "gpu",
    "LITERT_CL": "gpu",
    "LITERT_WEBGPU": "gpu",
    "TfLiteNnapiDelegate": "nnapi",
    "TfLiteHexagonDelegate": "npu",
    "DispatchDelegate": "npu",
}
"""Which processor a delegate stands for, by the name that the runtime logs."""

CLOCK_S = 5.0
"""How often the phone's clocks are looked at during a run: each look is a process there."""

_STAMPED = 'printf "%s %s\\n" "$up" "$line"'


@dataclass(frozen=True)
class Android:
    """A phone or board with Android and USB debugging.

    Attributes:
        binary: The benchmark program on this machine, built for the phone.
        runtime: Whose program it is: `tflite` (benchmark_model) or `litert`
            (benchmark_litert_model).
        serial: As `adb devices` lists it, or `address:port`; empty for the only device.
        processor: `cpu`, `gpu`, `nnapi` or `npu`.
        accelerator: NNAPI's name of the processor, as `qti-htp`, for `nnapi` or `npu`.
        library: For `npu`, on the phone: the vendor's external delegate (tflite) or dispatch
            library (litert).
        threads: CPU threads.
        cpus: Cores to run on, as the mask that taskset takes (`f0`); empty for any.
        time_limit_s: A measurement, or sending one file, that takes longer is ended.
        folder: Where files are kept on the phone.
        reboot: Whether the lab may restart the phone when it no longer works.
        meter: What measures its power, of models in one segment.
    """

    name: str
    binary: str
    runtime: str = "tflite"
    serial: str = ""
    processor: str = "cpu"
    accelerator: str = ""
    library: str = ""
    threads: int = 1
    cpus: str = ""
    time_limit_s: float = 3600.0
    folder: str = "/data/local/tmp/coralline"
    reboot: bool = False
    meter: Meter | None = None

    kind = "android"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("runtime", self.runtime, RUNTIMES),
            ("processor", self.processor, PROCESSORS),
        ):
            if value not in known:
                raise UserError(f"{name} {value!r} is not known; choose {', '.join(known)}")
        for name, text, pattern in (
            ("serial", self.serial, r"[A-Za-z0-9._:-]*"),
            ("accelerator", self.accelerator, r"[A-Za-z0-9._-]*"),
            ("library", self.library, r"(/[A-Za-z0-9._/-]+)?"),
            ("cpus", self.cpus, r"[0-9a-fA-F]*"),
            ("folder", self.folder, r"/[A-Za-z0-9._/-]+"),
        ):
            if not re.fullmatch(pattern, text):
                raise UserError(f"{name} {text!r} is not of the form {pattern}")
        if self.processor == "npu" and not (self.library or self.accelerator):
            raise UserError(
                "an npu needs `library`, the vendor's delegate on the phone, or `accelerator`, "
                "its name in NNAPI"
            )
        if self.runtime == "litert" and (self.processor == "nnapi" or self.accelerator):
            raise UserError("benchmark_litert_model has no NNAPI; choose processor npu")
        if self.threads < 1:
            raise UserError("threads must be at least 1")
        if self.time_limit_s <= 0:
            raise UserError("time_limit_s must be above 0")

    @property
    def resource(self) -> str:
        """Boards with one serial are one phone."""
        return f"android-{self.serial or 'only'}"

    def check(self, stop: Stop = never) -> str:
        """Model, Android and cores of the phone, as it tells."""
        self._binary()
        adb = Adb(self.serial, self.name, stop)
        serial = adb.open()
        facts = Phone(adb, self.name, self.folder).facts()
        return f"{title(facts)}, {facts['cores']} cores, {serial} ready"

    def celsius(self) -> float | None:
        """The battery, which is as warm as the phone's body."""
        told = self._phone().conditions()["battery"].get("temperature")
        return None if told is None else float(told) / 10  # BatteryManager.EXTRA_TEMPERATURE

    @property
    def may_restart(self) -> bool:
        """As the inventory has it."""
        return self.reboot

    def reconnect(self) -> None:
        """Have adb's server connect to it anew."""
        Adb(self.serial, self.name).reconnect()

    def boot_id(self) -> str:
        """What the kernel drew when it started, once Android has started too."""
        return self._phone().boot_id()

    def restart(self) -> None:
        """As `adb reboot` does."""
        self._phone().adb.restart()

    def measure(self, task: Task, on_progress: Progress | None = None) -> Measurement:
        """Send what the phone lacks, run each segment there, and fetch what the program says."""
        return metered(self.meter, task, lambda idle_s: self._measure(task, on_progress, idle_s))

    def _measure(self, task: Task, on_progress: Progress | None, idle_s: float) -> Measurement:
        started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        deadline = time.monotonic() + self.time_limit_s
        segments = open_segments(task.path)
        binary = self._binary()
        phone = self._phone(task.stop)
        session = _Session(phone, f"{self.folder}/jobs/{task.id}", binary, deadline)
        models = [segments.folder / segment.file for segment in segments.segments]
        with tempfile.TemporaryDirectory() as folder:
            references = _References(segments, Path(folder))
            phone.clean()
            try:
                phone.must(f"mkdir -p {self.folder}/files {session.job}")
                phone.keep([binary, *models, *references.files], deadline)
                facts, before = phone.facts(), phone.conditions()
                cpu, busy = phone.policies(), phone.cores_busy(int(facts["cores"]))
                # Of several segments, which run one after the other, no window tells the energy.
                marked_s = idle_s if len(models) == 1 else 0.0
                clock = phone.adb.clock() if marked_s else None
                clocks = Clocks(phone.clocks, CLOCK_S)
                stages, phases = [], {}
                try:
                    for s, model in enumerate(models):
                        stages.append(self._stage(session, task, model, references.of(s), marked_s))
                        phases[f"segment {s}"] = stages[-1].pop("when")
                        if on_progress is not None:
                            on_progress(s + 1, len(models))
                finally:
                    clocks.end()
                marked = [window for stage in stages for window in stage.pop("windows")]
                windows = Relation(clock, phone.adb.clock()).windows(marked) if clock else ()
                after = phone.conditions()
            finally:
                with suppress(DeviceError):  # the phone is gone; the next job cleans it
                    self._phone().clean()
        emulated = facts["ro.boot.qemu"] == "1"
        ran, share = _processors(stages)
        whole = _whole(stages)
        checked = [stage["largest_difference"] for stage in stages]
        return Measurement(
            id=task.id,
            model=segments.model,
            model_digest=segments.model_digest,
            plan=segments.plan,
            board=self.name,
            board_kind=self.kind,
            simulated=emulated,
            processor=f"{'emulated ' if emulated else ''}{title(facts)}: {_told(stages)}",
            meter=None,
            started_at=started_at,
            warmup=task.warmup,
            first_inference_ms=sum(stage["first_ms"] for stage in stages),
            latency_ms=(),
            full_latency_ms=(),
            wall_s=0.0,
            stage_busy_ms=((),) * len(stages),
            queue_wait_ms=((),) * len(stages),
            transfer_ms=((),) * len(stages),
            energy_mj_per_inference=None,
            outputs_equal=all(stage["bit_equal"] for stage in stages) or None,
            environment={
                **facts,
                "emulated": emulated,
                "before": before,
                "after": after,
                "cores_busy_with_others": busy,  # before the run: then none are its own
                "cpufreq": cpu,
                "cpu_clock": clocks.told(phases),
                "throttle_events": int(after.get("thermal_status", 0) > 0),
                "threads": self.threads,
                "cpus": self.cpus or None,
                "runtime": self.runtime,
                "lost_samples": 0 if task.seconds else max(task.repetitions - whole["count"], 0),
                "binary_digest": file_digest(binary),
                "stages": stages,
                "largest_output_difference": max(
                    (d for d in checked if d is not None), default=None
                ),
            },
            processor_asked=self.processor,
            processor_ran=ran,
            delegated_share=share,
            latency_reported_ms=whole,
            windows=windows,
        )

    # ------------------------------------------------------------ one segment

    def _stage(
        self, session: _Session, task: Task, model: Path, reference: _Reference, idle_s: float
    ) -> dict[str, Any]:
        """Run one segment timed, then profiled; what the program told of both.

        For `idle_s` seconds above 0, first have it do nothing for so long, with the model loaded
        and run once, and tell when it did what: `windows`, on the phone's clock.
        """
        left = left_s(session.deadline)
        longest = left if task.seconds is None else min(left, task.seconds)
        timed = [
            f"--num_runs={task.repetitions}",
            f"--warmup_runs={max(task.warmup, 1)}",
            f"--max_secs={longest:.3f}",
        ]
        windows: list[tuple[str, float, float, int]] = []
        if idle_s:
            # The pause comes after each inference, in the warm-up too.
            pause = ["--num_runs=1", "--warmup_runs=1", f"--run_delay={idle_s:.3f}"]
            _, ((_, end_s, _), _) = self._run_stamped(session, model, pause)
            windows.append(("idle", end_s - idle_s, end_s, 0))
        begun = time.perf_counter()
        if idle_s:
            said, (_, alone) = self._run_stamped(session, model, timed)
            windows.append(("alone", *alone))
        else:
            said = self._run(session, model, timed)
        ended = time.perf_counter()
        first, latency = parse_latency(said)
        found: dict[str, Any] = {
            "windows": windows,
            "first_ms": first,
            "latency_ms": latency,
            "delegates": parse_delegates(said),
            "asked": parse_asked(said),
            "profile": [],
            "when": (begun, ended),
            "largest_difference": None,
            "bit_equal": False,
        }
        found["processor"], found["share"] = self._proof(found["delegates"], found["asked"])
        if self.runtime == "tflite":
            runs = min(task.repetitions, PROFILED_RUNS)
            profiled = [
                f"--num_runs={runs}",
                f"--max_secs={left_s(session.deadline):.3f}",
                "--enable_op_profiling=true",
                "--op_profiling_output_mode=csv",
                f"--op_profiling_output_file={session.job}/profile.csv",
                f"--output_filepath={session.job}/output",
                *reference.flags(self.folder),
            ]
            self._run(session, model, profiled)
            found["profile"] = parse_profile(session.pull("profile.csv").decode(errors="replace"))
            output = session.pull("output")
            found["bit_equal"], found["largest_difference"] = self._compare(
                reference, output, model
            )
        return found

    def _run_stamped(
        self, session: _Session, model: Path, flags: Sequence[str]
    ) -> tuple[str, list[tuple[float, float, int]]]:
        """As `parse_stamped`, on the phone's clock."""
        stamped = self._run(
            session, model, flags, f"| while IFS= read -r line; do {READ_UPTIME}; {_STAMPED}; done"
        )
        return parse_stamped(stamped)

    def _run(self, session: _Session, model: Path, flags: Sequence[str], into: str = "") -> str:
        """What the program prints; it has ended on the phone when this returns.

        Args:
            into: What the shell does with it instead, as a pipe.
        """
        left = left_s(session.deadline)
        words = [
            f"{self.folder}/files/{file_digest(session.binary)}",
            f"--graph={self.folder}/files/{file_digest(model)}",
            f"--num_threads={self.threads}",
            "--min_secs=0",
            "--warmup_min_secs=0",
            *self._processor_flags(),
            *flags,
        ]
        if self.cpus:
            words = ["taskset", self.cpus, *words]
        # The shell becomes the program, so that the kept process id is the program's.
        program = f"echo $$ > pid && exec {shlex.join(words)} 2>&1"
        if into:
            # A pipe's exit code is that of its last part.
            program = (
                f"{{ sh -c {shlex.quote(program)}; echo $? > code; }} {into}; exit $(cat code)"
            )
        command = f"cd {session.job} && {program}"
        ran = session.phone.adb.shell(command, time_limit_s=left)
        if ran.code in (126, 127):
            raise DeviceError(
                f"{self.name}: the phone cannot run {session.binary} ({last_line(ran.output)}); "
                "name one that is built for its processor as `binary` in the inventory"
            )
        if ran.code != 0:
            raise DeviceError(
                f"{self.name}: {session.binary.name} ended with exit code {ran.code} "
                f"({last_line(ran.output)})"
            )
        return ran.output

    def _processor_flags(self) -> list[str]:
        if self.runtime == "litert":
            flags = {"cpu": [], "gpu": ["--use_gpu=true"], "npu": ["--use_npu=true"]}[
                self.processor
            ]
            if self.library:
                flags.append(f"--dispatch_library_path={self.library}")
            return flags
        if self.processor == "cpu":
            return ["--use_xnnpack=true"]
        if self.processor == "gpu":
            return ["--use_gpu=true"]
        if self.library:
            return [f"--external_delegate_path={self.library}"]
        named = [f"--nnapi_accelerator_name={self.accelerator}"] if self.accelerator else []
        return ["--use_nnapi=true", "--disable_nnapi_cpu=true", *named]

    def _proof(
        self, delegates: Sequence[Mapping[str, Any]], asked: str | None
    ) -> tuple[str, float | None]:
        """The processors that ran a segment, joined by `+`, and the share that the asked one ran.

        Args:
            delegates: As `parse_delegates`.
            asked: As `parse_asked`; it alone counts where no delegate is logged.
        """
        total = delegates[0]["of"] if delegates else 0
        mine = sum(d["nodes"] for d in delegates if self._is_asked(d["name"]))
        if delegates:
            share = min(mine / total, 1.0) if total else 0.0
        elif asked is not None:
            share = {"completely": 1.0, "partially": None, "not": 0.0}[asked]
        else:
            # Nothing is said of a delegate: the runtime's plain kernels ran it.
            share = 0.0
        if self.processor == "cpu":
            others = {DELEGATES.get(d["name"], d["name"]) for d in delegates if d["nodes"]}
            return "+".join(sorted(others | {"cpu"})), share
        if share == 0.0:
            return "cpu", share
        return (self.processor if share == 1.0 else f"{self.processor}+cpu"), share

    def _is_asked(self, delegate: str) -> bool:
        known = DELEGATES.get(delegate)
        if self.processor == "npu" and self.accelerator:
            return known == "nnapi"  # NNAPI was told to use this one and no other
        if self.processor == "npu" and known is None:
            return bool(self.library)  # an external delegate has the name its vendor gave it
        return known == self.processor

    def _compare(self, reference: _Reference, output: bytes, model: Path) -> tuple[bool, float]:
        size = sum(array.nbytes for array in reference.outputs)
        if len(output) != size:
            raise DeviceError(
                f"{self.name}: the outputs of {model.name} have {len(output)} bytes; the lab's "
                f"reference has {size}"
            )
        names = [str(i) for i in range(len(reference.outputs))]
        buffers, at = {}, 0
        for name, array in zip(names, reference.outputs, strict=True):
            data = np.frombuffer(output, array.dtype, array.size, at)
            buffers[name] = data.reshape(array.shape)
            at += array.nbytes
        check = Check(names, [list(reference.outputs)])
        try:
            check.item(0, {"number": 0, "buffers": buffers})
        except BoardError as error:
            raise DeviceError(f"{self.name}: {model.name}: {error}") from None
        return bool(check.bit_equal), check.largest_difference

    # ------------------------------------------------------------ what it is made of

    def _phone(self, stop: Stop = never) -> Phone:
        """The phone, once it is ready.

        Raises:
            DeviceError: As `Adb.open`.
        """
        adb = Adb(self.serial, self.name, stop)
        adb.open()
        return Phone(adb, self.name, self.folder)

    def _binary(self) -> Path:
        path = Path(self.binary).expanduser().absolute()
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; the inventory names it as `binary` of board "
                f"{self.name!r}: build or download benchmark_model for Android "
                "(https://ai.google.dev/edge/litert/models/measurement)"
            )
        return path


# ------------------------------------------------------------------ one job


@dataclass(frozen=True)
class _Session:
    """A job's folder on the phone, what runs in it, and until when."""

    phone: Phone
    job: str
    binary: Path
    deadline: float

    def pull(self, name: str) -> bytes:
        return self.phone.adb.pull(f"{self.job}/{name}", time_limit_s=left_s(self.deadline))


@dataclass(frozen=True)
class _Reference:
    """One input of a segment, as files by digest, and the lab's outputs for it."""

    inputs: tuple[Path, ...]
    shapes: tuple[tuple[int, ...], ...]
    outputs: tuple[Any, ...]

    def flags(self, folder: str) -> list[str]:
        """Have benchmark_model use the input; it does not mind what the layers are called."""
        names = [f"i{j}" for j in range(len(self.inputs))]
        shapes = [",".join(map(str, shape)) for shape in self.shapes]
        files = [
            f"{name}:{folder}/files/{file_digest(path)}"
            for name, path in zip(names, self.inputs, strict=True)
        ]
        return [
            f"--input_layer={','.join(names)}",
            f"--input_layer_shape={':'.join(shapes)}",
            f"--input_layer_value_files={','.join(files)}",
        ]


class _References:
    """Inputs and outputs of every segment, computed on this machine."""

    def __init__(self, segments: SegmentSet, folder: Path) -> None:
        path = folder / "references.npz"
        write_stage_references(segments, path)
        self._stages = []
        with np.load(path, allow_pickle=False) as kept:
            for s, segment in enumerate(segments.segments):
                inputs = []
                for j in range(len(segment.inputs)):
                    file = folder / f"input-{s}-{j}"
                    file.write_bytes(kept[f"input-{s}-{j}"].tobytes())
                    inputs.append(file)
                self._stages.append(
                    _Reference(
                        tuple(inputs),
                        tuple(kept[f"input-{s}-{j}"].shape for j in range(len(inputs))),
                        tuple(kept[f"output-{s}-{j}"] for j in range(len(segment.outputs))),
                    )
                )

    def of(self, stage: int) -> _Reference:
        return self._stages[stage]

    @property
    def files(self) -> list[Path]:
        return [path for stage in self._stages for path in stage.inputs]


# ------------------------------------------------------------------ small things


def _whole(stages: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The summary of one inference through all segments.

    Means add up; the percentiles of a sum are not the sum of percentiles and are left out.
    """
    if len(stages) == 1:
        return dict(stages[0]["latency_ms"])
    return {
        "count": min(stage["latency_ms"]["count"] for stage in stages),
        "mean": sum(stage["latency_ms"]["mean"] for stage in stages),
    }


def _processors(stages: Sequence[Mapping[str, Any]]) -> tuple[str, float | None]:
    """The processors of all segments, and the share of operators that the asked one ran."""
    names = {name for stage in stages for name in stage["processor"].split("+")}
    # The asked one first, as one asks for it.
    ordered = sorted(names, key=lambda name: (name == "cpu", name))
    shares: list[Any] = [stage["share"] for stage in stages]
    sizes = [stage["delegates"][0]["of"] if stage["delegates"] else 1 for stage in stages]
    share = None if None in shares else float(np.average(shares, weights=sizes))
    return "+".join(ordered), share


def _told(stages: Sequence[Mapping[str, Any]]) -> str:
    parts = [
        f"{d['name']} ran {d['nodes']} of {d['of']} operators"
        for stage in stages
        for d in stage["delegates"]
    ]
    return ", ".join(parts) or "no delegate ran any operator"
