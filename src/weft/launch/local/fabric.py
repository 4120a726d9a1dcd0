"""What a local cluster runs: weft's own server and agents, an image and a first VM, all through the clone's `weft`.

Decides command lines only; `up` starts them and waits with what is given here. Nothing here touches the host.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from weft.contracts.clock import Clock
from weft.launch.local.daemon import Daemon
from weft.launch.local.node import AgentCommand
from weft.launch.local.topology import NODE_LINK, Node, Topology
from weft.launch.local.up import Fabric
from weft.objects.errors import DriverFailed, TimedOut

READY_SECONDS = 60.0
POLL_SECONDS = 0.2
HELLO = "hello"


def weft_fabric() -> Fabric:
    """The real thing; tests of the local cluster bring stand-ins."""
    return Fabric(
        plan_daemons=plan_daemons,
        wait_server=wait_server,
        prepare_agent=prepare_agent,
        wait_nodes=wait_nodes,
        steps=(("image tiny", ensure_image), ("vm hello", ensure_hello)),
        plan_closing=plan_closing,
    )


def plan_daemons(topology: Topology) -> list[Daemon]:
    """`weft server` in the host's namespaces: the API on loopback for people and on the underlay for the nodes."""
    state = Path(topology.state_dir)
    argv = (
        *weft("server", "--state", str(state / "server")),
        *("--listen", f"127.0.0.1:{topology.api_port}"),
        *("--listen", f"{topology.gateway_address}:{topology.api_port}"),
        *("--gateway", f"127.0.0.1:{topology.gateway_port}"),
        *("--gateway", f"{topology.gateway_address}:{topology.gateway_port}"),
        *("--publish-on", "127.0.0.1", "--context", str(state / "context.json")),
    )
    return [Daemon("server", argv, topology.state_dir)]


async def prepare_agent(topology: Topology, node: Node) -> AgentCommand:
    """`weft agent NODE`, told everything a Host value holds that only the launcher knows."""
    argv = (
        *weft(topology, "agent", node.name, "--state", topology.state_dir),
        *("--server", f"https://{topology.gateway_address}:{topology.api_port}"),
        *("--run-dir", topology.node_run_dir(node)),
        *("--link-prefix", topology.link_prefix),
        *("--underlay-address", node.address, "--underlay-link", NODE_LINK),
        *("--cgroup", topology.node_cgroup(node)),
    )
    return AgentCommand(argv)


async def wait_server(topology: Topology, clock: Clock) -> str:
    """Until the API answers."""
    await _until(clock, "the server answers", topology, "api", "GET", "/v1/nodes")
    return f"https://127.0.0.1:{topology.api_port}, store SQLite in .weft/"


async def wait_nodes(topology: Topology, clock: Clock) -> str:
    """Until every node is Ready."""
    names = [node.name for node in topology.nodes]
    for name in names:
        wait = ("wait", f"node/{name}", "--for=condition=Ready", "--timeout=1s")
        await _until(clock, f"{name} is Ready", topology, *wait)
    return f"{' '.join(names)} online"


async def ensure_image(topology: Topology, clock: Clock) -> str:
    """The image tiny, built when this clone's cache has none."""
    await _weft(topology, "image", "ensure", "tiny")
    return "kernel + busybox"


async def ensure_hello(topology: Topology, clock: Clock) -> str:
    """A first VM that answers."""
    known = await _weft(topology, "vm", "list", "-o", "name")
    if f"vm/{HELLO}" not in known.split():
        await _weft(topology, "vm", "create", HELLO, "--image", "tiny", "--cpu", "1", "--memory", "128M")
    await _weft(topology, "wait", f"vm/{HELLO}", "--for=phase=Running")
    return f"answers: {(await _weft(topology, 'vm', 'exec', HELLO, '--', 'uname', '-sr')).strip()}"


def plan_closing(topology: Topology) -> str:
    """What to type next."""
    return (
        "\nTry:  .venv/bin/weft vm list        weft vm console hello      weft apply -f examples/three-tier.yaml\n"
        "      weft explain vm hello         weft node list             make down (removes everything)\n"
    )


def weft(*words: str) -> tuple[str, ...]:
    """A command line of the weft that runs this: the one beside its Python."""
    return (str(Path(sys.executable).parent / "weft"), *words)


async def _weft(topology: Topology, *words: str) -> str:
    status, out, said = await _run(topology, *words)
    if status != 0:
        raise DriverFailed(f"weft {' '.join(words)} failed: {said.strip() or out.strip()}")
    return out


async def _until(clock: Clock, wish: str, topology: Topology, *words: str) -> None:
    deadline = clock.elapsed() + READY_SECONDS
    while True:
        status, _, said = await _run(topology, *words)
        if status == 0:
            return
        if clock.elapsed() > deadline:
            raise TimedOut(f"waited {READY_SECONDS:g} s until {wish}: {said.strip()}", hint="see .weft/log/")
        await clock.sleep(POLL_SECONDS)


async def _run(topology: Topology, *words: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *weft(*words),
        cwd=topology.clone,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, said = await process.communicate()
    return process.returncode or 0, out.decode(errors="replace"), said.decode(errors="replace")
