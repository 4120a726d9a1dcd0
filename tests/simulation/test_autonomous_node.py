"""A node that is away within its autonomy: its guests go on, the fabric gives nothing of it to others, and it comes back."""

from __future__ import annotations

import asyncio
import contextlib

from tests.simulation.fabric import Fabric
from tests.simulation.fate import Fate
from tests.simulation.people import MIB, VMS
from tests.simulation.simulation import simulate
from tests.simulation.test_returning_node import HERE, ask, boot_ids, node_phase, phase, places, read, until
from weft.kinds.node import NodeStatus
from weft.objects.envelope import decode_part

AUTONOMY_SECONDS = 1800.0
READY_SECONDS = 20.0  # after the return


async def run_guests(fabric: Fabric) -> dict[str, str]:
    await fabric.set_up()
    await ask(fabric, "PATCH", f"/v1/nodes/{HERE}", {"spec": {"autonomy_seconds": AUTONOMY_SECONDS}})
    for name in ("ledger", "books"):
        spec = {"image": "tiny", "memory": 256 * MIB, "node": HERE}
        await ask(fabric, "POST", VMS, {"kind": "vm", "name": name, "spec": spec})
    await until(lambda: phase(fabric, "ledger") == phase(fabric, "books") == "Running", "they run")
    return boot_ids(fabric)


async def come_back(fabric: Fabric) -> float:
    """Seconds until the node and its guests are as before."""
    began = fabric.clock.elapsed()
    fabric.fate.cut_off.discard(HERE)
    await until(lambda: node_phase(fabric) == "Ready", "it is ready")
    await until(lambda: phase(fabric, "ledger") == phase(fabric, "books") == "Running", "they are known to run")
    return fabric.clock.elapsed() - began


def test_a_node_comes_back_within_its_autonomy_with_all_guests_as_they_were() -> None:
    async def run(fabric: Fabric) -> None:
        before = await run_guests(fabric)
        here = next(node for node in fabric.nodes if node.name == HERE)
        fabric.fate.cut_off.add(HERE)
        await until(lambda: node_phase(fabric) == "Autonomous", "it is away")
        await until(lambda: phase(fabric, "ledger") == "Unknown", "nobody knows")
        await asyncio.sleep(AUTONOMY_SECONDS / 3)
        here.kill()
        await asyncio.sleep(60.0)
        here.start()
        with contextlib.suppress(AssertionError):
            await ask(fabric, "DELETE", f"/v1/nodes/{HERE}?force=1")
            raise RuntimeError("it can't be given up")
        await asyncio.sleep(AUTONOMY_SECONDS / 3)
        assert node_phase(fabric) == "Autonomous" and boot_ids(fabric) == before
        assert len(places(fabric, "ledger")) == len(places(fabric, "books")) == 1, "nothing is placed elsewhere"
        assert await come_back(fabric) < READY_SECONDS
        assert boot_ids(fabric) == before and not fabric.broken, fabric.witness.violations
        node = read(fabric, "node", HERE)
        assert node is not None and decode_part(node.status, NodeStatus).lost_at is None

    with simulate(3, Fate(3, 0, {})) as fabric:
        fabric.loop.run_until_complete(run(fabric))


def test_a_node_whose_autonomy_has_ended_is_as_any_silent_one_and_still_loses_no_guest() -> None:
    async def run(fabric: Fabric) -> None:
        before = await run_guests(fabric)
        fabric.fate.cut_off.add(HERE)
        await until(lambda: node_phase(fabric) == "Autonomous", "it is away")
        await asyncio.sleep(AUTONOMY_SECONDS)
        await until(lambda: node_phase(fabric) == "NotReady", "its autonomy has ended")
        assert await come_back(fabric) < READY_SECONDS
        assert boot_ids(fabric) == before and not fabric.broken, fabric.witness.violations

    with simulate(4, Fate(4, 0, {})) as fabric:
        fabric.loop.run_until_complete(run(fabric))
