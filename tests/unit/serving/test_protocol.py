"""One connection without a network: however what comes is cut into pieces, the same requests are answered, in order."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.contracts.clock import SystemClock
from weft.serving.answer import Answer
from weft.serving.protocol import HEAD_BYTES, PIECE_BYTES, HttpProtocol
from weft.serving.request import Request
from weft.serving.server import HttpServer
from weft.serving.shares import Bounds


class Transport(asyncio.Transport):
    """Takes what is written; says when it is told to wait."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.7", 1), "sockname": ("192.0.2.1", 443)})
        self.written = b""
        self.closed = self.paused = False

    def write(self, data: Any) -> None:
        assert not self.closed and len(data) <= PIECE_BYTES + 200
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


async def echo(request: Request) -> Answer:
    body = b""
    while piece := await request.read():
        body += piece
    await asyncio.sleep(0)
    return Answer(200, f"{request.method} {request.path}?{request.query} {len(body)}:".encode() + body)


def make_connection(answer: Any = echo) -> tuple[HttpProtocol, Transport]:
    bounds = Bounds(most_connections=9, most_unwanted_bytes=300_000)
    server = HttpServer(
        answer, [], None, SystemClock(), bounds, lambda status, message: Answer(status, message.encode())
    )
    connection, transport = HttpProtocol(server, "192.0.2.7"), Transport()
    server.callers.take("192.0.2.7", 1)
    connection.connection_made(transport)
    return connection, transport


async def settle(connection: HttpProtocol) -> None:
    while connection.task is not None:
        await asyncio.sleep(0)


def encode_request(number: int, body: bytes, chunks: int) -> bytes:
    head = b"POST /%d?q=%d HTTP/1.1\r\nHost: x\r\n" % (number, number)
    if not chunks:
        return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    parts = [body[at : at + chunks] for at in range(0, len(body), chunks)]
    sent = b"".join(b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in parts)
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + sent + b"0\r\nTrailer: t\r\n\r\n"


@settings(max_examples=examples(60), deadline=None)
@given(
    bodies=st.lists(st.tuples(st.binary(max_size=300), st.integers(0, 40)), min_size=1, max_size=6),
    cuts=st.lists(st.integers(1, 4000), max_size=40),
)
def test_the_same_requests_are_answered_however_they_are_cut(bodies: list[tuple[bytes, int]], cuts: list[int]) -> None:
    sent = b"".join(encode_request(n, body, chunks) for n, (body, chunks) in enumerate(bodies))
    ends = sorted({*(cut for cut in cuts if cut < len(sent)), len(sent)})

    async def run() -> bytes:
        connection, transport = make_connection()
        for start, end in zip([0, *ends], ends, strict=False):
            connection.data_received(sent[start:end])
            await asyncio.sleep(0)
        await settle(connection)
        assert not transport.closed and connection._server.bodies.total == 0
        return transport.written

    written = asyncio.run(run())
    for number, (body, _) in enumerate(bodies):
        said = b"POST /%d?q=%d %d:%b" % (number, number, len(body), body)
        expected = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(said), said)
        assert written.startswith(expected)
        written = written[len(expected) :]
    assert written == b""


async def test_a_body_of_any_size_may_come_at_once_and_is_read_as_fast_as_it_is_wanted() -> None:
    connection, transport = make_connection()
    body = b"x" * 5_000_000
    connection.data_received(encode_request(1, body, 0))
    assert transport.paused  # what is here waits for its reader
    await settle(connection)
    assert transport.written.endswith(b"5000000:" + body) and not transport.paused and not transport.closed


async def test_what_is_no_head_is_not_read_without_end() -> None:
    for said in (
        b"GET / HTTP/1.1\r\nX: " + b"x" * 3 * HEAD_BYTES,
        b"GET /" + b"x" * 3 * HEAD_BYTES,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 3 * HEAD_BYTES,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * 3 * HEAD_BYTES,
    ):
        connection, transport = make_connection()
        connection.data_received(said)
        assert transport.written.startswith(b"HTTP/1.1 431") and transport.closed
        connection.connection_lost(None)
        await settle(connection)


async def test_the_rest_of_a_body_that_was_answered_is_let_pass_but_not_for_ever() -> None:
    async def refuse(request: Request) -> Answer:
        return Answer(401)

    connection, transport = make_connection(refuse)
    connection.data_received(b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n")
    await settle(connection)
    assert re.match(rb"HTTP/1.1 401 .*\r\n\r\n", transport.written, re.S)
    connection.data_received(b"x" * 200_000)
    assert not transport.closed
    connection.data_received(b"x" * 200_000)
    assert transport.closed


async def test_an_answer_in_pieces_ends_when_its_reader_has_left() -> None:
    closed = asyncio.Event()

    class Endless:
        def __aiter__(self) -> Endless:
            return self

        async def __anext__(self) -> bytes:
            await asyncio.sleep(0)
            return b"tick"

        async def aclose(self) -> None:
            closed.set()

    async def tick(request: Request) -> Answer:
        return Answer(200, pieces=Endless())

    connection, transport = make_connection(tick)
    connection.data_received(b"GET / HTTP/1.1\r\n\r\n")
    while b"tick" not in transport.written:
        await asyncio.sleep(0)
    assert b"transfer-encoding: chunked\r\n\r\n4\r\ntick\r\n" in transport.written
    transport.close()
    connection.connection_lost(None)
    await asyncio.wait_for(closed.wait(), 60)
    await asyncio.wait(connection._server.tasks or [asyncio.create_task(asyncio.sleep(0))])
