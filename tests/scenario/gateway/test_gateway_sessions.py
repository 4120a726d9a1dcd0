"""Exec sessions through a real gateway, over TLS, to the real guest agent, whose guest changes its node meanwhile."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from tests.guest_program import Guest
from tests.scenario.agent_lab import NODE_UID, change, make_allocation
from tests.scenario.gateway_lab import Client, GatewayLab

from weft.agent.state.allocation import read_allocation
from weft.agent.stream import server
from weft.contracts.driver.runtime import ExecRequest, ExecSession, GuestFacts, GuestState, SessionMark
from weft.drivers.runtime.qemu.guest_agent.channel import GuestChannel
from weft.gateway.stream import reconnect
from weft.gateway.stream.reconnect import WorkloadLocation
from weft.kinds.allocation import allocation_name
from weft.kinds.fields.allocated_migration import AllocatedMigration
from weft.kinds.parts.convert_verb import describe_departure
from weft.objects.errors import Unavailable
from weft.objects.identity import short_id
from weft.protocol.frames import FrameType

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
OTHER_UID = "22222222-2222-4222-8222-222222222222"
WEB = make_allocation("web")


THERE_UID = "alloc-there"
THERE = msgspec.structs.replace(
    change(WEB, node_uid=OTHER_UID), uid=THERE_UID, name=allocation_name(OTHER_UID, THERE_UID)
)
MOVE = AllocatedMigration(key="k", peer="n2", peer_uid=OTHER_UID, peer_allocation=THERE.name)
GOING = change(WEB, role="source", migration=MOVE)


class Program:
    """A node's runtime with one guest, which is the real agent's program; ``channel`` None: it isn't here."""

    name = "program"

    def __init__(self) -> None:
        self.channel: GuestChannel | None = None
        self.state: GuestState = "starting"

    async def inspect(self, guest_id: str) -> GuestFacts:
        return GuestFacts(guest_id, "uid", "web", 1, self.state, ready=self.channel is not None)

    async def exec(self, guest_id: str, request: ExecRequest, mark: SessionMark | None = None) -> ExecSession:
        if self.channel is None:
            raise Unavailable("not here")
        return await (self.channel.exec(request) if mark is None else self.channel.exec_kept(request, mark))

    async def take(self, guest: Guest) -> None:
        self.channel, self.state = await guest.connect(), "running"

    def lose(self, state: GuestState = "stopped") -> None:
        assert self.channel is not None
        channel, self.channel, self.state = self.channel, None, state
        channel.close()


@pytest.fixture
def guest(agent_program: Path) -> Iterator[Guest]:
    guest = Guest(agent_program)
    yield guest
    guest.end()


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayLab]:
    async with GatewayLab(tmp_path).serving() as lab:
        yield lab


async def begin(gateway: GatewayLab, *argv: str) -> Client:
    return await gateway.connect(gateway.ticket(WEB, "exec", {"argv": list(argv)}))


async def until_says(client: Client, wanted: bytes) -> bytes:
    """Its output up to there."""
    out = bytearray()
    while wanted not in out:
        frame = await client.receive()
        assert frame is not None and frame.type == FrameType.DATA_OUT, frame
        out += frame.payload
    return bytes(out)


async def test_a_session_goes_with_its_guest_back_and_forth(
    gateway: GatewayLab, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node it leaves says where it went, on its way back the server does; both as quickly as they can."""
    monkeypatch.setattr(server, "RESUME_SECONDS", 0.02)
    here, there = Program(), Program()

    async def find_place(claims: dict[str, object]) -> WorkloadLocation:
        return WorkloadLocation(NODE_UID, GOING.name, short_id(GOING.uid))

    gateway.gateway._find_place = find_place
    data = os.urandom(3_000_000)
    await here.take(guest)
    async with gateway.node(NODE_UID, here, [GOING]), gateway.node(OTHER_UID, there, [THERE]):
        client = await begin(gateway, "sh", "-c", "cat; exit 5")

        async def feed() -> None:
            for start in range(0, len(data), 10_000):
                await client.send(FrameType.DATA_IN, data[start : start + 10_000])
                await asyncio.sleep(0.002)
            await client.send(FrameType.END_IN)

        feeding, reading = asyncio.ensure_future(feed()), asyncio.ensure_future(client.rest())
        sides = [here, there]
        for leaving in ("stopped", "running", "stopped", "running", "stopped"):
            await asyncio.sleep(0.1)
            sides[0].lose(leaving)
            await asyncio.sleep(0.02)
            await sides[1].take(guest)
            sides.reverse()
        out, _, end = await reading
        await feeding
        assert out == data, (len(out), end and end.payload)
        assert end is not None and end.json() == {"code": 5}
        client.close()


async def test_the_server_says_where_a_guest_is_when_its_node_does_not(
    gateway: GatewayLab, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "RESUME_SECONDS", 0.02)
    here, there, asked = Program(), Program(), []

    async def find_place(claims: dict[str, object]) -> WorkloadLocation:
        asked.append(claims["allocation"])
        return WorkloadLocation(OTHER_UID, THERE.name, short_id(THERE.uid))

    gateway.gateway._find_place = find_place
    await here.take(guest)
    async with gateway.node(NODE_UID, here, [WEB]), gateway.node(OTHER_UID, there, [THERE]):
        client = await begin(gateway, "sh", "-c", "echo on; read x; echo got $x")
        await until_says(client, b"on\n")
        here.lose("running")
        await there.take(guest)
        await client.send(FrameType.DATA_IN, b"it\n")
        out, _, end = await client.rest()
        assert (out, set(asked)) == (b"got it\n", {WEB.name}) and end is not None and end.json() == {"code": 0}


async def test_it_outlives_its_nodes_agent(gateway: GatewayLab, guest: Guest) -> None:
    runtime = Program()
    await runtime.take(guest)
    async with gateway.node(NODE_UID, runtime, [WEB]):
        client = await begin(gateway, "sh", "-c", "echo $$; read x; echo got $x")
        await until_says(client, b"\n")
    runtime.lose("running")
    await client.send(FrameType.DATA_IN, b"this\n")
    await runtime.take(guest)
    async with gateway.node(NODE_UID, runtime, [WEB]):
        out, _, end = await client.rest()
        assert out == b"got this\n" and end is not None and end.json() == {"code": 0}


async def test_one_that_nobody_has_any_more_ends_with_a_clear_error(
    gateway: GatewayLab, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnect, "FIND_SECONDS", 1.0)
    runtime = Program()
    await runtime.take(guest)
    async with gateway.node(NODE_UID, runtime, [WEB]):
        client = await begin(gateway, "sh", "-c", "echo on; sleep 50")
        await until_says(client, b"on\n")
    _, _, end = await client.rest()
    assert end is not None and end.type == FrameType.ERROR
    assert end.error().token == "streamLost" and "within 1 s" in end.error().message


async def test_a_guest_that_ends_is_told_at_once(gateway: GatewayLab, guest: Guest) -> None:
    runtime = Program()
    await runtime.take(guest)
    async with gateway.node(NODE_UID, runtime, [WEB]):
        client = await begin(gateway, "sh", "-c", "echo on; sleep 50")
        await until_says(client, b"on\n")
        runtime.lose()
        _, _, end = await asyncio.wait_for(client.rest(), 30)
        assert end is not None and end.error().token == "guestEnded"


async def test_a_guest_that_leaves_for_another_cluster_is_told_with_where_it_went(
    gateway: GatewayLab, guest: Guest
) -> None:
    runtime = Program()
    await runtime.take(guest)
    async with gateway.node(NODE_UID, runtime, [WEB]) as known:
        client = await begin(gateway, "sh", "-c", "echo on; sleep 50")
        await until_says(client, b"on\n")
        move = msgspec.structs.replace(MOVE, peer="west/w1", peer_ca="PEM", taken_over=True)
        known[WEB.name] = read_allocation(change(WEB, role="source", migration=move, desired="stop"))
        runtime.lose()
        _, _, end = await asyncio.wait_for(client.rest(), 30)
        assert end is not None and end.error().token == "departed"
        assert end.error().message == "vm/web migrated to cluster west: nothing of it is left here"


async def test_the_server_says_that_a_guest_left_for_another_cluster_while_its_agent_was_away(
    gateway: GatewayLab, guest: Guest
) -> None:
    runtime = Program()
    await runtime.take(guest)
    gateway.gateway._find_place = find_departed
    async with gateway.node(NODE_UID, runtime, [WEB]):
        client = await begin(gateway, "sh", "-c", "echo on; sleep 50")
        await until_says(client, b"on\n")
    async with gateway.node(NODE_UID, runtime, []):
        _, _, end = await asyncio.wait_for(client.rest(), 30)
        assert end is not None and end.error().token == "departed"
        assert end.error().message.startswith("vm/web migrated to cluster west, where it is lab/web")


async def find_departed(claims: dict[str, object]) -> WorkloadLocation:
    raise describe_departure("vm/web", "west/lab/web")


async def test_an_agent_of_the_guest_that_began_anew_is_told(gateway: GatewayLab, agent_program: Path) -> None:
    first, second = Guest(agent_program), Guest(agent_program)
    runtime = Program()
    await runtime.take(first)
    async with gateway.node(NODE_UID, runtime, [WEB]):
        client = await begin(gateway, "sh", "-c", "echo on; sleep 50")
        await until_says(client, b"on\n")
        runtime.lose("running")
        await runtime.take(second)
        _, _, end = await asyncio.wait_for(client.rest(), 30)
        assert end is not None and end.error().token == "sessionLost"
    first.end()
    second.end()


async def test_a_client_that_leaves_ends_its_command_wherever_it_is(gateway: GatewayLab, guest: Guest) -> None:
    here, there = Program(), Program()
    await here.take(guest)
    async with gateway.node(NODE_UID, here, [GOING]), gateway.node(OTHER_UID, there, [THERE]):
        client = await begin(gateway, "sh", "-c", "echo $$; sleep 50")
        pid = int(await until_says(client, b"\n"))
        here.lose()
        client.close()
        await there.take(guest)
        for _ in range(6000):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError("its command lives on")
