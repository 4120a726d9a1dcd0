"""The Runtime API by its bytes: what a runtime may send, in whatever pieces, and what is answered."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest_asyncio

from weft.agent.function.runtime_api import Given, RuntimeApi
from weft.protocol.invocations import MAX_PAYLOAD_BYTES

NEXT = b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n"


class RecordedCalls:
    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []
        self.news = asyncio.Event()

    def _record(self, *said: object) -> None:
        self.said.append(said)
        self.news.set()

    def on_next(self) -> None:
        self._record("next")

    def on_answer(self, id: str, body: bytes, error_type: str | None) -> None:
        self._record("answer", id, body, error_type)

    def on_too_large(self, id: str) -> None:
        self._record("tooLarge", id)

    def on_init_error(self, body: bytes, error_type: str) -> None:
        self._record("init", body, error_type)

    async def wait(self, count: int) -> list[tuple[object, ...]]:
        async with asyncio.timeout(60):
            while len(self.said) < count:
                self.news.clear()
                await self.news.wait()
        return self.said


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self) -> tuple[bytes, bytes]:
        async with asyncio.timeout(60):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
            )
            return head, await self.reader.readexactly(length)

    async def say(self, data: bytes) -> tuple[bytes, bytes]:
        self.writer.write(data)
        return await self.answer()


@pytest_asyncio.fixture
async def served() -> AsyncIterator[tuple[RuntimeApi, RecordedCalls, Client]]:
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    heard = RecordedCalls()
    api = RuntimeApi(listening, heard)
    await api.open()
    client = Client(*await asyncio.open_connection(*listening.getsockname()))
    try:
        yield api, heard, client
    finally:
        client.writer.close()
        api.close()
        listening.close()


def post(path: str, body: bytes, *more: str) -> bytes:
    head = "\r\n".join([f"POST /2018-06-01/runtime/{path} HTTP/1.1", f"Content-Length: {len(body)}", *more])
    return f"{head}\r\n\r\n".encode() + body


async def test_an_invocation_goes_out_with_its_headers_and_its_answer_comes_back(
    served: tuple[RuntimeApi, RecordedCalls, Client],
) -> None:
    api, heard, client = served
    client.writer.write(NEXT)
    assert await heard.wait(1) == [("next",)]
    api.give(Given("id-1", b"[1]", 1700000000.25, "arn:x\r\nEvil: 1", '{"a":1}'))
    head, body = await client.answer()
    lines = head.decode().split("\r\n")
    assert (
        body == b"[1]"
        and "Lambda-Runtime-Aws-Request-Id: id-1" in lines
        and "Lambda-Runtime-Deadline-Ms: 1700000000250" in lines
    )
    assert (
        "Lambda-Runtime-Invoked-Function-Arn: arn:xEvil: 1" in lines
        and 'Lambda-Runtime-Client-Context: {"a":1}' in lines
    )
    assert any(line.startswith("Lambda-Runtime-Trace-Id: Root=1-") for line in lines)
    head, _ = await client.say(post("invocation/id-1/response", b"done"))
    assert head.startswith(b"HTTP/1.1 202") and heard.said[-1] == ("answer", "id-1", b"done", None)
    head, body = await client.say(post("invocation/id-1/response", b"again"))
    assert head.startswith(b"HTTP/1.1 400") and b"InvalidRequestID" in body and len(heard.said) == 2


async def test_one_that_is_given_early_waits_for_the_runtime(served: tuple[RuntimeApi, RecordedCalls, Client]) -> None:
    api, heard, client = served
    api.give(Given("id-1", b"1", 0.0))
    assert not api.begun
    _, body = await client.say(NEXT)
    assert body == b"1" and api.begun and heard.said == []


async def test_chunks_and_single_bytes_are_as_good(served: tuple[RuntimeApi, RecordedCalls, Client]) -> None:
    api, heard, client = served
    api.give(Given("id-1", b"1", 0.0))
    await client.say(NEXT)
    message = (
        b"POST /2018-06-01/runtime/invocation/id-1/response HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
    )
    for place in range(len(message)):
        client.writer.write(message[place : place + 1])
        await client.writer.drain()
    await client.answer()
    assert heard.said == [("answer", "id-1", b"abcdefg", None)]


async def test_errors_carry_their_type(served: tuple[RuntimeApi, RecordedCalls, Client]) -> None:
    api, heard, client = served
    await client.say(post("init/error", b'{"errorType":"A"}', "Lambda-Runtime-Function-Error-Type: Runtime.A"))
    assert heard.said == [("init", b'{"errorType":"A"}', "Runtime.A")]
    api.give(Given("id-1", b"1", 0.0))
    await client.say(NEXT)
    await client.say(post("invocation/id-1/error", b"{}", "Lambda-Runtime-Function-Error-Type: Runtime.B"))
    assert heard.said[-1] == ("answer", "id-1", b"{}", "Runtime.B")


async def test_an_answer_of_six_mebibytes_is_taken_and_one_byte_more_isnt(
    served: tuple[RuntimeApi, RecordedCalls, Client],
) -> None:
    api, heard, client = served
    api.give(Given("id-1", b"1", 0.0))
    await client.say(NEXT)
    await client.say(post("invocation/id-1/response", b"x" * MAX_PAYLOAD_BYTES))
    assert heard.said[-1][:2] == ("answer", "id-1")
    api.give(Given("id-2", b"1", 0.0))
    await client.say(NEXT)
    head, _ = await client.say(post("invocation/id-2/response", b"x" * (MAX_PAYLOAD_BYTES + 1)))
    assert head.startswith(b"HTTP/1.1 413") and heard.said[-1] == ("tooLarge", "id-2")


async def test_what_is_no_call_of_the_api_is_refused(served: tuple[RuntimeApi, RecordedCalls, Client]) -> None:
    _, heard, client = served
    for request in (
        b"GET / HTTP/1.1\r\n\r\n",
        NEXT.replace(b"2018-06-01", b"2019-06-01"),
        post("invocation/x/other", b""),
    ):
        head, _ = await client.say(request)
        assert head.startswith(b"HTTP/1.1 404")
    head, _ = await client.say(post("invocation/none/response", b""))
    assert head.startswith(b"HTTP/1.1 400")
    head, _ = await client.say(b"\x16\x03\x01 nonsense\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400") and await client.reader.read() == b"" and heard.said == []
