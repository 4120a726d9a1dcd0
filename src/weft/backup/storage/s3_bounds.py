"""Bounds on what a bucket's server makes this machine read: it may be anybody's, and answer without end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from weft.backup.errors import refused

MOST_ANSWER_BYTES = 16 << 20  # of a listing, which has a thousand names, and of a refusal
MOST_OBJECT_BYTES = 128 << 20  # of an object that is read whole: manifests and indexes, never packs
MOST_OBJECTS = 20_000_000  # in one listing
MOST_IDLE_PAGES = 100  # of a listing in a row, without a further name
_PIECE_BYTES = 1 << 16


def bound_answers(client: Any, url: str) -> None:
    """Bound what ``client`` reads from now on to ``MOST_ANSWER_BYTES`` of an answer, except for the content of objects."""
    session = client._endpoint.http_session  # boto3 has no other way to an answer before it is read

    def send(request: Any, **_: Any) -> Any:
        is_content, request.stream_output = request.stream_output, True
        response = session.send(request)
        if not is_content or response.status_code >= 300:
            response._content = _read(response.raw, url)
        return response

    client.meta.events.register_first("before-send.s3", send)


def read_object(body: Any, key: str, most: int, url: str) -> bytes:
    """The content of an object that has at most ``most`` bytes. Raises WeftError for more."""
    pieces, left = list[bytes](), most + 1
    while left and (piece := body.read(min(left, _PIECE_BYTES))):
        pieces.append(piece)
        left -= len(piece)
    if not left:
        body.close()
        raise refused(url, f"its answer for {key[:100]} has more than the {most} bytes that it may have")
    return b"".join(pieces)


def goes_in_a_circle(problem: Exception) -> bool:
    """Whether boto3 asked again where it was sent to, which sent it on, until Python had enough: it says so itself, or wraps it."""
    return isinstance(problem, RecursionError) or isinstance(
        getattr(problem, "kwargs", {}).get("error"), RecursionError
    )


class Progress:
    """The progress of one listing. S3 lists names in the order of their bytes, so each page goes further than the one before."""

    def __init__(self, url: str) -> None:
        self._url, self._last, self._idle, self._count = url, b"", 0, 0

    def note(self, keys: Iterable[str]) -> None:
        """The names of a further page. Raises WeftError for a listing that doesn't go on, or has no end."""
        names = [key.encode(errors="surrogatepass") for key in keys]
        furthest = max(names, default=b"")
        self._idle = 0 if furthest > self._last else self._idle + 1
        self._last, self._count = max(self._last, furthest), self._count + len(names)
        if self._idle > MOST_IDLE_PAGES or self._count > MOST_OBJECTS:
            raise refused(self._url, "a listing that has no end")


def _read(raw: Any, url: str) -> bytes:
    pieces, size = list[bytes](), 0
    for piece in raw.stream(_PIECE_BYTES):
        size += len(piece)
        if size > MOST_ANSWER_BYTES:
            raw.close()
            raise refused(url, f"an answer of more than {MOST_ANSWER_BYTES >> 20} MiB")
        pieces.append(piece)
    return b"".join(pieces)
