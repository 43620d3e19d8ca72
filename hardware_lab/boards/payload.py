"""What the `ssh` board runs on a board: this one file, sent there.

It needs Python 3.7 or newer, numpy and one of tflite_runtime, ai_edge_litert and tensorflow, and
imports nothing else of Coralline. It therefore repeats, in the Python of 2018, the loop of
`coralline.runtime.pipeline` and the count of `coralline.runtime.interpreter`; tests hold the two
to the same answers.

    python3 payload.py probe [DEVICE..] print what the board is; open these Edge TPUs
    python3 payload.py run              the supervisor: read a request, have a worker do it
    python3 payload.py work             the worker

Supervisor and lab speak as `coralline.runtime.child` does: one line with the request, then lines
of progress and one answer; meanwhile the lab sends an empty line every few seconds, and tells its
clock when asked. When its
standard input ends or falls silent, or at a signal, the supervisor kills the worker's process
group: nothing outlives the lab's interest, whatever happens to lab or network. A lock on the
board refuses a second supervisor, also of another lab.

The folder this file lies in holds files by their SHA-256; beside it, one folder a job.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import queue
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import Any

QUEUE_DEPTH = 2
SILENCE_S = 60.0
"""A lab that says nothing for so long is gone."""
LEAVE_S = 5.0
"""How long to go on without a lab, to tell it why and to tidy up."""
LOCK_S = SILENCE_S + 15.0
"""Longest wait for a board: a run whose lab is gone has ended by then."""
KEEP_S = 30 * 24 * 3600.0
"""Files that no job has used for so long are removed."""
PROGRESS_S = 0.25
CLOCK_ROUNDS = 8
"""How often the lab is asked for its clock; the answer that came fastest counts."""
TOLERANCE = 0.05
"""Largest difference from the reference, as a share of the reference's range. Another processor
rounds otherwise; a wrong weight or a swapped tensor shows far above this."""
INTEGER_STEPS = 2
"""An integer output may differ by so many steps however small its range is."""

SYSTEM = "/sys"
CLOCK_S = 0.5
"""How often the CPU's clocks are looked at during a run."""
CORAL_USB = {"1a6e:089a": "not used since it was plugged in", "18d1:9302": "ready"}
"""A Coral USB Accelerator by vendor and product: it gets the second when its firmware is loaded."""

EDGETPU_LIBRARY = "libedgetpu.so.1"
EDGETPU_OPERATOR = "edgetpu-custom-op"
EDGETPU_HINT = (
    "install libedgetpu1-std (https://coral.ai/software), let the user open the device "
    "(group plugdev or apex), and connect one accelerator a stage"
)


class BoardError(Exception):
    """What the lab is told: `retryable` when trying again may help."""

    def __init__(self, message: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


def say(**line: Any) -> None:
    """One line of JSON to the lab; a lab that is gone is noticed elsewhere."""
    try:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    except (BrokenPipeError, OSError):
        pass


# ---------------------------------------------------------------- the supervisor


def supervise() -> None:
    """Do one request: lock the board, clean up, run a worker, send its result, clean up."""
    # Byte by byte: what follows the line belongs to the watch.
    line = os.fdopen(0, "rb", buffering=0, closefd=False).readline()
    if not line.endswith(b"\n"):
        return
    request = json.loads(line.decode("utf-8"))
    files = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(files)
    lock = os.open(os.path.join(root, "lock"), os.O_RDWR | os.O_CREAT, 0o666)
    if not wait_for_lock(lock):
        return
    jobs = os.path.join(root, "jobs")
    shutil.rmtree(jobs, ignore_errors=True)  # with the lock held, all of them are dead
    folder = os.path.join(jobs, request["job"])
    os.makedirs(folder)
    try:
        claim_files(files, request["files"])
        with open(os.path.join(folder, "request.json"), "w") as out:
            json.dump(request, out)
        # Here and not in the worker, which nothing may disturb.
        clocks = Clocks()
        answer = run_worker(folder, lock)
        phases = {name: (begin, end) for name, begin, end, _ in answer["windows"]}
        answer["cpu_clock"] = clocks.told(phases)
        say(answer=answer)
    finally:
        shutil.rmtree(jobs, ignore_errors=True)


def wait_for_lock(lock: int) -> bool:
    """Lock the board; False when the lab is gone meanwhile."""
    deadline = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise BoardError("another lab works on this board now", retryable=True) from None
        if select.select([0], [], [], 0.25)[0]:
            if not os.read(0, 4096):
                return False
            time.sleep(0.05)


def claim_files(files: str, wanted: list[str]) -> None:
    """Check the digests of the files that a job wants; remove what no job has used for long.

    A board without a clock of its own may think that long has passed when it has just been told
    the time: what another lab has just sent may be gone.
    """
    os.utime(os.path.abspath(__file__))
    for digest in wanted:
        path = os.path.join(files, digest)
        sha = hashlib.sha256()
        try:
            with open(path, "rb") as data:
                for block in iter(lambda: data.read(1 << 20), b""):
                    sha.update(block)
        except FileNotFoundError:
            raise BoardError(
                "a file kept on the board is gone; it is sent again", retryable=True
            ) from None
        if sha.hexdigest() != digest:
            os.unlink(path)
            raise BoardError("a file kept on the board was damaged; it is removed", retryable=True)
        os.utime(path)
    for name in os.listdir(files):
        path = os.path.join(files, name)
        with contextlib.suppress(FileNotFoundError):  # another lab sends, and renames
            if time.time() - os.stat(path).st_mtime > KEEP_S:
                os.unlink(path)


def run_worker(folder: str, lock: int) -> Any:
    """What the worker wrote; it has ended when this returns or raises."""
    errors = os.path.join(folder, "errors.txt")
    with open(errors, "wb") as log:
        worker = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), "work"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # a process group of its own, to be killed as one
            pass_fds=(lock,),  # the board is free only when the worker has ended too
        )

    def kill(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, kill)

    unheard = threading.Event()
    heard: Any = queue.Queue()

    def watch() -> None:
        rest = b""
        while select.select([0], [], [], SILENCE_S)[0]:
            data = os.read(0, 4096)
            if not data:
                break
            at = time.perf_counter()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line:
                    heard.put((at, json.loads(line.decode("utf-8"))))
        unheard.set()
        heard.put(None)
        kill()
        # Who says nothing may not listen either: a full pipe must not hold the board.
        time.sleep(LEAVE_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    clock = [lab_clock(heard)]  # while the worker loads
    assert worker.stdout
    failure = None
    for line in worker.stdout:
        if not line.startswith(b"{"):  # a library's remark
            continue
        said = json.loads(line.decode("utf-8"))
        if "progress" in said:
            say(**said)
        else:
            failure = BoardError(said["failure"], said["retryable"])
    code = worker.wait()
    if failure is not None:
        raise failure
    if unheard.is_set():
        raise BoardError("the lab was not heard of any more; the run is ended", retryable=True)
    if code != 0:
        lines = [line.strip() for line in read(errors).splitlines() if line.strip()]
        ending = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise BoardError(": ".join([f"the runtime crashed ({ending})", *lines[-1:]]))
    clock.append(lab_clock(heard))
    with open(os.path.join(folder, "result.json")) as result:
        return dict(json.load(result), clock=clock)


def lab_clock(heard: Any) -> Any:
    """How far the lab's clock is ahead of this machine's, as NTP finds it (RFC 5905, section 8):
    the lab looked at its clock between our asking and its answer. None if it does not answer.

    `at_s` is on our clock; the lab's is `ahead_s` before it, give or take `bound_s`.
    """
    best = None
    for _ in range(CLOCK_ROUNDS):
        asked = time.perf_counter()
        say(ask="clock")
        answer = heard.get()
        if answer is None:
            return None
        middle, bound = (asked + answer[0]) / 2, (answer[0] - asked) / 2
        if best is None or bound < best["bound_s"]:
            ahead = answer[1]["clock"] - middle
            best = {"at_s": middle, "ahead_s": ahead, "bound_s": bound}
    return best


# ---------------------------------------------------------------- the runtime


def load_runtime() -> Any:
    """The interpreter class, its delegate loader, and the runtime's name and version."""
    try:
        import numpy
    except ImportError:
        raise BoardError(f"{sys.executable} lacks numpy: install it there") from None
    why = ""
    for name, module in (
        ("tflite_runtime", "tflite_runtime.interpreter"),
        ("ai_edge_litert", "ai_edge_litert.interpreter"),
        ("tensorflow", "tensorflow.lite.python.interpreter"),
    ):
        try:
            found = __import__(module, fromlist=["Interpreter"])
        except ImportError as error:
            if getattr(error, "name", None) != name:  # it is there and cannot be loaded
                why = f" ({error})"
            continue
        version = getattr(sys.modules[name], "__version__", None)
        versions = {"numpy": numpy.__version__, name: version or package_version(name)}
        return found.Interpreter, found.load_delegate, name, versions
    raise BoardError(
        f"{sys.executable} has no TFLite runtime{why}: install tflite-runtime or ai-edge-litert "
        "there, or name another `python`"
    )


def package_version(name: str) -> Any:
    """Version of an installed package, or None; Python 3.7 cannot tell."""
    try:
        from importlib.metadata import version

        return version(name.replace("_", "-"))
    except Exception:
        return None


def load_edgetpu(load_delegate: Any, device: str) -> Any:
    """The delegate of one accelerator, as libedgetpu selects it: `usb:0`, `pci:1`, `:0`.

    An accelerator that the library does not find may have locked up, which another try, or cutting
    its power, may help; a library that is not there stays away.
    """
    try:
        return load_delegate(EDGETPU_LIBRARY, {"device": device})
    except (OSError, ValueError) as error:
        why = str(error).strip() or "the library found no such device"
        raise BoardError(
            f"Edge TPU {device} cannot be opened ({why}): {EDGETPU_HINT}",
            retryable=isinstance(error, ValueError),
        ) from None


def make_interpreter(path: str, threads: int, device: str) -> Any:
    """An interpreter on the CPU (`device` is empty) or an Edge TPU."""
    interpreter_class, load_delegate, _, _ = load_runtime()
    if not device:
        return interpreter_class(model_path=path, num_threads=threads)
    try:
        # Google's; the package of that name on PyPI is another thing and lacks this module.
        from pycoral.utils import edgetpu
    except ImportError:
        delegates = [load_edgetpu(load_delegate, device)]
        return interpreter_class(
            model_path=path, num_threads=threads, experimental_delegates=delegates
        )
    return edgetpu.make_interpreter(path, device=device)


class Model:
    """One loaded .tflite file."""

    def __init__(self, path: str, threads: int, device: str = "") -> None:
        try:
            self.interpreter = make_interpreter(path, threads, device)
            self.interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            why = str(error).splitlines()[0]
            raise BoardError(f"the runtime cannot load a segment ({why})") from None
        details = self.interpreter.get_output_details()
        self.output_shapes = [(tuple(d["shape"]), d["dtype"]) for d in details]
        # `tensor` gives a fresh view on each call: none may be kept over an invoke.
        self.outputs = [self.interpreter.tensor(d["index"]) for d in details]
        self.inputs = [
            self.interpreter.tensor(d["index"]) for d in self.interpreter.get_input_details()
        ]

    def partitions(self) -> Any:
        """As `coralline.runtime.interpreter.Model.partitions`, and `edgetpu`: how many compiled
        pieces a delegate took. None where the runtime does not tell."""
        tell = getattr(self.interpreter, "_get_ops_details", None)
        if tell is None:
            return None
        nodes = tell()
        partitions = [n for n in nodes if n["op_name"] == "DELEGATE"]
        operators = [n for n in nodes if n["op_name"] != "DELEGATE"]
        producer = {int(t): i for i, node in enumerate(operators) for t in node["outputs"]}
        taken: Any = set()
        for partition in partitions:
            sources = {int(t) for t in partition["inputs"]}
            waiting = [int(t) for t in partition["outputs"]]
            while waiting:
                node = producer.get(waiting.pop())
                if node is None or node in taken:
                    continue
                taken.add(node)
                waiting += [int(t) for t in operators[node]["inputs"] if int(t) not in sources]
        plain: dict[str, int] = {}
        for i, node in enumerate(operators):
            if i not in taken:
                plain[node["op_name"]] = plain.get(node["op_name"], 0) + 1
        return {
            "operators": len(operators),
            "delegated": len(taken),
            "partitions": len(partitions),
            "plain": dict(sorted(plain.items())),
            "edgetpu": sum(operators[i]["op_name"] == EDGETPU_OPERATOR for i in taken),
        }


# ---------------------------------------------------------------- the worker


def work() -> None:
    """Do request.json, write result.json."""
    threading.Thread(target=end_with_supervisor, daemon=True).start()
    try:
        with open("request.json") as data:
            request = json.load(data)
        result = measure(request)
        with open("result.part", "w") as out:
            json.dump(result, out)
        os.rename("result.part", "result.json")
    except BoardError as failure:
        say(failure=str(failure), retryable=failure.retryable)
    except OSError as error:
        say(failure=f"the board's folder: {error}", retryable=False)
    # Threads may wait for items that never come, and delegates may crash when they unload.
    sys.stdout.flush()
    os._exit(0)


def end_with_supervisor() -> None:
    """Its pipe ends when the supervisor does, even when that was killed."""
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """The samples: see `coralline.runtime.pipeline.PipelineRun`."""
    import numpy as np

    files = os.path.dirname(os.path.abspath(__file__))
    stages = request["stages"]
    models = [
        Model(
            os.path.join(files, stage["file"]),
            request["threads_per_stage"],
            request["devices"][s] if request["devices"] else "",
        )
        for s, stage in enumerate(stages)
    ]
    if request["devices"]:
        prove_edgetpu(models)
    with np.load(os.path.join(files, request["references"]), allow_pickle=False) as kept:
        n_samples = int(kept["n_samples"])
        inputs = [
            [kept[f"input-{i}-{j}"] for j in range(len(request["inputs"]))]
            for i in range(n_samples)
        ]
        outputs = [
            [kept[f"output-{i}-{j}"] for j in range(len(request["outputs"]))]
            for i in range(n_samples)
        ]
    pipeline = Pipeline(models, stages, request["inputs"])
    warmup, repetitions = max(request["warmup"], pipeline.n_items), request["repetitions"]
    total = 1 + 2 * (warmup + repetitions)
    check = Check(request["outputs"], outputs)
    before, busy = conditions(), core_seconds()
    state: dict[str, Any] = {"sent": 0, "received": 0, "told": 0.0}

    def run(count: int, in_flight: int, until: float = float("inf")) -> Any:
        start, times = state["received"], []
        for i in range(count):
            if i > warmup and time.perf_counter() > until:
                break
            while state["sent"] < min(start + count, start + i + in_flight):
                pipeline.send(state["sent"], inputs[state["sent"] % n_samples])
                state["sent"] += 1
            item = pipeline.done.get()
            if item["failure"] is not None:
                raise BoardError(f"an inference failed ({item['failure']})")
            check.item(state["received"], item)
            times.append(item["times"])
            pipeline.free.put(item)
            state["received"] += 1
            if time.perf_counter() - state["told"] > PROGRESS_S:
                state["told"] = time.perf_counter()
                say(progress=[state["received"], total])
        return np.array(times)

    first = run(1, 1)
    windows = []
    if request["idle_s"]:
        began = time.perf_counter()
        time.sleep(request["idle_s"])
        windows.append(["idle", began, time.perf_counter(), 0])
    until = float("inf")
    if request["seconds"] is not None:
        until = time.perf_counter() + request["seconds"]
    alone = run(warmup + repetitions, 1, until)
    full = run(len(alone), pipeline.n_items)
    others = cores_busy_with_others(busy)
    for name, times in (("alone", alone), ("full", full)):
        exits = times[:, -1, 4]
        windows.append([name, float(exits[warmup - 1]), float(exits[-1]), len(times) - warmup])
    ready, started, fed, done, left = np.moveaxis(full[warmup:], (2, 1), (0, 1))

    def latency(times: Any) -> Any:
        return (1e3 * (times[:, -1, 4] - times[:, 0, 0])).tolist()

    return {
        "warmup": warmup,
        "first_inference_ms": latency(first)[0],
        "latency_ms": latency(alone[warmup:]),
        "at_s": (alone[warmup:, 0, 0] - alone[warmup, 0, 0]).tolist(),
        "full_latency_ms": latency(full[warmup:]),
        "wall_s": float(full[-1, -1, 4] - full[warmup - 1, -1, 4]),
        "stage_busy_ms": (1e3 * (done - fed)).tolist(),
        "queue_wait_ms": (1e3 * (started - ready)).tolist(),
        "transfer_ms": (1e3 * ((fed - started) + (left - done))).tolist(),
        "windows": windows,
        "bit_equal": check.bit_equal,
        "largest_difference": check.largest_difference,
        "partitions": [model.partitions() for model in models],
        "threads_per_stage": request["threads_per_stage"],
        "devices": request["devices"],
        "board": board(request["devices"]),
        "conditions": {"before": before, "after": conditions()},
        "cores_busy_with_others": others,
    }


def prove_edgetpu(models: list[Model]) -> None:
    """Fail unless the delegate took compiled operators of every segment."""
    for s, model in enumerate(models):
        found = model.partitions()
        if found is None:
            raise BoardError(
                "this runtime cannot tell what ran on the Edge TPU: install a newer one"
            )
        if not found["edgetpu"]:
            raise BoardError(
                f"the Edge TPU was asked for and took none of the {found['operators']} operators "
                f"of segment {s}: compile the segments"
            )


class Check:
    """Is every output right? The first of each input is compared with the reference, within
    TOLERANCE; every later one must have the bits of that first one."""

    def __init__(self, names: list[str], references: list[list[Any]]) -> None:
        self.names, self.references = names, references
        self.bits: dict[Any, bytes] = {}
        self.bit_equal = True
        self.largest_difference = 0.0

    def item(self, received: int, item: dict[str, Any]) -> None:
        """Check one finished inference; raises BoardError."""
        import numpy as np

        sample = received % len(self.references)
        if item["number"] != received:
            raise BoardError(f"inference {received} left the pipeline out of order")
        for name, reference in zip(self.names, self.references[sample]):
            value = item["buffers"][name]
            bits = value.tobytes()
            if self.bits.setdefault((sample, name), bits) != bits:
                raise BoardError(
                    f"output {name!r} of inference {received} differs from that of the same "
                    "input before"
                )
            if received >= len(self.references):
                continue
            self.bit_equal &= bits == reference.tobytes()
            if value.shape != reference.shape or value.dtype != reference.dtype:
                raise BoardError(f"output {name!r} has another shape or type than the model's")
            if not reference.size:
                continue
            wanted = reference.astype(np.float64)
            difference = float(np.abs(value.astype(np.float64) - wanted).max())
            steps = INTEGER_STEPS if reference.dtype.kind in "iu" else 1e-6
            allowed = max(TOLERANCE * float(wanted.max() - wanted.min()), steps)
            # Written so that a NaN where none should be is refused.
            if bits != reference.tobytes() and not difference <= allowed:
                raise BoardError(
                    f"output {name!r} of inference {received} differs from the lab's reference "
                    f"by {difference:g}; {allowed:g} is allowed"
                )
            self.largest_difference = max(self.largest_difference, difference)


class Pipeline:
    """One thread a stage; items are sets of buffers, used again. As the runtime's."""

    def __init__(self, models: list[Model], stages: list[Any], inputs: list[str]) -> None:
        import numpy as np

        self.models, self.stages, self.inputs = models, stages, inputs
        self.n_items = len(models) * (1 + QUEUE_DEPTH) + 1
        self.free: Any = queue.Queue()
        self.done: Any = queue.Queue()
        self.queues: list[Any] = [queue.Queue(QUEUE_DEPTH) for _ in models]
        for _ in range(self.n_items):
            buffers = {}
            for model, stage in zip(models, stages):
                for name, (shape, dtype) in zip(stage["outputs"], model.output_shapes):
                    buffers[name] = np.empty(shape, dtype)
            self.free.put({"buffers": buffers})
        for s in range(len(models)):
            threading.Thread(target=self.work, args=(s,), daemon=True).start()

    def send(self, number: int, arrays: list[Any]) -> None:
        """Start one inference; waits while the first queue is full."""
        item = self.free.get()
        item["buffers"].update(zip(self.inputs, arrays))
        item.update(number=number, times=[], failure=None, left=time.perf_counter())
        self.queues[0].put(item)

    def work(self, s: int) -> None:
        """The thread of stage s."""
        import numpy as np

        model, reads, writes = self.models[s], self.stages[s]["inputs"], self.stages[s]["outputs"]
        source = self.queues[s]
        target = self.queues[s + 1] if s + 1 < len(self.models) else self.done
        while True:
            item = source.get()
            started = time.perf_counter()
            if item["failure"] is None:
                try:
                    buffers = item["buffers"]
                    for view, name in zip(model.inputs, reads):
                        np.copyto(view(), buffers[name], casting="no")
                    fed = time.perf_counter()
                    model.interpreter.invoke()
                    ran = time.perf_counter()
                    for view, name in zip(model.outputs, writes):
                        np.copyto(buffers[name], view(), casting="no")
                    left = time.perf_counter()
                    item["times"].append((item["left"], started, fed, ran, left))
                    item["left"] = left
                except Exception as error:  # told to the thread that receives
                    item["failure"] = f"stage {s}: {error}"
            target.put(item)


# ---------------------------------------------------------------- the board


def board(devices: list[str]) -> dict[str, Any]:
    """What must stand beside a number measured here; what the system does not tell is None.

    `usb` is there when one of the Edge TPUs may be on USB.
    """
    names = [line for line in read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    model = read("/proc/device-tree/model").rstrip("\0")
    _, _, runtime, versions = load_runtime()
    if devices:
        versions["libedgetpu"] = edgetpu_version()
    cpufreq = SYSTEM + "/devices/system/cpu/cpu0/cpufreq/"
    usb = {"usb": coral_usb()} if any(not d.startswith("pci") for d in devices) else {}
    return {
        "cpu": model or (names[0].partition(":")[2].strip() if names else platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "governor": read(cpufreq + "scaling_governor").strip() or None,
        "max_khz": read(cpufreq + "cpuinfo_max_freq").strip() or None,
        "cpufreq": cpufreq_policies(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.system() + " " + platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "runtime": runtime,
        "versions": versions,
        **usb,
    }


def edgetpu_version() -> Any:
    """What libedgetpu says of itself (tflite/public/edgetpu_c.h), or None."""
    import ctypes

    try:
        tell = ctypes.CDLL(EDGETPU_LIBRARY).edgetpu_version
    except (OSError, AttributeError):
        return None
    tell.restype = ctypes.c_char_p
    return tell().decode("utf-8", "replace")


def coral_usb() -> list[dict[str, Any]]:
    """The Coral USB accelerators, with the speed of their links in Mbit/s."""
    base = SYSTEM + "/bus/usb/devices"
    found = []
    for port in sorted(os.listdir(base)) if os.path.isdir(base) else ():
        folder = os.path.join(base, port)
        vendor, product, speed = (
            read(os.path.join(folder, name)).strip() for name in ("idVendor", "idProduct", "speed")
        )
        state = CORAL_USB.get(vendor + ":" + product)
        if state is not None:
            found.append({"port": port, "state": state, "mbit_s": float(speed) if speed else None})
    return found


def cpufreq_policies() -> dict[str, Any]:
    """Governor and range of each group of cores that shares a clock; empty where none is told."""
    found = {}
    base = SYSTEM + "/devices/system/cpu/cpufreq"
    for name in sorted(os.listdir(base)) if os.path.isdir(base) else ():
        folder = os.path.join(base, name)
        if name.startswith("policy"):
            found[name] = {
                "cores": read(os.path.join(folder, "related_cpus")).strip(),
                "governor": read(os.path.join(folder, "scaling_governor")).strip() or None,
                "min_khz": whole(read(os.path.join(folder, "cpuinfo_min_freq"))),
                "max_khz": whole(read(os.path.join(folder, "cpuinfo_max_freq"))),
            }
    return found


def whole(text: str) -> Any:
    """A whole number, or None."""
    return int(text) if text.strip().isdigit() else None


def clocks_now() -> list[Any]:
    """Clock and highest clock allowed, in kHz, of each group of cores that tells both.

    A kernel that must cool a processor lowers what it allows (drivers/thermal/cpufreq_cooling.c).
    """
    base = SYSTEM + "/devices/system/cpu/cpufreq"
    found = []
    for name in sorted(os.listdir(base)) if os.path.isdir(base) else ():
        now, limit = (
            whole(read(os.path.join(base, name, file)))
            for file in ("scaling_cur_freq", "scaling_max_freq")
        )
        if now and limit:
            found.append((now, limit))
    return found


class Clocks:
    """Looks at the CPU's clocks from its making until they are told.

    Where none are told, nothing is looked at.
    """

    def __init__(self, look: Any = clocks_now, every_s: float = CLOCK_S) -> None:
        self.look, self.every_s = look, every_s
        self.seen: list[Any] = []  # time, kHz of the fastest group, limits of all
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.sample()
        if self.seen:
            self.thread.start()

    def sample(self) -> None:
        """One look."""
        found = self.look()
        if found:
            limits = [limit for _, limit in found]
            self.seen.append((time.perf_counter(), max(now for now, _ in found), limits))

    def work(self) -> None:
        """The thread."""
        while not self.over.wait(self.every_s):
            self.sample()

    def end(self) -> None:
        """Look no more."""
        self.over.set()
        if self.seen:
            self.thread.join()

    def told(self, phases: Any) -> Any:
        """What was seen, in kHz; None where nothing was.

        `before_khz`; `limit_before_khz` and `limit_least_khz` of the group of cores whose highest
        allowed clock was lowered most; for each phase, given by its two times, `first_khz` and
        `last_khz` (medians of its first and last third), `least_khz` and `samples`.
        """
        self.end()
        if not self.seen:
            return None
        _, before, limits = self.seen[0]
        first, least = min(
            (
                (limit, min(seen[2][g] for seen in self.seen if len(seen[2]) > g))
                for g, limit in enumerate(limits)
            ),
            key=lambda pair: pair[1] / pair[0],
        )
        told: dict[str, Any] = {
            "before_khz": before,
            "limit_before_khz": first,
            "limit_least_khz": least,
            "phases": {},
        }
        for name, (begin, end) in phases.items():
            during = [clock for at, clock, _ in self.seen if begin <= at <= end]
            third = max(len(during) // 3, 1)
            if during:
                told["phases"][name] = {
                    "first_khz": sorted(during[:third])[third // 2],
                    "last_khz": sorted(during[-third:])[third // 2],
                    "least_khz": min(during),
                    "samples": len(during),
                }
        return told


def conditions() -> dict[str, Any]:
    """Load, temperatures and throttling now; `throttle_events` counts up."""
    return {
        "load_1min": os.getloadavg()[0],
        "celsius": temperatures(),
        "throttle_events": throttle_events(),
    }


def temperatures() -> dict[str, float]:
    """Degrees Celsius by sensor, empty where there is none: thermal zones and PCIe accelerators,
    or where there are none of these what hwmon has."""
    found: dict[str, float] = {}
    for kind in ("thermal", "apex", "hwmon"):
        base = os.path.join(SYSTEM, "class", kind)
        if kind == "hwmon" and found:
            break
        for name in sorted(os.listdir(base)) if os.path.isdir(base) else ():
            for file in sorted(os.listdir(os.path.join(base, name))):
                is_sensor = file == "temp" or (file.startswith("temp") and file.endswith("_input"))
                text = read(os.path.join(base, name, file)).strip() if is_sensor else ""
                if text.lstrip("-").isdigit():
                    key = name if file == "temp" else name + "/" + file[: -len("_input")]
                    found[key] = int(text) / 1e3
    return found


def throttle_events() -> int:
    """How often cores of an Intel CPU were slowed for heat; on a Raspberry Pi, how many of the
    firmware's four reasons to slow down (bits 16 to 19) have occurred since it started."""
    cores = SYSTEM + "/devices/system/cpu/cpu%d/thermal_throttle/core_throttle_count"
    count = sum(int(read(cores % i) or 0) for i in range(os.cpu_count() or 1))
    firmware = read(SYSTEM + "/devices/platform/soc/soc:firmware/get_throttled").strip()
    return count + bin(int(firmware, 16) >> 16 & 15).count("1") if firmware else count


def core_seconds() -> Any:
    """Now; seconds of all cores that were not idle; those of this process."""
    fields = [float(field) for field in read("/proc/stat").partition("\n")[0].split()[1:9]]
    busy = sum(fields) - fields[3] - fields[4]  # without idle and iowait
    return time.perf_counter(), busy / os.sysconf("SC_CLK_TCK"), time.process_time()


def cores_busy_with_others(since: Any) -> float:
    """How many cores other processes kept busy since then, on average."""
    wall, busy, own = (now - then for now, then in zip(core_seconds(), since))
    return max(busy - own, 0.0) / max(wall, 1e-9)


def read(path: str) -> str:
    """A file's text, or nothing."""
    try:
        with open(path, errors="replace") as data:
            return data.read()
    except OSError:
        return ""


def probe(devices: list[str]) -> None:
    """What the board is; fails when it lacks what a measurement needs."""
    for device in devices:
        load_edgetpu(load_runtime()[1], device)
    found = board(devices)
    say(answer=found)
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    """Run the verb; what goes wrong is the answer."""
    try:
        if sys.argv[1] == "work":
            work()
        elif sys.argv[1] == "run":
            supervise()
        else:
            probe(sys.argv[2:])
    except BoardError as failure:
        say(device_error=str(failure), retryable=failure.retryable)
    except OSError as error:
        say(device_error=f"the board's folder: {error}", retryable=False)


if __name__ == "__main__":
    main()
