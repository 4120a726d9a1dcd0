"""Short histories, each of which one mistake can't live through: what is left that should not be, or is broken, in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

from tests.simulation.fabric import Fabric
from tests.simulation.fate import Fate
from tests.simulation.node import Node
from tests.simulation.people import MIB, VMS, VOLUMES
from tests.simulation.promises import find_unmet
from tests.simulation.simulation import simulate
from tests.simulation.test_returning_node import ask, phase, places, until
from weft.kinds.node import NodeStatus
from weft.objects.envelope import decode_part

Scene = Callable[[Fabric], Awaitable[None]]


def play(scene: Scene) -> list[str]:
    """What broke in ``scene``, or is not as people wished two minutes after it."""

    async def run(fabric: Fabric) -> list[str]:
        await fabric.set_up()
        await await_nodes(fabric)
        await asyncio.sleep(5.0)  # and have said which history of the store they know
        await scene(fabric)
        for _ in range(240):
            if fabric.broken or not find_unmet(fabric):
                break
            await asyncio.sleep(0.5)
        return fabric.witness.violations or find_unmet(fabric)

    with simulate(1, Fate(1, 0, {})) as fabric:
        return fabric.loop.run_until_complete(run(fabric))


async def await_nodes(fabric: Fabric) -> None:
    await until(lambda: {_node_phase(fabric, node) for node in fabric.nodes} == {"Ready"}, "all nodes are there")


async def four_want_the_room_of_three(fabric: Fabric) -> None:
    for number in range(4):
        await ask(fabric, "POST", VMS, {"kind": "vm", "name": f"big{number}", "spec": _spec(memory=2048 * MIB)})
        await asyncio.sleep(5.0)
        fabric.server.kill_controllers()  # what they know of rooms they read anew
        fabric.server.start_controllers()
    await asyncio.sleep(20.0)


async def the_power_goes_and_another_process_has_the_guest_s_pid(fabric: Fabric) -> None:
    fabric.processes._draw = mock.Mock(random=lambda: 0.0)  # a pid is used again at once
    node = await _run(fabric)
    node.lose_power()
    node.start()
    await asyncio.sleep(10.0)


async def a_vm_is_placed_anew_after_its_node_was_given_up(fabric: Fabric) -> None:
    node = await _run(fabric)
    fabric.fate.cut_off.add(node.name)
    await until(lambda: _node_phase(fabric, node) == "NotReady", "it counts as lost")
    node.lose_power()
    await ask(fabric, "POST", f"{VMS}/v0:stop", {})
    fabric.witness.dark.add(node.uid)  # so people say
    await ask(fabric, "DELETE", f"/v1/nodes/{node.name}?force=1")
    await until(
        lambda: phase(fabric, "v0") in ("Pending", "Stopped") and not places(fabric, "v0"), "nobody knows of its place"
    )
    await asyncio.sleep(5.0)
    started = await ask(fabric, "POST", f"{VMS}/v0:start", {})
    assert fabric.people[0].wanted is not None
    fabric.people[0].wanted |= {"spec": started["spec"], "actions": started["actions"]}
    await until(lambda: places(fabric, "v0") or fabric.broken, "it is placed elsewhere")
    fabric.witness.dark.clear()
    fabric.fate.cut_off.discard(node.name)
    fabric.removals += 1
    node.start()


async def a_store_comes_back_that_knows_of_no_place_and_its_node_is_silent(fabric: Fabric) -> None:
    fabric.server.kill_controllers()
    await _make(fabric)
    await fabric.ledger.back_up()
    await ask(fabric, "PATCH", f"{VMS}/v0", {"spec": {"node": "n3"}})  # by itself it would go to another one
    fabric.server.start_controllers()
    node = await _until_it_runs(fabric)
    fabric.fate.cut_off.add(node.name)
    await _go_back(fabric)
    await asyncio.sleep(5.0)
    fabric.fate.cut_off.discard(node.name)
    await until(lambda: phase(fabric, "v0") == "Running" or fabric.broken, "it is taken up")


async def a_store_comes_back_from_before_a_guest_was_placed(fabric: Fabric) -> None:
    fabric.server.kill_controllers()
    await _make(fabric)
    await fabric.ledger.back_up()
    fabric.server.start_controllers()
    await _until_it_runs(fabric)
    await _go_back(fabric)
    await until(lambda: phase(fabric, "v0") == "Running" or fabric.broken, "it is taken up")


async def a_vm_is_stopped_and_started_until_that_is_not_seen(fabric: Fabric) -> None:
    await _make(fabric)
    for verb in ("stop", "start") * 15:
        if not await _comes_to(fabric, "Running" if verb == "stop" else "Stopped"):
            return  # for ever, unless it is asked for another time
        changed = await ask(fabric, "POST", f"{VMS}/v0:{verb}", {})
        assert fabric.people[0].wanted is not None
        fabric.people[0].wanted |= {"spec": changed["spec"], "actions": changed["actions"]}


async def _comes_to(fabric: Fabric, reached: str) -> bool:
    for _ in range(100):
        if phase(fabric, "v0") == reached:
            return True
        await asyncio.sleep(0.2)
    return False


async def a_vm_moves_with_its_volume(fabric: Fabric) -> None:
    await ask(fabric, "POST", VOLUMES, {"kind": "volume", "name": "v0-data", "spec": {"size": 64 * MIB}})
    fabric.people[0].has_volume = True
    await _move(fabric, await _run(fabric, volumes=["v0-data"]))


async def a_store_comes_back_from_before_a_move(fabric: Fabric) -> None:
    node = await _run(fabric)
    await fabric.ledger.back_up()
    await _move(fabric, node)
    await _go_back(fabric)
    await asyncio.sleep(10.0)


def _spec(**more: Any) -> dict[str, Any]:
    return {"image": "tiny", "memory": 256 * MIB, "networks": ["default"], "grace": 1.0, **more}


async def _make(fabric: Fabric, **more: Any) -> None:
    made = await ask(fabric, "POST", VMS, {"kind": "vm", "name": "v0", "spec": _spec(**more)})
    fabric.people[0].wanted = {part: made[part] for part in ("uid", "spec", "actions")}


async def _until_it_runs(fabric: Fabric) -> Node:
    await until(lambda: phase(fabric, "v0") == "Running", "it runs")
    (place,) = places(fabric, "v0")
    return next(node for node in fabric.nodes if node.name == place.node)


async def _run(fabric: Fabric, **more: Any) -> Node:
    """Where the first person's VM runs."""
    await _make(fabric, **more)
    return await _until_it_runs(fabric)


async def _move(fabric: Fabric, node: Node) -> None:
    """Let it go to another node than this, and wait until it is there alone."""
    target = next(other for other in fabric.nodes if other is not node)
    await ask(fabric, "POST", f"{VMS}/v0:migrate", {"to": target.name})
    await until(lambda: [place.node for place in places(fabric, "v0")] == [target.name] or fabric.broken, "it moved")


async def _go_back(fabric: Fabric) -> None:
    """The last backup is what there is."""
    fabric.server.kill_api()
    fabric.server.kill_controllers()
    assert fabric.ledger.restore()
    fabric.restores += 1
    fabric.server.start_api()
    await until(lambda: fabric.server.doorway.app is not None, "the API is open")
    fabric.server.start_controllers()


def _node_phase(fabric: Fabric, node: Node) -> str:
    found = [item for item in fabric.ledger.notes.objects("node") if item.uid == node.uid]
    return decode_part(found[0].status, NodeStatus).phase if found else "absent"
