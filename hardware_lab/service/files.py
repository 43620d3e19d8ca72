from fastapi import Request
from fastapi.responses import Response, StreamingResponse


def get(ref: str, request: Request) -> Response:
    def chunks():
        with request.app.state.store.artifacts.open(ref) as s:
            yield s.read()

    return StreamingResponse(chunks())
