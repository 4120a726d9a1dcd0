"""The wire between the nodes: listeners of migrations, lines to them, and what machines and agents send over those.

A line ends with the agent at either end of it, and when either node is cut off; then what was under way is lost, as it is
when a cable is pulled. Questions and answers are lost and late as all messages are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from tests.simulation.connections import Faults
from tests.simulation.virtual_loop import Part, part_here
from weft.agent.migration.relay import Limit, Meter
from weft.objects.errors import DriverFailed, Unavailable, WeftError
from weft.protocol.migration import Channel, MigrationAnswer, MigrationRequest, Receive

FIRST_PORT = 40_000
LOST_SECONDS = 6.0  # until a lost connection is noticed


class Underlay:
    """``listeners`` are those that are open, by address."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.listeners: dict[str, MemoryListener] = {}
        self.lines: list[MemoryLine] = []
        self._ports = FIRST_PORT

    def take_port(self) -> int:
        self._ports += 1
        return self._ports

    def cut(self, node: str) -> None:
        """Whatever led to this node, or away from it, is lost."""
        for line in list(self.lines):
            if node in (line.wire.node, line.to):
                line.cut()


class MemoryWire:
    """One node's way into the underlay."""

    def __init__(self, underlay: Underlay, node: str, uid: str) -> None:
        self.underlay, self.node, self.uid = underlay, node, uid

    def make_listener(
        self,
        key: str,
        peer_uid: str,
        respond: Callable[[MigrationRequest], Awaitable[MigrationAnswer]],
        limits: Sequence[Limit],
        peer_ca: str = "",
    ) -> MemoryListener:
        return MemoryListener(self, key, peer_uid, respond)

    def make_connection(
        self, key: str, address: str, peer_uid: str, limits: Sequence[Limit], peer_ca: str = ""
    ) -> MemoryLine:
        return MemoryLine(self, key, address, peer_uid)


class MemoryListener:
    def __init__(
        self,
        wire: MemoryWire,
        key: str,
        peer_uid: str,
        respond: Callable[[MigrationRequest], Awaitable[MigrationAnswer]],
    ) -> None:
        self.meter = Meter()
        self.receive: Receive | None = None
        self.port = 0
        self.wire, self.key, self.peer_uid, self._respond = wire, key, peer_uid, respond
        self.sockets: dict[Channel, str] = {}
        self.address = ""
        part = part_here()
        assert part is not None
        self.part: Part = part

    def open(self, address: str, port: int = 0) -> str:
        listeners = self.wire.underlay.listeners
        taken = port and f"{address}:{port}" in listeners and listeners[f"{address}:{port}"].part.alive
        self.port = port if port and not taken else self.wire.underlay.take_port()
        self.address = f"{address}:{self.port}"
        listeners[self.address] = self
        return self.address

    def lead(self, sockets: dict[Channel, str]) -> None:
        self.sockets = sockets

    def close(self) -> None:
        if self.wire.underlay.listeners.get(self.address) is self:
            del self.wire.underlay.listeners[self.address]
        for line in list(self.wire.underlay.lines):
            if line.listener is self:
                line.cut()

    async def answer(self, ask: MigrationRequest) -> MigrationAnswer:
        try:
            return await self._respond(ask)
        except WeftError as problem:
            return MigrationAnswer(False, problem.token, problem.message)

    async def take_file(self, disk: str, data: bytes, form: str) -> MigrationAnswer:
        if self.receive is None:
            return MigrationAnswer(False, "refused", "this migration carries no disks as files")
        try:
            path, most_bytes = await self.receive.begin(disk)
            assert len(data) <= most_bytes
            path.write_bytes(data)
            await self.receive.complete(disk, form)
        except WeftError as problem:
            return MigrationAnswer(False, problem.token, problem.message)
        return MigrationAnswer()


class MemoryLine:
    def __init__(self, wire: MemoryWire, key: str, address: str, peer_uid: str) -> None:
        self.meter = Meter()
        self.wire, self.to = wire, ""
        self.listener: MemoryListener | None = None  # that it leads to, once it does
        self._key, self._address, self._peer_uid = key, address, peer_uid
        self._asking = asyncio.Lock()
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._offered: list[Path] = []
        self._closed = False

    async def ask(self, ask: MigrationRequest) -> MigrationAnswer:
        async with self._asking:
            answer: MigrationAnswer = await self._exchange(lambda listener: listener.answer(ask))
            return answer

    async def order(self, ask: MigrationRequest) -> None:
        answer = await self.ask(ask)
        if not answer.done:
            raise DriverFailed(f"the target: {answer.message}", reason=answer.reason, details={"step": ask.do})

    def offer(self, sockets: dict[Channel, Path], *, ahead: int = 0) -> None:
        listener = self._reach()
        for channel, path in sockets.items():
            path.unlink(missing_ok=True)
            if listener.sockets.get(channel):
                path.symlink_to(listener.sockets[channel])
                self._offered.append(path)

    async def carry_file(self, disk: str, path: Path, form: str = "qcow2") -> None:
        data = path.read_bytes()
        answer = await self._exchange(lambda listener: listener.take_file(disk, data, form))
        if not answer.done:
            raise DriverFailed(f"the target: {answer.message}", reason=answer.reason, details={"step": "disk"})
        self.meter.add(len(data), 0)

    def close(self) -> None:
        self._closed = True
        self.cut()

    def cut(self) -> None:
        """All that goes over it is lost; the next question dials anew."""
        for path in self._offered:
            path.unlink(missing_ok=True)
        self._offered.clear()
        if self in self.wire.underlay.lines:
            self.wire.underlay.lines.remove(self)
        self.listener = None
        lost, self._lost = self._lost, self._lost.get_loop().create_future()
        if not lost.done():
            lost.set_result(None)

    async def _exchange(self, ask: Callable[[MemoryListener], Any]) -> Any:
        faults = self.wire.underlay.faults
        await asyncio.sleep(faults.delay(0.01))
        if faults.hit("request lost"):
            await asyncio.sleep(faults.delay(LOST_SECONDS))
            raise self._unavailable("no answer")
        listener = self._reach()
        answering = listener.part.spawn(ask(listener))
        await asyncio.wait({answering, listener.part.died, self._lost}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise self._unavailable("the connection was lost")
        await asyncio.sleep(faults.delay(0.01))
        if self.listener is not listener or faults.hit("answer lost"):
            await asyncio.sleep(faults.delay(LOST_SECONDS))
            raise self._unavailable("no answer")
        return answering.result()

    def _reach(self) -> MemoryListener:
        underlay = self.wire.underlay
        listener = underlay.listeners.get(self._address)
        if self._closed or listener is None or not listener.part.alive:
            raise self._unavailable("connection refused")
        if underlay.faults.is_cut_off(self.wire.node) or underlay.faults.is_cut_off(listener.wire.node):
            raise self._unavailable("no way there")
        if (listener.key, listener.peer_uid, listener.wire.uid) != (self._key, self.wire.uid, self._peer_uid):
            raise self._unavailable("it is for another migration")
        if self.listener is None:
            self.listener, self.to = listener, listener.wire.node
            underlay.lines.append(self)
        return listener

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable(f"the target doesn't answer at {self._address}: {why}", reason="lineLost")
