"""The `coral-local` board: what is chosen, by doubles, and what this machine lacks, for real."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from coralline.errors import DeviceError, UserError
from coralline.runtime.pipeline import open_segments
from hardware_lab.boards import Task, coral_local, payload
from hardware_lab.boards.coral_local import CoralLocal

INT8 = Path(__file__).parents[1] / "data" / "small_int8.tflite"


def task(path: Path) -> Task:
    return Task("ab", path, 5, warmup=1)


def test_devices_are_selected_as_the_inventory_says() -> None:
    assert CoralLocal("tpus", devices="usb:0, pci:1").selectors == ("usb:0", "pci:1")
    for devices in ("", "usb", "gpu:0", "usb:0, usb:0"):
        with pytest.raises(UserError, match="device"):
            CoralLocal("tpus", devices=devices)


def test_libedgetpu_is_loaded_for_the_stages_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def interpreter(**options: Any) -> str:
        asked.append(options)
        return "an interpreter"

    def load(library: str, options: dict[str, str]) -> str:
        asked.append((library, options))
        return "a delegate"

    monkeypatch.setattr(payload, "load_runtime", lambda: (interpreter, load, "", {}))
    # PyPI's pycoral: a package without `utils`.
    monkeypatch.setitem(sys.modules, "pycoral", ModuleType("pycoral"))
    assert payload.make_interpreter("m.tflite", 2, "pci:1") == "an interpreter"
    assert asked == [
        ("libedgetpu.so.1", {"device": "pci:1"}),
        {"model_path": "m.tflite", "num_threads": 2, "experimental_delegates": ["a delegate"]},
    ]


def test_googles_pycoral_is_taken_first(monkeypatch: pytest.MonkeyPatch) -> None:
    edgetpu: Any = ModuleType("pycoral.utils.edgetpu")
    edgetpu.make_interpreter = lambda path, device: (path, device)
    utils: Any = ModuleType("pycoral.utils")
    utils.edgetpu = edgetpu
    for module in (ModuleType("pycoral"), utils, edgetpu):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    assert payload.make_interpreter("m.tflite", 1, "usb:0") == ("m.tflite", "usb:0")


def test_what_cannot_run() -> None:
    board = CoralLocal("tpu")
    with pytest.raises(UserError, match="is not compiled for the Edge TPU"):
        board.measure(task(INT8))


def test_more_stages_than_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    one = open_segments(INT8)
    two = replace(one, segments=one.segments * 2)
    monkeypatch.setattr("hardware_lab.boards.coral_local.open_segments", lambda path: two)
    with pytest.raises(UserError, match="has 2 stages and board 'tpu' 1 accelerators"):
        CoralLocal("tpu").measure(task(INT8))


def test_a_run_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    one = open_segments(INT8)
    segments = (replace(one.segments[0], compiled={"file": INT8.name}),)
    compiled = replace(one, segments=segments)
    monkeypatch.setattr("hardware_lab.boards.coral_local.open_segments", lambda path: compiled)
    with pytest.raises(DeviceError, match=r"tpu: Edge TPU :0 cannot be opened .*libedgetpu"):
        CoralLocal("tpu").measure(task(INT8))


def test_a_check_that_hangs_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = tmp_path / "payload.py"
    hangs.write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(coral_local, "PAYLOAD", hangs)
    monkeypatch.setattr(coral_local, "END_S", 0.1)
    with pytest.raises(DeviceError, match="nobody waits for it") as caught:
        CoralLocal("tpus").check(lambda: True)
    assert caught.value.retryable


def test_health_says_what_is_missing(tmp_path: Path) -> None:
    lab = tmp_path / "lab.yaml"
    lab.write_text(
        "schema: coralline.inventory/v1\nboards:\n"
        '  tpus: {kind: coral-local, devices: "usb:0, usb:1"}\n'
    )
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from coralline.cli.main import main; main()"),
            *("lab", "health", "--inventory", str(lab), "--lab", str(tmp_path), "--json"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    (row,) = json.loads(done.stdout)["boards"]
    assert row["state"] == "looping"
    assert "Edge TPU usb:0 cannot be opened (libedgetpu.so.1" in row["cause"]
    assert "install libedgetpu1-std" in row["cause"]
