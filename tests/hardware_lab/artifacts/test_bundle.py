"""A model as one stream of bytes: always the same, and nothing else is unpacked."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coralline.errors import UserError
from coralline.tflite.segments import SegmentSet
from hardware_lab.artifacts.bundle import is_archive, packed, ref_of_model, unpack

INT8 = Path(__file__).parents[2] / "data" / "small_int8.tflite"


@pytest.fixture(scope="module")
def archive(segments: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "archive"
    with packed(segments) as stream:
        path.write_bytes(stream.read())
    return path


def test_a_tflite_is_itself() -> None:
    assert ref_of_model(INT8) == f"sha256:{hashlib.sha256(INT8.read_bytes()).hexdigest()}"
    assert not is_archive(INT8)


def test_the_same_files_are_the_same_bytes(segments: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    for name in sorted((file.name for file in segments.iterdir()), reverse=True):
        shutil.copyfile(segments / name, again / name)
        os.utime(again / name, (1, 1))
        (again / name).chmod(0o600)
    (again / "notes.txt").write_text("not a part of the model")
    assert ref_of_model(again) == ref_of_model(segments)
    file = again / SegmentSet.read(again).segments[1].file
    file.write_bytes(file.read_bytes() + b"\0")
    assert ref_of_model(again) != ref_of_model(segments)


def test_unpacked_it_is_the_same_model(segments: Path, archive: Path, tmp_path: Path) -> None:
    assert is_archive(archive)
    unpack(archive, tmp_path)
    for file in segments.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    assert ref_of_model(tmp_path) == ref_of_model(segments)


def test_compiled_segments_go_with_it(segments: Path, tmp_path: Path) -> None:
    compiled = tmp_path / "compiled"
    shutil.copytree(segments, compiled)
    manifest = json.loads((compiled / "segments.json").read_text())
    manifest["segments"][0]["compiled"] = {"file": "first_edgetpu.tflite"}
    (compiled / "segments.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="cannot be packed"):
        ref_of_model(compiled)
    (compiled / "first_edgetpu.tflite").write_bytes(b"compiled")
    with packed(compiled) as stream, tarfile.open(fileobj=stream) as tar:
        assert "first_edgetpu.tflite" in tar.getnames()


def entry(name: str, kind: bytes = tarfile.REGTYPE, size: int = 3) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname = kind, size, "/etc/passwd"
    return made


@pytest.mark.parametrize(
    "bad",
    [
        entry("../outside"),
        entry("/etc/cron.d/outside"),
        entry("a/b"),
        entry(".."),
        entry("link", tarfile.SYMTYPE, 0),
        entry("link", tarfile.LNKTYPE, 0),
        entry("device", tarfile.CHRTYPE, 0),
        entry("pipe", tarfile.FIFOTYPE, 0),
        entry("folder", tarfile.DIRTYPE, 0),
        entry("segments.json"),
        entry("not-of-the-model"),
    ],
    ids=lambda bad: f"{bad.name}-{bad.type.decode()}",
)
def test_only_plain_files_of_the_model_are_unpacked(
    bad: tarfile.TarInfo, archive: Path, tmp_path: Path
) -> None:
    crafted, out = tmp_path / "crafted", tmp_path / "out"
    shutil.copyfile(archive, crafted)
    with tarfile.open(crafted, "a") as tar:
        tar.addfile(bad, io.BytesIO(b"bad"))
    out.mkdir()
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"is not a plain file|differ about 'not-of"):
        unpack(crafted, out)
    assert all(path.parent == out and path.is_file() for path in set(tmp_path.rglob("*")) - before)


def test_an_archive_that_claims_too_much(archive: Path, tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    huge.write_bytes(entry("huge", size=(8 << 30) - 1).tobuf(tarfile.USTAR_FORMAT) * 2)
    with pytest.raises(UserError, match=r"more than|damaged"):
        unpack(huge, tmp_path)
    many = tmp_path / "many"
    with tarfile.open(many, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(1001):
            tar.addfile(entry(f"f{i}", size=0))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match="more than 1000 files"):
        unpack(many, out)


@given(st.data())
def test_a_damaged_archive_is_not_the_model(
    segments: Path, archive: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(archive.read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, 1023))
    if data.draw(st.booleans()):
        del whole[at:]
    else:
        whole[at] ^= data.draw(st.integers(1, 255))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "archive").write_bytes(whole)
    out = folder / "out"
    out.mkdir()
    try:
        unpack(folder / "archive", out)
        found = ref_of_model(out)
    except UserError:
        return
    intact = all((out / p.name).read_bytes() == p.read_bytes() for p in segments.iterdir())
    assert (found == ref_of_model(segments)) == intact
