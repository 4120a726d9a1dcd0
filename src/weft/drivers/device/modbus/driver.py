"""The device driver of Modbus TCP: asks each device for its registers, and writes single values.

A device's address is ``HOST[:PORT][/UNIT]``: units behind one server share its connection. Nothing can be found by itself here: the
protocol has no announcement.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.device import AnnouncedDevice, Listener, Thing, Value
from weft.drivers.device.address import split_place
from weft.drivers.device.modbus.link import ANSWER_SECONDS, ILLEGAL_ADDRESS, ModbusLink, ModbusRefused
from weft.drivers.device.modbus.points import BITS, Block, Point, decode, encode, plan_reads, read_href
from weft.drivers.device.poll import Poller
from weft.objects.errors import InvalidInput, NotFound, TimedOut, Unavailable

PORT = 502
EXAMPLE = "192.168.7.20/1"


class _Device(msgspec.Struct):
    link: ModbusLink
    unit: int
    points: dict[str, Point]
    single: bool = False  # it refused a block: each point is read for itself


def read_address(text: str) -> tuple[str, int, int]:
    """Host, port and unit. Raises InvalidInput."""
    place, slash, unit = text.partition("/")
    host, port = split_place(place, PORT, EXAMPLE)
    if slash and not (re.fullmatch(r"[0-9]{1,3}", unit) and int(unit) <= 247):
        raise InvalidInput(
            f"address: {unit[:20]!r} is not a unit", field="spec.address", hint=f"give 0 up to 247, like {EXAMPLE}"
        )
    return host, port, int(unit or "1")


class ModbusDriver:
    """``local``: devices may be at this machine's own addresses. ``answer_seconds``: how long a device may take for an answer."""

    protocol = "modbus"

    def __init__(self, clock: Clock, *, local: bool = False, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._clock, self._local, self._answer_seconds = clock, local, answer_seconds
        self._links: dict[tuple[str, int], ModbusLink] = {}
        self._devices: dict[str, _Device] = {}
        self._problems: dict[str, InvalidInput] = {}  # what can't be asked as it is written
        self._poller = Poller(self._read_all, clock)

    async def probe(self) -> str:
        return self._poller.find_problem()

    async def discover(self) -> list[AnnouncedDevice]:
        return []

    async def connect(self, thing: Thing) -> None:
        if self._poller.find(thing.uid) == thing:
            return
        await self.disconnect(thing.uid)
        try:
            host, port, unit = read_address(thing.address)
            points = {name: read_href(href, name) for name, href in thing.hrefs.items()}
        except InvalidInput as problem:
            self._problems[thing.uid] = problem
        else:
            link = self._links.get((host, port))
            if link is None:
                link = ModbusLink(host, port, self._clock, local=self._local, answer_seconds=self._answer_seconds)
                self._links[host, port] = link
            self._devices[thing.uid] = _Device(link, unit, points)
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
        return await self._ask(device, {name: device.points[name] for name in names if name in device.points}, uid)

    async def write(self, uid: str, id: str, values: Mapping[str, Value], seconds: float) -> None:
        """Writing a value again is harmless, so ``id`` isn't needed."""
        device, until = self._find(uid), self._clock.elapsed() + seconds
        for name, value in values.items():
            left = until - self._clock.elapsed()
            if left <= 0:
                raise TimedOut("its time is up")
            point = device.points.get(name)
            if point is None or not point.is_writable:
                why = "its model gives it no href" if point is None else f"a register of {point.table} is read only"
                raise InvalidInput(f"{name[:63]} can't be written: {why}", field=name[:63])
            if point.table == "coil":
                if not isinstance(value, bool):
                    raise InvalidInput(f"{name[:63]}: a coil is true or false", field=name[:63])
                words = [int(value)]
            else:
                words = encode(point, value, name)
            await device.link.write(point.table, point.address, words, device.unit, left)
        self._poller.ask_now(uid)

    def observe(self, listener: Listener) -> None:
        self._poller.observe(listener)

    async def close(self) -> None:
        await self._poller.close()
        for link in self._links.values():
            await link.drop()

    def _find(self, uid: str) -> _Device:
        if (problem := self._problems.get(uid)) is not None:
            raise Unavailable(problem.message, hint=problem.hint)
        device = self._devices.get(uid)
        if device is None:
            raise NotFound("the device isn't connected to its driver")
        return device

    async def _read_all(self, thing: Thing) -> Mapping[str, Value]:
        device = self._find(thing.uid)
        if not device.points:
            raise Unavailable("its model gives no property an href", hint="write like href: holding/0?type=int16")
        return await self._ask(device, device.points, thing.uid)

    async def _ask(self, device: _Device, points: Mapping[str, Point], uid: str) -> dict[str, Value]:
        """The values of ``points`` that the device has. Raises Unavailable."""
        values: dict[str, Value] = {}
        blocks = plan_reads(points, single=device.single)
        while blocks:
            block = blocks.pop()
            try:
                found = await device.link.read(block, device.unit)
            except ModbusRefused as refused:
                if refused.code != ILLEGAL_ADDRESS:
                    raise
                if len(block.names) > 1:  # one of them isn't there, or what lies between
                    device.single = True
                    blocks += plan_reads({name: points[name] for name in block.names}, single=True)
                continue
            values.update(self._decode(block, points, found, uid))
        return values

    def _decode(self, block: Block, points: Mapping[str, Point], found: list[int], uid: str) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for name in block.names:
            point = points[name]
            words = found[point.address - block.address :][: point.size]
            value = bool(words[0]) if point.table in BITS else decode(point, words)
            if value is None:
                self._poller.note_refused(uid, "payload", name)
            else:
                values[name] = value
        return values
