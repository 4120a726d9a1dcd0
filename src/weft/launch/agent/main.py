"""``weft agent NODE``: one node's agent; ``weft agent join``, which makes a machine a node; ``weft agent config``.

Wires the agent to its drivers, the server and the gateway, and runs until a signal ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import importlib
import logging
import os
import signal
import ssl
import sys
from asyncio import sslproto
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from weft.agent.agent import Agent
from weft.agent.backup.files import BackupFiles
from weft.agent.metrics.own import add_own
from weft.agent.node.enrolment import (
    Enrolment,
    has_ended,
    join,
    keep_gateways,
    keep_servers,
    list_joined,
    make_context,
    needs_renewal,
    read_enrolment,
    renew,
)
from weft.agent.samples.node import NodeToMeasure
from weft.agent.samples.sampler import Sampler
from weft.agent.server.client import RemoteServer
from weft.agent.server.line import ServerLine
from weft.agent.stream.gateway import Gateway, GatewayConnection
from weft.agent.stream.gateways import Gateways
from weft.agent.stream.server import Streams
from weft.cli.command.exit_codes import exit_code
from weft.client.api import Client
from weft.client.context import Context
from weft.client.server.version_skew import describe_skew
from weft.client.small_file import read_small
from weft.client.tls import make_tls, set_time_check
from weft.contracts.clock import Clock, SystemClock
from weft.contracts.driver.host import Host
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.cgroup.limits import plan_agent_memory
from weft.drivers.linux.node_counters import open_node_counters
from weft.drivers.linux.syscalls import is_clock_synchronized
from weft.drivers.package.installer import DebianInstaller
from weft.drivers.power.systemd import SystemdReboot
from weft.launch.agent.configuration import parse_agent, show_configuration
from weft.launch.agent.drivers import FUNCTIONS, LOCAL_FUNCTIONS, load_class, load_drivers
from weft.launch.agent.host import make_host
from weft.launch.agent.options import STATE, parse_join
from weft.launch.agent.parts import AgentParts
from weft.launch.agent.places import SOCKET, offers_functions, read_metrics_place
from weft.launch.process.service import has_service, start_service
from weft.objects.errors import InUse, InvalidInput, WeftError

RENEWAL_SECONDS = 6 * 3600.0
TIME_SECONDS = 10.0  # between two looks at whether the clock is right
TLS_BYTES = 64 << 10  # that each of its connections keeps to read into; by itself asyncio takes 256 KiB
SERVICE = "weft-agent"
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


log = logging.getLogger("weft.agent")


def main(argv: Sequence[str]) -> int:
    """Run ``weft agent …``: 0 after a signal; a sentence on stderr and its exit code if it can't go on."""
    try:
        if argv and argv[0] == "join":
            return _join(parse_join(argv[1:]))
        if argv and argv[0] == "config":
            return show_configuration(argv[1:])
        return _run(parse_agent(argv))
    except WeftError as problem:
        print(f"error: {problem.message}", file=sys.stderr)
        if problem.hint:
            print(f"  {problem.hint}", file=sys.stderr)
        return exit_code(problem)


def _join(options: argparse.Namespace) -> int:
    try:
        token = options.token or read_small(options.token_file)
    except (OSError, UnicodeDecodeError) as problem:
        said = getattr(problem, "strerror", None) or "it isn't text"
        raise InvalidInput(
            f"--token-file {options.token_file} can't be read: {said}",
            field="token_file",
            hint="weft token create --join prints the token; write it into a file",
        ) from None
    enrolment = join(
        options.state.absolute(), options.server, token.strip(), options.ca_sha256, options.node, options.address or ""
    )
    print(f"node {enrolment.node} has joined {enrolment.server}")
    if (
        options.state.absolute() == STATE / enrolment.node
        and list_joined(STATE) == [enrolment.node]
        and has_service(SERVICE)
    ):
        start_service(SERVICE)
    else:
        print(f"start its agent: weft agent {enrolment.node} --state {options.state.absolute()}")
    return 0


def _run(options: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    state: Path = options.state.absolute()
    enrolment = read_enrolment(state)
    if options.node not in ("", enrolment.node):
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
    sslproto.SSLProtocol.max_size = TLS_BYTES
    clock = SystemClock()
    host = make_host(options, state, enrolment)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if problem := ControlGroups(host.cgroup).enclose_agent(plan_agent_memory(total)):
        log.warning("this agent has no memory limit of its own: %s", problem)
    context = make_context(state, enrolment)
    if options.server:
        context.server = options.server
    runtimes, network, volumes, pools, images, proxies, guard = load_drivers(options, host, clock)
    client = Client(context)
    client.http.on_version = _check_version
    client.http.on_servers = partial(_note_servers, state, context)
    line = ServerLine(clock)
    server = RemoteServer(client, line)
    parts = AgentParts(
        host,
        server,
        runtimes,
        network,
        volumes,
        clock,
        pools=pools,
        container_images=images,
        server_places=(urlsplit(context.server).netloc, options.gateway or enrolment.gateway),
        warm_after=options.warm_after,
        log_bytes=options.log_size,
        log_seconds=options.log_age,
        traced=True,
        proxies=proxies,
        guard=guard,
        installer=DebianInstaller("agent"),
        reboot=SystemdReboot(),
    )
    agent = Agent(parts)
    _send_lines(options, parts, clock)
    functions = None
    if offers_functions(options.functions, options.runtime):
        scheme = "https" if options.local_functions_tls else "http"
        address = f"{scheme}://{options.local_functions}" if options.local_functions else ""
        functions = load_class(FUNCTIONS)(host, server, images, parts, clock, address)
    node = NodeToMeasure(host.node_uid, partial(open_node_counters, host.underlay_link), parts.pools)
    samples = Sampler(parts.samples, runtimes, parts.table, clock, network, node)
    parts.digests.count_devices = add_own(samples.count_devices, Path(host.state_dir) / "node.crt", clock)
    streams = Streams(
        *(runtimes, network, parts.table.find, host.node_uid, clock, functions, parts.flows, samples, parts.logs),
        BackupFiles(host.state_dir, host.node, server),
        parts.receiver,
    )
    tls = make_tls(context)
    client.http.on_answer = lambda request, status, headers, seconds: parts.wall.note_server(headers)
    _check_time(parts, client.http.tls, tls)

    def connect(gateway: Gateway) -> GatewayConnection:
        serves_functions = functions is not None
        return GatewayConnection(
            gateway, tls, host.node_uid, streams.serve, clock, serves_functions=serves_functions, line=line
        )

    def keep_named(named: Sequence[str]) -> None:
        parts.tasks.spawn(asyncio.to_thread(keep_gateways, state, named))

    gateways = Gateways(options.gateway or enrolment.gateway, enrolment.gateways, connect, keep_named)
    parts.on_gateways = gateways.put
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    listener, metrics = _make_listener(host, parts, clock), None
    if options.metrics:
        metrics = make_metrics_place(options.metrics, host, parts, clock)
    local = None
    if functions is not None and options.local_functions:
        local = load_class(LOCAL_FUNCTIONS)(functions, options.local_functions, options.local_functions_tls, clock)
    try:
        if functions is not None:
            await functions.start()
        listener.start()
        if metrics is not None:
            metrics.start()
        await agent.start()
        if local is not None:
            local.start()
        renewing = asyncio.ensure_future(_renew(state, enrolment.node, context, clock))
        works = (
            agent.run(),
            gateways.keep(),
            samples.keep(),
            _keep_time(parts, clock, client.http.tls, tls),
            _wait(asked),
        )
        tasks = [asyncio.ensure_future(work) for work in works]
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
        await listener.close()
        if metrics is not None:
            await metrics.close()
        if local is not None:
            await local.close()
        if functions is not None:
            await functions.close()
        await agent.close()
        if images is not None:
            await images.close()


def _send_lines(options: argparse.Namespace, parts: AgentParts, clock: Clock) -> None:
    """Send lines to a syslog and a collector, if they are named. Raises InvalidInput for what can't be one."""
    if options.log_syslog:
        sender = importlib.import_module("weft.agent.logs.syslog").LineSender
        target = importlib.import_module("weft.telemetry.audit.target").read_target(options.log_syslog)
        parts.logs.syslog = sender(target, parts.host.node, clock)
    if options.log_otlp:
        export = importlib.import_module("weft.telemetry.logs.export")
        collector = importlib.import_module("weft.telemetry.collector")
        url = collector.read_collector(options.log_otlp, "--log-otlp", export.PATH)
        kept = options.state.absolute() / "logs" / "exported.json"
        parts.logs.exporter = export.LogExporter(parts.logs.store, url, kept, f"node/{parts.host.node}", clock)


def _make_listener(host: Host, parts: AgentParts, clock: Clock) -> Any:
    """Make what answers /readyz, /healthz and /metrics at a socket in the run folder. Raises Unavailable."""
    serving = importlib.import_module("weft.serving.server")
    parts.readiness.read_synchronized = is_clock_synchronized
    return _serve_metrics(serving.listen_at(Path(host.run_dir) / SOCKET), host, parts, clock)


def make_metrics_place(place: str, host: Host, parts: AgentParts, clock: Clock) -> Any:
    """The same at ``place`` (ADDRESS:PORT), as soon as that can be opened. Raises InvalidInput for what can't be a place."""
    serving, address = importlib.import_module("weft.serving.server"), read_metrics_place(place)
    return importlib.import_module("weft.serving.place").DeferredServer(
        lambda: _serve_metrics(serving.listen(*address), host, parts, clock), clock, f"metrics at {place}"
    )


def _serve_metrics(bound: Any, host: Host, parts: AgentParts, clock: Clock) -> Any:
    listener = importlib.import_module("weft.agent.metrics.listener")
    return listener.make_listener([bound], host, parts.table, lambda: parts.digests.newest, parts.readiness, clock)


def _check_version(server: str) -> None:
    """Logs the server's version at first, and when it changes."""
    log.info("the server is weft %s", server)
    if warning := describe_skew(server):
        log.warning(warning)


def _note_servers(state: Path, context: Context, others: list[str]) -> None:
    """Keep the fabric's further servers for the next start, and for what is asked beside the client."""
    context.others = others
    keep_servers(state, others)


async def _renew(state: Path, node: str, context: Context, clock: Clock) -> None:
    """Return once the certificate was renewed, which it is when its end comes near."""
    while True:
        try:
            if await asyncio.to_thread(has_ended, state):
                hint = f"weft token create --join --node {node}, and join again with --state {state}"
                log.error("the node's certificate has expired by this machine's clock; if the clock is right: %s", hint)
            elif await asyncio.to_thread(needs_renewal, state):
                await asyncio.to_thread(renew, state, node, context)
                if not await asyncio.to_thread(needs_renewal, state):
                    log.info("the node's certificate was renewed")
                    return
                log.warning(
                    "a new certificate expires soon by this machine's clock: set the clock (timedatectl set-ntp true)"
                )
        except (WeftError, OSError) as problem:
            log.warning(
                "the node's certificate can't be renewed: %s; %s", problem, getattr(problem, "hint", None) or ""
            )
        await clock.sleep(RENEWAL_SECONDS)


def _lock(state: Path) -> int:
    """Hold the state folder; raises InUse while another agent does."""
    descriptor = os.open(state / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InUse(f"another agent already runs on {state}", hint="stop it first") from None
    return descriptor


async def _keep_time(parts: AgentParts, clock: Clock, *contexts: ssl.SSLContext) -> None:
    while True:
        await clock.sleep(TIME_SECONDS)
        _check_time(parts, *contexts)


def _check_time(parts: AgentParts, *contexts: ssl.SSLContext) -> None:
    """Check the time: without a right clock no certificate would be valid, and the server would never be heard."""
    for tls in contexts:
        set_time_check(tls, not parts.wall.behind)


async def _wait(asked: asyncio.Event) -> None:
    await asked.wait()
