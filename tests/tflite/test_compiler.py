"""The compiler's log, and the call, with a test double in place of the closed compiler."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tflite_models import DATA

from coralline.devices.model import load_device
from coralline.errors import DeviceError
from coralline.graph import read_graph
from coralline.staging import StagingProblem, make_plan
from coralline.tflite.compiler import COMPILER, compile_segments, find_compiler, parse_log
from coralline.tflite.segments import SegmentSet
from coralline.tflite.split import split_model

# The format of version 16, as in its documentation and in public reports.
LOG = """Edge TPU Compiler version 16.0.384591198
Started a compilation timeout timer of 180 seconds.

Model compiled successfully in 2270 ms.

Input model: part_segment_0_of_2.tflite
Input size: 5.21MiB
Output model: part_segment_0_of_2_edgetpu.tflite
Output size: 6.51MiB
On-chip memory used for caching model parameters: 6.02MiB
On-chip memory remaining for caching model parameters: 1.02MiB
Off-chip memory used for streaming uncached model parameters: 41.75KiB
Number of Edge TPU subgraphs: 1
Total number of operations: 73
Operation log: part_segment_0_of_2_edgetpu.log

Model successfully compiled but not all operations are supported by the Edge TPU.
Number of operations that will run on Edge TPU: 70
Number of operations that will run on CPU: 3

Operator                       Count      Status

CONV_2D                        35         Mapped to Edge TPU
ADD                            34         Mapped to Edge TPU
CONCATENATION                  1          Mapped to Edge TPU
DEQUANTIZE                     2          Operation is working on an unsupported data type
CONCATENATION                  1          More than one subgraph is not supported
Compilation child process completed within timeout period.
Compilation succeeded!
"""


def test_the_log_is_read_in_full() -> None:
    said = parse_log(LOG)
    assert said["compiler_version"] == "16.0.384591198"
    assert said["on_chip_bytes"] == round(6.02 * 2**20)
    assert said["on_chip_remaining_bytes"] == round(1.02 * 2**20)
    assert said["off_chip_bytes"] == round(41.75 * 2**10)
    assert said["subgraphs"] == 1
    assert (said["mapped_operators"], said["unmapped_operators"]) == (70, 3)
    assert said["operators"][3] == {
        "op": "DEQUANTIZE",
        "count": 2,
        "status": "Operation is working on an unsupported data type",
    }


def test_bytes_without_a_prefix() -> None:
    assert parse_log(LOG.replace("41.75KiB", "0.00B"))["off_chip_bytes"] == 0


@pytest.mark.parametrize(
    ("log", "why"),
    [
        ("Edge TPU Compiler version 16.0\nInternal compiler error. Aborting!\n", "Aborting"),
        ("", "said nothing"),
        (LOG.replace("On-chip memory remaining", "Memory left"), "format is not known"),
    ],
)
def test_a_failure_or_an_unknown_log_is_said(log: str, why: str) -> None:
    with pytest.raises(DeviceError, match=why):
        parse_log(log)


@pytest.fixture
def segments(tmp_path: Path) -> SegmentSet:
    model = DATA / "small_int8.tflite"
    problem = StagingProblem(read_graph(model), 2, load_device("edgetpu-usb"))
    plan = make_plan(problem, "uniform")
    return split_model(model, plan, tmp_path / "segments", verify_inputs=0)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a test double of the compiler on PATH."""
    folder.mkdir()
    double = folder / COMPILER
    double.write_text(f"#!/bin/sh\n{script}\n")
    double.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_every_segment_is_compiled_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segments: SegmentSet
) -> None:
    (tmp_path / "log").write_text(LOG)
    install(
        tmp_path / "bin",
        monkeypatch,
        # Called as: edgetpu_compiler -s -o FOLDER MODEL
        f'[ "$1 $2" = "-s -o" ] || exit 9\n'
        f'cp "$4" "$3/$(basename "$4" .tflite)_edgetpu.tflite"; cat {tmp_path / "log"}',
    )
    compiled = compile_segments(segments)
    assert [s.compiled["file"] for s in compiled.segments if s.compiled] == [
        f"small_int8_segment_{i}_of_2_edgetpu.tflite" for i in range(2)
    ]
    assert SegmentSet.read(segments.folder) == compiled
    for segment in compiled.segments:
        assert segment.compiled is not None
        assert segment.compiled["mapped_operators"] == 70
        assert (segments.folder / segment.compiled["file"]).is_file()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo 'Internal compiler error. Aborting!' >&2; exit 1", r"exit 1\).*Aborting"),
        ("echo 'Nothing to do'", "wrote no small_int8_segment_0_of_2_edgetpu"),
    ],
)
def test_a_failing_compiler_leaves_the_plain_segments(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    segments: SegmentSet,
    script: str,
    why: str,
) -> None:
    install(tmp_path / "bin", monkeypatch, script)
    with pytest.raises(DeviceError, match=why):
        compile_segments(segments)
    assert SegmentSet.read(segments.folder) == segments


def test_without_a_compiler_segments_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segments: SegmentSet
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_compiler() is None
    assert compile_segments(segments) == segments
