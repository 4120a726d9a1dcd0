"""Requests of callers of functions, each complete before it is handled, and their answers."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from weft.objects.errors import InvalidInput
from weft.serving import request as serving
from weft.serving.answer import Answer, Answers

log = logging.getLogger("weft.gateway")
T = TypeVar("T")


class LambdaRequest(msgspec.Struct):
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


def read_packed(request: LambdaRequest, type: type[T]) -> T:
    """The body of a request of another server's gateway, in msgpack. Raises InvalidInput."""
    try:
        return msgspec.msgpack.decode(request.body, type=type)
    except (msgspec.MsgspecError, RecursionError) as problem:
        raise InvalidInput(
            f"the request can't be read: {problem}", hint="is the release of that server another?"
        ) from None


def make_app(handle: Callable[[LambdaRequest], Awaitable[Answer]], failed: Answer) -> Answers:
    """Answers with ``handle``, and with ``failed`` if that raises."""

    async def answer(coming: serving.Request) -> Answer:
        request = await _read(coming)
        try:
            return await handle(request)
        except Exception:  # a defect costs one answer
            log.exception("%s %s", request.method, request.path[:200])
            return failed

    return answer


async def _read(coming: serving.Request) -> LambdaRequest:
    """The complete request. Raises BodyLost if its body won't come any more."""
    pieces = []
    while piece := await coming.read():
        pieces.append(piece)
    headers: dict[str, list[str]] = {}
    for name, value in coming.headers:
        headers.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    return LambdaRequest(coming.method, coming.path, coming.query, headers, body, coming.address)
