"""Orders to BMCs that refuse, lie, die and answer late, and to a controller that is killed in between; time moved by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import msgspec
from tests.scenario.controllers_lab import Lab

from weft.contracts.machine.power import PowerState
from weft.controllers.power.controller import SWITCH_SECONDS
from weft.kinds.node import NodeMarks, NodeReport
from weft.kinds.parts.node.power import BmcAddress, PowerReading, is_off
from weft.objects.envelope import decode_part, merge_part
from weft.objects.errors import Unavailable

T = TypeVar("T")


class Bmc:
    """One that takes every order, and carries it out unless it ``lies``."""

    def __init__(self) -> None:
        self.state: PowerState = "on"
        self.lies = self.is_dead = False
        self.switched: list[str] = []
        self.on_switch: Callable[[], None] = lambda: None
        self.reads = 0

    def read(self) -> PowerState:
        self.reads += 1
        if self.is_dead:
            raise Unavailable("no BMC answers at bmc:443: timed out")
        return self.state

    def switch(self, to: PowerState) -> None:
        self.switched.append(to)
        if not self.lies:
            self.state = to
        self.on_switch()

    def open(self, address: BmcAddress, values: Any) -> Bmc:
        assert (address.host, values) == ("bmc", {"user": "admin", "password": "secret"})
        return self


async def call_here(work: Callable[[], T]) -> T:
    """A thread knows nothing of a clock that is moved by hand."""
    return work()


@asynccontextmanager
async def machine_of_n1(folder: Path) -> AsyncIterator[tuple[Lab, Bmc]]:
    bmc = Bmc()
    with mock.patch("weft.controllers.power.controller.in_thread", call_here):
        async with Lab(folder) as lab:
            await lab.kill_controllers()
            lab.start_controllers("power", unseal=lambda sealed, place: sealed.encode(), open_bmc=bmc.open)
            await lab.put("secret", "bmc", {"sealed": {"user": "admin", "password": "secret"}})
            await lab.add_node("n1")
            spec = {"power": "redfish://bmc", "power_secret": "default/bmc"}
            await lab.change("/node/-/n1", lambda node: setattr(node, "spec", merge_part(node.spec, spec)))
            yield lab, bmc


async def read(lab: Lab) -> PowerReading:
    node = await lab.get("/node/-/n1")
    assert node is not None
    return decode_part(node.marks, NodeMarks).power_reading or PowerReading()


async def order(lab: Lab, to: str, number: int) -> None:
    await lab.ask("n1", "node", None, power_to=to, power_orders=number, power_ordered_at=lab.clock.now())


async def carry_out(lab: Lab, to: str, number: int) -> PowerReading:
    await order(lab, to, number)

    async def done() -> bool:
        return (await read(lab)).orders == number

    await lab.until(done, 300.0)
    return await read(lab)


async def test_power_off_that_is_answered_with_on_is_no_off(tmp_path: Path) -> None:
    async with machine_of_n1(tmp_path) as (lab, bmc):
        bmc.lies = True
        before = lab.clock.elapsed()
        found = await carry_out(lab, "off", 1)
        assert (found.state, found.off_at, found.reason) == ("unknown", None, "notSwitched")
        assert found.message == "the BMC took the order, and still says on after 60 s"
        assert bmc.switched == ["off"] and lab.clock.elapsed() - before >= SWITCH_SECONDS
        bmc.lies = False
        found = await carry_out(lab, "off", 2)
        assert (found.state, found.message) == ("off", "") and found.off_at


async def test_a_bmc_that_died_with_its_node_is_no_off_and_is_asked_again(tmp_path: Path) -> None:
    async with machine_of_n1(tmp_path) as (lab, bmc):
        bmc.is_dead = True
        found = await carry_out(lab, "off", 1)
        assert (found.state, found.off_at, found.reason) == ("unknown", None, "unavailable")
        assert "PowerUnknown" in lab.journal.reasons("n1")
        bmc.is_dead = False
        await lab.pass_time(301.0)
        assert (await read(lab)).state == "on" and bmc.switched == []


async def test_a_bmc_that_says_off_of_a_node_that_is_heard_is_not_believed(tmp_path: Path) -> None:
    """One of another machine, by a wrong address: guests that run would start elsewhere once a heartbeat is late."""
    async with machine_of_n1(tmp_path) as (lab, bmc):

        async def is_believed() -> bool:
            node = await lab.get("/node/-/n1")
            assert node is not None
            contact, found = decode_part(node.report, NodeReport).contact or "c", await read(lab)
            return is_off(msgspec.structs.replace(found, off_contact=contact), contact, "redfish://bmc")

        bmc.state = "off"
        await lab.pass_time(310.0)
        assert (await read(lab)).state == "off" and not await is_believed()
        bmc.state = "on"
        await lab.pass_time(310.0)
        assert (await read(lab)).proved == "redfish://bmc"
        bmc.state = "off"
        assert (await carry_out(lab, "status", 1)).state == "off" and await is_believed()
        await lab.pass_time(30.0)
        assert not await is_believed() and "PowerDoubted" in lab.journal.reasons("n1")
        bmc.state = "on"
        await lab.pass_time(310.0)
        await lab.nodes["n1"].die()
        bmc.state = "off"
        await lab.pass_time(60.0)
        assert await is_believed()


async def test_a_cycle_in_which_the_process_died_goes_on_with_on(tmp_path: Path) -> None:
    async with machine_of_n1(tmp_path) as (lab, bmc):
        await order(lab, "cycle", 1)

        async def is_off() -> bool:
            return (await read(lab)).state == "off"

        bmc.on_switch = lambda: setattr(bmc, "lies", True)  # off, but not on again
        await lab.until(is_off, 60.0)
        await lab.kill_controllers()
        bmc.lies, bmc.on_switch, bmc.switched = False, lambda: None, []
        lab.start_controllers("another", unseal=lambda sealed, place: sealed.encode(), open_bmc=bmc.open)

        async def is_done() -> bool:
            return (await read(lab)).orders == 1

        await lab.until(is_done, 300.0)
        assert bmc.switched == ["on"] and (await read(lab)).state == "on"


async def test_a_machine_that_says_the_same_is_not_written_again(tmp_path: Path) -> None:
    async with machine_of_n1(tmp_path) as (lab, bmc):
        await lab.pass_time(10.0)
        first = await read(lab)
        await lab.pass_time(1000.0)
        assert bmc.reads >= 4 and await read(lab) == first
        await lab.nodes["n1"].die()
        bmc.state = "off"
        await lab.pass_time(120.0)
        assert (await read(lab)).state == "off"  # a silent node's is asked every 15 s
