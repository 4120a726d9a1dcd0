"""`make up`: brings a clone's local cluster to where it should be, from whatever state it is in.

Every step checks first and does only what is missing, so the same list starts a cluster, heals one and changes nothing
in a healthy one. What the cluster runs comes as a `Fabric` value; this file knows no command of weft's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from weft.contracts.clock import Clock
from weft.drivers.linux.processes import ProcessId, wait_for_end
from weft.launch.local import cgroups, node, underlay
from weft.launch.local.choice import choose_topology, is_of_this_state
from weft.launch.local.daemon import Daemon, find_daemon, keep_entered, perform_start, tail_log, write_whole
from weft.launch.local.down import end_former
from weft.launch.local.lock import hold_lock
from weft.launch.local.node import AgentCommand
from weft.launch.local.progress import Progress
from weft.launch.local.topology import Node, Topology
from weft.objects.errors import DriverFailed

Work = Callable[[Topology, Clock], Awaitable[str]]


@dataclass(frozen=True)
class Fabric:
    """The parts of a local cluster, and when it is ready; each ``Work`` returns what to show, or raises a WeftError.

    ``plan_daemons`` gives the long-running commands of the host and of those servers that are prepared; ``wait_server`` returns
    once they answer; ``prepare_server`` makes one of several servers ready to be started (it may ask those that run);
    ``prepare_agent`` gives a node's agent command (it may ask the server for a join token, and must give the same
    command again for a node that has joined); ``plan_storage`` gives the steps before the nodes; ``wait_nodes`` returns
    once every node is Ready; ``steps`` follow in order (an image, a first VM), then those of ``plan_last``; ``plan_closing`` is
    what to print last.
    """

    plan_daemons: Callable[[Topology], list[Daemon]]
    wait_server: Work
    prepare_agent: Callable[[Topology, Node], Awaitable[AgentCommand]]
    wait_nodes: Work
    steps: tuple[tuple[str, Work], ...]
    plan_closing: Callable[[Topology], str]
    plan_storage: Callable[[Topology], tuple[tuple[str, Work], ...]] = lambda _: ()
    prepare_server: Callable[[Topology, Node], Awaitable[None]] | None = None  # for several servers
    plan_last: Callable[[Topology], tuple[tuple[str, Work], ...]] = lambda _: ()


async def up(
    clone: str,
    fabric: Fabric,
    clock: Clock,
    stream: TextIO,
    node_count: int = 3,
    store: str | None = None,
    containerd: tuple[str, ...] | None = None,
    kata: tuple[str, ...] | None = None,
    ceph: bool | None = None,
    servers: int | None = None,
    server_options: Sequence[str] | None = None,
) -> Topology:
    """Bring up the cluster of the clone at absolute path ``clone``, showing each step on ``stream``.

    ``store`` is where a new cluster keeps its objects (`sqlite` or `etcd`); without one SQLite, or its present one;
    ``containerd`` the nodes of a new one that have a containerd hold their containers, ``kata`` those that leave machines to Kata;
    ``ceph``: a new one has a Ceph cluster; ``servers``: so many servers;
    ``server_options``: more words for `weft server`, without any those that its servers have.

    Raises InUse when another up or down of this clone is under way, and the failing step's WeftError; what stands by
    then keeps standing, and the next up goes on from there.
    """
    progress = Progress(stream, clock)
    with hold_lock(Path(clone) / ".weft", "make up"):
        if not is_of_this_state(clone):
            await end_former(clone, clock, progress)
        topology = choose_topology(clone, node_count, store, containerd, kata, ceph, servers, server_options)
        await progress.show("namespaces", boot_nodes(topology))
        starting = start_servers(topology, fabric, clock)
        await progress.show("servers" if topology.servers else "server", starting)
        for name, work in fabric.plan_storage(topology):
            await progress.show(name, _while_alive(fabric.plan_daemons(topology), work(topology, clock)))
        await progress.show("nodes", start_agents(topology, fabric, clock))
        for name, work in (*fabric.steps, *fabric.plan_last(topology)):
            await progress.show(name, work(topology, clock))
    stream.write(fabric.plan_closing(topology))
    return topology


async def boot_nodes(topology: Topology) -> str:
    """The host's network and every node's namespaces."""
    run_dir = Path(topology.run_dir)
    run_dir.mkdir(mode=0o755, exist_ok=True)
    write_whole(run_dir / underlay.OWNER, topology.clone.encode())
    write_whole(run_dir / underlay.STATE, topology.state.encode())
    limits = await asyncio.to_thread(cgroups.perform_make, topology)
    await asyncio.to_thread(underlay.perform_host_links, topology)
    for server in topology.servers:
        await asyncio.to_thread(node.perform_boot, topology, server)
    booted = [place.name for place in topology.nodes if await asyncio.to_thread(node.perform_boot, topology, place)]
    names = " ".join(place.name for place in topology.nodes)
    started = f", started {' '.join(booted)}" if booted and len(booted) < len(topology.nodes) else ""
    limited = "" if {"cpu", "memory"} <= set(limits) else "; no cgroups for cpu and memory: guests have no limits"
    return f"{names} on {topology.underlay}{started}{limited}"


async def start_servers(topology: Topology, fabric: Fabric, clock: Clock) -> str:
    """Start the only server; or all that have joined, then each that joins them."""
    said = ""
    for server in topology.servers:
        if fabric.prepare_server is not None:
            await fabric.prepare_server(topology, server)
        said = await start_daemons(topology, fabric, clock)
    return said or await start_daemons(topology, fabric, clock)


async def start_daemons(topology: Topology, fabric: Fabric, clock: Clock) -> str:
    """Start the daemons that don't run, and wait until they answer or one of them ends, other than one that is needed no more."""
    while True:
        daemons = fabric.plan_daemons(topology)
        for daemon in daemons:
            if find_daemon(daemon) is None:
                entry = node.plan_entry(topology, daemon.inside)
                process = perform_start(daemon, (*entry, "setsid") if entry else ())
                if entry:
                    await keep_entered(daemon, process, clock)
        try:
            return await _while_alive(daemons, fabric.wait_server(topology, clock))
        except DriverFailed:
            if fabric.plan_daemons(topology) == daemons:
                raise


async def start_agents(topology: Topology, fabric: Fabric, clock: Clock) -> str:
    """Give every node its agent's command and wait until all are Ready."""
    for place in topology.nodes:
        node.perform_assign(topology, place, await fabric.prepare_agent(topology, place))
    inits = [node.plan_init(topology, place) for place in topology.nodes]
    return await _while_alive([*fabric.plan_daemons(topology), *inits], fabric.wait_nodes(topology, clock))


async def _while_alive(daemons: list[Daemon], work: Awaitable[str]) -> str:
    """Await ``work``; raises DriverFailed with the log's end as soon as one of ``daemons`` ends before."""
    working = asyncio.ensure_future(work)
    watches = {asyncio.ensure_future(_wait_end(daemon)): daemon for daemon in daemons}
    try:
        await asyncio.wait([working, *watches], return_when=asyncio.FIRST_COMPLETED)
        for watch, daemon in watches.items():
            if watch.done() and not working.done():
                raise DriverFailed(f"{daemon.name} exited before it was ready; {tail_log(daemon.log)}")
        return await working
    finally:
        for task in [working, *watches]:
            task.cancel()
        await asyncio.gather(working, *watches, return_exceptions=True)


async def _wait_end(daemon: Daemon) -> None:
    process = find_daemon(daemon)
    if process is not None:
        await wait_for_end(ProcessId(process.pid, process.start))
