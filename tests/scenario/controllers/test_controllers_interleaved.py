"""Whatever happens in whatever order: no node is given more than it has, no VM two places, no address twice."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples
from tests.scenario.controllers_lab import GIB, Lab
from tests.shelf import SHELF

from weft.kinds.allocation import AllocationReport, AllocationSpec, account
from weft.kinds.node import NodeReport
from weft.kinds.parts.workload import WorkloadActions
from weft.objects.envelope import decode_part
from weft.scheduler.table.snapshot import amounts_of

names = st.sampled_from(["a", "b", "c", "d", "e"])
nodes = st.sampled_from(["n1", "n2", "n3"])
strategies = st.sampled_from(["least_loaded", "best_fit", "round_robin", "random"])
actions = st.one_of(
    st.tuples(st.just("create"), names, st.sampled_from([1.0, 2.0, 3.0, 5.0]), strategies),
    st.tuples(st.just("delete"), names),
    st.tuples(st.just("resize"), names, st.sampled_from([1.0, 2.0, 4.0])),
    st.tuples(st.just("stop"), names),
    st.tuples(st.just("start"), names),
    st.tuples(st.just("restart"), names),
    st.tuples(st.just("join"), nodes),
    st.tuples(st.just("cordon"), nodes, st.booleans()),
    st.tuples(st.just("kill controllers")),
    st.tuples(st.just("die"), nodes),
    st.tuples(st.just("grow"), nodes),
)
history = st.lists(st.tuples(actions, st.integers(0, 60)), min_size=3, max_size=18)


@settings(max_examples=examples(100), deadline=None)
@given(history, st.integers(0, 1000))
def test_nothing_is_ever_given_twice(history: list[tuple[tuple[Any, ...], int]], slow: int) -> None:
    with tempfile.TemporaryDirectory(dir=SHELF) as folder:
        asyncio.run(live_through(Path(folder), history, slow))


async def live_through(folder: Path, history: list[tuple[tuple[Any, ...], int]], slow: int) -> None:
    async with Lab(folder, slow=slow) as lab:
        await lab.add_node("n1", cpu=6.0)
        for action, turns in history:
            await act(lab, action)
            for _ in range(turns):
                await asyncio.sleep(0)
                await check(lab)
        for name, node in lab.nodes.items():
            if not node.alive:
                await node.start()
            await act(lab, ("cordon", name, False))
        # In the end whoever fits anywhere is placed.
        await lab.pass_time(40)
        await check(lab)
        await check_nobody_waits_in_vain(lab)


async def act(lab: Lab, action: tuple[Any, ...]) -> None:
    match action:
        case ("create", name, cpu, strategy) if await lab.get(f"/vm/default/{name}") is None:
            await lab.put_vm(name, cpu=cpu, strategy=strategy)
        case ("delete", name):
            await lab.delete(f"/vm/default/{name}")
        case ("resize", name, cpu):
            await lab.change_spec(name, cpu=cpu)
        case ("stop", name):
            await lab.change_spec(name, run="stop")
        case ("start", name):
            await lab.change_spec(name, run="run")
        case ("restart", name) if (vm := await lab.get(f"/vm/default/{name}")) is not None:
            await lab.change_spec(
                name, run="run", restart_generation=decode_part(vm.actions, WorkloadActions).restart_generation + 1
            )
        case ("join", name) if name not in lab.nodes:
            await lab.add_node(name, cpu=6.0)
        case ("cordon", name, flag) if name in lab.nodes:
            await lab.ask(name, "node", None, cordoned=flag)
        case ("kill controllers",):
            await lab.kill_controllers()
            lab.start_controllers()
        case ("die", name) if name in lab.nodes and lab.nodes[name].alive:
            await lab.nodes[name].die()
        case ("grow", name) if name in lab.nodes:
            await lab.nodes[name].write_report(cpu=lab.nodes[name].report.cpu + 1.0)


async def used_and_offered(lab: Lab) -> tuple[Counter[str], dict[str, tuple[int, int, int]]]:
    used: Counter[str] = Counter()
    for spec in await lab.allocations():
        for resource, amount in zip(
            ("cpu", "memory", "disk"), amounts_of(account(spec, AllocationReport())), strict=True
        ):
            used[f"{spec.node_uid} {resource}"] += amount
    offered = {}
    for node in await lab.every("node"):
        report = decode_part(node.report, NodeReport)
        offered[node.uid] = (round(report.cpu * 1000), report.memory, report.disk)
    return used, offered


async def check(lab: Lab) -> None:
    used, offered = await used_and_offered(lab)
    for uid, capacity in offered.items():
        for resource, most in zip(("cpu", "memory", "disk"), capacity, strict=True):
            assert used[f"{uid} {resource}"] <= most, f"{resource} is given twice"
    allocations: list[AllocationSpec] = await lab.allocations()
    assert not [uid for uid, count in Counter(a.workload.uid for a in allocations).items() if count > 1]
    endpoints = await lab.endpoints()
    assert len({(e.network_uid, e.address) for e in endpoints}) == len(endpoints)
    assert len({(e.network_uid, e.mac) for e in endpoints}) == len(endpoints)


async def check_nobody_waits_in_vain(lab: Lab) -> None:
    used, offered = await used_and_offered(lab)
    placed = {a.workload.uid for a in await lab.allocations()}
    most_free = max(capacity[0] - used[f"{uid} cpu"] for uid, capacity in offered.items())
    for vm in await lab.every("vm"):
        spec = decode_part(vm.spec, dict)
        assert vm.deleting_since is None, f"{vm.name} is still not gone"
        if vm.uid not in placed and spec["run"] == "run":
            assert spec["cpu"] * 1000 > most_free, f"{vm.name} waits though there is room"
            condition = vm.condition("Placed")
            assert condition is not None and condition.reason in ("insufficientResources", "noAvailableAgents")


def test_the_check_sees_an_overfilled_node(tmp_path: Path) -> None:
    async def overfill() -> None:
        async with Lab(tmp_path) as lab:
            node = await lab.add_node("n1", cpu=6.0)
            await lab.put_vm("a", cpu=5.0, memory=GIB)
            await lab.until_phase("a", "Running")
            await node.write_report(cpu=4.0)
            await check(lab)

    try:
        asyncio.run(overfill())
    except AssertionError:
        return
    raise AssertionError("it saw nothing")
