"""Files of the lab, named by their content: models, raw samples, power traces.

An artifact is `sha256:` and the SHA-256 of its bytes in hexadecimal. Putting the same bytes twice
keeps them once, and who reads them can tell that they are the right ones.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from coralline.errors import UserError

PREFIX = "sha256:"
CHUNK_BYTES = 1 << 20
"""What is read at once; an artifact as a whole is never held in memory."""


@dataclass(frozen=True)
class Model:
    """A model that is an artifact.

    Attributes:
        name: For people: the path it came from.
        ref: The artifact; see `hardware_lab.artifacts.bundle`.
    """

    name: str
    ref: str


@dataclass(frozen=True)
class File:
    """A file that a result comes with.

    Attributes:
        ref: The artifact.
        size_bytes: Its size.
    """

    ref: str
    size_bytes: int


@dataclass(frozen=True)
class Files:
    """The files that a result comes with: raw samples, power traces.

    Attributes:
        kept: Those in the artifact store, by name: `samples.parquet`, say; one in a folder has
            the folder's name and `/` before its own.
        not_stored: Why the store lacks some; None when it has all.
    """

    kept: Mapping[str, File] = field(default_factory=dict)
    not_stored: str | None = None

    def to_json(self) -> dict[str, Any]:
        """`kept` and `not_stored`."""
        return asdict(self)

    @staticmethod
    def from_json(data: Any) -> Files:
        """Read what `to_json` wrote.

        Raises:
            UserError: It is something else, or names files outside of the result's folder.
        """
        try:
            kept = {name: File(f["ref"], f["size_bytes"]) for name, f in data["kept"].items()}
            for name, file in kept.items():
                hex_of(file.ref)
                if not name or any(part in ("", ".", "..") for part in name.split("/")):
                    raise UserError(f"{name!r} is not the name of a result's file")
            return Files(kept, data["not_stored"])
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"these are not the files of a result ({error!r})") from None


@dataclass(frozen=True)
class Stored:
    """An artifact as a store lists it.

    Attributes:
        ref: Its name.
        size_bytes: Its size.
        put_at: When it was last put, about; seconds since 1970.
    """

    ref: str
    size_bytes: int
    put_at: float


class MissingError(UserError):
    """An artifact is not in the store."""


class RefusedError(UserError):
    """The store wants nothing to do with who asks: wrong credentials, say, or no such bucket."""


class Artifacts(Protocol):
    """Where artifacts are kept.

    Every method raises DeviceError, retryable, when the store does not answer or has no room,
    and RefusedError when it is set up wrongly.
    """

    @property
    def where(self) -> str:
        """For people, and for `open_artifacts`."""

    def put(self, source: Path | BinaryIO) -> str:
        """Keep a file, or a stream from its position to its end; whole or not at all.

        Returns:
            The artifact. It counts as put now even when it was there before.
        """

    def renew(self, ref: str, size_bytes: int) -> bool:
        """Count an artifact as put now, if that can be done without its bytes.

        Returns:
            Whether it is there, of this size, and counts as put now; else it must be put.
        """

    def open(self, ref: str, start: int = 0) -> AbstractContextManager[BinaryIO]:
        """Read an artifact from the byte `start`; nothing checks what is read.

        Raises:
            MissingError: It is not in the store.
        """

    def size(self, ref: str) -> int | None:
        """In bytes; None when it is not in the store."""


class PrunableArtifacts(Artifacts, Protocol):
    """A store that a person looks after."""

    def stored(self) -> Iterator[Stored]:
        """All artifacts."""

    def delete(self, ref: str, put_before: float) -> bool:
        """Delete an artifact, unless it was put at or after that time.

        Returns:
            Whether it was there and has been deleted.
        """

    def clean(self, begun_before: float) -> int:
        """Remove what puts that were cut off before that time have left, and say how many."""


def open_artifacts(where: str) -> PrunableArtifacts:
    """A store by its place.

    Args:
        where: A folder, made when absent, or `s3://bucket/prefix`.

    Raises:
        UserError: It is neither, or cannot be used.
    """
    from hardware_lab.artifacts.folder import Folder

    if where.startswith("s3://"):
        from hardware_lab.artifacts.s3 import S3

        return S3(where)
    if "://" in where:
        raise UserError(f"{where}: artifacts cannot be there; give a folder or s3://bucket/prefix")
    return Folder(Path(where))


def hex_of(ref: str) -> str:
    """The digest in the name of an artifact.

    Raises:
        UserError: It is no such name.
    """
    if not re.fullmatch(PREFIX + "[0-9a-f]{64}", ref):
        raise UserError(
            f"{ref!r} is not an artifact; it must be {PREFIX} and 64 hexadecimal digits"
        )
    return ref.removeprefix(PREFIX)


def ref_of(stream: BinaryIO) -> str:
    """The artifact that a stream is, from its position to its end."""
    digest = hashlib.sha256()
    while chunk := stream.read(CHUNK_BYTES):
        digest.update(chunk)
    return PREFIX + digest.hexdigest()


@contextmanager
def reading(source: Path | BinaryIO) -> Iterator[BinaryIO]:
    """A stream of a file, or the stream that is given.

    Raises:
        UserError: The file cannot be read.
    """
    if not isinstance(source, Path):
        yield source
        return
    try:
        stream = open(source, "rb")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from None
    with stream:
        yield stream
