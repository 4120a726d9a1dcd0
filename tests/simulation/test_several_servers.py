"""Three servers over one etcd under drawn misfortunes: they keep all promises that one keeps, and decide as one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.long import mark_long
from tests.simulation.fabric import Fabric
from tests.simulation.fate import ETCD_CHANCES, SERVERS, SERVERS_KEPT, Fate
from tests.simulation.histories import run_history_of_servers
from tests.simulation.mutations import WRONG_SERVERS, find_violation
from tests.simulation.people import MIB, VMS
from tests.simulation.scenes import await_nodes
from tests.simulation.simulation import Trace, run_simulation, simulate
from tests.simulation.test_returning_node import ask, places, until
from tests.simulation.virtual_loop import Part

FAULTS = 100


def run(seed: int, faults: int = FAULTS, **people: bool) -> Trace:
    weather = SERVERS_KEPT if people and "moves" not in people else SERVERS
    return run_simulation(seed, faults, "etcd", weather, servers=3, **people)


@pytest.mark.parametrize(
    ("people", "seed"),
    [
        ({"moves": True}, 2),
        pytest.param({}, 2, marks=pytest.mark.long),
        *(pytest.param({}, seed, marks=pytest.mark.long) for seed in range(10, 20)),
        *(pytest.param({"moves": True}, seed, marks=pytest.mark.long) for seed in range(20, 30)),
        *(
            pytest.param({what: True}, seed, marks=pytest.mark.long)
            for seed in range(30, 34)
            for what in ("jobs", "converts", "snapshots")
        ),
    ],
)
def test_whatever_befalls_three_servers_no_write_is_lost_or_doubled_and_they_decide_as_one(
    people: dict[str, bool], seed: int
) -> None:
    trace = run(seed, **people)
    assert not trace.violations, f"replay it: test_several_servers.run({seed}, **{people}): {trace}"
    assert trace.fault_count >= FAULTS, trace
    assert all(trace.wishes.get(what) for what in ("counted", "created", "created 409")), trace.wishes


def test_a_leader_that_was_frozen_past_its_lease_commits_nothing_when_it_wakes() -> None:
    assert _freeze_the_leader() == []
    with WRONG_SERVERS["commit_without_the_fence"]():
        broken = _freeze_the_leader()
    assert broken and "while controllers" in broken[0], "it was not noticed"


def _freeze_the_leader() -> list[str]:
    """A VM is made, and whoever leads stands still at some moment of placing it until another one has."""

    async def scene(fabric: Fabric) -> list[str]:
        await fabric.set_up()
        await await_nodes(fabric)
        await asyncio.sleep(5.0)
        for number in range(48):
            leader = await _await_leader(fabric)
            spec = {"image": "tiny", "cpu": 0.25, "memory": 128 * MIB, "networks": []}
            name = f"m{number}"
            await ask(fabric, "POST", VMS, {"kind": "vm", "name": name, "spec": spec})
            await fabric.loop.pass_steps(number)
            leader.freeze()
            await until(lambda name=name: len(places(fabric, name)) > 0 or fabric.broken, "another one decides")
            while fabric.cluster is not None and fabric.cluster.leader in (leader.name, "nobody"):
                await asyncio.sleep(0.1)
            leader.thaw()
            await asyncio.sleep(2.0)
        return fabric.witness.violations

    with simulate(1, Fate(1, 0, {}), "etcd", servers=3) as fabric:
        return fabric.loop.run_until_complete(scene(fabric))


async def _await_leader(fabric: Fabric) -> Part:
    while True:
        for server in fabric.servers:
            if server.controllers is not None and fabric.cluster is not None:
                if server.controllers.name == fabric.cluster.leader:
                    return server.controllers
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    "name",
    mark_long(sorted(WRONG_SERVERS), *sorted(WRONG_SERVERS.keys() - {"send_again_without_a_mark"})),
)
def test_wrong_servers_are_found_out(name: str) -> None:
    with WRONG_SERVERS[name]():
        trace = find_violation(lambda seed: run(seed, 60), range(30))
    assert trace is not None, f"{name} was not noticed"
    print(trace.seed, trace.violations[0])


@pytest.mark.long
def test_the_same_seed_gives_the_same_run_of_three_servers() -> None:
    assert run(6, 60) == run(6, 60)


@pytest.mark.long
def test_every_fault_of_servers_is_met() -> None:
    wanted: set[Any] = {*SERVERS.keys(), *ETCD_CHANCES.keys()} - {"older store restored"}
    missing, seeds = wanted, iter(range(100, 140))
    while missing:
        missing = missing - run_history_of_servers(next(seeds)).faults.keys()
