"""Which of a node's drivers is asked for an allocation, also after the node was told another."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from test_container_plan import wanted

from weft.agent.network.plan import ports_of
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.driver.runtime import GuestFacts, RuntimeProbe


class Driver:
    def __init__(self, name: str, *held: str) -> None:
        self.name, self.held = name, held

    async def recover(self) -> list[GuestFacts]:
        return [GuestFacts(id, "", "", 1, "running") for id in self.held]

    async def probe(self) -> RuntimeProbe:
        return RuntimeProbe(self.name, True, "", "", [], [], [])


class Taking(Driver):
    takes_namespace: Literal[True] = True


def make(offered: Any, other: Any) -> Runtimes:
    plain = Driver("oci")
    return Runtimes({"vm": Driver("qemu"), "container": plain, "container/vm": offered}, {"container/vm": other})


@pytest.mark.parametrize("swapped", [False, True])
async def test_what_an_earlier_runtime_holds_stays_with_it_and_new_ones_go_to_the_other(swapped: bool) -> None:
    isolated = wanted(isolation="vm")
    kinds = (Taking, Driver) if swapped else (Driver, Taking)
    offered, other = kinds[0]("new"), kinds[1]("old", isolated.id)
    runtimes = make(offered, other)
    assert runtimes.find(isolated) is offered  # nobody was found yet
    assert [facts.id for facts in await runtimes.recover()] == [isolated.id]
    assert runtimes.find(isolated) is other and runtimes.of(isolated) is other
    assert runtimes.kind_of(isolated.id) == "container"
    assert [probe.driver for probe in await runtimes.probe()] == ["qemu", "oci", "new"]  # no more is offered by it
    assert runtimes.in_namespace(isolated) is isinstance(other, Taking)
    fresh = make(offered, Driver("old"))
    await fresh.recover()
    assert fresh.find(isolated) is offered


def test_nics_lie_in_a_namespace_where_the_runtime_finds_them_there() -> None:
    isolated, plain = wanted(isolation="vm"), wanted()
    runtimes = make(Taking("kata"), Driver("microvm"))
    for one in (isolated, plain):
        [port] = ports_of(one, in_namespace=runtimes.in_namespace(one))
        assert port.inside is not None and port.inside.device == "eth0"
    assert not make(Driver("microvm"), Taking("kata")).in_namespace(isolated)
