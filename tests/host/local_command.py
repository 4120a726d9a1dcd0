"""`up CLONE` and `down CLONE` as commands, for a local cluster of the stand-ins in local_daemons.py."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from weft.contracts.clock import Clock, SystemClock
from weft.launch.local.daemon import Daemon
from weft.launch.local.down import down
from weft.launch.local.node import AgentCommand
from weft.launch.local.topology import Node, Topology
from weft.launch.local.up import Fabric, up
from weft.objects.errors import WeftError

DAEMONS = str(Path(__file__).with_name("local_daemons.py"))


def plan_daemons(topology: Topology) -> list[Daemon]:
    argv = (sys.executable, "-S", DAEMONS, "weft", "server", "--state", topology.state_dir)
    return [Daemon("server", argv, topology.state_dir)]


async def prepare_agent(topology: Topology, node: Node) -> AgentCommand:
    return AgentCommand((sys.executable, "-S", DAEMONS, "weft", "agent", node.name, "--state", topology.state_dir))


async def wait_server(topology: Topology, clock: Clock) -> str:
    """Until the server says it is up, and as long as a test holds the command back."""
    state = Path(topology.state_dir)
    while not (state / "server.up").exists() or (state.parent / "hold").exists():
        await clock.sleep(0.02)
    return "answers"


async def wait_nodes(topology: Topology, clock: Clock) -> str:
    for node in topology.nodes:
        while not Path(topology.node_state_dir(node), "starts").exists():
            await clock.sleep(0.02)
    return "online"


def main(verb: str, clone: str) -> int:
    fabric = Fabric(plan_daemons, wait_server, prepare_agent, wait_nodes, (), lambda topology: f"{topology.id}\n")
    clock = SystemClock()
    try:
        asyncio.run(up(clone, fabric, clock, sys.stdout) if verb == "up" else down(clone, clock, sys.stdout))
    except WeftError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
