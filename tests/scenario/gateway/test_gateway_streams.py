"""Exec, console and logs through a real gateway with real TLS, to guests of the fake runtime."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.agent_lab import NODE_UID, Lab, make_allocation
from tests.scenario.gateway_lab import ConsoleRuntime, GatewayLab

from weft.agent.state.allocation import read_allocation
from weft.agent.stream.connection import Stream
from weft.agent.stream.server import Streams
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import SystemClock
from weft.contracts.driver.runtime import BootDisk, GuestPlan
from weft.kinds.fields.lease import AllocatedLease
from weft.objects.errors import (
    Forbidden,
    IllegalTransition,
    InUse,
    NotAuthenticated,
    NotFound,
    Unavailable,
    WeftError,
)
from weft.objects.identity import short_id
from weft.protocol.claims import Claims
from weft.protocol.frames import HEADER, FrameType, encode_hello, receive_frame

WEB = make_allocation("web")
WEB_ID = short_id(WEB.uid)


def plan_guest(has_agent: bool = True) -> GuestPlan:
    return GuestPlan(
        short_id(WEB.uid), WEB.uid, "web", 1, "q35", 1, 1, 1 << 28, BootDisk(), [], [], has_agent=has_agent
    )


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayLab]:
    async with GatewayLab(tmp_path).serving() as lab:
        yield lab


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[ConsoleRuntime]:
    runtime = ConsoleRuntime(tmp_path, Lab(tmp_path / "node").host)
    yield runtime
    await runtime.close()


async def refused(client: object) -> WeftError:
    frame = (await client.rest())[2]  # type: ignore[attr-defined]
    assert frame is not None and frame.type == FrameType.ERROR, frame
    return frame.error()


async def test_a_command_runs_and_its_output_and_exit_code_come_back(
    gateway: GatewayLab, runtime: ConsoleRuntime
) -> None:
    await runtime.start(plan_guest())
    async with gateway.node(NODE_UID, runtime, [WEB]):
        out, err, end = await gateway.run(WEB, "echo", "a b", "c")
        assert (out, err) == (b"a b c\n", b"") and end is not None and end.json() == {"code": 0}
        out, err, end = await gateway.run(WEB, "nonesuch")
        assert out == b"" and b"nonesuch" in err and end is not None and end.json() == {"code": 127}


async def test_ten_megabytes_go_through_unchanged_four_at_once(gateway: GatewayLab, runtime: ConsoleRuntime) -> None:
    await runtime.start(plan_guest())
    data = os.urandom(10_000_000)
    async with gateway.node(NODE_UID, runtime, [WEB]):
        results = await asyncio.gather(*(gateway.run(WEB, "cat", stdin=data) for _ in range(4)))
        assert all(out == data for out, _, _ in results)


async def test_a_command_that_leaves_its_input_unread_ends_properly_in_the_middle_of_a_frame(
    gateway: GatewayLab, runtime: ConsoleRuntime
) -> None:
    """Neither side may hang up on what is still on its way to it: the exit code would be lost to the reset."""
    await runtime.start(plan_guest())
    async with gateway.node(NODE_UID, runtime, [WEB]):
        client = await gateway.connect(gateway.ticket(WEB, "exec", {"argv": ["echo"]}))
        client.writer.write(HEADER.pack(FrameType.DATA_IN, 60_000) + b"x" * 1000)
        end = (await client.rest())[2]
        assert end is not None and end.json() == {"code": 0}
        client.writer.write(bytes(59_000))
        await client.send(FrameType.DATA_IN, bytes(8_000_000))
        client.close()


async def test_the_agent_hears_a_client_out_whose_command_has_ended(runtime: ConsoleRuntime, tmp_path: Path) -> None:
    await runtime.start(plan_guest())
    wanted = read_allocation(WEB)
    streams = Streams(
        Runtimes({"vm": runtime}), GatewayLab(tmp_path).network, lambda _: wanted, NODE_UID, SystemClock()
    )
    claims = Claims(NODE_UID, "exec", allocation=wanted.name, guest_id=wanted.id, input={"argv": ["echo"]})

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await streams.serve(Stream(reader, writer), claims)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(HEADER.pack(FrameType.DATA_IN, 60_000) + b"x" * 1000)
        while (frame := await receive_frame(reader)) is not None and frame.type != FrameType.EXIT:
            pass
        assert frame is not None
        writer.write(b"x" * 8_000_000)
        await writer.drain()
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()


async def test_exec_waits_for_a_guest_that_still_boots(gateway: GatewayLab, runtime: ConsoleRuntime) -> None:
    runtime.orders.boot_seconds = 0.5
    await runtime.start(plan_guest())
    async with gateway.node(NODE_UID, runtime, [WEB]):
        assert (await gateway.run(WEB, "true"))[2] is not None


async def test_a_ticket_from_before_reaches_no_guest_before_its_lease_begins(
    gateway: GatewayLab, runtime: ConsoleRuntime
) -> None:
    await runtime.start(plan_guest())
    start = gateway.clock.now() + 600
    lease = AllocatedLease(mode="reservation", start=start, end=start + 600, prepare_at=start - 600)
    early = make_allocation("web", lease=lease)
    early.uid, early.name = WEB.uid, WEB.name
    inputs: dict[str, dict[str, Any]] = {"exec": {"argv": ["echo"]}, "forward": {"port": 80}}
    async with gateway.node(NODE_UID, runtime, [early]):
        for verb in ("exec", "console", "forward", "screen"):
            client = await gateway.connect(gateway.ticket(early, verb, inputs.get(verb)))
            end = (await client.rest())[2]
            assert end is not None and end.type == FrameType.ERROR and end.json()["reason"] == "leaseWaits", verb
            client.close()


async def test_exec_in_a_guest_without_an_agent_says_so_at_once(gateway: GatewayLab, runtime: ConsoleRuntime) -> None:
    await runtime.start(plan_guest(has_agent=False))
    async with gateway.node(NODE_UID, runtime, [WEB]):
        frame = (await gateway.run(WEB, "true"))[2]
        assert frame is not None and frame.error().token == "noGuestAgent"


async def test_exec_in_a_guest_that_is_to_be_stopped_is_refused(gateway: GatewayLab, runtime: ConsoleRuntime) -> None:
    async with gateway.node(NODE_UID, runtime, [stopped := make_allocation("web", desired="stop")]):
        frame = (await gateway.run(stopped, "true"))[2]
        assert frame is not None and isinstance(frame.error(), IllegalTransition)


async def test_a_client_that_hangs_up_ends_its_command_only(
    gateway: GatewayLab, runtime: ConsoleRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.gateway.stream.exec.GOODBYE_SECONDS", 600.0)  # nobody waits for its patience to end
    await runtime.start(plan_guest())
    async with gateway.node(NODE_UID, runtime, [WEB]):
        stays = await gateway.connect(gateway.ticket(WEB, "exec", {"argv": ["cat"]}))
        goes = await gateway.connect(gateway.ticket(WEB, "exec", {"argv": ["cat"]}))
        for client in (stays, goes):
            await client.send(FrameType.DATA_IN, b"hello")
            frame = await client.receive()
            assert frame is not None and frame.payload == b"hello"
        goes.close()
        for _ in range(6000):
            sessions = [session for _, session in runtime._sessions if not session.over]
            if len(sessions) == 1:
                break
            await asyncio.sleep(0.01)
        assert len(sessions) == 1
        await stays.send(FrameType.DATA_IN, b"still")
        frame = await stays.receive()
        assert frame is not None and frame.payload == b"still"
        stays.close()


async def test_a_lost_agent_is_told_to_the_client(gateway: GatewayLab, runtime: ConsoleRuntime) -> None:
    await runtime.start(plan_guest())
    async with gateway.node(NODE_UID, runtime, [WEB]):
        client = await gateway.connect(gateway.ticket(WEB, "exec", {"argv": ["cat"]}))
        await client.send(FrameType.DATA_IN, b"x")
        assert await client.receive() is not None
    assert (await refused(client)).token == "streamLost"
    facts = await runtime.inspect(short_id(WEB.uid))
    assert facts.state == "running"


async def test_after_a_restart_of_the_gateway_agents_come_back_by_themselves(
    gateway: GatewayLab, runtime: ConsoleRuntime
) -> None:
    await runtime.start(plan_guest())
    async with gateway.node(NODE_UID, runtime, [WEB]):
        client = await gateway.connect(gateway.ticket(WEB, "exec", {"argv": ["cat"]}))
        await client.send(FrameType.DATA_IN, b"x")
        assert await client.receive() is not None
        await gateway.restart()
        client.close()
        await gateway.until_connected(NODE_UID)
        assert (await gateway.run(WEB, "echo", "again"))[0] == b"again\n"


async def test_a_console_shows_what_was_printed_and_carries_both_ways(
    gateway: GatewayLab, runtime: ConsoleRuntime
) -> None:
    runtime.print(WEB_ID, b"booting\nlogin: ")

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line.upper())
        writer.close()

    server = await asyncio.start_unix_server(shout, runtime.console_socket(WEB_ID))
    async with server, gateway.node(NODE_UID, runtime, [WEB]):
        first = await gateway.connect(gateway.ticket(WEB, "console"))
        frame = await first.receive()
        assert frame is not None and frame.payload == b"booting\nlogin: "
        second = await gateway.connect(gateway.ticket(WEB, "console", subject="bob"))
        problem = await refused(second)
        assert isinstance(problem, InUse) and "ann" in problem.message
        await first.send(FrameType.DATA_IN, b"root\n")
        frame = await first.receive()
        assert frame is not None and frame.payload == b"ROOT\n"
        first.close()
        for _ in range(6000):
            third = await gateway.connect(gateway.ticket(WEB, "console"))
            frame = await third.receive()
            third.close()
            if frame is not None and frame.type == FrameType.DATA_OUT:
                break
            await asyncio.sleep(0.01)
        assert frame is not None and frame.type == FrameType.DATA_OUT


async def test_a_console_of_a_guest_that_doesnt_run_is_refused(gateway: GatewayLab, runtime: ConsoleRuntime) -> None:
    async with gateway.node(NODE_UID, runtime, [WEB]):
        client = await gateway.connect(gateway.ticket(WEB, "console"))
        assert isinstance(await refused(client), Unavailable)


PRINTED = b"one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("tail", "seen"), [(-1, PRINTED), (2, b"two\nthree\n"), (1, b"three\n"), (0, b""), (9, PRINTED)]
)
async def test_logs_begin_at_a_line(gateway: GatewayLab, runtime: ConsoleRuntime, tail: int, seen: bytes) -> None:
    runtime.print(WEB_ID, PRINTED)
    async with gateway.node(NODE_UID, runtime, [WEB]):
        client = await gateway.connect(gateway.ticket(WEB, "logs", {"tail": tail}))
        out, _, end = await client.rest()
        assert out == seen and end is not None and end.type == FrameType.EXIT


async def test_logs_follow_and_begin_anew_with_the_file(gateway: GatewayLab, runtime: ConsoleRuntime) -> None:
    log = Path(runtime.console_log(WEB_ID))
    log.write_bytes(b"one\n")
    async with gateway.node(NODE_UID, runtime, [WEB]):
        client = await gateway.connect(gateway.ticket(WEB, "logs", {"tail": 1, "follow": True}))
        for text in (b"one\n", b"two\n"):
            frame = await client.receive()
            assert frame is not None and frame.payload == text
            if text == b"one\n":
                with log.open("ab") as file:
                    file.write(b"two\n")
        log.write_bytes(b"new\n")
        frame = await client.receive()
        assert frame is not None and frame.payload == b"new\n"
        client.close()


async def test_a_wrong_stale_or_used_ticket_opens_nothing(gateway: GatewayLab, runtime: ConsoleRuntime) -> None:
    await runtime.start(plan_guest())
    async with gateway.node(NODE_UID, runtime, [WEB]):
        good = gateway.ticket(WEB, "exec", {"argv": ["true"]})
        forged = good[:-4] + ("aaaa" if good[-4:] != "aaaa" else "bbbb")
        stale = gateway.ticket(WEB, "exec", {"argv": ["true"]}, expires=1.0)
        for ticket in (forged, stale, "rubbish", ""):
            assert isinstance(await refused(await gateway.connect(ticket)), NotAuthenticated)
        first = await gateway.connect(good)
        assert (await first.rest())[2] is not None
        body, _, mac = good.partition(".")
        for again in (
            good,
            f"{good}=",
            f"{good[:-1]}{chr(ord(good[-1]) + 1)}",
            f"{body}.{mac[:9]}..{mac[9:]}",
            f"{good}\n",
        ):
            assert isinstance(await refused(await gateway.connect(again)), NotAuthenticated), again


async def test_a_client_that_comes_while_the_agent_restarts_is_served_when_it_is_back(
    gateway: GatewayLab, runtime: ConsoleRuntime
) -> None:
    await runtime.start(plan_guest())
    waiting = asyncio.ensure_future(gateway.run(WEB, "echo", "patience"))
    await asyncio.sleep(0.1)
    async with gateway.node(NODE_UID, runtime, [WEB]):
        assert (await waiting)[0] == b"patience\n"


async def test_a_ticket_for_a_guest_that_is_gone_or_a_node_that_is_away_says_so(
    gateway: GatewayLab, runtime: ConsoleRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.gateway.gateway.RECONNECT_SECONDS", 0.1)
    problem = await refused(await gateway.connect(gateway.ticket(WEB, "logs")))
    assert problem.token == "agentServiceUnavailable"
    async with gateway.node(NODE_UID, runtime, []):
        assert isinstance(await refused(await gateway.connect(gateway.ticket(WEB, "logs"))), NotFound)


async def test_only_a_node_with_its_own_certificate_can_pose_as_an_agent(gateway: GatewayLab) -> None:
    stranger = await gateway.dial()
    stranger.writer.write(encode_hello(role="agent", node_uid=NODE_UID))
    assert isinstance(await refused(stranger), NotAuthenticated)
    other = await gateway.dial(gateway.node_context("node-uid-2"))
    other.writer.write(encode_hello(role="agent", node_uid=NODE_UID))
    assert isinstance(await refused(other), Forbidden)
    thief = await gateway.dial(gateway.node_context("node-uid-2"))
    thief.writer.write(encode_hello(role="stream", stream="0" * 32))
    assert isinstance(await refused(thief), Forbidden)
    assert gateway.gateway.nodes == []


async def test_a_client_may_not_send_what_only_an_agent_may(
    gateway: GatewayLab, runtime: ConsoleRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "weft.gateway.stream.exec.GOODBYE_SECONDS", 600.0
    )  # it is told so at once, not when patience ends
    await runtime.start(plan_guest())
    async with gateway.node(NODE_UID, runtime, [WEB]):
        client = await gateway.connect(gateway.ticket(WEB, "exec", {"argv": ["cat"]}))
        await client.send(FrameType.EXIT, b"{}")
        assert (await refused(client)).token == "invalidInput"
        huge = await gateway.connect(gateway.ticket(WEB, "exec", {"argv": ["cat"]}))
        huge.writer.write(b"\x01\xff\xff\xff\xff")
        assert (await refused(huge)).token == "tooLarge"


async def test_each_stream_leaves_one_audit_line(
    gateway: GatewayLab, runtime: ConsoleRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="weft.audit")
    await runtime.start(plan_guest())
    async with gateway.node(NODE_UID, runtime, [WEB]):
        await gateway.run(WEB, "cat", stdin=b"12345")
        for _ in range(6000):
            if caplog.records:
                break
            await asyncio.sleep(0.01)
    lines = [r.getMessage() for r in caplog.records if r.name == "weft.audit"]
    assert len(lines) == 1
    assert "subject=ann" in lines[0] and "verb=exec" in lines[0] and "result=done" in lines[0] and "in=5" in lines[0]


async def test_a_command_at_a_node_that_does_not_dial_is_refused_and_read_by_nobody_after_that(
    gateway: GatewayLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.gateway.gateway.DIAL_SECONDS", 0.2)
    agent = await gateway.dial(gateway.node_context(NODE_UID))
    agent.writer.write(encode_hello(role="agent", node_uid=NODE_UID, keeps_sessions=True))
    await gateway.until_connected(NODE_UID)
    others = set(gateway.gateway._tasks)
    client = await gateway.connect(gateway.ticket(WEB, "exec", {"argv": ["true"]}))
    while not (serving := set(gateway.gateway._tasks) - others):
        await asyncio.sleep(0.001)
    problem = await refused(client)
    assert problem.token == "agentServiceUnavailable" and "did not answer" in problem.message
    client.close()
    await asyncio.gather(*serving)
    agent.close()
