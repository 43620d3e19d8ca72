"""The `android` board: a real adb server and client, and an emulated phone with faults."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import adbutils
import benchmark_program
import psutil
import pytest
from adb_device import AdbDevice
from benchmark_program import FAULTS
from processes import processes
from waiting import wait_for

from coralline.errors import DeviceError, UserError
from coralline.runtime.measurement import Measurement
from coralline.tflite.segments import SegmentSet
from hardware_lab.boards import Task, benchmark_output
from hardware_lab.boards import phone as phone_module
from hardware_lab.boards.adb import Adb
from hardware_lab.boards.android import Android
from hardware_lab.boards.ssh import file_digest
from hardware_lab.inventory import Demand, Inventory
from hardware_lab.jobs import JobOptions
from hardware_lab.runner import run_jobs
from hardware_lab.store import Store

INT8 = Path(__file__).parents[1] / "data" / "small_int8.tflite"
PROGRAM = Path(benchmark_program.__file__)
ADB = shutil.which("adb")

needs_adb = pytest.mark.skipif(
    ADB is None and not os.environ.get("CI"), reason="adb is not here (Debian package adb)"
)


@pytest.fixture
def board(phone: AdbDevice, tmp_path: Path) -> Android:
    return board_on(phone, tmp_path)


def board_on(phone: AdbDevice, tmp_path: Path) -> Android:
    program = tmp_path / "benchmark_model"
    program.write_text(f"#!{sys.executable}\n{PROGRAM.read_text()}")
    return Android(
        "phone",
        binary=str(program),
        serial=phone.serial,
        folder=str(tmp_path / "on_the_phone"),
        time_limit_s=60.0,
    )


def task(path: Path = INT8, repetitions: int = 30) -> Task:
    return Task("0123456789abcdef", path, repetitions, warmup=3)


def fault(phone: AdbDevice, name: str) -> None:
    phone.environment[FAULTS] = name


def running(board: Android) -> list[psutil.Process]:
    """The benchmark program's processes on the phone."""
    graph = f"--graph={board.folder}/"
    return processes(lambda line: any(word.startswith(graph) for word in line))


def is_clean(board: Android) -> bool:
    jobs = Path(board.folder) / "jobs"
    parts = list((Path(board.folder) / "files").glob("*.part"))
    return not running(board) and not jobs.exists() and not parts


# ------------------------------------------------------------------ it works


@needs_adb
def test_a_measurement(board: Android) -> None:
    found = board.measure(task())
    assert found.simulated and found.processor.startswith("emulated Coralline Emulator, Android 14")
    assert found.environment["emulated"] is True
    assert found.latency_ms == () and found.latency_reported_ms is not None
    reported = found.latency_reported_ms
    assert reported["count"] == 30
    assert 0 < reported["min"] <= reported["p50"] <= reported["p95"] <= reported["max"]
    assert found.summary()["latency_p50_ms"] == reported["p50"]
    assert found.first_inference_ms > 0
    assert (found.processor_asked, found.processor_ran) == ("cpu", "cpu") and not found.fell_back
    (stage,) = found.environment["stages"]
    (delegate,) = stage["delegates"]
    assert found.delegated_share == delegate["nodes"] / delegate["of"] > 0.5
    assert found.outputs_equal and found.environment["largest_output_difference"] == 0
    assert stage["profile"][-1] == {
        "type": "Conv (NHWC, QC8)",
        "name": "Delegate/Conv:0",
        "mean_ms": 0.009,
        "calls": 1,
    }
    assert found.environment["before"]["battery"] == {
        "level": "87",
        "temperature": "312",
        "status": "3",
    }
    assert Measurement.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert is_clean(board)


@needs_adb
def test_a_phone_that_is_slowed_for_heat_is_marked(board: Android, phone: AdbDevice) -> None:
    cool = board.measure(task(repetitions=3))
    assert cool.environment["before"]["thermal_status"] == 0
    assert cool.environment["cores_busy_with_others"] >= 0
    assert not any(mark.startswith("throttled") for mark in cool.marks)
    (phone.folder / "programs" / "thermal_status").write_text("2")
    warm = board.measure(task(repetitions=3))
    assert any(mark.startswith("throttled") for mark in warm.marks)


@needs_adb
def test_clocks_of_a_phone(board: Android, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's kernel may tell none: the phone's shell is given a folder that does."""
    folder = Path(board.folder).parent / "cpufreq"
    for name, clock in (("policy0", 1_800_000), ("policy4", 600_000)):
        (folder / name).mkdir(parents=True)
        for file, text in {
            "related_cpus": "0 1 2 3",
            "scaling_governor": "walt",
            "cpuinfo_min_freq": "300000",
            "cpuinfo_max_freq": "2400000",
            "scaling_cur_freq": clock,
            "scaling_max_freq": "2400000",
        }.items():
            (folder / name / file).write_text(f"{text}\n")
    for script in ("_CPU", "_CLOCKS"):
        told = getattr(phone_module, script).replace("/sys/devices/system/cpu/cpufreq", str(folder))
        monkeypatch.setattr(phone_module, script, told)
    found = board.measure(task(repetitions=3)).environment
    assert found["cpu_clock"]["before_khz"] == 1_800_000
    assert found["cpu_clock"]["limit_least_khz"] == 2_400_000
    assert found["cpufreq"]["policy4"] == {
        "cores": "0 1 2 3",
        "governor": "walt",
        "min_khz": 300_000,
        "max_khz": 2_400_000,
    }


@needs_adb
def test_each_segment_is_run_and_files_are_sent_once(
    board: Android, phone: AdbDevice, segments: Path
) -> None:
    found = board.measure(task(segments, 5))
    assert found.outputs_equal and len(found.environment["stages"]) == 2
    assert found.latency_reported_ms is not None
    assert set(found.latency_reported_ms) == {"count", "mean"}  # percentiles do not add up
    kept = {path.name: path.stat().st_ino for path in (Path(board.folder) / "files").iterdir()}
    models = [segments / s.file for s in SegmentSet.read(segments).segments]
    assert {file_digest(path) for path in (Path(board.binary), *models)} < set(kept)
    board.measure(task(segments, 5))
    again = {path.name: path.stat().st_ino for path in (Path(board.folder) / "files").iterdir()}
    assert again == kept


@needs_adb
def test_health(board: Android, phone: AdbDevice) -> None:
    assert f"{phone.serial} ready" in board.check()
    # Named by nothing, the only one is taken.
    assert phone.serial in replace(board, serial="").check()


# ------------------------------------------------------------------ proof of processor


@needs_adb
@pytest.mark.parametrize("processor", ["gpu", "nnapi"])
def test_a_delegate_that_leaves_all_to_the_cpu_is_found_out(board: Android, processor: str) -> None:
    found = replace(board, processor=processor).measure(task(repetitions=3))
    assert (found.processor_asked, found.processor_ran) == (processor, "cpu")
    assert found.fell_back and found.delegated_share == 0


@needs_adb
def test_litert_asked_for_an_npu_falls_back_to_the_cpu_and_is_found_out(
    board: Android, tmp_path: Path
) -> None:
    """LiteRT itself does this here: exit code 0, latencies of the CPU, not a word."""
    npu = replace(board, runtime="litert", processor="npu", library="/vendor/lib64/libnpu.so")
    store = Store(tmp_path / "lab")
    jobs = [
        store.submit(
            INT8, Demand("phone"), JobOptions(repetitions=3, warmup=1, allow_fallback=allowed)
        )
        for allowed in (False, True)
    ]
    run_jobs(store, Inventory({"phone": npu}, {"phone": {}}))
    refused, allowed = (store.job(job.id) for job in jobs)
    assert (refused.state, allowed.state) == ("invalid", "done")
    with pytest.raises(DeviceError, match=r"npu was asked for and cpu ran .*--allow-fallback"):
        refused.raise_error()
    allowed.raise_error()
    for job in jobs:  # what was measured is kept either way
        found = store.measurement(job.id)
        assert (found.processor_asked, found.processor_ran) == ("npu", "cpu")
        assert found.fell_back and found.delegated_share == 0
        assert "fell back: npu was asked for and cpu ran" in found.marks


@pytest.mark.parametrize(
    ("options", "said", "ran", "share"),
    [
        ({"processor": "gpu"}, [("TfLiteGpuDelegateV2", 49, 49)], "gpu", 1.0),
        (
            {"processor": "gpu"},
            [("TfLiteGpuDelegateV2", 30, 40), ("TfLiteXNNPackDelegate", 9, 11)],
            "gpu+cpu",
            0.75,
        ),
        ({"processor": "gpu"}, [("TfLiteXNNPackDelegate", 40, 40)], "cpu", 0.0),
        ({"processor": "cpu"}, [("TfLiteXNNPackDelegate", 30, 40)], "cpu", 0.75),
        ({"processor": "cpu"}, [("TfLiteGpuDelegateV2", 40, 40)], "cpu+gpu", 0.0),
        (
            {"processor": "npu", "accelerator": "qti-htp"},
            [("TfLiteNnapiDelegate", 40, 40)],
            "npu",
            1.0,
        ),
        ({"processor": "npu", "library": "/v/libq.so"}, [("QnnDelegate", 40, 40)], "npu", 1.0),
        (
            {"processor": "npu", "library": "/v/libq.so"},
            [("TfLiteXNNPackDelegate", 40, 40)],
            "cpu",
            0.0,
        ),
        (
            {"processor": "npu", "library": "/v/libd.so", "runtime": "litert"},
            [("DispatchDelegate", 1, 1)],
            "npu",
            1.0,
        ),
        ({"processor": "nnapi"}, [], "cpu", 0.0),
    ],
)
def test_what_delegates_prove(
    options: dict[str, str], said: list[tuple[str, int, int]], ran: str, share: float
) -> None:
    text = "\n".join(
        f"VERBOSE: Replacing {nodes} out of {of} node(s) with delegate ({name}) node, yielding 1 "
        "partitions for subgraph 0."
        for name, nodes, of in said
    )
    board = Android("phone", binary="b", **options)
    assert board._proof(benchmark_output.parse_delegates(text), None) == (ran, share)


def test_older_programs_tell_only_how_much() -> None:
    board = Android("phone", binary="b", processor="gpu")
    complete = (
        "Explicitly applied GPU delegate, and the model graph will be completely executed by the "
        "delegate."
    )
    assert board._proof([], benchmark_output.parse_asked(complete)) == ("gpu", 1.0)
    partial = complete.replace("completely", "partially")
    assert board._proof([], benchmark_output.parse_asked(partial)) == ("gpu+cpu", None)


# ------------------------------------------------------------------ what is printed


def test_phases_as_programs_print_them() -> None:
    said, phases = benchmark_output.parse_stamped(
        "10.50 INFO: Loaded model m.tflite\n"
        "11.00 INFO: Running benchmark for at least 3 iterations and at least 0.5 seconds but "
        "terminate if exceeding 150 seconds.\n"
        "11.20 INFO: count=3 first=900 curr=800 min=800 max=900 avg=850 std=40\n"
        "11.20 \n"
        "11.30 INFO: Running benchmark for at least 50 iterations and at least 1 seconds but "
        "terminate if exceeding 150 seconds.\n"
        "12.80 INFO: count=50 curr=800(all same)\n"
        "12.90 INFO: count=9 of something else\n"
    )
    assert phases == [(11.0, 11.2, 3), (11.3, 12.8, 50)]
    assert said.splitlines()[0] == "INFO: Loaded model m.tflite"
    assert benchmark_output.parse_latency(said.partition("\nINFO: count=9")[0])[1]["count"] == 50
    assert benchmark_output.parse_stamped("11.00 count=5 curr=3\n") == ("count=5 curr=3", [])


def test_latencies_as_programs_print_them() -> None:
    first, found = benchmark_output.parse_latency(
        "INFO: Running benchmark for at least 1 iterations\n"
        "INFO: count=2 first=328140 curr=309932 min=309932 max=328140 avg=319036 std=9104\n\n"
        "INFO: count=50 first=307215 curr=309783 min=305938 max=333030 avg=3.0935e+05 std=4411 "
        "p5=306372 median=307968 p95=315711\n"
    )
    assert first == 328.14
    assert found == {
        "count": 50,
        "min": 305.938,
        "p5": 306.372,
        "p50": 307.968,
        "p95": 315.711,
        "max": 333.03,
        "mean": pytest.approx(309.35),
        "std": 4.411,
    }
    first, found = benchmark_output.parse_latency("count=1 curr=12\n\ncount=4 curr=10(all same)\n")
    assert first == 0.012 and found["count"] == 4 and found["p95"] == 0.01 and found["std"] == 0
    with pytest.raises(DeviceError, match=r"tells no latencies \(Aborted\)"):
        benchmark_output.parse_latency("count=1 curr=12\nAborted\n")


# ------------------------------------------------------------------ faults


@needs_adb
def test_the_connection_drops_in_mid_push(board: Android, phone: AdbDevice) -> None:
    phone.drop_after = 1000
    with pytest.raises(DeviceError, match="connection lost") as caught:
        board.measure(task())
    assert caught.value.retryable
    phone.drop_after = None
    assert "ready" in board.check()


@needs_adb
def test_the_phone_restarts_under_a_run(board: Android, phone: AdbDevice) -> None:
    phone.reboot_on = "--num_runs"
    with pytest.raises(DeviceError, match="connection lost") as caught:
        board.measure(task())
    assert caught.value.retryable
    phone.reboot_on = ""
    assert "ready" in board.check()


@needs_adb
def test_the_disk_of_the_phone_is_full(board: Android, phone: AdbDevice) -> None:
    phone.disk_bytes = 100
    with pytest.raises(DeviceError, match=r"cannot keep benchmark_model \(No space left"):
        board.measure(task())
    assert is_clean(board)
    assert list((Path(board.folder) / "files").iterdir()) == []


@needs_adb
def test_the_phone_hangs(board: Android, phone: AdbDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phone_module, "COMMAND_S", 1.0)
    phone.hang_on = "getprop"
    started = time.monotonic()
    with pytest.raises(DeviceError, match=r"no answer in 1 s") as caught:
        board.check()
    assert caught.value.retryable and time.monotonic() - started < 10
    with pytest.raises(DeviceError, match="nobody waits for it") as caught:
        board.check(lambda: True)
    assert caught.value.retryable
    phone.hang_on = ""
    assert "ready" in board.check()


@needs_adb
def test_the_program_hangs(board: Android, phone: AdbDevice) -> None:
    fault(phone, "hang")
    with pytest.raises(DeviceError, match="no answer in"):
        replace(board, time_limit_s=4.0).measure(task())
    assert is_clean(board)


@needs_adb
def test_a_run_that_nobody_waits_for_is_ended(board: Android, phone: AdbDevice) -> None:
    fault(phone, "hang")
    started = time.monotonic()
    stopping = replace(task(), stop=lambda: bool(running(board)))
    with pytest.raises(DeviceError, match="stopped: nobody waits") as caught:
        board.measure(stopping)
    assert caught.value.retryable and time.monotonic() - started < 30
    assert is_clean(board)


@needs_adb
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("crash", r"ended with exit code 1 \(ERROR: Failed to apply GPU delegate"),
        ("garbage", "tells no latencies"),
        ("wrong output", r"differs from the lab's reference by"),
    ],
)
def test_a_program_that_goes_wrong(board: Android, phone: AdbDevice, name: str, says: str) -> None:
    fault(phone, name)
    with pytest.raises(DeviceError, match=says):
        board.measure(task(repetitions=3))
    assert is_clean(board)


@needs_adb
def test_what_a_killed_lab_left_running_is_ended(board: Android, phone: AdbDevice) -> None:
    job = Path(board.folder) / "jobs" / "old"
    job.mkdir(parents=True)
    left = subprocess.Popen(
        ["sh", "-c", "sleep 600; true", f"--graph={board.folder}/files/x"], start_new_session=True
    )
    (job / "pid").write_text(str(left.pid))
    board.measure(task(repetitions=3))
    assert left.wait(5) == -9 and is_clean(board)


@needs_adb
def test_a_damaged_file_is_sent_again(board: Android) -> None:
    kept = Path(board.folder) / "files" / file_digest(INT8)
    kept.parent.mkdir(parents=True)
    kept.write_bytes(INT8.read_bytes()[:-1])
    with pytest.raises(DeviceError, match="was damaged on the phone; it is removed") as caught:
        board.measure(task(repetitions=3))
    assert caught.value.retryable
    assert board.measure(task(repetitions=3)).outputs_equal


# ------------------------------------------------------------------ bringing it back


@needs_adb
def test_the_phone_is_restarted(board: Android) -> None:
    before = board.boot_id()
    assert board.boot_id() == before
    board.restart()
    # adb's server may still hold the connection that has ended.
    wait_for(lambda: answers(board.boot_id))
    assert board.boot_id() != before
    assert board.measure(task(repetitions=3)).outputs_equal


@needs_adb
def test_reconnecting(board: Android, phone: AdbDevice) -> None:
    board.check()
    board.reconnect()
    assert "ready" in board.check()
    # As for a phone on USB, whose serial is no address: adb's server is told to.
    Adb("", "phone").reconnect()
    wait_for(lambda: answers(board.check))


@needs_adb
def test_a_phone_that_was_unplugged_is_worth_trying_again(phone: AdbDevice, board: Android) -> None:
    with pytest.raises(DeviceError, match="no Android device R5CT30ABCDE") as caught:
        replace(board, serial="R5CT30ABCDE").check()
    assert caught.value.retryable


@needs_adb
def test_how_warm_it_is(board: Android) -> None:
    assert board.celsius() == 31.2


def answers(call: Callable[[], object]) -> bool:
    try:
        call()
    except DeviceError as error:
        assert error.retryable
        return False
    return True


# ------------------------------------------------------------------ what is missing


@needs_adb
def test_an_unauthorised_phone(phone: AdbDevice, tmp_path: Path) -> None:
    phone.authorised = False
    with pytest.raises(DeviceError, match="unlock it and allow USB debugging"):
        board_on(phone, tmp_path).check()


@needs_adb
def test_no_phone(board: Android, phone: AdbDevice) -> None:
    phone.stop()
    with pytest.raises(DeviceError, match=r"no Android device 127.0.0.1:\d+ .*refused") as caught:
        board.check()
    assert caught.value.retryable
    with pytest.raises(DeviceError, match="no Android device is connected; connect one with USB"):
        replace(board, serial="").check()


@needs_adb
def test_several_phones(board: Android, phone: AdbDevice, tmp_path: Path) -> None:
    other = AdbDevice(tmp_path / "other")
    try:
        board.check()
        replace(board, serial=other.serial).check()
        with pytest.raises(DeviceError, match="several Android devices are connected"):
            replace(board, serial="").check()
    finally:
        other.stop()
        adbutils.AdbClient().disconnect(other.serial)


def test_no_adb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from adbutils.errors import AdbError

    def absent() -> str:
        raise AdbError("No adb exe could be found")

    monkeypatch.setattr("adbutils._adb.adb_path", absent)
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", "9")
    with pytest.raises(DeviceError, match="adb is not here; install the Debian package adb"):
        Android("phone", binary=str(PROGRAM)).check()


def test_no_binary() -> None:
    with pytest.raises(UserError, match="no such file; the inventory names it as `binary`"):
        Android("phone", binary="/nowhere/benchmark_model").check()


@needs_adb
def test_a_binary_for_another_processor(board: Android) -> None:
    Path(board.binary).write_bytes(b"\x7fELF not for this machine")
    with pytest.raises(DeviceError, match="built for its processor"):
        board.measure(task(repetitions=3))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"processor": "tpu"}, "processor 'tpu' is not known"),
        ({"processor": "npu"}, "an npu needs `library`"),
        ({"processor": "nnapi", "runtime": "litert"}, "has no NNAPI"),
        ({"folder": "/data/a b"}, "folder '/data/a b' is not of the form"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Android("phone", binary="b", **options)  # type: ignore[arg-type]
