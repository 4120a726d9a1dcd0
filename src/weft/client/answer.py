"""A server's answer: whole, or piece by piece; and the error that it may carry."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import msgspec

from weft.client.connection import BROKEN, ApiConnection, make_lost
from weft.objects.errors import Unavailable, WeftError, error_from_dict

_PIECE_BYTES = 65_536


class ClientAnswer(msgspec.Struct, frozen=True):
    """A whole response; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as plain data; raises WeftError if it is not JSON."""
        try:
            return msgspec.json.decode(self.body) if self.body else None
        except (msgspec.DecodeError, RecursionError) as problem:
            raise WeftError(f"the server's answer is not JSON: {problem}") from problem


class _Problem(msgspec.Struct):
    reason: str = ""


class Stream:
    """A response that is read piece by piece; closes its connection at the end of ``with``."""

    def __init__(self, connection: ApiConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response
        self.status = response.status
        self.headers = read_headers(response)

    def lines(self) -> Iterator[bytes]:
        """Each line without its end, as it comes. Raises Unavailable when the connection is lost before the end."""
        rest = b""
        while piece := self.read(_PIECE_BYTES):  # readline() takes a connection that is lost between chunks for the end
            *lines, rest = (rest + piece).split(b"\n")
            yield from lines
        if rest:
            raise Unavailable("the server's answer was cut short")

    def read(self, size: int) -> bytes:
        """Read at most ``size`` bytes; empty at the end. Raises Unavailable when the connection is lost before."""
        try:
            return self._response.read1(size)
        except BROKEN as problem:
            raise make_lost(problem).error from problem

    def limit_silence(self, seconds: float) -> None:
        """Wait at most so long for the next piece; after that the stream raises Unavailable and is unusable."""
        if self._connection.sock is not None:
            self._connection.sock.settimeout(seconds)

    def close(self) -> None:
        self._connection.hang_up()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def raise_problem(answer: ClientAnswer) -> None:
    """Raise the error that an answer of status ≥ 400 carries; its request id stands in ``details``."""
    if answer.status < 400:
        return
    try:
        problem = msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, RecursionError):
        problem = None
    if not isinstance(problem, dict) or "reason" not in problem:
        raise WeftError(f"the server answered with HTTP status {answer.status}", details={"status": answer.status})
    if "message" not in problem and isinstance(problem.get("error"), str):
        problem["message"] = problem["error"]  # at Prometheus' addresses, in Prometheus' form
    error = error_from_dict(problem)
    if problem.get("request_id"):
        error.details = {**error.details, "request_id": problem["request_id"]}
    raise error


def read_reason(answer: ClientAnswer) -> str:
    """The reason of the error that it carries; "" if it carries none."""
    try:
        return msgspec.json.decode(answer.body, type=_Problem).reason
    except (msgspec.MsgspecError, RecursionError):
        return ""


def read_headers(response: http.client.HTTPResponse) -> dict[str, str]:
    """The headers of ``response``; names are in lower case."""
    return {name.lower(): value for name, value in response.getheaders()}
