"""``weft edge gateway --config FILE``: the gateway of a node's devices, a process of its own beside the agent.

Wires drivers, broker, twins and the line to the server, and runs until a signal ends it. It needs no server to start again: what
it works by is in its folder."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import resource
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from weft.agent.node.enrolment import Enrolment, make_context, read_enrolment
from weft.cli.command.exit_codes import exit_code
from weft.client.api import Client
from weft.contracts.clock import SystemClock
from weft.drivers.device.mqtt.client import MqttLogin
from weft.drivers.device.mqtt.driver import MqttDriver
from weft.drivers.model.supervisor import ModelSupervisor
from weft.edge.broker.broker import Broker, end_former
from weft.edge.broker.config import GATEWAY, STRANGERS, Bounds, Listening
from weft.edge.device.store import TwinStore
from weft.edge.gateway import DeviceGateway
from weft.edge.server.files import ModelFiles
from weft.edge.server.link import ServerLink
from weft.launch.edge.cache import make_cache, make_publisher
from weft.launch.edge.configuration import Settings, read_settings
from weft.launch.edge.drivers import make_drivers
from weft.launch.edge.models import find_missing_runtime, make_model_command
from weft.launch.process.address import split_address
from weft.launch.process.settings import show_settings
from weft.objects.errors import InUse, InvalidInput, WeftError

LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
MOST_FILES = 16_384
log = logging.getLogger("weft.edge")


def main(argv: Sequence[str]) -> int:
    """Run ``weft edge …``: 0 after a signal; a sentence on stderr and its exit code if it can't go on."""
    try:
        if not argv or argv[0] != "gateway":
            fault = f"{argv[0][:40]!r} is not one of its commands" if argv else "the command is missing"
            raise InvalidInput(f"weft edge: {fault}", hint="weft edge gateway --config FILE")
        settings, origins, only_show = read_settings(argv[1:])
        if only_show:
            show_settings(origins, sys.stdout)
            return 0
        return _run(settings)
    except WeftError as problem:
        print(f"error: {problem.message}", file=sys.stderr)
        if problem.hint:
            print(f"  {problem.hint}", file=sys.stderr)
        return exit_code(problem)


def _run(settings: Settings) -> int:
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    allow_files()
    enrolment = read_enrolment(settings.node_state.absolute())  # before anything is made
    settings.state.mkdir(parents=True, exist_ok=True)
    settings.state.chmod(0o711)  # the broker's user goes through it to its own folder
    lock = _lock(settings.state)
    try:
        asyncio.run(serve(settings, enrolment))
    finally:
        os.close(lock)
    return 0


def allow_files() -> None:
    """Let this process and its broker have a descriptor for each device: a shell gives 1,024, services often no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def serve(settings: Settings, enrolment: Enrolment) -> None:
    """Be the gateway until SIGTERM or SIGINT."""
    clock = SystemClock()
    client = Client(make_context(settings.node_state.absolute(), enrolment))
    store = TwinStore(settings.state)
    broker = Broker(
        settings.state.absolute() / "broker",
        _find_listening(settings, settings.listen),
        Bounds(connections=settings.connections),
        clock,
    )
    announcements, folder = None, settings.state.absolute() / "announcements"
    if not settings.births:
        await end_former(folder, clock)  # of a gateway with other settings, which was killed
    else:
        listening = _find_listening(settings, settings.births)
        announcements = Broker(folder, listening, STRANGERS, clock, is_open=True)
    find_births = partial(_find_entry, announcements) if announcements is not None else None
    mqtt = MqttDriver(partial(_find_entry, broker), clock, find_births)
    drivers = make_drivers(mqtt, settings, clock)
    cache = make_cache(settings, clock)
    links: list[ServerLink] = []
    gateway = DeviceGateway(
        drivers,
        store,
        clock,
        rate=settings.rate,
        find_offset=lambda: links[0].offset if links else 0.0,
        runner=ModelSupervisor(make_model_command, clock, find_missing=find_missing_runtime),
        publisher=make_publisher(cache, settings, clock, enrolment.node),
    )
    files = ModelFiles(settings.state.absolute() / "models")
    link = ServerLink(client, enrolment.node, gateway, drivers, store, clock, broker, files)
    links.append(link)
    await link.load()
    log.info("gateway of node %s: %d devices, broker at %s", enrolment.node, len(gateway.twins), settings.listen)
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    works = [asyncio.ensure_future(one) for one in (broker.keep(), gateway.run(), link.keep(), _wait(asked))]
    if announcements is not None:
        works.append(asyncio.ensure_future(announcements.keep()))
    try:
        done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            one.result()
    finally:
        client.close()
        for driver in drivers.values():
            await driver.close()
        for one in works:
            one.cancel()
        await asyncio.gather(*works, return_exceptions=True)
        if cache is not None:
            await cache.close()
        store.close()


def _find_listening(settings: Settings, address: str) -> Listening:
    host, port = split_address(address)
    return Listening(host, port, settings.certificate, settings.key)


def _find_entry(broker: Broker) -> MqttLogin:
    return MqttLogin(broker.path, GATEWAY, broker.password)


async def _wait(asked: asyncio.Event) -> None:
    await asked.wait()


def _lock(state: Path) -> int:
    """Hold the gateway's folder; raises InUse while another gateway does."""
    descriptor = os.open(state / "gateway.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InUse(f"another gateway already runs on {state}", hint="stop it first, or give another state") from None
    return descriptor
