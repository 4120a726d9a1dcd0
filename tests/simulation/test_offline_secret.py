"""A container whose secret is marked offline, on a node that is away: it starts again with the secret that the node has sealed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.simulation import virtual_loop
from tests.simulation.calm import MOST_STEPS, pass_calmly
from tests.simulation.conversions import IMAGE, PROJECT
from tests.simulation.fabric import Fabric
from tests.simulation.fate import Fate
from tests.simulation.node import Node
from tests.simulation.people import MIB
from tests.simulation.simulation import simulate
from tests.simulation.test_returning_node import HERE, ask, node_phase, until
from weft.agent.secret.cache import REFRESH_SECONDS


def read_pins(here: Node) -> list[str]:
    """What each container that runs there was given."""
    running = [plan for id_, plan in here.world.plans.items() if here.world.facts[id_].state == "running"]
    return [word.removeprefix("PIN=") for plan in running for word in plan.process.env if word.startswith("PIN=")]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("seed", "hours"), [(1, 1), *(pytest.param(seed, 72, marks=pytest.mark.long) for seed in (1, 2, 3))]
)
def test_a_container_starts_again_with_its_secret_while_the_line_is_dead(
    seed: int, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtual_loop, "MOST_STEPS", MOST_STEPS)
    half = hours * 1800.0

    async def run(fabric: Fabric) -> None:
        await fabric.set_up()
        here = next(node for node in fabric.nodes if node.name == HERE)
        sealed = Path(here.host.state_dir) / "secrets"
        (Path(here.host.state_dir) / "node.key").write_text("the node's key")
        await ask(fabric, "PATCH", f"/v1/nodes/{HERE}", {"spec": {"autonomy_seconds": 2 * half + 600.0}})
        secret = {"kind": "secret", "name": "till", "spec": {"values": {"pin": "one"}, "offline": True}}
        await ask(fabric, "POST", f"{PROJECT}/secrets", secret)
        spec = {
            "image": IMAGE,
            "memory": 64 * MIB,
            "restart": "always",
            "node": HERE,
            "env_secrets": {"PIN": "till/pin"},
        }
        await ask(fabric, "POST", f"{PROJECT}/containers", {"kind": "container", "name": "till", "spec": spec})
        await until(lambda: read_pins(here) == ["one"], "it runs")
        fabric.fate.cut_off.add(HERE)
        await until(lambda: node_phase(fabric) == "Autonomous", "it is away")
        await ask(fabric, "PATCH", f"{PROJECT}/secrets/till", {"spec": {"values": {"pin": "two"}}})
        await pass_calmly(half)
        here.lose_power()
        assert read_pins(here) == []
        await asyncio.sleep(60.0)
        here.start()
        await until(lambda: read_pins(here) == ["one"], "it runs again, with what the node has")
        await pass_calmly(half)
        assert node_phase(fabric) == "Autonomous" and read_pins(here) == ["one"]
        fabric.fate.cut_off.discard(HERE)
        await until(lambda: node_phase(fabric) == "Ready", "it is back")
        for id_, facts in list(here.world.facts.items()):
            if facts.state == "running":
                here.world.end(id_, "failed", "exited", 1)
        await until(lambda: read_pins(here) == ["two"], "a start takes the changed one")
        assert list(sealed.iterdir())
        await ask(fabric, "PATCH", f"{PROJECT}/secrets/till", {"spec": {"offline": False}})
        await asyncio.sleep(REFRESH_SECONDS + 60.0)
        assert not list(sealed.iterdir()) and read_pins(here) == ["two"], (
            "it goes with the mark, and the container goes on"
        )
        assert not fabric.broken, fabric.witness.violations

    with simulate(seed, Fate(seed, 0, {}), converts=True) as fabric:
        fabric.loop.run_until_complete(run(fabric))
