"""The device driver of OPC UA: reads each device's nodes, subscribes to their changes, and writes values.

It runs in a process of its own (``drivers/device/process``): its package takes 50 MB, and believes what servers say of lengths. A
device's address is ``HOST[:PORT][/PATH]``, an href a node id. Sessions are anonymous and not encrypted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from asyncua import Client, ua
from asyncua.client.ua_client import UASocketProtocol

from weft.contracts.clock import Clock
from weft.contracts.device import AnnouncedDevice, Listener, Thing, Value
from weft.drivers.device.address import find_address
from weft.drivers.device.opcua.words import check_href, read_address, read_value, write_value
from weft.drivers.device.poll import Poller
from weft.objects.errors import InvalidInput, NotFound, TimedOut, Unavailable, WeftError

ANSWER_SECONDS = 5.0
DISCOVER_SECONDS = 60.0
REFUSED_SECONDS = 1.0  # after a connection that failed: who asks meanwhile gets the same answer
PUBLISH_MS = 100.0
MOST_HOSTS = 500
MOST_BROWSED = 40  # nodes of a found server
MOST_BYTES = 1 << 20  # of a message
MOST_CHARACTERS = 128  # of each text that is kept
log = logging.getLogger("weft.edge.opcua")
logging.getLogger("asyncua").setLevel(logging.CRITICAL)  # what is wrong is told to the listener
T = TypeVar("T")
_protocol: Any = UASocketProtocol
_take_bytes = _protocol.data_received


def _take_bounded(protocol: Any, data: bytes) -> None:
    """The package waits for as many bytes as a server says will come: one that never ends had 100 MB in ten seconds."""
    if len(protocol.receive_buffer or b"") + len(data) > MOST_BYTES:
        protocol.receive_buffer = None
        protocol.transport.abort()
    else:
        _take_bytes(protocol, data)


_protocol.data_received = _take_bounded


class _Link:
    """A session with a server, which may stand for many devices."""

    def __init__(self, host: str, port: int, path: str, clock: Clock, *, local: bool, seconds: float) -> None:
        self._host, self._port, self._path, self._clock, self._local = host, port, path, clock, local
        self._seconds = seconds
        self._client: Any = None
        self._lock = asyncio.Lock()
        self._problem, self._failed_at = "", 0.0
        self.name = f"{host}:{port}"

    async def open(self) -> Any:
        """The client, connected. Raises Unavailable."""
        async with self._lock:
            if self._client is not None:
                return self._client
            if self._problem and self._clock.elapsed() - self._failed_at < REFUSED_SECONDS:
                raise Unavailable(self._problem)
            try:
                address = await find_address(self._host, self._port, local=self._local)
                shown = f"[{address}]" if ":" in address else address
                client = Client(f"opc.tcp://{shown}:{self._port}{self._path}", timeout=self._seconds)
                client.max_messagesize = MOST_BYTES
                await self.ask(client.connect(), 2 * self._seconds, client)
            except WeftError as problem:
                self._problem, self._failed_at = problem.message, self._clock.elapsed()
                raise
            self._client, self._problem = client, ""
            return client

    async def ask(self, asked: Awaitable[T], seconds: float | None = None, client: Any = None) -> T:
        """Return the server's answer. Raises Unavailable, and ends the session, if there is none."""
        try:
            async with asyncio.timeout(self._seconds if seconds is None else seconds):
                return await asked
        except (WeftError, asyncio.CancelledError):
            raise
        except Exception as failure:  # the package raises whatever it stumbles over in what a server sends
            await self.drop(client)
            why = "in time" if isinstance(failure, TimeoutError) else f"as OPC UA has it: {_describe(failure)}"
            if isinstance(failure, OSError) and not isinstance(failure, TimeoutError):
                why = f"at all: {_describe(failure)}"
            raise Unavailable(f"{self.name} doesn't answer {why}") from None

    async def drop(self, client: Any = None) -> None:
        """The next question begins with a new session."""
        if client is None:
            client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):  # whatever: it is over
                async with asyncio.timeout(2.0):
                    await client.disconnect()
            with contextlib.suppress(Exception):
                client.disconnect_socket()


class _Device(msgspec.Struct):
    thing: Thing
    link: _Link
    nodes: dict[str, str]  # node id by property
    types: dict[str, str] = {}
    subscribed: Any = None  # the client with which it is


class _Changes:
    """The package's handler: what a subscription says of a device."""

    def __init__(self, driver: OpcuaDriver, device: _Device, names: Mapping[Any, str]) -> None:
        self._driver, self._device, self._names = driver, device, names

    def datachange_notification(self, node: Any, value: Any, data: Any) -> None:
        name = self._names.get(node.nodeid)
        if name is not None:
            self._driver.note_change(self._device, name, data.monitored_item.Value)


class OpcuaDriver:
    """``hosts``: addresses of servers that are asked what they are. ``local``: devices may be at this machine's own addresses."""

    protocol = "opcua"

    def __init__(
        self,
        clock: Clock,
        hosts: Sequence[str] = (),
        *,
        local: bool = False,
        answer_seconds: float = ANSWER_SECONDS,
        discover_seconds: float = DISCOVER_SECONDS,
    ) -> None:
        self._clock, self._hosts, self._local = clock, list(hosts)[:MOST_HOSTS], local
        self._answer_seconds, self._discover_seconds = answer_seconds, discover_seconds
        self._links: dict[tuple[str, int, str], _Link] = {}
        self._devices: dict[str, _Device] = {}
        self._problems: dict[str, InvalidInput] = {}  # what can't be asked as it is written
        self._found: dict[str, AnnouncedDevice] = {}
        self._searching: asyncio.Task[None] | None = None
        self._listener: Listener | None = None
        self._poller = Poller(self._read_all, clock)

    async def probe(self) -> str:
        return self._poller.find_problem()

    async def discover(self) -> list[AnnouncedDevice]:
        return list(self._found.values())

    async def connect(self, thing: Thing) -> None:
        if self._poller.find(thing.uid) == thing:
            return
        await self.disconnect(thing.uid)
        try:
            place = read_address(thing.address)
            nodes = {name: check_href(href, name) for name, href in thing.hrefs.items()}
        except InvalidInput as problem:
            self._problems[thing.uid] = problem
        else:
            if place not in self._links:
                self._links[place] = _Link(*place, self._clock, local=self._local, seconds=self._answer_seconds)
            self._devices[thing.uid] = _Device(thing, self._links[place], nodes)
        self._poller.put(thing)

    async def disconnect(self, uid: str) -> None:
        self._poller.remove(uid)
        self._problems.pop(uid, None)
        device = self._devices.pop(uid, None)
        if device is not None and all(one.link is not device.link for one in self._devices.values()):
            self._links = {place: link for place, link in self._links.items() if link is not device.link}
            await device.link.drop()

    async def read(self, uid: str, names: Sequence[str]) -> dict[str, Value]:
        device = self._find(uid)
        return await self._ask(device, [name for name in names if name in device.nodes])

    async def write(self, uid: str, id: str, values: Mapping[str, Value], seconds: float) -> None:
        """Writing a value again is harmless, so ``id`` isn't needed."""
        device, until = self._find(uid), self._clock.elapsed() + seconds
        for name, value in values.items():
            if name not in device.nodes:
                raise InvalidInput(f"{name[:63]} can't be written: its model gives it no href", field=name[:63])
            if seconds <= 0:
                raise TimedOut("its time is up")
            client = await device.link.open()
            node = client.get_node(device.nodes[name])
            if name not in device.types:
                found = await device.link.ask(node.read_data_type_as_variant_type())
                device.types[name] = str(found.name)
            type_ = device.types[name]
            kind = getattr(ua.VariantType, type_)
            variant = ua.Variant(write_value(type_, value, name), kind)
            left = until - self._clock.elapsed()
            if left <= 0:
                raise TimedOut("its time is up")
            asked = client.uaclient.write_attributes([node.nodeid], [ua.DataValue(variant)], ua.AttributeIds.Value)
            [status] = await device.link.ask(asked, min(left, self._answer_seconds))
            if not status.is_good():
                raise Unavailable(f"{name[:63]}: the server answers {status.name}")
        self._poller.ask_now(uid)

    def observe(self, listener: Listener) -> None:
        self._listener = listener
        self._poller.observe(listener)
        if self._hosts and self._searching is None:
            self._searching = asyncio.create_task(self._keep_searching())

    async def close(self) -> None:
        if self._searching is not None:
            self._searching.cancel()
            await asyncio.gather(self._searching, return_exceptions=True)
        await self._poller.close()
        await asyncio.gather(*(link.drop() for link in self._links.values()))

    def note_change(self, device: _Device, name: str, data: Any) -> None:
        """A subscription says that a value changed."""
        value = self._take(device, name, data)
        if value is not None and self._listener is not None and self._devices.get(device.thing.uid) is device:
            self._listener.note_values(device.thing.uid, {name: value})

    def _find(self, uid: str) -> _Device:
        if (problem := self._problems.get(uid)) is not None:
            raise Unavailable(problem.message, hint=problem.hint)
        device = self._devices.get(uid)
        if device is None:
            raise NotFound("the device isn't connected to its driver")
        return device

    async def _read_all(self, thing: Thing) -> Mapping[str, Value]:
        device = self._find(thing.uid)
        if not device.nodes:
            raise Unavailable("its model gives no property an href", hint="write like href: ns=2;s=Oven.Temperature")
        client = await device.link.open()
        if device.subscribed is not client:
            await self._subscribe(device, client)
        return await self._ask(device, list(device.nodes))

    async def _subscribe(self, device: _Device, client: Any) -> None:
        nodes = {client.get_node(node): name for name, node in device.nodes.items()}
        handler = _Changes(self, device, {node.nodeid: name for node, name in nodes.items()})
        subscription = await device.link.ask(client.create_subscription(PUBLISH_MS, handler))
        await device.link.ask(
            subscription.subscribe_data_change(list(nodes))
        )  # what isn't there is asked for all the same
        device.subscribed = client

    async def _ask(self, device: _Device, names: Sequence[str]) -> dict[str, Value]:
        """The values of ``names`` that the server has. Raises Unavailable."""
        if not names:
            return {}
        client = await device.link.open()
        found = await device.link.ask(client.read_attributes([client.get_node(device.nodes[name]) for name in names]))
        if len(found) != len(names):
            await device.link.drop()
            raise Unavailable(f"it lies: asked for {len(names)} values, it answers with {len(found)}")
        values = {name: self._take(device, name, data) for name, data in zip(names, found, strict=True)}
        return {name: value for name, value in values.items() if value is not None}

    def _take(self, device: _Device, name: str, data: Any) -> Value | None:
        """The value in the server's words; None if it has none now, or none that weft knows, which is refused."""
        status = data.StatusCode
        if (status is not None and not status.is_good()) or data.Value is None or data.Value.Value is None:
            return None
        type_ = str(data.Value.VariantType.name)
        value = read_value(type_, data.Value.Value)
        if value is None:
            self._poller.note_refused(device.thing.uid, "payload", name)
        else:
            device.types[name] = type_
        return value

    # --- what is there -----------------------------------------------------------------------------------------------

    async def _keep_searching(self) -> None:
        while True:
            for place in self._hosts:
                try:
                    self._found[place] = await self._browse(place)
                except WeftError as problem:
                    log.debug("%s: %s", place, problem.message)
            await self._clock.sleep(self._discover_seconds)

    async def _browse(self, place: str) -> AnnouncedDevice:
        """The server at ``place``: who made it, and which variables lie below its objects. Raises WeftError."""
        link = _Link(*read_address(place), self._clock, local=self._local, seconds=self._answer_seconds)
        client = await link.open()
        try:
            build = await link.ask(client.get_node(ua.ObjectIds.Server_ServerStatus_BuildInfo).read_value())
            variables, ahead, seen = [], [client.nodes.objects], 0
            while ahead and seen < MOST_BROWSED:
                for child in await link.ask(ahead.pop(0).get_children_descriptions()):
                    seen += 1
                    if child.NodeId.NamespaceIndex == 0 or seen > MOST_BROWSED:
                        continue  # the server's own
                    if child.NodeClass == ua.NodeClass.Variable:
                        variables.append(child.NodeId.to_string())
                    elif child.NodeClass == ua.NodeClass.Object:
                        ahead.append(client.get_node(child.NodeId))
        finally:
            await link.drop()
        maker, product = _cut(getattr(build, "ManufacturerName", "")), _cut(getattr(build, "ProductName", ""))
        facts = {"variables": _cut(" ".join(variables)), "version": _cut(getattr(build, "SoftwareVersion", ""))}
        return AnnouncedDevice(
            "opcua",
            place,
            product or f"opcua {place}",
            maker,
            product,
            {name: text for name, text in facts.items() if text},
        )


def _cut(text: Any) -> str:
    return "".join(one if one.isprintable() else " " for one in str(text or "")[:MOST_CHARACTERS]).strip()


def _describe(failure: BaseException) -> str:
    return (str(failure).splitlines() or [""])[0][:120] or type(failure).__name__
