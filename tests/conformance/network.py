"""What every network driver promises, whatever it is made of. A driver's test subclasses ``NetworkPromises``.

The subclass gives the fixture ``driver`` (on an empty node, underlay 10.99.0.1) and may give ``reborn``, which returns
a new driver on the same node that remembers nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from weft.contracts.driver.network import Endpoint, Forward, NetworkDriver, Port, Segment
from weft.objects.errors import InUse, NotFound

HERE, ELSEWHERE = "10.99.0.1", "10.99.0.2"
SEGMENT = Segment(
    id="promise001",
    name="blue",
    vni=4001,
    cidr="10.20.0.0/24",
    gateway="10.20.0.1",
    mtu=1450,
    domain="blue.weft",
    nat=True,
    endpoints=[
        Endpoint(mac="52:54:00:00:00:0b", address="10.20.0.11", name="a", node_address=HERE),
        Endpoint(mac="52:54:00:00:00:0c", address="10.20.0.12", name="b", node_address=ELSEWHERE),
    ],
)
PORT = Port(id="port000001", segment_id=SEGMENT.id, mac="52:54:00:00:00:0b", address="10.20.0.11", hostname="a")
FORWARDS = [
    Forward(8080, "tcp", SEGMENT.id, "10.20.0.11", 80, HERE),
    Forward(8081, "udp", SEGMENT.id, "10.20.0.12", 53, ELSEWHERE),
]


class NetworkPromises:
    async def test_it_names_itself_and_says_what_it_can_do(self, driver: NetworkDriver) -> None:
        probe = await driver.probe()
        assert probe.driver == driver.name
        assert probe.usable, probe.problems
        assert probe.capabilities

    async def test_what_is_made_is_found_again_by_id(self, driver: NetworkDriver) -> None:
        await driver.ensure_segment(SEGMENT)
        link = await driver.plug(PORT)
        assert len(link) <= 15 and PORT.id in link
        state = await driver.state()
        assert (state.segments, state.ports) == ([SEGMENT.id], [PORT.id])

    async def test_everything_may_be_said_twice(self, driver: NetworkDriver) -> None:
        for _ in range(2):
            await driver.ensure_segment(SEGMENT)
            await driver.ensure_forwards(FORWARDS)
            await driver.ensure_refused([SEGMENT.cidr, "10.30.0.0/16"], ["10.99.0.1/32", "10.99.0.2/31"])
        assert await driver.plug(PORT) == await driver.plug(PORT)
        assert (await driver.state()).ports == [PORT.id]
        for _ in range(2):
            await driver.unplug(PORT.id)
        for _ in range(2):
            await driver.remove_segment(SEGMENT.id)
            await driver.ensure_forwards([])
            await driver.ensure_refused([], [])

    async def test_taking_away_what_never_was_is_fine(self, driver: NetworkDriver) -> None:
        await driver.unplug("nobody")
        await driver.remove_segment("nothing")
        state = await driver.state()
        assert (state.segments, state.ports) == ([], [])

    async def test_a_port_without_its_segment_is_refused(self, driver: NetworkDriver) -> None:
        with pytest.raises(NotFound, match=SEGMENT.id):
            await driver.plug(PORT)
        assert (await driver.state()).ports == []

    async def test_a_segment_with_a_port_is_not_taken_away(self, driver: NetworkDriver) -> None:
        await driver.ensure_segment(SEGMENT)
        await driver.plug(PORT)
        with pytest.raises(InUse):
            await driver.remove_segment(SEGMENT.id)
        assert (await driver.state()).segments == [SEGMENT.id]

    async def test_a_vni_belongs_to_one_segment(self, driver: NetworkDriver) -> None:
        await driver.ensure_segment(SEGMENT)
        with pytest.raises(InUse, match="4001"):
            await driver.ensure_segment(msgspec.structs.replace(SEGMENT, id="promise002", name="green"))

    async def test_forwards_may_come_before_their_segment(self, driver: NetworkDriver) -> None:
        await driver.ensure_forwards(FORWARDS)
        await driver.ensure_segment(SEGMENT)
        assert (await driver.state()).segments == [SEGMENT.id]

    async def test_an_intact_node_needs_no_healing(self, driver: NetworkDriver) -> None:
        await driver.ensure_segment(SEGMENT)
        await driver.plug(PORT)
        assert await driver.heal() == []

    async def test_a_new_driver_finds_what_the_last_one_made(
        self, driver: NetworkDriver, reborn: Callable[[], NetworkDriver]
    ) -> None:
        await driver.ensure_segment(SEGMENT)
        await driver.plug(PORT)
        await driver.close()
        later = reborn()
        assert (await later.state()).ports == [PORT.id]
        assert await later.heal() == []
        await later.unplug(PORT.id)
        await later.remove_segment(SEGMENT.id)
        assert (await later.state()).segments == []
