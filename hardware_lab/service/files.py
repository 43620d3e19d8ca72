"""Artifacts, in and out in pieces: none is ever held as a whole."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from typing import Annotated

from anyio import CapacityLimiter, from_thread, to_thread
from fastapi import HTTPException, Path, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from hardware_lab.artifacts import CHUNK_BYTES, PREFIX, MissingError
from hardware_lab.service import bodies
from hardware_lab.service.gate import ANYONE, router_for
from hardware_lab.service.reading import store_of

MOST_ARTIFACT_BYTES = 8 << 30
UPLOADS = 8
"""So many at once; each has a thread of its own, and one more is told to come again."""
RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")

reading = router_for(ANYONE, prefix="/api/v1", tags=["artifacts"])
writing = router_for(ANYONE, most_bytes=MOST_ARTIFACT_BYTES, prefix="/api/v1", tags=["artifacts"])

Ref = Annotated[str, Path(pattern="^sha256:[0-9a-f]{64}$", description="SHA-256 of its bytes.")]


class _Incoming(io.RawIOBase):
    """The body of a request, for a thread that reads it: no more than a piece is here.

    Args:
        ref: Reading to the end raises HTTPException unless the body was this artifact.
    """

    def __init__(self, request: Request, ref: str) -> None:
        self._chunks = request.stream().__aiter__()
        self._ref = ref
        self._left = b""
        self._digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    async def _next(self) -> bytes | None:
        return await anext(self._chunks, None)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._left:
            chunk = from_thread.run(self._next)
            if chunk is None:
                found = PREFIX + self._digest.hexdigest()
                if found != self._ref:
                    raise HTTPException(
                        422, f"what came is {found} and not {self._ref}; send it again"
                    )
                return 0
            self._left = chunk
            self._digest.update(self._left)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


@writing.put(
    "/artifacts/{ref}",
    status_code=201,
    response_model=bodies.Put,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        }
    },
)
async def put(ref: Ref, request: Request) -> JSONResponse:
    """Keep an artifact: whole, and with the digest that it is named by, or not at all."""
    uploads: CapacityLimiter = request.app.state.uploads
    if uploads.available_tokens < 1:
        raise HTTPException(503, f"{UPLOADS} artifacts are being put", {"Retry-After": "1"})
    stream = io.BufferedReader(_Incoming(request, ref), CHUNK_BYTES)
    artifacts = store_of(request).artifacts
    try:
        await to_thread.run_sync(artifacts.put, stream, limiter=uploads)
    except ClientDisconnect:
        raise HTTPException(400, "the request was cut off; nothing of it is kept") from None
    return JSONResponse({"ref": ref}, 201)


@reading.post("/artifacts/{ref}/renewal", response_model=bodies.Renewed)
def renew(ref: Ref, wanted: bodies.Renewal, request: Request) -> JSONResponse:
    """Ask before a put whether the lab has the artifact already, and needs not to be sent it."""
    renewed = store_of(request).artifacts.renew(ref, wanted.size_bytes)
    return JSONResponse({"renewed": renewed})


@reading.head("/artifacts/{ref}")
@reading.get(
    "/artifacts/{ref}",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "The whole."},
        206: {"content": {"application/octet-stream": {}}, "description": "The range."},
        416: {"model": bodies.Error, "description": "The range begins beyond its end."},
    },
)
def get(ref: Ref, request: Request) -> Response:
    """An artifact, or one range of its bytes."""
    artifacts = store_of(request).artifacts
    size = artifacts.size(ref)
    if size is None:
        raise MissingError(f"{ref} is not in the lab's artifacts")
    start, end = byte_range(request.headers.get("range"), size)
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Length": str(end - start),
        "ETag": f'"{ref}"',
        "Cache-Control": "private, immutable, max-age=31536000",
        "X-Content-Type-Options": "nosniff",
    }
    partial = end - start < size
    if partial:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    status, kind = 206 if partial else 200, "application/octet-stream"
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=kind)

    def chunks() -> Iterator[bytes]:
        left = end - start
        with artifacts.open(ref, start) as stream:
            while left and (chunk := stream.read(min(left, CHUNK_BYTES))):
                left -= len(chunk)
                yield chunk

    return StreamingResponse(chunks(), status, headers, kind)


def byte_range(asked: str | None, size: int) -> tuple[int, int]:
    """The first byte that is wanted, and the one after the last.

    What is no single range of bytes is passed over, as RFC 9110 (section 14.2) allows.
    """
    found = asked and RANGE.fullmatch(asked)
    if not found or found[0] == "bytes=-":
        return 0, size
    if not found[1]:
        start, end = max(0, size - int(found[2])), size
    else:
        start, end = int(found[1]), min(size, int(found[2] or size - 1) + 1)
        if end <= start < size:
            return 0, size
    if start >= size:
        raise HTTPException(416, f"it has {size} bytes", {"Content-Range": f"bytes */{size}"})
    return start, end
