"""One local node seen from the host: its init, the wire to it, the command its agent is started with."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from weft.launch.local import init, underlay
from weft.launch.local.commands import run
from weft.launch.local.daemon import Daemon, find_daemon, keep, plan_environment, rotate_log, tail_log, write_whole
from weft.launch.local.processes import inspect_process
from weft.launch.local.topology import Node, Topology
from weft.objects.errors import DriverFailed


class AgentCommand(msgspec.Struct, frozen=True):
    """How a node's init starts its agent: argv with an absolute program, and what to add to the environment; ``beside`` is
    another command that the node runs as long as it lives, if there is one."""

    argv: tuple[str, ...]
    beside: tuple[str, ...] = ()
    env: dict[str, str] = {}


def plan_init(topology: Topology, node: Node) -> Daemon:
    """The node's init; a small isolated interpreter, because every node has one."""
    argv = (sys.executable, "-I", "-S", "-B", init.__file__, "weft", "init", node.name, "--state", topology.state_dir)
    return Daemon(f"init-{node.name}", argv, topology.state_dir)


def plan_entry(topology: Topology, name: str) -> tuple[str, ...]:
    """The words before a command that runs in the namespaces of the server of that name; none for "". It ends with that server's
    init. Raises DriverFailed where that doesn't run."""
    if not name:
        return ()
    process = find_daemon(plan_init(topology, next(server for server in topology.servers if server.name == name)))
    if process is None:
        raise DriverFailed(f"server {name} has no namespaces", hint="make up makes them again")
    return ("nsenter", "-t", str(process.pid), "--mount", "--net", "--pid", "--")


def perform_boot(topology: Topology, node: Node) -> bool:
    """Start the node unless it runs, and see that it is connected; gives back whether it had to be started."""
    daemon = plan_init(topology, node)
    Path(topology.node_state_dir(node)).mkdir(parents=True, exist_ok=True)
    Path(topology.node_run_dir(node)).mkdir(parents=True, exist_ok=True)
    process = find_daemon(daemon)
    booted = process is None
    if process is None:
        rotate_log(daemon.log)
        rotate_log(daemon.log.with_name(f"agent-{node.name}.log"))
        pid = int(run(list(daemon.argv), env=plan_environment({})))
        process = inspect_process(pid)
        if process is None:
            raise DriverFailed(f"node {node.name} exited as soon as it started; {tail_log(daemon.log)}")
        keep(daemon, process)
    underlay.perform_wire(topology, node, process.pid)
    return booted


def perform_assign(topology: Topology, node: Node, command: AgentCommand) -> None:
    """Give the node's init the command it starts its agent with, now and whenever the agent dies."""
    path = Path(topology.node_state_dir(node)) / "agent.json"
    data = msgspec.json.encode(command)
    if not path.exists() or path.read_bytes() != data:
        write_whole(path, data)
