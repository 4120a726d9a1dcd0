"""Parts of a local cluster: weft's own server and agents, an image and a first VM.

Decides command lines, and asks the server as any client would; `up` starts the processes and waits with what is given
here. Nothing here touches the host.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import ssl
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from weft.client import Client
from weft.client.context import FILE as CONTEXT_FILE
from weft.client.context import read_context
from weft.contracts.clock import Clock
from weft.contracts.store import epoch_of
from weft.images.microvm.build import ensure_microvm, find_microvm
from weft.images.recipes import ensure_bundle
from weft.kinds.parts.sharing import EVERY_PROJECT
from weft.launch.local.ceph.bucket import KEYS, ensure_bucket
from weft.launch.local.ceph.layout import BUCKET, S3_PORT, USER, CephPlan
from weft.launch.local.ceph.make import wait_ready
from weft.launch.local.ceph.supervisor import supervisor_command
from weft.launch.local.daemon import Daemon
from weft.launch.local.node import AgentCommand, plan_entry
from weft.launch.local.processes import inspect_processes, is_weft
from weft.launch.local.topology import (
    ETCD,
    MEMBERS,
    NODE_LINK,
    SQLITE,
    Node,
    Topology,
    server_address,
    server_state_dir,
    server_url,
)
from weft.launch.local.up import Fabric, Work
from weft.launch.server.membership.removal import is_removed
from weft.launch.store.member import read_member
from weft.objects.errors import DriverFailed, NotFound, TimedOut, Unavailable, WeftError

READY_SECONDS = 90.0
LEAN = ("-X", "no_debug_ranges")  # without the columns of each instruction, which tracebacks alone show: half a MB
POLL_SECONDS = 0.1
STORES = {SQLITE: "SQLite", ETCD: "etcd", MEMBERS: "etcd with a member each"}
HELLO = "hello"
HELLO_MADE = "hello-made"  # in the state folder: once made in this store, a person may delete it for good
NODES_MET = "nodes-met"  # in the state folder: the history of the store in which the nodes were met
MEET_SECONDS = 30.0  # an agent comes back to a store that doesn't have its node within some seconds
HELLO_SPEC = {"image": "tiny", "cpu": 1, "memory": "128M"}
# Guests rarely use all they may: a node of a cluster on one machine offers each core several times, as people expect
# of a machine to try things on. Memory is offered once per node, since an unused part costs nothing.
CORES_PER_CORE = 4


def weft_fabric(
    steps: tuple[tuple[str, Work], ...] | None = None,
    closing: Callable[[Topology], str] | None = None,
) -> Fabric:
    """The real thing; tests of the local cluster bring stand-ins. ``steps`` and ``closing`` come in the place of the image, the
    first VM and what to type next."""
    return Fabric(
        plan_daemons=plan_daemons,
        wait_server=wait_server,
        prepare_server=prepare_server,
        prepare_agent=prepare_agent,
        wait_nodes=wait_nodes,
        steps=(("image tiny", ensure_image), ("vm hello", ensure_hello)) if steps is None else steps,
        plan_closing=closing or plan_closing,
        plan_storage=lambda topology: (("ceph", wait_ceph),) if topology.ceph else (),
        plan_last=lambda topology: (("s3", wait_s3),) if topology.ceph else (),
    )


def plan_daemons(topology: Topology) -> list[Daemon]:
    """`weft server` in the host's namespaces, on loopback for people, and on the underlay for the nodes; or each of several that
    has joined, in namespaces of its own."""
    daemons = []
    if not topology.servers:
        daemons.append(Daemon("server", plan_server(topology, None), topology.state_dir))
    for server in list_prepared(topology):
        argv = plan_server(topology, server)
        daemons.append(Daemon(f"server-{server.name}", argv, topology.state_dir, inside=server.name))
    if topology.ceph:
        daemons.append(Daemon("ceph", supervisor_command(plan_ceph(topology)), topology.state_dir))
    return daemons


def plan_server(topology: Topology, server: Node | None) -> tuple[str, ...]:
    """The command line of the only server (None), or one of several."""
    state = Path(topology.state_dir)
    home, name = (state / "server", "s1") if server is None else (server_state_dir(topology, server), server.name)
    places = ("127.0.0.1", topology.gateway_address) if server is None else (server.address,)
    # Its administrator's token is the first server's: any server knows it.
    context = ("--context", str(state / CONTEXT_FILE)) if server in (None, *topology.servers[:1]) else ()
    return (
        *weft("server", "--state", str(home), "--server", name),
        *("--store", topology.store),
        *(word for place in places for word in ("--listen", f"{place}:{topology.api_port}")),
        *(word for place in places for word in ("--gateway", f"{place}:{topology.gateway_port}")),
        *(word for place in places for word in ("--functions", f"{place}:{topology.functions_port}")),
        *("--publish-on", places[0], *context),
        *("--plain-registry", topology.gateway_address),  # as its nodes
        # What a person serves on this machine to try things, what lies in the clone, and what was built there.
        *(f"--allow-fetch={place}" for place in ("127.0.0.0/8", topology.gateway_address)),
        "--receivers-allow=127.0.0.0/8",
        *(f"--allow-fetch={place}" for place in (state.absolute().parent, (state / "cache").resolve())),
        *("--microvm-dir", str(find_microvm(state / "cache"))),
        *topology.server_options,
    )


def list_prepared(topology: Topology) -> list[Node]:
    """List those of several servers that have begun the fabric or joined it, and weren't removed from it."""
    homes = ((server, Path(server_state_dir(topology, server))) for server in topology.servers)
    return [server for server, home in homes if (home / "store.url").exists() and not is_removed(home)]


async def prepare_server(topology: Topology, server: Node) -> None:
    """Let one of several servers begin the fabric, if it is the first, or join it by another, unless it has."""
    home = server_state_dir(topology, server)
    if (Path(home) / "store.url").exists():
        return
    own = ("--state", home, "--server", server.name, "--member", server.address)
    entry = plan_entry(topology, server.name)  # its address is there alone
    if server == topology.servers[0] and not list_prepared(topology):
        await _run_weft(f"server {server.name} could not begin", (*entry, *weft("server", "init", *own)))
    else:
        await _join(topology, f"server {server.name}", server.name, {"use": "server"}, ("server", "join"), own, entry)


def plan_ceph(topology: Topology) -> CephPlan:
    """Plan Ceph at the host's address on the underlay, where each node reaches it."""
    return CephPlan(f"{topology.state_dir}/ceph", topology.gateway_address, s3_port=S3_PORT)


async def wait_ceph(topology: Topology, clock: Clock) -> str:
    """Wait until its disks can be written."""
    plan = plan_ceph(topology)
    await wait_ready(plan, clock)
    return f"{plan.osds} OSDs at {plan.address}, pool {plan.pool} in .weft/ceph/"


async def wait_s3(topology: Topology, clock: Clock) -> str:
    """Wait until its S3 has a bucket for backups."""
    plan = plan_ceph(topology)
    await ensure_bucket(plan, clock)
    return f"bucket {BUCKET} with Object Lock at {plan.endpoint}, its keys in .weft/ceph/s3/"


async def prepare_agent(topology: Topology, node: Node) -> AgentCommand:
    """`weft agent NODE` with everything in a Host value that only the launcher knows; joined first if it is new."""
    state = Path(topology.node_state_dir(node))
    if not (state / "node.json").exists():
        spec, own = (
            {"use": "join", "node": node.name},
            ("--state", str(state), "--node", node.name, "--address", node.address),
        )
        await _join(topology, f"node {node.name}", node.name, spec, ("agent", "join"), own)
    Path(topology.shared_pool).mkdir(parents=True, exist_ok=True)
    microvm_dir = await asyncio.to_thread(ensure_microvm, Path(topology.state_dir) / "cache")
    ceph = plan_ceph(topology)
    holds, isolates = node.name in topology.containerd, node.name in topology.kata
    beside = prepare_containerd(topology, node) if holds or isolates else ()
    socket = containerd_socket(topology, node)
    argv = (
        *(sys.executable, *LEAN, *weft("agent", node.name, "--state", str(state))),
        *("--server", server_url(topology)),
        *("--gateway", f"{server_address(topology)}:{topology.gateway_port}"),
        *("--run-dir", topology.node_run_dir(node)),
        *("--link-prefix", topology.link_prefix),
        *("--underlay-address", node.address, "--underlay-link", NODE_LINK),
        *("--cgroup", topology.node_cgroup(node)),
        *("--pool", f"shared={topology.shared_pool}"),
        *(("--pool", f"ceph=rbd:{ceph.pool}?conf={ceph.conf}&user={USER}") if topology.ceph else ()),
        *("--plain-registry", topology.gateway_address),  # one that a person runs on this machine to try things
        *("--microvm-dir", str(microvm_dir)),
        *("--cpu", str(CORES_PER_CORE * (os.cpu_count() or 1))),
        *(("--container-runtime", f"containerd={socket}") if holds else ()),
        *(("--isolated-runtime", f"kata={socket}") if isolates else ()),
        *(("--no-devices",) if node != topology.nodes[0] else ()),  # one machine's GPUs are there once
    )
    return AgentCommand(argv, beside)


def containerd_socket(topology: Topology, node: Node) -> Path:
    return Path(topology.node_run_dir(node)) / "containerd" / "s"


def prepare_containerd(topology: Topology, node: Node) -> tuple[str, ...]:
    """The command of a containerd of the node's own. Raises DriverFailed where it isn't installed."""
    program = shutil.which("containerd")
    if program is None:
        raise DriverFailed(f"node {node.name} needs containerd: apt-get install containerd")
    socket, kept = containerd_socket(topology, node), Path(topology.node_state_dir(node)) / "containerd"
    kept.mkdir(mode=0o700, exist_ok=True)
    folders = {"root": str(kept / "root"), "state": str(socket.parent)}
    sockets = {"grpc": str(socket), "ttrpc": str(socket.with_name("t"))}
    lines = ["version = 2", *(f'{name} = "{path}"' for name, path in folders.items())]
    lines += ['disabled_plugins = ["io.containerd.grpc.v1.cri"]']
    lines += [f'[{name}]\naddress = "{path}"' for name, path in sockets.items()]
    config = kept / "config.toml"
    config.write_text("\n".join(lines) + "\n")
    return (program, "--config", str(config))


async def _join(
    topology: Topology,
    what: str,
    name: str,
    spec: Mapping[str, Any],
    verb: tuple[str, ...],
    own: tuple[str, ...],
    entry: tuple[str, ...] = (),
) -> None:
    """Let a node or a server join with a token of its own, by a command with ``entry`` before it; a server must run.
    Raises DriverFailed."""
    context = read_context(_context_file(topology))
    url = server_url(topology, next(iter(list_prepared(topology)), None))
    token = await _ask(
        topology,
        lambda client: client.create(
            {"kind": "token", "name": f"join-{name}-{os.urandom(3).hex()}", "spec": dict(spec)}
        ),
    )
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(context.ca)).hexdigest()
    argv = weft(*verb, url, "--token-file", "/dev/stdin", "--ca-sha256", digest, *own)
    # By stdin: a command line is everybody's to read.
    await _run_weft(f"{what} could not join", (*entry, *argv), str(token["secret"]))


async def _run_weft(trouble: str, argv: Sequence[str], stdin: str = "") -> None:
    """Run a command of weft's. Raises DriverFailed with what it says when it fails."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    _, output = await process.communicate(stdin.encode())
    if process.returncode:
        raise DriverFailed(f"{trouble}: {output.decode(errors='replace').strip()}")


async def wait_server(topology: Topology, clock: Clock) -> str:
    """Wait until the API answers; of several servers, each that has joined, with a vote in the store."""
    if not topology.servers:
        await _until(clock, "the server answers", topology, lambda client: bool(client.list("project").items))
        return f"https://127.0.0.1:{topology.api_port}, store {STORES[topology.store]} in .weft/"
    joined = list_prepared(topology)

    def answer(client: Client) -> bool:
        phases = {one["name"]: one["status"].get("phase") for one in client.list("server").items}
        for server in joined:
            own = Client(msgspec.structs.replace(client.context, server=server_url(topology, server), others=[]))
            try:
                own.list("project")
            finally:
                own.close()
            if phases.get(server.name) != "Ready" or not read_member(Path(server_state_dir(topology, server))).has_vote:
                return False
        return True

    await _until(clock, "all servers answer", topology, answer)
    names = " ".join(server.name for server in joined)
    return f"{names}, {server_url(topology, joined[0])} and so on, store {STORES[topology.store]} in .weft/" + "".join(
        f"; {server.name} was removed, as you left it: rm -r {home}, then make up, lets another {server.name} join"
        for server in topology.servers
        if is_removed(Path(home := server_state_dir(topology, server)))
    )


async def wait_nodes(topology: Topology, clock: Clock) -> str:
    """Wait until every node that nobody deleted is Ready and every guest that should run does: healed. A node that a lost store
    doesn't have was not deleted: its agent brings it back, with its guests."""
    names = sorted(node.name for node in topology.nodes)
    met, began = Path(topology.state_dir) / NODES_MET, clock.elapsed()

    def online(client: Client) -> str:
        nodes = client.list("node")
        history = epoch_of(nodes.cursor)
        is_known = met.exists() and met.read_text() == history
        said = describe_nodes(names, nodes.items, lost=not is_known and clock.elapsed() - began < MEET_SECONDS)
        if not is_known:
            met.write_text(history)
        return said

    def healed(client: Client) -> bool:
        vms = client.list("vm", all_projects=True).items
        return not any(comes_up(vm["status"]) or _has_died(topology, vm) for vm in vms)

    said = await _until(clock, "every node is Ready", topology, online)
    await _until(clock, "the guests run again", topology, healed)
    return str(said)


def describe_nodes(names: Sequence[str], nodes: Sequence[Mapping[str, Any]], *, lost: bool = False) -> str:
    """Describe which of the nodes are online, once all are that nobody deleted: a node that has joined is one of the cluster's
    immediately. With ``lost`` the store may have lost those that aren't there. Raises Unavailable, shown if it stays so."""
    phases = {node["name"]: node["status"].get("phase", "NotReady") for node in nodes}
    there, gone = [name for name in names if name in phases], [name for name in names if name not in phases]
    if waiting := [f"{name} is {phases[name]}" for name in there if phases[name] != "Ready"]:
        raise Unavailable("; ".join(waiting))
    if lost and gone:
        raise Unavailable(f"the store doesn't have {' '.join(gone)} yet")
    online = f"{' '.join(there)} online" if there else "none online"
    again = "deleted, as you left it: make down, then make up, makes a new cluster with it"
    return f"{online}; {' '.join(gone)} {again}" if gone else online


def comes_up(status: Mapping[str, Any]) -> bool:
    """Whether a VM should soon run. One whose lease begins later doesn't count: its start may be days ahead."""
    ahead = (status.get("lease") or {}).get("state") in ("Requested", "Scheduled", "Preparing")
    return status.get("phase") in ("Unknown", "Prolog", "Boot") and not ahead


def _has_died(topology: Topology, vm: dict[str, Any]) -> bool:
    """Whether a VM is Running on a node here that has no process for it: its death was not reported yet."""
    status = vm["status"]
    folders = [topology.node_run_dir(node) for node in topology.nodes if node.name == status.get("node")]
    if status.get("phase") != "Running" or not folders:
        return False
    name = f"guest={vm['name']}"
    return not any(name in process.argv and is_weft(process, folders) for process in inspect_processes())


async def ensure_image(topology: Topology, clock: Clock) -> str:
    """The image tiny, built when this clone's cache has none of this recipe."""
    cache = Path(topology.state_dir) / "cache"
    bundle = await asyncio.to_thread(ensure_bundle, "tiny", cache, lambda what: None)

    def ensure(client: Client) -> None:
        try:
            client.get("image", "tiny")
        except NotFound:
            client.create({"kind": "image", "name": "tiny", "spec": {"url": f"file://{bundle}"}})
            client.verb("image", "tiny", "share", {"with": [EVERY_PROJECT]})

    def available(client: Client) -> bool:
        status = client.get("image", "tiny")["status"]
        if status.get("phase") == "Failed":
            raise DriverFailed(f"image tiny: {status.get('message')}")
        return bool(status.get("phase") == "Available")

    await _ask(topology, ensure)
    await _until(clock, "image tiny is available", topology, available)
    return f"kernel + busybox, {bundle.stat().st_size / 2**20:.0f} MB"


async def ensure_hello(topology: Topology, clock: Clock) -> str:
    """A first VM that answers, unless a person stopped or deleted it."""
    made = Path(topology.state_dir) / HELLO_MADE

    def ensure(client: Client) -> bool:
        here = str(client.get("image", "tiny")["uid"])  # another one in a store that was lost and begun anew
        try:
            client.get("vm", HELLO)
        except NotFound:
            if made.exists() and made.read_text() == here:
                return False
            client.create({"kind": "vm", "name": HELLO, "spec": HELLO_SPEC})
        made.write_text(here)
        return True

    def settled(client: Client) -> dict[str, Any] | None:
        vm = client.get("vm", HELLO)
        phase = vm["status"].get("phase")
        if phase == "Failed":
            raise DriverFailed(f"vm {HELLO}: {vm['status'].get('message')}", hint=f"weft describe vm {HELLO}")
        return vm["status"] if phase in ("Running", "Stopped", "Suspended", "Hold") else None

    if not await _ask(topology, ensure):
        return "not there, as you left it"
    status = await _until(clock, f"vm {HELLO} answers", topology, settled)
    if status["phase"] != "Running":
        return f"{status['phase']}, as you left it"
    return f"on {status['node']}, {status.get('address') or 'no address'}, answers"


def plan_closing(topology: Topology) -> str:
    """Plan the closing words: what to type next."""
    plan = plan_ceph(topology)
    files = " ".join(f"--from-file {name}=.weft/ceph/s3/{name}" for name in KEYS)
    bucket = (
        "Backups into its bucket, which nobody deletes before their time:\n"
        f"      .venv/bin/weft secret create bucket {files}\n"
        f"      .venv/bin/weft backuprepository create safe --url 's3://{BUCKET}?endpoint={plan.endpoint}' "
        "--credentials bucket --immutable\n"
        if topology.ceph
        else ""
    )
    return (
        "\nTry:  .venv/bin/weft vm list        .venv/bin/weft vm exec hello -- uname -a\n"
        "      .venv/bin/weft explain vm hello    .venv/bin/weft vm migrate hello\n"
        "      make down (removes everything)\n"
        f"Dashboard:  .venv/bin/weft dashboard    or, with a user's password, {find_shown(topology)}/\n{bucket}"
    )


def find_shown(topology: Topology) -> str:
    """The URL of the API for people on this machine."""
    joined = list_prepared(topology)
    return server_url(topology, joined[0]) if joined else f"https://127.0.0.1:{topology.api_port}"


def weft(*words: str) -> tuple[str, ...]:
    """A command line of the weft that runs this: the one beside its Python."""
    return (str(Path(sys.executable).parent / "weft"), *words)


def _context_file(topology: Topology) -> Path:
    return Path(topology.state_dir) / CONTEXT_FILE


async def _ask(topology: Topology, question: Callable[[Client], Any]) -> Any:
    """One question to the server, in a thread."""

    def ask() -> Any:
        client = Client(read_context(_context_file(topology)))
        try:
            return question(client)
        finally:
            client.close()

    return await asyncio.to_thread(ask)


async def _until(clock: Clock, goal: str, topology: Topology, question: Callable[[Client], Any]) -> Any:
    """Ask until the answer is something; raises TimedOut with the last trouble, DriverFailed at once."""
    deadline = clock.elapsed() + READY_SECONDS
    trouble = ""
    while True:
        try:
            if answer := await _ask(topology, question):
                return answer
        except DriverFailed:
            raise
        except WeftError as error:
            trouble = error.message
        if clock.elapsed() > deadline:
            raise TimedOut(
                f"waited {READY_SECONDS:g} s until {goal}. {trouble}".rstrip(),
                hint="see .weft/log/; make down, then make up, starts afresh",
            )
        await clock.sleep(POLL_SECONDS)
