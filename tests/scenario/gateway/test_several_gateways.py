"""A node's connections to the gateways of several servers, over real TLS: each is kept, and that of a server that is gone goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tests.scenario.gateway_lab import GatewayLab

from weft.agent.node.enrolment import FILE, Enrolment, keep_gateways, keep_servers, read_enrolment
from weft.agent.stream.connection import Stream
from weft.agent.stream.gateway import REPLACED_SECONDS, Gateway, GatewayConnection
from weft.agent.stream.gateways import MOST, Gateways, read_gateway
from weft.client.tls import make_tls
from weft.contracts.clock import SystemClock
from weft.contracts.durable_file import write_durably
from weft.protocol.claims import Claims

NODE = "node-uid"


class CountingClock(SystemClock):
    """Knows the pauses that were begun."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await super().sleep(seconds)


class Lab:
    """Two gateways of one fabric, and a node."""

    def __init__(self, labs: list[GatewayLab]) -> None:
        self.first, self.second = labs
        self.clock = CountingClock()
        self.named: list[list[str]] = []
        self.dialled: list[str] = []
        self.places = [f"127.0.0.1:{lab.port}" for lab in labs]
        self._tls = make_tls(self.first.node_context(NODE))

    @asynccontextmanager
    async def node(self, given: str, known: list[str] | None = None) -> AsyncIterator[Gateways]:
        gateways = Gateways(given, known or [], self._connect, lambda named: self.named.append(list(named)))
        keeping = asyncio.ensure_future(gateways.keep())
        try:
            yield gateways
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    def _connect(self, gateway: Gateway) -> GatewayConnection:
        async def serve(stream: Stream, claims: Claims) -> None: ...

        self.dialled.append(gateway.place)
        return GatewayConnection(gateway, self._tls, NODE, serve, self.clock)

    def is_connected(self) -> list[bool]:
        return [lab.gateway.nodes == [NODE] for lab in (self.first, self.second)]


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_true():
            await asyncio.sleep(0.01)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with AsyncExitStack() as stack:
        labs = [await stack.enter_async_context(GatewayLab(tmp_path).serving()) for _ in range(2)]
        yield Lab(labs)


async def test_a_node_connects_to_every_gateway_that_servers_name_and_to_those_that_it_knew(lab: Lab) -> None:
    async with lab.node(lab.places[0]) as gateways:
        await until(lambda: lab.is_connected() == [True, False])
        gateways.put([])  # of a server that knows no other
        gateways.put(["nonsense", "10.0.0.1:0", *lab.places])
        await until(lambda: lab.is_connected() == [True, True])
        gateways.put(["nonsense", "10.0.0.1:0", *lab.places])
        assert lab.dialled == lab.places and len(lab.named) == 1
    async with lab.node(lab.places[0], lab.places):  # started again while no server answers
        await until(lambda: lab.is_connected() == [True, True])
    await until(lambda: lab.is_connected() == [False, False])


async def test_a_gateway_that_is_named_no_more_is_left_when_its_connection_ends_and_taken_again_later(lab: Lab) -> None:
    async with lab.node(lab.places[0]) as gateways:
        gateways.put(lab.places)
        await until(lambda: lab.is_connected() == [True, True])
        gateways.put(lab.places[:1])
        await lab.first.restart()
        await until(lambda: lab.is_connected() == [True, True])  # the second one's server may only have lost the store
        await lab.second.gateway.close()
        await until(lambda: set(gateways._kept) == {lab.places[0]})
        gateways.put(lab.places)
        await lab.second.restart()
        await until(lambda: lab.is_connected() == [True, True])


async def test_a_gateway_with_two_addresses_keeps_one_connection_and_the_other_rests(lab: Lab) -> None:
    await lab.first.gateway.listen("127.0.0.2", 0)
    other = f"127.0.0.2:{lab.first.gateway.ports[1]}"
    async with lab.node(lab.places[0]) as gateways:
        await until(lambda: lab.is_connected()[0])
        gateways.put([other, lab.places[1]])
        await until(lambda: REPLACED_SECONDS in lab.clock.pauses and lab.is_connected() == [True, True])
        assert lab.dialled == [lab.places[0], other, lab.places[1]]


async def test_no_more_gateways_are_kept_than_a_fabric_has(lab: Lab) -> None:
    async with lab.node(lab.places[0]) as gateways:
        gateways.put([f"127.0.0.3:{port}" for port in range(1, 200)])
        await until(lambda: len(lab.dialled) == MOST)
    found = read_gateway("[fd00::1]:8444")
    assert found is not None and (found.host, found.port, found.place) == ("fd00::1", 8444, "[fd00::1]:8444")


def test_where_servers_and_gateways_are_is_kept_beside_each_other_and_a_lost_file_ends_nothing(tmp_path: Path) -> None:
    keep_gateways(tmp_path, ["10.0.0.1:8444"])  # no node has joined there
    assert not (tmp_path / FILE).exists()
    enrolment = Enrolment("https://10.0.0.1:8443", "10.0.0.1:8444", "n1", NODE)
    write_durably(
        tmp_path / FILE,
        b'{"server":"https://10.0.0.1:8443","gateway":"10.0.0.1:8444","node":"n1","node_uid":"node-uid"}',
    )
    assert read_enrolment(tmp_path) == enrolment
    keep_gateways(tmp_path, ["10.0.0.1:8444", "10.0.0.2:8444"])
    keep_servers(tmp_path, ["https://10.0.0.2:8443"])
    found = read_enrolment(tmp_path)
    assert (found.gateways, found.others) == (("10.0.0.1:8444", "10.0.0.2:8444"), ("https://10.0.0.2:8443",))
