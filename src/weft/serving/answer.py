"""The answer to a request: whole, or piece by piece."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Protocol

import msgspec

from weft.serving.request import Request

_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_WITHOUT_BODY = (204, 304)


class Pieces(Protocol):
    """An answer's body as it comes. ``aclose`` is always called, even if no piece was read."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes: ...

    async def aclose(self) -> None: ...


class Answer(msgspec.Struct):
    status: int
    body: bytes = b""
    # Without Content-Length, Transfer-Encoding, Connection and Date, which the server sets; checked for line breaks.
    headers: tuple[tuple[str, str], ...] = ()
    pieces: Pieces | None = None  # the body, if it comes in pieces
    length: int | None = None  # of all pieces in bytes, if known
    last: bool = False  # the connection ends with it

    @property
    def has_body(self) -> bool:
        return self.status not in _WITHOUT_BODY

    @property
    def is_chunked(self) -> bool:
        return self.pieces is not None and self.length is None

    def head(self, date: str, *, closes: bool) -> bytes:
        """The answer's head with its empty line. ``date`` is a whole line, or empty."""
        lines = "".join([f"{name}: {value}\r\n" for name, value in self.headers])
        if self.pieces is not None and self.length is None:
            size = "transfer-encoding: chunked\r\n"
        elif self.status in _WITHOUT_BODY:
            size = ""
        else:
            size = f"content-length: {len(self.body) if self.length is None else self.length}\r\n"
        end = "connection: close\r\n\r\n" if closes else "\r\n"
        return f"{_LINES[self.status]}{lines}{date}{size}{end}".encode("latin-1", "replace")


Answers = Callable[[Request], Awaitable[Answer]]
Refuse = Callable[[int, str], Answer | None]  # the answer to a request that the server refuses itself; None: hang up
