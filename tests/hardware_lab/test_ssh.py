"""The `ssh` board end to end: a real sshd on loopback, keys and host keys checked, and faults."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from power_sources import write_power
from ssh_board import board_on, is_clean, remote
from sshd_server import Server, make_key, needs_sshd
from waiting import wait_for

from coralline.errors import DeviceError, UserError
from coralline.runtime import pipeline
from coralline.runtime.interpreter import Model
from coralline.runtime.measurement import Measurement
from coralline.tflite.segments import SegmentSet
from hardware_lab import checks
from hardware_lab.boards import Task, payload, ssh
from hardware_lab.boards.ssh import PAYLOAD, Ssh
from hardware_lab.checks import check
from hardware_lab.inventory import Demand, Inventory, load_inventory
from hardware_lab.jobs import JobOptions
from hardware_lab.meters.replay import Replay
from hardware_lab.power import CommandSwitch
from hardware_lab.runner import run_jobs
from hardware_lab.store import Store

DATA = Path(__file__).parents[1] / "data"
INT8 = DATA / "small_int8.tflite"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("sshd"))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """One that the test may kill or set up otherwise."""
    folder = tmp_path / "sshd"
    folder.mkdir()
    made = Server(folder)
    yield made
    if made.process:
        made.kill()


@pytest.fixture
def board(server: Server, tmp_path: Path) -> Iterator[Ssh]:
    made = board_on(server, tmp_path)
    yield made
    wait_for(lambda: not remote(made))


def task(path: Path, repetitions: int = 30) -> Task:
    return Task("0123456789abcdef", path, repetitions, warmup=3)


def kept(board: Ssh) -> dict[str, int]:
    """The files that the board keeps, with their inode: a file sent again is a new one."""
    files = (Path(board.folder) / "files").iterdir()
    return {path.name: path.stat().st_ino for path in files}


# ------------------------------------------------------------------ it works


@needs_sshd
def test_a_measurement(board: Ssh, segments: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = board.measure(task(segments), lambda done, total: seen.append((done, total)))
    assert found.outputs_equal and not found.simulated and found.board_kind == "ssh"
    assert len(found.latency_ms) == len(found.full_latency_ms) == 30
    assert len(found.stage_busy_ms) == len(found.transfer_ms) == 2
    parts = sum(
        np.array(rows) for rows in (found.stage_busy_ms, found.queue_wait_ms, found.transfer_ms)
    )
    np.testing.assert_allclose(found.full_latency_ms, parts.sum(axis=0), rtol=0, atol=1e-6)
    assert found.first_inference_ms > 0 and found.wall_s > 0
    assert found.processor.startswith("CPU; XNNPACK ran")
    assert found.environment["runtime"] in ("ai_edge_litert", "tflite_runtime")
    assert found.environment["versions"]["numpy"] == np.__version__
    assert found.environment["largest_output_difference"] == 0
    assert found.warmup == 2 * (1 + pipeline.QUEUE_DEPTH) + 1  # what fills the pipeline
    assert seen and seen[0][1] == 1 + 2 * (found.warmup + 30)
    assert Measurement.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert is_clean(board)


@needs_sshd
def test_windows_are_on_the_labs_clock(
    board: Ssh, segments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The board's clock is hours ahead, and runs fast by 4 in 10,000."""
    other = tmp_path / "payload.py"
    text = PAYLOAD.read_text()
    other.write_text(text.replace("time.perf_counter()", "(1e4 + 1.0004 * time.perf_counter())"))
    monkeypatch.setattr(ssh, "PAYLOAD", other)
    power = write_power(tmp_path / "power.csv", 4.0)
    meter = Replay(name="plug", at="dc-in", path=str(power), accuracy_percent=1.0, idle_s=0.3)
    before = time.monotonic()
    found = replace(board, meter=meter).measure(task(segments, repetitions=3000))
    assert [window.name for window in found.windows] == ["idle", "alone", "full"]
    ends = [end for window in found.windows for end in (window.begin_s, window.end_s)]
    assert before < ends[0] and ends == sorted(ends) and ends[-1] < time.monotonic()
    full = found.windows[2]
    assert 0 < full.bound_s < 1
    assert abs((full.end_s - full.begin_s) * 1.0004 - found.wall_s) <= 2 * full.bound_s
    assert found.energy is not None and found.meter == "plug"
    spent = found.energy.windows["full"]
    assert spent.inferences == 3000 and spent.power_w == pytest.approx(4.0)
    assert found.energy_mj_per_inference == pytest.approx(4e3 * spent.seconds / 3000)


@needs_sshd
def test_files_are_sent_once(board: Ssh, segments: Path) -> None:
    board.measure(task(segments, 5))
    before = kept(board)
    assert len(before) == 4  # the payload, the references, two segments
    board.measure(task(segments, 5))
    assert kept(board) == before


@needs_sshd
def test_health(board: Ssh) -> None:
    assert "cores, ai_edge_litert 2" in board.check()


@needs_sshd
def test_a_job_of_the_lab(board: Ssh, segments: Path, tmp_path: Path) -> None:
    lab = tmp_path / "lab.yaml"
    lab.write_text(
        f"schema: coralline.inventory/v1\nboards:\n  pi:\n    kind: ssh\n    host: {board.host}\n"
        f"    port: {board.port}\n    identity_file: {board.identity_file}\n"
        f"    known_hosts: {board.known_hosts}\n    python: {board.python}\n"
        f"    folder: {board.folder}\n    time_limit_s: 120\n"
    )
    inventory = load_inventory(lab)
    assert inventory.board("pi") == board
    store = Store(tmp_path / "lab")
    job = store.submit(segments, Demand("pi"), JobOptions(repetitions=10, warmup=1))
    with store.lock(board.resource) as held:
        assert held is not None
        # Another runner has the board: the job waits, and the lab's lock is what it waits for.
        thread = Thread(target=run_jobs, args=(store, inventory), daemon=True)
        thread.start()
        time.sleep(0.5)
        assert store.job(job.id).state == "queued" and not remote(board)
    thread.join(60)
    assert store.job(job.id).state == "done"
    assert store.measurement(job.id).board == "pi"


@needs_sshd
def test_two_jobs_on_one_board_run_one_after_the_other(
    board: Ssh, segments: Path, tmp_path: Path
) -> None:
    twin = replace(board, name="the same pi")
    inventory = Inventory({"pi": board, "the same pi": twin}, {"pi": {}, "the same pi": {}})
    store = Store(tmp_path / "lab")
    for name in inventory.boards:
        store.submit(segments, Demand(name), JobOptions(repetitions=300, warmup=1))
    runners = [Thread(target=run_jobs, args=(store, inventory), daemon=True) for _ in range(2)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join(120)
    first, second = sorted(store.jobs(), key=lambda job: str(job.started_at))
    assert (first.state, second.state) == ("done", "done")
    assert (first.attempt, second.attempt) == (1, 1)
    assert str(first.finished_at) <= str(second.started_at)


# ------------------------------------------------------------------ who may talk to whom


@needs_sshd
def test_a_key_that_the_board_does_not_take(board: Ssh, segments: Path, tmp_path: Path) -> None:
    make_key(tmp_path / "stranger")
    stranger = replace(board, identity_file=str(tmp_path / "stranger"))
    with pytest.raises(DeviceError, match=r"authorized_keys there") as caught:
        stranger.measure(task(segments))
    assert not caught.value.retryable
    assert not Path(board.folder).exists()


@needs_sshd
def test_an_unknown_host_key(board: Ssh, tmp_path: Path) -> None:
    empty = tmp_path / "known_hosts"
    empty.touch()
    with pytest.raises(DeviceError, match=r"host key is not known; .*ssh-keyscan -p") as caught:
        replace(board, known_hosts=str(empty)).check()
    assert not caught.value.retryable
    assert empty.read_text() == ""


@needs_sshd
def test_a_changed_host_key(board: Ssh, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    changed = tmp_path / "known_hosts"
    changed.write_text(f"[127.0.0.1]:{board.port} {(tmp_path / 'other.pub').read_text()}")
    with pytest.raises(DeviceError, match="host key has changed") as caught:
        replace(board, known_hosts=str(changed)).check()
    assert not caught.value.retryable


@needs_sshd
def test_nobody_listens(board: Ssh) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening: refused
        with pytest.raises(DeviceError, match="Connection refused") as caught:
            replace(board, port=held.getsockname()[1]).check()
    assert caught.value.retryable


@needs_sshd
def test_a_server_that_never_answers(board: Ssh, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        board = replace(board, port=silent.getsockname()[1])
        with pytest.raises(DeviceError, match="nobody waits for it") as caught:
            board.check(lambda: True)
        assert caught.value.retryable
        monkeypatch.setattr(ssh, "COMMAND_S", 1.0)
        with pytest.raises(DeviceError, match=r"no answer in 1 s") as caught:
            board.check()
    assert caught.value.retryable


def test_files_that_the_inventory_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file; the inventory names it"):
        Ssh("pi", host="pi.local", identity_file=str(tmp_path / "none")).check()


@pytest.mark.parametrize(
    "options",
    [
        {"host": "-oProxyCommand=touch x"},
        {"host": ""},
        {"host": "pi", "user": "-l"},
        {"host": "pi", "port": 0},
        {"host": "pi", "delegate": "gpu"},
        {"host": "pi", "known_hosts": 'a" b'},
        {"host": "pi", "threads_per_stage": 0},
        {"host": "pi", "time_limit_s": 0.0},
    ],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Ssh("pi", **options)


# ------------------------------------------------------------------ what the board lacks


@needs_sshd
def test_no_python(board: Ssh) -> None:
    with pytest.raises(DeviceError, match=r"has no /none/python3 .* another `python`"):
        replace(board, python="/none/python3").check()


@needs_sshd
def test_a_python_without_numpy_or_runtime(board: Ssh, tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    base = f"{sys.base_prefix}/bin/python3"
    bare.write_text(f'#!/bin/sh\nexec "{base}" -S "$@"\n')
    bare.chmod(0o755)
    poor = replace(board, python=str(bare))
    with pytest.raises(DeviceError, match="lacks numpy: install it there"):
        poor.check()
    site = tmp_path / "site"
    site.mkdir()
    installed = Path(np.__file__).parents[1]
    for package in (*installed.glob("numpy"), *installed.glob("numpy.libs")):
        (site / package.name).symlink_to(package)
    bare.write_text(f'#!/bin/sh\nPYTHONPATH="{site}" exec "{base}" -S "$@"\n')
    with pytest.raises(DeviceError, match="has no TFLite runtime: install tflite-runtime or"):
        poor.check()


@needs_sshd
def test_a_folder_that_cannot_be_made(board: Ssh, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DeviceError, match=r"another `folder`") as caught:
        replace(board, folder=str(tmp_path / "file" / "below")).check()
    assert not caught.value.retryable


@needs_sshd
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("size", ["8k", "128k"])
def test_a_full_disk(board: Ssh, segments: Path, tmp_path: Path, size: str) -> None:
    """Full when the files are sent, and full when the result is written."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}"]
    mounted = subprocess.run(["mount", *options, "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode().strip()}")
    try:
        small = replace(board, folder=str(disk / "coralline"))
        with pytest.raises(DeviceError, match="No space left on device"):
            small.measure(task(segments, 3000))
        assert is_clean(small)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


# ------------------------------------------------------------------ cut in the middle

LONG = 10_000_000


def measuring(board: Ssh) -> bool:
    return len(remote(board)) == 2


@needs_sshd
def test_the_time_limit_ends_the_remote_processes(board: Ssh, segments: Path) -> None:
    board.measure(task(segments, 5))  # so that only the run itself takes time
    with pytest.raises(DeviceError, match="not finished after 5 s"):
        replace(board, time_limit_s=5.0).measure(task(segments, LONG))
    assert is_clean(board)  # at once: the driver waits for the board to clean up


@needs_sshd
def test_a_cancelled_run_leaves_nothing(board: Ssh, segments: Path) -> None:
    def cancel(done: int, total: int) -> None:
        assert measuring(board)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        board.measure(task(segments, LONG), cancel)
    assert is_clean(board)


@needs_sshd
def test_a_killed_runner_leaves_nothing(board: Ssh, segments: Path) -> None:
    script = (
        "from pathlib import Path\n"
        "from hardware_lab.boards import Task\n"
        "from hardware_lab.boards.ssh import Ssh\n"
        f"{board!r}.measure(Task('ab', Path({str(segments)!r}), {LONG}, 3))\n"
    )
    runner = subprocess.Popen([sys.executable, "-c", script])
    wait_for(lambda: measuring(board))
    runner.kill()
    runner.wait()
    wait_for(lambda: is_clean(board), 10)


@needs_sshd
@pytest.mark.parametrize("victim", [0, 1])
def test_the_payload_is_killed(board: Ssh, segments: Path, victim: int) -> None:
    """The supervisor (0) or the worker (1); the next run cleans up what is left."""

    def kill(done: int, total: int) -> None:
        found = sorted(remote(board), key=lambda process: process.create_time())
        if len(found) == 2:
            found[victim].send_signal(signal.SIGKILL)

    with pytest.raises(DeviceError, match=("connection|exit code", "SIGKILL")[victim]):
        board.measure(task(segments, LONG), kill)
    wait_for(lambda: not remote(board))
    assert board.measure(task(segments, 5)).outputs_equal
    assert is_clean(board)


@needs_sshd
def test_the_board_vanishes(own_server: Server, segments: Path, tmp_path: Path) -> None:
    own_server.start()
    board = board_on(own_server, tmp_path)
    gone: list[int] = []

    def vanish(done: int, total: int) -> None:
        if not gone:
            gone.append(done)
            own_server.kill()

    with pytest.raises(DeviceError, match="connection") as caught:
        board.measure(task(segments, LONG), vanish)
    assert gone and caught.value.retryable
    wait_for(lambda: is_clean(board), 10)


@needs_sshd
def test_a_silent_lab_is_taken_for_gone(
    board: Ssh, segments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut cable: no end of the connection is ever seen, only silence."""
    impatient = tmp_path / "payload.py"
    impatient.write_text(PAYLOAD.read_text().replace("SILENCE_S = 60.0", "SILENCE_S = 1.0"))
    monkeypatch.setattr(ssh, "PAYLOAD", impatient)
    monkeypatch.setattr(ssh, "HEARTBEAT_S", 0.3)
    assert board.measure(task(segments, 5)).outputs_equal  # heard often enough
    monkeypatch.setattr(ssh, "HEARTBEAT_S", None)
    with pytest.raises(DeviceError, match="the lab was not heard of any more") as caught:
        board.measure(task(segments, LONG))
    assert caught.value.retryable
    assert is_clean(board)


@needs_sshd
def test_another_lab_has_the_board(
    board: Ssh, segments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for, and not for ever; a run whose lab is gone ends by itself."""
    Path(board.folder).mkdir()
    with open(Path(board.folder) / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found: list[Measurement] = []
        waiting = Thread(target=lambda: found.append(board.measure(task(segments, 5))))
        waiting.start()
        wait_for(lambda: len(remote(board)) == 1)
        time.sleep(0.5)
        assert waiting.is_alive()
        begun = time.monotonic()
        with pytest.raises(DeviceError, match="stopped"):  # it is left while it is waited for
            board.measure(replace(task(segments, 5), stop=lambda: time.monotonic() > begun + 3))
        wait_for(lambda: len(remote(board)) == 1)
    waiting.join(60)
    assert found[0].outputs_equal
    impatient = tmp_path / "payload.py"
    impatient.write_text(PAYLOAD.read_text().replace("LOCK_S = SILENCE_S + 15.0", "LOCK_S = 0.5"))
    monkeypatch.setattr(ssh, "PAYLOAD", impatient)
    with open(Path(board.folder) / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DeviceError, match="another lab works on this board") as caught:
            board.measure(task(segments, 5))
    assert caught.value.retryable


@needs_sshd
def test_sending_ends_when_nobody_waits(board: Ssh, tmp_path: Path) -> None:
    endless = tmp_path / "endless"
    os.mkfifo(endless)
    writer = os.open(endless, os.O_RDWR)
    begun = time.monotonic()
    try:
        with pytest.raises(DeviceError, match="stopped: nobody waits") as caught:
            board._keep(
                {"ab": endless},
                board._kept(),
                time_limit_s=600,
                stop=lambda: time.monotonic() > begun + 1,
            )
    finally:
        os.close(writer)
    assert caught.value.retryable and time.monotonic() - begun < 30
    wait_for(lambda: is_clean(board))  # the board has noticed


# ------------------------------------------------------------------ bringing it back


@needs_sshd
def test_a_board_is_restarted(
    own_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its runtime says that it hangs; after the restart, with another boot id, it does not."""
    own_server.start()
    hung, boot_id, told = (tmp_path / name for name in ("hung", "boot_id", "told"))
    hung.touch()
    boot_id.write_text("one")
    python = tmp_path / "python3"
    answer = '{"device_error": "hangs", "retryable": true}'
    python.write_text(
        f"#!/bin/sh\nif [ -e {hung} ]; then echo '{answer}'; exit; fi\n"
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(ssh, "BOOT_ID", f"cat {boot_id}")
    monkeypatch.setattr(checks, "RECONNECT_S", 0.0)
    monkeypatch.setattr(checks, "LOOK_S", 0.1)

    def machine() -> None:
        wait_for(told.exists, 120)
        own_server.kill()
        hung.unlink()
        boot_id.write_text("two")
        own_server.launch()

    thread = Thread(target=machine, daemon=True)
    thread.start()
    board = board_on(
        own_server, tmp_path, python=str(python), reboot=f"touch {told}; exec sleep 600"
    )
    store = Store(tmp_path / "lab")
    assert "cores" in check(store, board, None, lambda: False)
    thread.join(30)
    *said, helped, good = (line["cause"] for line in store.health.log("pi"))
    hangs = f"pi (127.0.0.1:{own_server.port}): hangs"
    assert said == [
        f"reconnect, since: {hangs}",
        f"reconnect did not help: {hangs}",
        f"restart, since: {hangs}",
    ]
    assert helped.startswith("restart helped after") and "cores" in good


@needs_sshd
def test_a_restart_that_is_refused(board: Ssh) -> None:
    with pytest.raises(DeviceError, match="`exit 3` ended with exit code 3"):
        replace(board, reboot="exit 3").restart()
    assert board.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    board.celsius()  # whatever this machine has


# ------------------------------------------------------------------ wrong things


@needs_sshd
def test_a_damaged_file_on_the_board_is_sent_again(board: Ssh, segments: Path) -> None:
    board.measure(task(segments, 5))
    digest = ssh.file_digest(segments / SegmentSet.read(segments).segments[0].file)
    path = Path(board.folder) / "files" / digest
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DeviceError, match="damaged; it is removed") as caught:
        board.measure(task(segments, 5))
    assert caught.value.retryable
    assert board.measure(task(segments, 5)).outputs_equal


@needs_sshd
@pytest.mark.parametrize(("by", "equal"), [(1, None), (40, False)])
def test_outputs_are_held_to_the_labs_references(
    board: Ssh, segments: Path, monkeypatch: pytest.MonkeyPatch, by: int, equal: bool | None
) -> None:
    """A step of rounding passes and is told; another result does not pass."""
    real = ssh.write_references

    def shifted(segments: SegmentSet, out: Path) -> None:
        real(segments, out)
        with np.load(out) as kept:
            arrays = dict(kept)
        value = arrays["output-2-0"]
        value[...] = np.where(value > 0, value - by, value + by)
        np.savez(out, allow_pickle=False, **arrays)

    monkeypatch.setattr(ssh, "write_references", shifted)
    if equal is None:
        found = board.measure(task(segments))
        assert found.outputs_equal is None
        assert found.environment["largest_output_difference"] == by
    else:
        with pytest.raises(DeviceError, match=r"of inference 2 differs from the lab's reference"):
            board.measure(task(segments))


# ------------------------------------------------------------------ the Edge TPU


@pytest.fixture
def as_if_compiled(segments: Path, tmp_path: Path) -> Path:
    """Segments whose manifest names compiled files, which are the plain ones."""
    folder = tmp_path / "compiled"
    shutil.copytree(segments, folder)
    found = SegmentSet.read(folder)
    names = tuple(replace(s, compiled={"file": s.file}) for s in found.segments)
    replace(found, segments=names).write()
    return folder


@needs_sshd
def test_no_edgetpu_library(board: Ssh, as_if_compiled: Path) -> None:
    coral = replace(board, delegate="edgetpu")
    for ask in (coral.check, lambda: coral.measure(task(as_if_compiled))):
        with pytest.raises(DeviceError, match=r"libedgetpu\.so\.1.*install libedgetpu1-std"):
            ask()


def test_segments_that_are_not_compiled(segments: Path) -> None:
    coral = Ssh("coral", host="coral.local", delegate="edgetpu")
    with pytest.raises(UserError, match="is not compiled for the Edge TPU"):
        coral.measure(task(segments))


NO_DELEGATE = """
#include <stddef.h>
/* A delegate that loads, opens, and takes no operator. Layout: tensorflow/lite/core/c/common.h */
struct delegate { void *data; int (*prepare)(void *, struct delegate *); void *f[3];
                  long flags; void *builder; };
static int prepare(void *context, struct delegate *self) { return 0; }
static struct delegate one = { NULL, prepare, { NULL, NULL, NULL }, 0, NULL };
void *tflite_plugin_create_delegate(char **k, char **v, size_t n, void (*report)(const char *)) {
  return &one;
}
void tflite_plugin_destroy_delegate(void *delegate) {}
"""


@needs_sshd
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_delegate_that_takes_no_operator_is_found_out(
    own_server: Server, as_if_compiled: Path, tmp_path: Path
) -> None:
    source = tmp_path / "delegate.c"
    source.write_text(NO_DELEGATE)
    library = tmp_path / payload.EDGETPU_LIBRARY
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    own_server.settings.append(f"SetEnv LD_LIBRARY_PATH={tmp_path}")
    own_server.start()
    board = board_on(own_server, tmp_path, delegate="edgetpu")
    assert "Edge TPU opens" in board.check()
    with pytest.raises(DeviceError, match=r"was asked for and took none of the \d+ operators of"):
        board.measure(task(as_if_compiled))
    assert is_clean(board)


@needs_sshd
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_an_accelerator_that_has_locked_up_may_be_power_cycled(
    own_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library finds no device; once it has been without power, it does."""
    locked = tmp_path / "locked up"
    locked.touch()
    source = tmp_path / "delegate.c"
    source.write_text(
        "#include <unistd.h>\n"
        + NO_DELEGATE.replace("return &one;", f'return access("{locked}", F_OK) ? &one : NULL;')
        + 'const char *edgetpu_version() { return "of the test"; }\n'
    )
    library = tmp_path / payload.EDGETPU_LIBRARY
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    own_server.settings.append(f"SetEnv LD_LIBRARY_PATH={tmp_path}")
    own_server.start()
    monkeypatch.setattr(checks, "RECONNECT_S", 0.0)
    monkeypatch.setattr(checks, "LOOK_S", 0.1)
    board = board_on(own_server, tmp_path, delegate="edgetpu")
    with pytest.raises(DeviceError, match="Edge TPU :0 cannot be opened") as caught:
        board.check()
    assert caught.value.retryable
    power = CommandSwitch(on="true", off=f"rm '{locked}'", pause_s=0.0)
    store = Store(tmp_path / "lab")
    assert "Edge TPU opens" in check(store, board, power, lambda: False)
    steps = [line["step"] for line in store.health.log("pi") if line["step"]]
    assert steps == ["reconnect", "power-cycle"]


# ------------------------------------------------------------------ the payload as a file


def test_the_payload_is_python_3_7_and_stands_alone() -> None:
    tree = ast.parse(PAYLOAD.read_text(), feature_version=(3, 7))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"numpy", "pycoral"}
    # Newer than 3.7 without being newer syntax.
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not [c for c in calls for k in c.keywords if k.arg == "strict"]
    assert not [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("removeprefix", "removesuffix")
    ]


def test_the_payload_counts_as_the_runtime_does() -> None:
    assert payload.QUEUE_DEPTH == pipeline.QUEUE_DEPTH
    for name in ("small_int8", "small_float"):
        path = DATA / f"{name}.tflite"
        told = payload.Model(str(path), 1).partitions()
        assert told.pop("edgetpu") == 0
        assert told == Model(path).partitions()
