"""The device driver of MQTT, over topics ``weft/PROJECT/DEVICE/…`` of the gateway's own broker.

A device publishes ``reported`` ({property: value}) and ``event``; it gets ``command`` ({id, set, expires}) while it is connected or
keeps a session, and finds ``desired`` (retained) when it comes. Both end by MQTT's own expiry, so no command is delivered late.
What devices announce comes from another broker, which strangers use; it is heard as far as its bounds go.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.device import AnnouncedDevice, Listener, Thing, Value
from weft.drivers.device.mqtt.births import TOPICS, read_birth
from weft.drivers.device.mqtt.client import MqttClient, MqttLogin
from weft.drivers.device.mqtt.message import PayloadRefused, read_message
from weft.drivers.device.mqtt.packets import Publish
from weft.objects.errors import NotFound, TimedOut, Unavailable
from weft.objects.identity import new_uid

CLIENT = "weft-gateway"  # as the user is called: the broker lets nobody else have this id
MOST_FOUND = 500
MOST_BYTES = 64 << 10  # of a message
READ_SECONDS = 5.0
MOST_BIRTHS = 100  # announcements that are read in a second
KEPT_SECONDS = 120  # of a command that waits for a device: it is sent again sooner than that
_ROOT = "weft"


class MqttDriver:
    """``find_entry``: of the devices' broker; ``find_births``: of that of announcements, None: there is none."""

    protocol = "mqtt"

    def __init__(
        self, find_entry: Callable[[], MqttLogin], clock: Clock, find_births: Callable[[], MqttLogin] | None = None
    ) -> None:
        topics = [f"{_ROOT}/+/+/reported", f"{_ROOT}/+/+/event"]
        self._client = MqttClient(CLIENT, find_entry, topics, self._take, clock, self._note_line)
        self._births: MqttClient | None = None
        if find_births is not None:  # an id that strangers can't know, or they could take it
            self._births = MqttClient(
                new_uid(),
                find_births,
                TOPICS,
                self._take_birth,
                clock,
                session_seconds=0,
                most_in_second=MOST_BIRTHS,
            )
        self._listener: Listener | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._things: dict[str, Thing] = {}
        self._reports: dict[bytes, str] = {}  # topic to uid
        self._events: dict[bytes, str] = {}
        self._found: dict[str, AnnouncedDevice] = {}
        self._reading: dict[str, list[asyncio.Future[dict[str, Value]]]] = {}

    async def probe(self) -> str:
        return self._client.problem

    async def discover(self) -> list[AnnouncedDevice]:
        return list(self._found.values())

    async def connect(self, thing: Thing) -> None:
        before = self._things.get(thing.uid)
        if before is not None and before != thing:
            await self.disconnect(thing.uid)
        self._things[thing.uid] = thing
        root = f"{_ROOT}/{thing.project}/{thing.name}"
        self._reports[f"{root}/reported".encode()] = thing.uid
        self._events[f"{root}/event".encode()] = thing.uid

    async def disconnect(self, uid: str) -> None:
        thing = self._things.pop(uid, None)
        if thing is None:
            return
        root = f"{_ROOT}/{thing.project}/{thing.name}"
        for table, leaf in ((self._reports, "reported"), (self._events, "event")):
            if table.get(f"{root}/{leaf}".encode()) == uid:
                del table[f"{root}/{leaf}".encode()]
        for future in self._reading.pop(uid, []):
            if not future.done():
                future.cancel()
        for leaf in ("reported", "event", "desired"):
            self._client.publish_unasked(f"{root}/{leaf}", b"", retain=True)  # nothing of it stays in the broker

    async def read(self, uid: str, names: Sequence[str]) -> dict[str, Value]:
        """Asks the device for what it has; its next report is the answer."""
        topic = self._find_topic(uid, "command")
        future: asyncio.Future[dict[str, Value]] = asyncio.get_running_loop().create_future()
        self._reading.setdefault(uid, []).append(future)
        try:
            asked = msgspec.json.encode(
                {"id": new_uid(), "action": "report", "of": list(names), "expires": READ_SECONDS}
            )
            await self._client.publish(topic, asked, expiry_seconds=math.ceil(READ_SECONDS))
            async with asyncio.timeout(READ_SECONDS):
                values = await future
        except TimeoutError:
            raise Unavailable(f"the device doesn't answer within {READ_SECONDS:g} s") from None
        finally:
            waiting = self._reading.get(uid, [])
            if future in waiting:
                waiting.remove(future)
            if not waiting:
                self._reading.pop(uid, None)
        return {name: values[name] for name in names if name in values}

    async def write(self, uid: str, id: str, values: Mapping[str, Value], seconds: float) -> None:
        whole = math.floor(seconds)  # MQTT counts whole seconds: rather too early than late
        if whole < 1:
            raise TimedOut("less than a second is left, which is too short for MQTT")
        command = msgspec.json.encode({"id": id, "set": dict(values), "expires": whole})
        topic = self._find_topic(uid, "command")
        desired = self._find_topic(uid, "desired")
        await self._client.publish(desired, msgspec.json.encode(dict(values)), retain=True, expiry_seconds=whole)
        await self._client.publish(topic, command, expiry_seconds=min(whole, KEPT_SECONDS))

    def observe(self, listener: Listener) -> None:
        self._listener = listener
        if not self._tasks:
            clients = [self._client] if self._births is None else [self._client, self._births]
            self._tasks = [asyncio.create_task(one.keep()) for one in clients]

    async def close(self) -> None:
        self._client.close()
        if self._births is not None:
            self._births.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def _find_topic(self, uid: str, leaf: str) -> str:
        thing = self._things.get(uid)
        if thing is None:
            raise NotFound("the device isn't connected to its driver")
        return f"{_ROOT}/{thing.project}/{thing.name}/{leaf}"

    def _note_line(self, problem: str) -> None:
        if self._listener is not None:
            self._listener.note_line(problem)

    def _take(self, message: Publish) -> None:
        listener = self._listener
        if listener is None:
            return
        uid = self._reports.get(message.topic)
        is_event = uid is None
        if uid is None:
            uid = self._events.get(message.topic)
        if message.retained:  # what it once said isn't what it says now: its twin knows that
            self._client.publish_unasked(message.topic, b"", retain=True)
            return
        if uid is None:
            listener.note_refused("", "stranger")  # of a device that isn't connected here, or is no more
            return
        if len(message.payload) > MOST_BYTES:
            listener.note_refused(uid, "size")
            return
        try:
            values, wrong = read_message(message.payload)
        except PayloadRefused as problem:
            listener.note_refused(uid, problem.reason)
            return
        if is_event:
            listener.note_event(uid, values)
        else:
            listener.note_values(uid, values)
            if self._reading:
                for future in self._reading.pop(uid, []):
                    if not future.done():
                        future.set_result(dict(values))
        for name in wrong:
            listener.note_refused(uid, "type", name)

    def _take_birth(self, message: Publish) -> None:
        listener = self._listener
        if listener is None:
            return
        try:
            found = read_birth(message.topic.decode(), message.payload)
        except UnicodeDecodeError:
            found = None
        if found is None:
            listener.note_refused("", "birth")
        elif found.address in self._found or len(self._found) < MOST_FOUND:
            self._found[found.address] = found
        else:
            listener.note_refused("", "found")
