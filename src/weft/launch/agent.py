"""``weft agent NODE``: one node's agent, and ``weft agent join``, which makes a machine a node.

Wires the agent to its drivers; loads no driver that isn't wanted, because the agent stays resident on every node.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import importlib
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from weft.agent.agent import Agent
from weft.agent.control import Control, Gateway
from weft.agent.enrol import (
    Enrolment,
    default_node_name,
    has_ended,
    join,
    make_context,
    needs_renewal,
    read_enrolment,
    renew,
)
from weft.agent.facts import find_link, find_own_address, inspect_capacity
from weft.agent.runtimes import Runtimes
from weft.agent.server import RemoteServer
from weft.agent.streams import Streams
from weft.cli.exit_codes import exit_code
from weft.client.api import Client
from weft.client.context import Context
from weft.client.skew import describe_skew
from weft.client.tls import make_tls
from weft.contracts.clock import Clock, SystemClock
from weft.contracts.host import Host
from weft.kinds.allocation import LOCAL
from weft.objects.errors import InUse, InvalidInput, WeftError
from weft.objects.identity import SERVER_NAME, check_name, short_id
from weft.objects.quantity import parse_bytes, parse_cpu

RUNTIMES = {
    "qemu": "weft.drivers.runtime.qemu.driver:QemuDriver",
    "fake": "weft.drivers.runtime.fake.driver:FakeDriver",
}
CONTAINERS = "weft.drivers.runtime.oci.driver:OciDriver"
CONTAINERD = "/run/containerd/containerd.sock"
ENCLOSED = "weft.drivers.runtime.qemu.enclosed.driver:EnclosedDriver"
KATA = "weft.drivers.runtime.oci.kata.driver:KataDriver"
KATA_LEFT = "weft.drivers.runtime.oci.kata.driver:find_left"
KATA_CLASS = "weft.drivers.runtime.oci.kata.translate:name_class"
FUNCTIONS = "weft.launch.instances:make_functions"
CONTAINER_IMAGES = "weft.drivers.image.oci.store:OciImages"
NETWORKS = {
    "bridge": "weft.drivers.network.bridge.driver:BridgeNetwork",
    "fake": "weft.drivers.network.fake.driver:FakeNetwork",
}
VOLUMES = {
    "directory": "weft.drivers.volume.directory.driver:DirectoryVolumes",
    "fake": "weft.drivers.volume.fake.driver:FakeVolumes",
}
_ISOLATED = re.compile(r"enclosed|kata(-[a-z0-9]+)*")
RENEWAL_SECONDS = 6 * 3600.0
STATE = Path("/var/lib/weft")
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


log = logging.getLogger("weft.agent")


def main(argv: Sequence[str]) -> int:
    """Run ``weft agent …``: 0 when told to end; a sentence on stderr and its exit code when it can't go on."""
    try:
        if argv and argv[0] == "join":
            return _join(_parse_join(argv[1:]))
        return _run(_parse_agent(argv))
    except WeftError as problem:
        print(f"error: {problem.message}", file=sys.stderr)
        if problem.hint:
            print(f"  {problem.hint}", file=sys.stderr)
        return exit_code(problem)


def _parse_join(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="weft agent join", description="Make this machine a node of a fabric.")
    parser.add_argument("server", metavar="URL", help="the server, like https://10.0.0.1:8443")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--token", help="a join token, as weft token create --join prints it")
    given.add_argument("--token-file", type=Path, help="a file that holds it")
    parser.add_argument("--ca-sha256", required=True, metavar="HEX", help="digest of the server's CA certificate")
    parser.add_argument("--state", type=Path, help=f"folder for what this node must keep (default {STATE}/NODE)")
    parser.add_argument("--node", default=default_node_name(), help="the node's name (default: the host name)")
    parser.add_argument("--address", default="", help="the node's address towards the other nodes")
    return _with_state(parser.parse_args(argv))


def _parse_agent(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="weft agent", description="Run a node's agent in the foreground.")
    parser.add_argument("node", metavar="NODE", help="the node's name; or join URL, to make this machine a node")
    parser.add_argument("--state", type=Path, help=f"the node's folder, made by weft agent join (default {STATE}/NODE)")
    parser.add_argument("--server", metavar="URL", help="where the server is now (default: where the node joined)")
    parser.add_argument("--gateway", metavar="ADDRESS:PORT", help="where the gateway is now")
    parser.add_argument("--run-dir", type=Path, help="folder for sockets, with a short path (default /run/weft/ID)")
    parser.add_argument("--link-prefix", help="how names of links begin, at most 4 characters")
    parser.add_argument("--underlay-address", "--address", help="this node's address towards the other nodes")
    parser.add_argument("--underlay-link", help="the interface that has it")
    parser.add_argument("--cgroup", help="cgroup for the guests, below each controller's mount")
    parser.add_argument("--cpu", help="cores to offer (default: all)")
    parser.add_argument("--memory", help="memory to offer (default: all but a reserve)")
    parser.add_argument("--disk", help="disk to offer (default: most of what is free)")
    parser.add_argument(
        "--pool",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a folder to offer as storage pool NAME, beside local; nodes that see the same one share it (repeatable)",
    )
    parser.add_argument("--echo-port", type=int, default=8445, help="UDP port that answers other nodes' probes (8445)")
    parser.add_argument("--sysfs", default="/sys", help="where the kernel tells of devices (default: /sys)")
    parser.add_argument(
        "--no-devices",
        dest="devices",
        action="store_false",
        help="leave GPUs and virtual functions to another node of this machine",
    )
    parser.add_argument("--vxlan-port", type=int, default=4789)
    parser.add_argument("--runtime", choices=sorted(RUNTIMES), default="qemu")
    parser.add_argument(
        "--container-runtime",
        type=read_container_runtime,
        metavar="auto|crun|runc|containerd[=ADDRESS]|none",
        help="what runs containers: the first of crun and runc that works here, one of them, the containerd that listens at "
        f"ADDRESS ({CONTAINERD}), or none (default: auto)",
    )
    parser.add_argument(
        "--isolated-runtime",
        type=read_isolated_runtime,
        default="enclosed",
        metavar="enclosed|kata[-VARIANT][=ADDRESS]",
        help="what gives containers machines of their own (isolation vm): weft itself, or Kata by the containerd that listens at "
        "ADDRESS (default: enclosed; of kata, containerd where it holds containers)",
    )
    parser.add_argument(
        "--enclosure",
        type=Path,
        default=STATE / "enclosed",
        metavar="FOLDER",
        help="what machines of containers (isolation vm) boot, as python -m weft.images enclosed makes it "
        f"(default {STATE}/enclosed)",
    )
    parser.add_argument(
        "--plain-registry",
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        help="an image registry that speaks http without TLS, as those on this node's loopback may (repeatable)",
    )
    parser.add_argument(
        "--functions",
        choices=("auto", "none"),
        help="run instances of functions, in whichever ways work here, or none (default: auto)",
    )
    parser.add_argument("--network", choices=sorted(NETWORKS), default="bridge")
    parser.add_argument("--volume", choices=sorted(VOLUMES), default="directory")
    return _with_state(parser.parse_args(argv))


def read_container_runtime(text: str) -> str:
    word, sign, address = text.partition("=")
    if word not in ("auto", "crun", "runc", "containerd", "none") or (sign and word != "containerd"):
        raise argparse.ArgumentTypeError(f"{text}: auto, crun, runc, containerd, containerd=ADDRESS, or none")
    if sign and not address.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text}: the address is a socket's path from /, like {CONTAINERD}")
    return text


def read_isolated_runtime(text: str) -> str:
    word, sign, address = text.partition("=")
    if not _ISOLATED.fullmatch(word) or (sign and word == "enclosed"):
        raise argparse.ArgumentTypeError(
            f"{text}: enclosed, kata, kata-VARIANT (like kata-clh), or one of them =ADDRESS"
        )
    if sign and not address.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text}: the address is a socket's path from /, like {CONTAINERD}")
    return text


def _with_state(options: argparse.Namespace) -> argparse.Namespace:
    options.state = options.state or STATE / options.node
    return options


def _join(options: argparse.Namespace) -> int:
    token = options.token or options.token_file.read_text()
    enrolment = join(
        options.state.absolute(), options.server, token.strip(), options.ca_sha256, options.node, options.address
    )
    print(f"node {enrolment.node} has joined {enrolment.server}")
    print(f"start it: weft agent {enrolment.node} --state {options.state.absolute()}")
    return 0


def _run(options: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    state: Path = options.state.absolute()
    enrolment = read_enrolment(state)
    if enrolment.node != options.node:
        raise InvalidInput(
            f"{state} belongs to node {enrolment.node}, not {options.node}",
            field="node",
            hint=f"weft agent {enrolment.node} --state {state}",
        )
    lock = _lock(state)
    try:
        renewed = asyncio.run(serve(options, state, enrolment))
    finally:
        os.close(lock)
    if renewed:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return 0


async def serve(options: argparse.Namespace, state: Path, enrolment: Enrolment) -> bool:
    """Be the node's agent until SIGTERM or SIGINT; or until it has a new certificate, then True: start it anew."""
    clock = SystemClock()
    host = make_host(options, state, enrolment)
    context = make_context(state, enrolment)
    if options.server:
        context.server = options.server
    drivers = {"vm": _load(RUNTIMES[options.runtime], host, clock)}
    earlier: dict[str, Any] = {}
    images = None
    wanted = options.container_runtime or ("auto" if options.runtime == "qemu" else "none")
    if wanted != "none":
        runtime, _, address = wanted.partition("=")
        containerd = (address or CONTAINERD) if runtime == "containerd" else ""
        named = runtime if runtime in ("crun", "runc") else None
        drivers["container"] = _load_class(CONTAINERS)(host, clock, named, containerd)
        if options.runtime == "qemu":
            offered, before = load_isolated(options, host, clock, drivers["vm"], containerd)
            drivers["container/vm"] = offered
            earlier = {"container/vm": before} if before is not None else {}
        images = _load_images(host, clock, options.plain_registry)
    runtimes = Runtimes(drivers, earlier)
    network = _load(NETWORKS[options.network], host, clock)
    volumes = _load(VOLUMES[options.volume], host, clock)
    pools = {name: _load(VOLUMES["directory"], host, clock, name, path) for name, path in read_pools(options.pool)}
    client = Client(context)
    client.http.on_version = _tell_version
    server = RemoteServer(client)
    agent = Agent(
        host,
        server,
        runtimes,
        network,
        volumes,
        clock,
        pools=pools,
        container_images=images,
    )
    functions = None
    if (options.functions or ("auto" if options.runtime == "qemu" else "none")) != "none":
        functions = _load_class(FUNCTIONS)(host, server, images, agent, clock)
    streams = Streams(runtimes, network, agent.allocations.find, host.node_uid, clock, functions)
    place = urlsplit(f"//{options.gateway or enrolment.gateway}")
    gateway = Gateway(place.hostname or "127.0.0.1", place.port or 8444, SERVER_NAME)
    control = Control(
        gateway, make_tls(context), host.node_uid, streams.serve, clock, serves_functions=functions is not None
    )
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    try:
        if functions is not None:
            await functions.start()
        await agent.start()
        renewing = asyncio.ensure_future(_renew(state, enrolment.node, context, clock))
        tasks = [asyncio.ensure_future(work) for work in (agent.run(), control.keep(), _wait(asked))]
        try:
            done, _ = await asyncio.wait((*tasks, renewing), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            return renewing in done
        finally:
            for task in (*tasks, renewing):
                task.cancel()
            await asyncio.gather(*tasks, renewing, return_exceptions=True)
    finally:
        if functions is not None:
            await functions.close()
        await agent.close()
        if images is not None:
            await images.close()


def load_isolated(
    options: argparse.Namespace, host: Host, clock: Clock, machines: Any, containerd: str
) -> tuple[Any, Any | None]:
    """The driver of containers in machines of their own, and that of what this node was told before, if it left some."""
    word, _, address = options.isolated_runtime.partition("=")
    enclosure = options.enclosure.absolute()
    if word == "enclosed":
        left = _load_class(KATA_LEFT)(host) if Path(host.state_dir, "kata").exists() else None
        enclosed = _load_class(ENCLOSED)(host, enclosure, clock, machines)
        return enclosed, _load_class(KATA)(host, clock, *left) if left is not None else None
    kata = _load_class(KATA)(host, clock, address or containerd or CONTAINERD, _load_class(KATA_CLASS)(word))
    has_left = any(Path(host.state_dir, "enclosed", "containers").glob("*"))
    return kata, _load_class(ENCLOSED)(host, enclosure, clock, machines) if has_left else None


def _tell_version(server: str) -> None:
    """For the log: the server is there, or was exchanged for another."""
    log.info("the server is weft %s", server)
    if told := describe_skew(server):
        log.warning(told)


async def _renew(state: Path, node: str, context: Context, clock: Clock) -> None:
    """Return once the certificate was renewed, which it is when its end comes near."""
    while True:
        try:
            if await asyncio.to_thread(has_ended, state):
                hint = f"weft token create --join --node {node}, and join again with --state {state}"
                log.error("the node's certificate has ended, by this machine's clock; if that is right: %s", hint)
            elif await asyncio.to_thread(needs_renewal, state):
                await asyncio.to_thread(renew, state, node, context)
                if not await asyncio.to_thread(needs_renewal, state):
                    log.info("the node's certificate was renewed")
                    return
                log.warning("a fresh certificate ends soon by this machine's clock: set it (timedatectl set-ntp true)")
        except (WeftError, OSError) as problem:
            log.warning(
                "the node's certificate can't be renewed: %s; %s", problem, getattr(problem, "hint", None) or ""
            )
        await clock.sleep(RENEWAL_SECONDS)


def make_host(options: argparse.Namespace, state: Path, enrolment: Enrolment) -> Host:
    """The machine as the drivers see it: what was told, the rest found out."""
    id = short_id(enrolment.node_uid)
    server = urlsplit(options.server or enrolment.server)
    address = options.underlay_address or enrolment.address
    if not address:
        address = find_own_address(server.hostname or "127.0.0.1", server.port or 443)
    run_dir: Path = options.run_dir or Path("/run/weft") / id
    run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    return Host(
        node=enrolment.node,
        node_uid=enrolment.node_uid,
        state_dir=str(state),
        run_dir=str(run_dir),
        link_prefix=options.link_prefix or f"w{id[:3]}",
        underlay_address=address,
        underlay_link=options.underlay_link or find_link(address),
        cgroup=options.cgroup or f"weft/{id}",
        capacity=inspect_capacity(
            str(state),
            parse_cpu(options.cpu, "cpu") if options.cpu else None,
            parse_bytes(options.memory, "memory") if options.memory else None,
            parse_bytes(options.disk, "disk") if options.disk else None,
        ),
        vxlan_port=options.vxlan_port,
        echo_port=options.echo_port,
        sysfs=options.sysfs,
        devices=options.devices,
    )


def read_pools(told: Sequence[str]) -> list[tuple[str, str]]:
    """``NAME=PATH`` of each --pool. Raises InvalidInput."""
    pools: list[tuple[str, str]] = []
    for text in told:
        name, _, path = text.partition("=")
        check_name(name, "--pool")
        if not path.startswith("/") or name in (LOCAL, *dict(pools)):
            raise InvalidInput(
                f"--pool {text}: give each NAME=PATH, with a name of its own (not {LOCAL}) and a path from /",
                field="pool",
                hint="like --pool fast=/mnt/nvme",
            )
        pools.append((name, path))
    return pools


def _load(place: str, host: Host, clock: SystemClock, *more: str) -> Any:
    """An instance of the driver class at ``module:class``."""
    cls = _load_class(place)
    wants_clock = "clock" in cls.__init__.__annotations__
    return cls(host, clock, *more) if wants_clock else cls(host, *more)


def _load_class(place: str) -> Any:
    """What stands at ``module:class``; only this one is imported."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _load_images(host: Host, clock: SystemClock, plain: Sequence[str]) -> Any:
    module = CONTAINER_IMAGES.partition(":")[0]
    settings = _load_class(f"{module}:RegistrySettings")
    return _load_class(CONTAINER_IMAGES)(
        host, registries={place: settings(plain_http=True) for place in plain}, clock=clock
    )


def _lock(state: Path) -> int:
    """Hold the state folder; raises InUse while another agent does."""
    descriptor = os.open(state / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InUse(f"an agent runs on {state} already", hint="end it first") from None
    return descriptor


async def _wait(asked: asyncio.Event) -> None:
    await asked.wait()
