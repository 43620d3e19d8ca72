"""Artifacts in S3, or in a server that speaks it.

Endpoint, region and credentials come from where boto3 takes them: AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ~/.aws. What is sent goes with its SHA-256, which the
server checks. A large artifact is sent in parts. Since the name of an object says what its parts
must be, an upload that was cut off is gone on with, by this process or another, and what has
arrived is not sent again.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from coralline.errors import DeviceError, UserError
from hardware_lab.artifacts import (
    CHUNK_BYTES,
    PREFIX,
    MissingError,
    RefusedError,
    Stored,
    hex_of,
    reading,
    ref_of,
)

PART_BYTES = 8 << 20
"""S3 takes no part below 5 MiB but the last, and no more than 10,000 parts (Amazon S3 user guide,
"Amazon S3 multipart upload limits")."""
MOST_PARTS = 10_000
CONNECT_S = 10.0
ANSWER_S = 60.0
"""The server is silent while it joins the parts of an upload."""
TRIES = 4
FRESH_S = 24 * 3600.0
"""What was put longer ago is put again: the time of an object says whether it is still wanted."""
_TRANSIENT = (
    "RequestTimeTooSkewed",
    "BadDigest",
    "InvalidDigest",
    "RequestTimeout",
    "SlowDown",
    "XAmzContentSHA256Mismatch",
)


class S3:
    """Artifact `sha256:abcd...` is the object `<prefix>/sha256/abcd...`.

    Args:
        where: `s3://bucket/prefix`; the prefix may be absent.

    Raises:
        UserError: It names no bucket, or boto3 is not installed.
    """

    def __init__(self, where: str) -> None:
        try:
            import boto3
            from botocore.config import Config
        except ModuleNotFoundError as error:
            raise UserError(f"{where}: needs {error.name}; install coralline[lab]") from None
        self._bucket, _, prefix = where.removeprefix("s3://").partition("/")
        if not self._bucket:
            raise UserError(f"{where}: names no bucket; write s3://bucket/prefix")
        self._prefix = f"{prefix.strip('/')}/sha256/".lstrip("/")
        self._where = where
        config = Config(
            connect_timeout=CONNECT_S,
            read_timeout=ANSWER_S,
            retries={"mode": "standard", "total_max_attempts": TRIES},
            # Each request below says itself which checksum it carries.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        with self._speaking():
            session = boto3.session.Session()
            client = session.client("s3", config=config)
            if ".amazonaws.com" not in client.meta.endpoint_url:
                # Other servers seldom have a host name for each bucket.
                config = config.merge(Config(s3={"addressing_style": "path"}))
                client = session.client("s3", config=config)
        self._client: Any = client
        self._bucket_is_there = False

    @property
    def where(self) -> str:
        """As it was given."""
        return self._where

    def put(self, source: Path | BinaryIO) -> str:
        """As `Artifacts.put`."""
        with reading(source) as stream, _seekable(stream) as file:
            start = file.tell()
            ref = ref_of(file)
            size_bytes = file.tell() - start
            for _ in range(2):
                if self.renew(ref, size_bytes):
                    return ref
                file.seek(start)
                try:
                    with self._speaking():
                        if size_bytes <= PART_BYTES:
                            self._put_whole(ref, file)
                        else:
                            self._put_parts(ref, file, size_bytes)
                    return ref
                except _GoneError:
                    continue  # another process has just completed it, or given it up
        raise DeviceError(f"{self.where}: {ref}: its upload is ended by others", retryable=True)

    def renew(self, ref: str, size_bytes: int) -> bool:
        """As `Artifacts.renew`: one that was put of late counts as put now."""
        found = self._head(ref)
        return (
            found is not None
            and found.size_bytes == size_bytes
            and time.time() - found.put_at < FRESH_S
        )

    @contextmanager
    def open(self, ref: str, start: int = 0) -> Iterator[BinaryIO]:
        """As `Artifacts.open`."""
        ask = {**self._object(ref), **({"Range": f"bytes={start}-"} if start else {})}
        try:
            with self._speaking():
                body = self._client.get_object(**ask)["Body"]
        except _PastEndError:
            yield io.BytesIO()
            return
        except MissingError:
            raise MissingError(f"{ref} is not in {self.where}") from None
        with io.BufferedReader(_Body(body, self._speaking), CHUNK_BYTES) as stream:
            yield stream

    def size(self, ref: str) -> int | None:
        """As `Artifacts.size`."""
        found = self._head(ref)
        return None if found is None else found.size_bytes

    def stored(self) -> Iterator[Stored]:
        """As `PrunableArtifacts.stored`."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix
        )
        with self._speaking():
            for page in pages:
                for found in page.get("Contents", ()):
                    ref = PREFIX + found["Key"].removeprefix(self._prefix)
                    yield Stored(ref, found["Size"], found["LastModified"].timestamp())

    def delete(self, ref: str, put_before: float) -> bool:
        """As `PrunableArtifacts.delete`. S3 cannot look and delete at once: who puts the same
        bytes in that moment, for the first time in days, may lose them."""
        found = self._head(ref)
        if found is None or found.put_at >= put_before:
            return False
        with self._speaking():
            self._client.delete_object(**self._object(ref))
        return True

    def clean(self, begun_before: float) -> int:
        """As `PrunableArtifacts.clean`."""
        removed = 0
        with self._speaking():
            for upload in self._uploads(self._prefix):
                if upload["Initiated"].timestamp() < begun_before:
                    self._client.abort_multipart_upload(
                        Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
                    removed += 1
        return removed

    def _head(self, ref: str) -> Stored | None:
        try:
            with self._speaking():
                found = self._client.head_object(**self._object(ref))
        except MissingError:
            if not self._bucket_is_there:
                self._look_for_bucket()
            return None
        return Stored(ref, found["ContentLength"], found["LastModified"].timestamp())

    def _look_for_bucket(self) -> None:
        try:
            with self._speaking():
                self._client.head_bucket(Bucket=self._bucket)
        except MissingError:
            raise RefusedError(
                f"{self.where}: there is no bucket {self._bucket!r}; make it, or give another"
            ) from None
        self._bucket_is_there = True

    def _put_whole(self, ref: str, file: BinaryIO) -> None:
        data = file.read(PART_BYTES)
        digest = hashlib.sha256(data)
        _check_unchanged(ref, digest.hexdigest())
        self._client.put_object(
            **self._object(ref), Body=data, ChecksumSHA256=_base64(digest.digest())
        )

    def _put_parts(self, ref: str, file: BinaryIO, size_bytes: int) -> None:
        upload, sent = self._upload(ref)
        whole = hashlib.sha256()
        parts = []
        part_bytes = max(PART_BYTES, -(-size_bytes // MOST_PARTS))
        for number in range(1, -(-size_bytes // part_bytes) + 1):
            data = file.read(part_bytes)
            whole.update(data)
            checksum = _base64(hashlib.sha256(data).digest())
            part = sent.get(number)
            if part is None or not _is_part(part, data, checksum):
                part = self._client.upload_part(
                    **upload, PartNumber=number, Body=data, ChecksumSHA256=checksum
                )
            told = {key: part[key] for key in ("ETag", "ChecksumSHA256") if key in part}
            parts.append({"PartNumber": number, **told})
        try:
            _check_unchanged(ref, whole.hexdigest())
        except UserError:
            self._client.abort_multipart_upload(**upload)
            raise
        self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})

    def _upload(self, ref: str) -> tuple[dict[str, str], dict[int, Mapping[str, Any]]]:
        """The upload of an artifact, gone on with or begun, and the parts that have arrived."""
        where = self._object(ref)
        for found in self._uploads(where["Key"]):
            upload = {**where, "UploadId": found["UploadId"]}
            pages = self._client.get_paginator("list_parts").paginate(**upload)
            return upload, {p["PartNumber"]: p for page in pages for p in page.get("Parts", ())}
        begun = self._client.create_multipart_upload(**where, ChecksumAlgorithm="SHA256")
        return {**where, "UploadId": begun["UploadId"]}, {}

    def _uploads(self, prefix: str) -> Iterator[Mapping[str, Any]]:
        pages = self._client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self._bucket, Prefix=prefix
        )
        for page in pages:
            yield from page.get("Uploads", ())

    def _object(self, ref: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + hex_of(ref)}

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        from botocore import exceptions
        from urllib3.exceptions import HTTPError

        try:
            yield
        except exceptions.ClientError as error:
            raise self._told(error) from None
        except (
            exceptions.ConnectionError,
            exceptions.HTTPClientError,
            exceptions.IncompleteReadError,
            HTTPError,
            OSError,
        ) as error:
            raise DeviceError(f"{self.where}: does not answer ({error})", retryable=True) from None
        except (
            exceptions.BotoCoreError
        ) as error:  # no credentials, no region, a profile that is not there
            raise RefusedError(f"{self.where}: {error}; see boto3's configuration") from None

    def _told(self, error: Any) -> Exception:
        answer = error.response
        code = str(answer.get("Error", {}).get("Code"))
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        why = f"{self.where}: {code}: {answer.get('Error', {}).get('Message')}"
        if code == "NoSuchUpload":
            return _GoneError(why, retryable=True)
        if code in ("InvalidRange", "416"):
            return _PastEndError(why)
        if status == 404:
            return MissingError(why)
        if status >= 500 or status in (0, 408, 429) or code in _TRANSIENT:
            return DeviceError(why, retryable=True)
        return RefusedError(
            f"{why}; look at AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and at "
            "what they may do"
        )


class _GoneError(DeviceError):
    """An upload has been completed or given up by another process."""


class _PastEndError(UserError):
    """There is nothing to read from there on."""


class _Body(io.RawIOBase):
    """What a server sends, with errors as the others."""

    def __init__(self, body: Any, speaking: Callable[[], AbstractContextManager[None]]) -> None:
        self._body = body
        self._speaking = speaking

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._speaking():
            data = self._body.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._body.close()
        super().close()


@contextmanager
def _seekable(stream: BinaryIO) -> Iterator[BinaryIO]:
    """The stream, or a copy on disk of one that can be read but once."""
    if stream.seekable():
        yield stream
        return
    with tempfile.TemporaryFile() as copy:
        try:
            shutil.copyfileobj(stream, copy, CHUNK_BYTES)
            copy.seek(0)
        except OSError as error:
            raise DeviceError(
                f"{tempfile.gettempdir()}: has no room for what is put ({error.strerror})",
                retryable=True,
            ) from None
        yield copy


def _is_part(part: Mapping[str, Any], data: bytes, checksum: str) -> bool:
    if "ChecksumSHA256" in part:
        return bool(part["ChecksumSHA256"] == checksum)
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return bool(part["Size"] == len(data) and part["ETag"].strip('"') == md5)


def _check_unchanged(ref: str, digest: str) -> None:
    if PREFIX + digest != ref:
        raise UserError("the file has changed while it was sent; put it again")


def _base64(digest: bytes) -> str:
    return b64encode(digest).decode()
