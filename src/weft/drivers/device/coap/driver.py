"""The device driver of CoAP over UDP: asks each device for its resources, observes those that can be observed, and puts values.

A device's address is ``HOST[:PORT]``, an href a path. A resource is observed since its first answer, and asked for all the same
each ``poll_seconds``: a device that restarted has forgotten who observes it, and silence is no sign of life.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import aiocoap
import msgspec
from aiocoap.numbers.constants import TransportTuning

from weft.contracts.clock import Clock
from weft.contracts.device import AnnouncedDevice, Listener, Thing, Value
from weft.drivers.device.address import find_address, split_place
from weft.drivers.device.coap.datagrams import bound_package
from weft.drivers.device.coap.words import (
    JSON,
    MOST_BYTES,
    MOST_LIST_BYTES,
    TEXT,
    is_unknown,
    read_birth,
    read_href,
    read_value,
    write_value,
)
from weft.drivers.device.poll import Poller
from weft.objects.errors import InvalidInput, NotFound, TimedOut, Unavailable, WeftError

PORT = 5683
EXAMPLE = "192.168.7.30"
ANSWER_SECONDS = 5.0
DISCOVER_SECONDS = 60.0
MOST_HOSTS = 500
_BLOCK = 6  # 1024 bytes
log = logging.getLogger("weft.edge.coap")
bound_package()
# What is wrong with an answer is told to the listener; the package's own lines would fill the log.
for _name in ("coap", "coap-server"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class _Twice(TransportTuning):  # type: ignore[misc]
    MAX_RETRANSMIT = 1


class _Once(TransportTuning):  # type: ignore[misc]
    MAX_RETRANSMIT = 0  # of a command: none comes after its time


class _Device(msgspec.Struct):
    thing: Thing
    host: str
    port: int
    paths: dict[str, str]
    formats: dict[str, int] = {}  # by property: what it answers in
    heard: dict[str, Value] = {}  # by property: what an observation told last
    observing: dict[str, asyncio.Task[None]] = {}


class CoapDriver:
    """``hosts``: addresses that are asked what they are. ``local``: devices may be at this machine's own addresses."""

    protocol = "coap"

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
        self._devices: dict[str, _Device] = {}
        self._problems: dict[str, InvalidInput] = {}  # what can't be asked as it is written
        self._found: dict[str, AnnouncedDevice] = {}
        self._context: Any = None
        self._opening = asyncio.Lock()
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
            host, port = split_place(thing.address, PORT, EXAMPLE)
            paths = {name: read_href(href, name) for name, href in thing.hrefs.items()}
        except InvalidInput as problem:
            self._problems[thing.uid] = problem
        else:
            self._devices[thing.uid] = _Device(thing, host, port, paths)
        self._poller.put(thing)

    async def disconnect(self, uid: str) -> None:
        self._poller.remove(uid)
        self._problems.pop(uid, None)
        if (device := self._devices.pop(uid, None)) is not None:
            self._forget(device)

    async def read(self, uid: str, names: Sequence[str]) -> dict[str, Value]:
        return await self._ask(self._find(uid), [name for name in names if name in self._find(uid).paths])

    async def write(self, uid: str, id: str, values: Mapping[str, Value], seconds: float) -> None:
        """Putting a value again is harmless, so ``id`` isn't needed."""
        device, until = self._find(uid), self._clock.elapsed() + seconds
        for name, value in values.items():
            left = until - self._clock.elapsed()
            if left <= 0:
                raise TimedOut("its time is up")
            if name not in device.paths:
                raise InvalidInput(f"{name[:63]} can't be written: its model gives it no href", field=name[:63])
            content_format = device.formats.get(name, TEXT)
            message = {
                "code": aiocoap.PUT,
                "payload": write_value(value, content_format),
                "content_format": content_format,
            }
            answer = await self._request(device, device.paths[name], min(left, self._answer_seconds), _Once(), message)
            if not answer.code.is_successful():
                raise Unavailable(f"{name[:63]}: the device answers {answer.code}")
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
        for device in self._devices.values():
            self._forget(device)
        if self._context is not None:
            await self._context.shutdown()

    def _find(self, uid: str) -> _Device:
        if (problem := self._problems.get(uid)) is not None:
            raise Unavailable(problem.message, hint=problem.hint)
        device = self._devices.get(uid)
        if device is None:
            raise NotFound("the device isn't connected to its driver")
        return device

    # --- asking ------------------------------------------------------------------------------------------------------

    async def _read_all(self, thing: Thing) -> Mapping[str, Value]:
        device = self._find(thing.uid)
        if not device.paths:
            raise Unavailable("its model gives no property an href", hint="write like href: /sensors/temperature")
        try:
            return await self._ask(device, list(device.paths), observe=True)
        except WeftError:
            self._forget(device)  # it may have restarted, and observers with it
            raise

    async def _ask(self, device: _Device, names: Sequence[str], *, observe: bool = False) -> dict[str, Value]:
        """The values of ``names`` that the device has. Raises Unavailable."""
        values: dict[str, Value] = {}
        for name in names:
            begin = observe and name not in device.observing
            message = {"code": aiocoap.GET, **({"observe": 0} if begin else {})}
            request, answer = await self._request_observed(device, device.paths[name], message)
            if answer.code == aiocoap.NOT_FOUND:
                continue
            if not answer.code.is_successful():
                raise Unavailable(f"{name[:63]}: the device answers {answer.code}")
            value = self._take(device, name, answer)
            if value is None:
                if begin:
                    _end_observation(request)
                continue
            values[name] = value
            if begin and answer.opt.observe is not None:
                device.heard[name] = value
                device.observing[name] = asyncio.create_task(self._listen(device, name, request))
            elif name in device.observing and device.heard.get(name) != value:
                device.observing.pop(name).cancel()  # nobody told: it isn't observed any more
        return values

    def _take(self, device: _Device, name: str, answer: Any) -> Value | None:
        """The value in an answer; None if the device knows none now, or if it is none, which is refused."""
        content_format = int(answer.opt.content_format) if answer.opt.content_format is not None else TEXT
        more = answer.opt.block2 is not None and answer.opt.block2.more
        if not more and is_unknown(answer.payload, content_format):
            return None
        value = None if more else read_value(answer.payload, content_format)
        if value is None:
            reason = "size" if more or len(answer.payload) > MOST_BYTES else "payload"
            self._poller.note_refused(device.thing.uid, reason, name)
        else:
            device.formats[name] = JSON if content_format == JSON else TEXT
        return value

    async def _listen(self, device: _Device, name: str, request: Any) -> None:
        """Tell what an observation tells, until it ends."""
        try:
            async for answer in request.observation:
                if not answer.code.is_successful():
                    break
                value = self._take(device, name, answer)
                if value is not None:
                    device.heard[name] = value
                    if self._listener is not None:
                        self._listener.note_values(device.thing.uid, {name: value})
        except (aiocoap.error.Error, OSError):
            pass  # the next time that the device is asked, it begins again
        finally:
            _end_observation(request)
            if device.observing.get(name) is asyncio.current_task():
                del device.observing[name]

    def _forget(self, device: _Device) -> None:
        for task in device.observing.values():
            task.cancel()
        device.observing.clear()

    async def _request(
        self, device: _Device, path: str, seconds: float, tuning: TransportTuning, message: Mapping[str, Any]
    ) -> Any:
        _, answer = await self._send(device.host, device.port, path, seconds, tuning, message)
        return answer

    async def _request_observed(self, device: _Device, path: str, message: Mapping[str, Any]) -> tuple[Any, Any]:
        return await self._send(device.host, device.port, path, self._answer_seconds, _Twice(), message)

    async def _send(
        self, host: str, port: int, path: str, seconds: float, tuning: TransportTuning, message: Mapping[str, Any]
    ) -> tuple[Any, Any]:
        """The request and its answer. Raises Unavailable."""
        address = await find_address(host, port, local=self._local)
        context = await self._open()
        shown = f"[{address}]" if ":" in address else address
        sent = aiocoap.Message(uri=f"coap://{shown}:{port}{path}", transport_tuning=tuning, **message)
        request = context.request(sent, handle_blockwise=False)
        if "observe" in message:
            request.observation.register_errback(_ignore, _suppress_deprecation=True)  # not observable, which is fine
        try:
            async with asyncio.timeout(seconds):
                return request, await request.response
        except (TimeoutError, aiocoap.error.TimeoutError):
            raise Unavailable(f"{host}:{port} doesn't answer in time") from None
        except (aiocoap.error.Error, OSError) as failure:
            raise Unavailable(f"{host}:{port} doesn't answer: {type(failure).__name__}") from None

    async def _open(self) -> Any:
        async with self._opening:
            if self._context is None:
                self._context = await aiocoap.Context.create_client_context(transports=["simple6"])
        return self._context

    # --- what is there -----------------------------------------------------------------------------------------------

    async def _keep_searching(self) -> None:
        while True:
            for place in self._hosts:
                try:
                    found = read_birth(place, await self._read_list(place))
                except WeftError as problem:
                    log.debug("%s: %s", place, problem.message)
                    continue
                if found is not None:
                    self._found[place] = found
                elif self._listener is not None:
                    self._listener.note_refused("", "birth")
            await self._clock.sleep(self._discover_seconds)

    async def _read_list(self, place: str) -> bytes:
        """A device's ``/.well-known/core``, block by block and no longer than is read. Raises WeftError."""
        host, port = split_place(place, PORT, EXAMPLE)
        read = b""
        for number in range(MOST_LIST_BYTES // 1024 + 1):
            block = aiocoap.optiontypes.BlockOption.BlockwiseTuple(number, False, _BLOCK)
            message = {"code": aiocoap.GET, **({"block2": block} if number else {})}
            _, answer = await self._send(host, port, "/.well-known/core", self._answer_seconds, _Twice(), message)
            if not answer.code.is_successful():
                raise Unavailable(f"{place} answers {answer.code}")
            read += answer.payload
            if answer.opt.block2 is None or not answer.opt.block2.more or len(read) > MOST_LIST_BYTES:
                break
        return read


def _end_observation(request: Any) -> None:
    """The package alone would keep it until the device tells a change, and each later one of the same property."""
    if not request.observation.cancelled:
        request.observation.cancel()
        request._stop_interest()


def _ignore(failure: Exception) -> None:
    pass
