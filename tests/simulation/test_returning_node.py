"""A node that was cut off and given up comes back: in whatever order it speaks and hears, its guests run on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.connections import Line
from tests.simulation.fabric import Fabric
from tests.simulation.fate import Fate
from tests.simulation.node import Node
from tests.simulation.people import MIB, TOKEN, VMS, VOLUMES, insist
from tests.simulation.promises import find_unmet
from tests.simulation.simulation import simulate
from weft.api.auth.authorise import given_up_key
from weft.kinds.allocation import AllocationSpec
from weft.kinds.node import NodeStatus
from weft.kinds.parts.workload import WorkloadStatus
from weft.objects.envelope import Envelope, decode_part

HERE = "n2"


async def ask(fabric: Fabric, method: str, path: str, body: Any = None) -> Any:
    line = Line(fabric.doorways, fabric.fate, "operator", token=TOKEN)
    answer = await insist(line, method, path, body, lambda: 0)
    assert answer.status < 300, answer.json()
    return answer.json()


async def until(true: Callable[[], object], what: str) -> None:
    for _ in range(1200):
        if true():
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"never: {what}")


def read(fabric: Fabric, kind: str, name: str) -> Envelope | None:
    return next((item for item in fabric.ledger.notes.objects(kind) if item.name == name), None)


def phase(fabric: Fabric, name: str) -> str:
    vm = read(fabric, "vm", name)
    return decode_part(vm.status, WorkloadStatus).phase if vm is not None else "absent"


def node_phase(fabric: Fabric) -> str:
    node = read(fabric, "node", HERE)
    return decode_part(node.status, NodeStatus).phase if node is not None else "absent"


def places(fabric: Fabric, name: str) -> list[AllocationSpec]:
    found = [decode_part(place.spec, AllocationSpec) for place in fabric.ledger.notes.objects("allocation")]
    return [place for place in found if place.workload.name == name]


def boot_ids(fabric: Fabric) -> dict[str, str]:
    return {uid: fabric.witness.boot_ids[uid] for (node, _), uid in fabric.witness.alive.items() if node == HERE}


async def give_up_a_node_with_guests(fabric: Fabric) -> dict[str, str]:
    """The boot ids of the guests on a node that is cut off from here on, and was given up."""
    await fabric.set_up()
    await ask(fabric, "POST", VOLUMES, {"kind": "volume", "name": "precious", "spec": {"size": 64 * MIB}})
    for name, volumes in (("ledger", ["precious"]), ("books", [])):
        spec = {"image": "tiny", "memory": 256 * MIB, "volumes": volumes, "node": HERE}
        await ask(fabric, "POST", VMS, {"kind": "vm", "name": name, "spec": spec})
    await until(lambda: phase(fabric, "ledger") == phase(fabric, "books") == "Running", "they run")
    before = boot_ids(fabric)
    assert len(before) == 2
    fabric.fate.cut_off.add(HERE)
    await until(lambda: node_phase(fabric) == "NotReady", "it counts as lost")
    fabric.witness.dark.add(fabric.witness.node_uids[HERE])  # so people say
    await ask(fabric, "DELETE", f"/v1/nodes/{HERE}?force=1")
    fabric.witness.dark.clear()
    await until(lambda: phase(fabric, "ledger") == phase(fabric, "books") == "Pending", "they wait")
    return before


def nothing_new(node: Node) -> None:
    """It has told all that there is to tell of itself."""


def other_facts(node: Node) -> None:
    """It has an image more, and will say so."""
    (Path(node.host.state_dir) / "images" / ("ab" * 32)).mkdir()


def another_agent(node: Node) -> None:
    """Its agent starts anew: what is here it knows from its copies."""
    node.kill()
    node.start()


@pytest.mark.parametrize("meanwhile", [nothing_new, other_facts, another_agent])
def test_a_node_that_speaks_before_it_hears_that_it_was_given_up_keeps_its_guests(
    meanwhile: Callable[[Node], None],
) -> None:
    async def run(fabric: Fabric) -> None:
        before = await give_up_a_node_with_guests(fabric)
        meanwhile(next(node for node in fabric.nodes if node.name == HERE))
        fabric.fate.deaf.add(HERE)
        fabric.fate.cut_off.discard(HERE)
        await asyncio.sleep(30.0)
        assert not places(fabric, "ledger") and not places(fabric, "books"), "nobody knows yet what runs there"
        fabric.fate.deaf.discard(HERE)
        await until(lambda: phase(fabric, "ledger") == phase(fabric, "books") == "Running", "they are taken up")
        assert boot_ids(fabric) == before
        await asyncio.sleep(10.0)
        assert boot_ids(fabric) == before and not fabric.broken, fabric.witness.violations

    with simulate(1, Fate(1, 0, {})) as fabric:
        fabric.loop.run_until_complete(run(fabric))


@pytest.mark.parametrize("meanwhile", [nothing_new, another_agent])
def test_a_guest_whose_vm_was_deleted_after_its_node_was_given_up_ends_when_the_node_is_back(
    meanwhile: Callable[[Node], None],
) -> None:
    async def run(fabric: Fabric) -> None:
        before = await give_up_a_node_with_guests(fabric)
        await ask(fabric, "DELETE", f"{VMS}/books")
        await until(lambda: phase(fabric, "books") == "absent", "it is deleted: nobody knows of a guest of it")
        here = next(node for node in fabric.nodes if node.name == HERE)
        meanwhile(here)
        assert len(boot_ids(fabric)) == 2, "both run there still"
        fabric.fate.cut_off.discard(HERE)
        await until(lambda: phase(fabric, "ledger") == "Running", "the other one is taken up")
        await until(lambda: not find_unmet(fabric), "nothing is left of the deleted one")
        (kept,) = boot_ids(fabric)
        assert boot_ids(fabric)[kept] == before[kept] and len(here.guests()) == 1, here.guests()
        assert not fabric.broken, fabric.witness.violations
        assert given_up_key(here.uid) not in fabric.ledger.notes.values, "nothing is left to tell the node"

    with simulate(1, Fate(1, 0, {})) as fabric:
        fabric.loop.run_until_complete(run(fabric))
