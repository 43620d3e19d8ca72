"""A model as one stream of bytes: a .tflite as it is, a split folder as a tar archive.

The same files always give the same archive: entries in the order of their names, without times,
owners or modes. Hence the artifact of a folder covers every byte of it, and an unpacked folder
is verified by packing it again.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from coralline.errors import UserError
from coralline.tflite.segments import MANIFEST, SegmentSet
from hardware_lab.artifacts import CHUNK_BYTES, reading, ref_of

MOST_FILES = 1000
MOST_BYTES = 8 << 30
"""Of an unpacked model; the USTAR format ends here too."""
_BLOCK = 512
_MAGIC = slice(257, 262)


@contextmanager
def packed(path: Path) -> Iterator[BinaryIO]:
    """A model as a stream that can be read several times.

    Args:
        path: A folder that `coralline split` wrote, or a .tflite.

    Raises:
        UserError: It is neither, or cannot be read.
    """
    if not path.is_dir():
        with reading(path) as stream:
            yield stream
        return
    names = sorted(_files(SegmentSet.read(path)))
    with tempfile.TemporaryFile() as archive:
        try:
            with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for name in names:
                    entry = tarfile.TarInfo(name)
                    entry.size = (path / name).stat().st_size
                    with open(path / name, "rb") as file:
                        tar.addfile(entry, file)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be packed ({error})") from None
        archive.seek(0)
        yield archive


def ref_of_model(path: Path) -> str:
    """The artifact that a model is.

    Raises:
        UserError: As `packed`.
    """
    with packed(path) as stream:
        return ref_of(stream)


def is_archive(file: Path) -> bool:
    """Whether an artifact is a split folder, and not a .tflite."""
    with open(file, "rb") as stream:
        return stream.read(_BLOCK)[_MAGIC] == b"ustar"


def unpack(archive: Path, folder: Path) -> None:
    """Write the files of a split folder into a folder that is empty.

    Raises:
        UserError: The archive is not one that `packed` makes: damaged, too large, or with
            entries that are links, devices or outside of the folder.
        OSError: The folder cannot be written.
    """
    left = MOST_BYTES
    names: set[str] = set()
    try:
        with tarfile.open(archive, mode="r:") as tar:
            for entry in tar:
                left -= entry.size
                if not entry.isreg() or entry.name in names or not _is_plain(entry.name):
                    raise UserError(f"the archive's entry {entry.name!r} is not a plain file in it")
                if len(names) == MOST_FILES or left < 0:
                    raise UserError(f"holds more than {MOST_FILES} files or {MOST_BYTES} bytes")
                names.add(entry.name)
                data = tar.extractfile(entry)
                assert data is not None  # as it is of every regular file
                with data, open(folder / entry.name, "wb") as file:
                    shutil.copyfileobj(data, file, CHUNK_BYTES)
        if extra := _files(SegmentSet.read(folder)) ^ names:
            raise UserError(f"the archive and its {MANIFEST} differ about {min(extra)!r}")
    except (tarfile.TarError, KeyError, TypeError) as error:
        raise UserError(f"the archive is damaged ({error!r})") from None


def _files(segments: SegmentSet) -> set[str]:
    names = {MANIFEST, segments.model_file}
    for segment in segments.segments:
        names.add(segment.file)
        if segment.compiled is not None:
            names.add(segment.compiled["file"])
    return names


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name
