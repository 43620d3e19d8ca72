"""Call edgetpu_compiler on segments and read its log.

The compiler is closed and comes as an x86-64 Debian package
(https://coral.ai/docs/edgetpu/compiler); without it the plain segments stay as they are.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from coralline.errors import DeviceError
from coralline.files import write_bytes
from coralline.tflite.segments import SegmentSet

COMPILER = "edgetpu_compiler"

MAPPED = "Mapped to Edge TPU"
"""Status of an operator that runs on the accelerator; any other tells why it does not."""

_TIMEOUT_S = 3600.0
_UNIT_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_MEMORY = {
    "on_chip_bytes": "On-chip memory used for caching model parameters",
    "on_chip_remaining_bytes": "On-chip memory remaining for caching model parameters",
    "off_chip_bytes": "Off-chip memory used for streaming uncached model parameters",
}


def find_compiler() -> Path | None:
    """Path of edgetpu_compiler when it is on PATH."""
    found = shutil.which(COMPILER)
    return Path(found) if found else None


def compile_segments(segments: SegmentSet) -> SegmentSet:
    """Compile every segment for the Edge TPU, into the same folder, and record what was said.

    Without edgetpu_compiler on PATH the segments come back as they are.

    Raises:
        DeviceError: The compiler failed; the plain segments stay.
        UserError: The folder cannot be written.
    """
    compiler = find_compiler()
    if compiler is None:
        return segments
    compiled = []
    for segment in segments.segments:
        source = segments.folder / segment.file
        with tempfile.TemporaryDirectory() as folder:
            log = _run(compiler, source, Path(folder))
            result = Path(folder) / f"{source.stem}_edgetpu.tflite"
            if not result.is_file():
                raise DeviceError(f"{COMPILER} wrote no {result.name}: {_last_line(log)}")
            write_bytes(segments.folder / result.name, result.read_bytes())
        compiled.append(replace(segment, compiled={"file": result.name, **parse_log(log)}))
    found = replace(segments, segments=tuple(compiled))
    found.write()
    return found


def parse_log(log: str) -> dict[str, Any]:
    """What `edgetpu_compiler -s` printed about one model.

    Returns:
        `compiler_version`; `on_chip_bytes`, `on_chip_remaining_bytes` and `off_chip_bytes`, as
        exact as the log's two decimals; `subgraphs`; `mapped_operators` and
        `unmapped_operators`; `operators`, rows of `op`, `count` and `status`, where the status
        is MAPPED or the reason why not.

    Raises:
        DeviceError: The log does not tell of a compiled model.
    """
    if "Model compiled successfully" not in log and "Model successfully compiled" not in log:
        raise DeviceError(f"{COMPILER}: {_last_line(log)}")
    found: dict[str, Any] = {"compiler_version": _after(log, "Edge TPU Compiler version", r"(\S+)")}
    for key, label in _MEMORY.items():
        amount = _after(log, f"{label}:", r"([\d.]+)\s*([KMG]?i?B)")
        found[key] = round(float(amount[0]) * _UNIT_BYTES[amount[1]])
    found["subgraphs"] = int(_after(log, "Number of Edge TPU subgraphs:", r"(\d+)"))
    rows = re.findall(r"^([A-Za-z0-9_-]+) +(\d+) +(\S.*?)\s*$", log, re.MULTILINE)
    found["operators"] = [{"op": op, "count": int(n), "status": why} for op, n, why in rows]
    found["mapped_operators"] = sum(int(n) for _, n, why in rows if why == MAPPED)
    found["unmapped_operators"] = sum(int(n) for _, n, why in rows if why != MAPPED)
    return found


def _run(compiler: Path, source: Path, folder: Path) -> str:
    try:
        done = subprocess.run(
            [compiler, "-s", "-o", folder, source],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
    except OSError as error:
        raise DeviceError(f"{compiler}: cannot be run ({error.strerror})") from None
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"{COMPILER} on {source.name}: not done after {_TIMEOUT_S:.0f} s"
        ) from None
    if done.returncode != 0:
        raise DeviceError(
            f"{COMPILER} failed on {source.name} (exit {done.returncode}): "
            f"{_last_line(done.stdout + done.stderr)}"
        )
    return done.stdout


def _after(log: str, label: str, pattern: str) -> Any:
    match = re.search(re.escape(label) + r"\s*" + pattern, log)
    if match is None:
        raise DeviceError(f"{COMPILER}: its log has no {label!r}; the format is not known")
    return match.groups() if len(match.groups()) > 1 else match[1]


def _last_line(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
