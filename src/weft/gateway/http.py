"""Requests of those who invoke functions, each whole before anybody looks at it, and their answers, over ASGI."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from weft.serving.answer import Answer

log = logging.getLogger("weft.gateway")


class Request(msgspec.Struct):
    """``path`` and ``query`` are as they came on the wire, ASCII; header names are in lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, list[str]]
    body: bytes
    address: str

    def header(self, name: str) -> str:
        """The first of that name; "" if there is none."""
        found = self.headers.get(name)
        return found[0] if found else ""


def make_app(handle: Callable[[Request], Awaitable[Answer]], failed: Answer) -> ASGIApp:
    """Answers with ``handle``, and with ``failed`` for what that raises."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = await _read(scope, receive)
        if request is None:
            return
        try:
            answer = await handle(request)
        except Exception:  # a defect costs one answer
            log.exception("%s %s", request.method, request.path[:200])
            answer = failed
        headers = [(name.encode(), value.encode("latin-1", "replace")) for name, value in answer.headers]
        has_body = answer.status not in (204, 304)
        if has_body:
            headers.append((b"content-length", b"%d" % len(answer.body)))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body if has_body else b""})

    return app


async def _read(scope: Scope, receive: Receive) -> Request | None:
    """All of it; None if it won't come any more."""
    pieces, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message["body"])
        more = message["more_body"]
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    return Request(
        scope["method"],
        scope["raw_path"].decode("ascii"),
        scope["query_string"].decode("ascii"),
        headers,
        pieces[0] if len(pieces) == 1 else b"".join(pieces),
        scope["client"][0] if scope["client"] else "",
    )
