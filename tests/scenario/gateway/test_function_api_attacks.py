"""The function gateways against strangers: whatever comes ends in time, within bounds, and costs the others nothing."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop
from tests.scenario.function_api_lab import ApiLab, api_lab

from weft.protocol.invocations import InvocationAnswer
from weft.serving import protocol, server


@pytest.fixture(scope="module")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()  # the gateway's own


@pytest.fixture
async def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ApiLab]:
    monkeypatch.setattr(server, "CHECK_SECONDS", 0.05)
    async with api_lab(tmp_path) as lab:
        await lab.lab.agent("n1")
        await lab.lab.function("web", http="open")
        yield lab


POST = b"POST /url/default/web/ HTTP/1.1\r\nHost: x\r\n"
BODY = 6 * 2**20


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA b: c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 403),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 400_000 + b"\r\n\r\n", 431),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 400_000, 431),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * 400_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 300 + b"\r\n", 431),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (POST + b"Content-Length: %d\r\n\r\n" % (BODY + 1), 413),
        (POST + b"Content-Length: 99999999999999999999999\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"100000\r\n" + b"x" * 2**20 + b"\r\n") * 7, 413),
    ],
)
async def test_what_is_no_request_is_refused_and_the_connection_ended(
    api: ApiLab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, said: bytes, status: int
) -> None:
    monkeypatch.setattr(protocol, "LINGER_SECONDS", 0.2)
    with caplog.at_level(logging.ERROR):
        answer = await api.raw(said)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status and b"connection: close" in head.lower() and json.loads(body)["Message"]
    assert caplog.records == [] and api.lab.agents["n1"].invoked == []
    await api.lab.until(lambda: not api.server.connections and api.server.bodies.total == 0)


async def test_random_bytes_end_in_time_and_are_no_defect(api: ApiLab, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        for _ in range(30):
            await api.raw(os.urandom(3000) + b"\r\n\r\n")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("IDLE_SECONDS", b""),
        ("HEAD_SECONDS", b"GET / HTTP/1.1\r\nX: "),
        ("BODY_SECONDS", POST + b"Content-Length: 100\r\n\r\nabc"),
    ],
)
async def test_who_does_not_go_on_is_ended(
    api: ApiLab, monkeypatch: pytest.MonkeyPatch, name: str, said: bytes
) -> None:
    monkeypatch.setattr(protocol, name, 0.2)
    reader, writer = await api.dial()
    writer.write(said)
    assert await asyncio.wait_for(reader.read(-1), 60) == b""
    writer.transport.abort()


async def test_a_body_that_trickles_is_ended_though_it_never_stops(
    api: ApiLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "BODY_SECONDS", 0.5)
    reader, writer = await api.dial()
    writer.write(POST + b"Content-Length: 1000\r\n\r\n")
    ended = asyncio.ensure_future(reader.read(-1))
    for _ in range(40):
        if ended.done():
            break
        writer.write(b"x")
        await asyncio.sleep(0.05)
    assert ended.done() and (isinstance(ended.exception(), ConnectionError) or ended.result() == b"")
    writer.transport.abort()


async def test_more_connections_than_may_be_are_turned_away_and_the_others_served(
    api: ApiLab,
) -> None:
    api.server.callers.whole = 3
    kept = [await api.dial() for _ in range(3)]
    await api.lab.until(lambda: len(api.server.connections) == 3)
    with pytest.raises(OSError):  # before its handshake
        await api.dial()
    kept[0][1].write(b"GET /url/default/web/ HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await kept[0][0].readline()).startswith(b"HTTP/1.1 200")
    for _, one in kept:
        one.transport.abort()


async def test_bodies_under_way_are_bounded_together(api: ApiLab) -> None:
    api.server.bodies.whole = 1_000_000
    holding = [await api.dial() for _ in range(3)]
    for _, writer in holding[:2]:
        writer.write(POST + b"Content-Length: 600000\r\n\r\n" + b"x" * 450_000)
    await api.lab.until(lambda: api.server.bodies.total == 900_000)
    reader, writer = holding[2]
    writer.write(POST + b"Content-Length: 600000\r\n\r\n" + b"x" * 200_000)
    assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"HTTP/1.1 503")
    for _, one in holding:
        one.transport.abort()
    await api.lab.until(lambda: api.server.bodies.total == 0)


async def upload(api: ApiLab, source: str, size: int, sent: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A body of ``size`` bytes that begins to come from the address ``source``, and stops."""
    reader, writer = await api.dial(source)
    writer.write(POST + b"Content-Length: %d\r\n\r\n" % size + b"x" * sent)
    return reader, writer


async def test_one_address_that_uploads_slowly_costs_the_others_nothing(api: ApiLab) -> None:
    bodies = api.server.bodies
    bodies.whole, bodies.part = 4_000_000, 1_000_000
    slow = [await upload(api, "127.0.0.9", 600_000, 450_000) for _ in range(2)]
    await api.lab.until(lambda: bodies.total == 900_000)
    reader, writer = await upload(api, "127.0.0.9", 600_000, 200_000)  # more than its part
    assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"HTTP/1.1 503")
    other, asking = await upload(api, "127.0.0.1", 900_000, 900_000)
    assert (await asyncio.wait_for(other.readline(), 60)).startswith(b"HTTP/1.1 200")
    for _, one in [*slow, (reader, writer), (other, asking)]:
        one.transport.abort()
    await api.lab.until(lambda: bodies.total == 0 and not bodies.held)


async def test_when_all_is_taken_who_has_most_gives_way_and_not_who_comes(api: ApiLab) -> None:
    bodies = api.server.bodies
    bodies.whole, bodies.part = 2_000_000, 1_000_000
    slow = [await upload(api, f"127.0.0.{n}", 960_000, 950_000 - n) for n in (8, 9)]
    await api.lab.until(lambda: bodies.total == 1_900_000 - 17)
    other, asking = await upload(api, "127.0.0.1", 300_000, 300_000)
    assert (await asyncio.wait_for(other.readline(), 60)).startswith(b"HTTP/1.1 200")
    assert (await asyncio.wait_for(slow[0][0].readline(), 60)).startswith(b"HTTP/1.1 503")
    slow[1][1].write(b"x" * 10_009)  # the others go on
    assert (await asyncio.wait_for(slow[1][0].readline(), 60)).startswith(b"HTTP/1.1 200")
    for _, one in [*slow, (other, asking)]:
        one.transport.abort()
    await api.lab.until(lambda: bodies.total == 0 and not bodies.held)


async def test_one_address_has_no_more_than_its_part_of_the_connections(api: ApiLab) -> None:
    callers = api.server.callers
    callers.part = 2
    kept = [await api.dial("127.0.0.9") for _ in range(2)]
    await api.lab.until(lambda: callers.total == 2)
    for source, served in (("127.0.0.9", False), ("127.0.0.1", True)):
        try:
            reader, writer = await api.dial(source)
            writer.write(b"GET /url/default/web/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            said = await asyncio.wait_for(reader.read(-1), 60)
        except OSError:
            said = b""
        assert said.startswith(b"HTTP/1.1 200") == served
    for _, one in kept:
        one.transport.abort()
    await api.lab.until(lambda: not callers.held)


async def test_one_project_holds_no_more_than_its_part_of_what_is_under_way(api: ApiLab) -> None:
    api.lab.agents["n1"].says = lambda agent, invoke: None
    held = api.lab.functions.dispatcher._held
    held.part = 1_000_000
    waiting = await upload(api, "127.0.0.1", 600_000, 600_000)
    await api.lab.until(lambda: bool(api.lab.agents["n1"].invoked))
    reader, writer = await upload(api, "127.0.0.1", 600_000, 600_000)
    assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"HTTP/1.1 429")
    assert held.has_capacity("other", 900_000)
    for _, one in [waiting, (reader, writer)]:
        one.transport.abort()


async def test_requests_sent_ahead_are_answered_in_order(api: ApiLab) -> None:
    reader, writer = await api.dial()
    for n in range(10):
        writer.write(POST + b"Content-Length: 1\r\n\r\n%d" % n)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answers = (await asyncio.wait_for(reader.read(-1), 60)).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200"] * 10 + [b"403"]
    bodies = [json.loads(answer.partition(b"\r\n\r\n")[2])["body"] for answer in answers[:10]]
    assert bodies == [str(n) for n in range(10)]
    writer.transport.abort()


async def test_a_caller_that_goes_leaves_nothing_behind(api: ApiLab, caplog: pytest.LogCaptureFixture) -> None:
    agent = api.lab.agents["n1"]
    agent.says = lambda agent, invoke: None
    _, writer = await api.dial()
    writer.write(2 * (POST + b"Content-Length: 3\r\n\r\nabc"))
    await api.lab.until(lambda: bool(agent.invoked) and api.server.bodies.total == 6)
    writer.transport.abort()
    await api.lab.until(lambda: not api.server.connections)
    assert api.server.bodies.total == 0
    with caplog.at_level(logging.ERROR):
        agent.say(InvocationAnswer(agent.invoked[0].id, b"1"))
        await api.lab.until(lambda: not api.server.tasks)
    assert caplog.records == [] and len(agent.invoked) == 1


async def test_a_large_body_is_asked_for_and_comes(api: ApiLab) -> None:
    reader, writer = await api.dial()
    writer.write(POST + b"Expect: 100-continue\r\nContent-Length: 3000000\r\n\r\n")
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).startswith(b"HTTP/1.1 100")
    writer.write(b"x" * 3_000_000)
    assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"HTTP/1.1 200")
    writer.transport.abort()
