"""QEMU's monitor protocol, as little of it as weft needs: commands with answers, events, and the end of the machine.

Reads and writes one unix socket. A monitor serves one client at a time, and a second one hangs until the first has
gone, so every wait here has a limit. A guest that has broken out of its machine is QEMU: a line of it has a limit, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from weft.objects.errors import DriverFailed, Unavailable

ANSWER_SECONDS = 10.0
LINE_BYTES = 2 << 20  # the longest that weft asks for, of machines with many disks, take a tenth of it
_MOST_REASON = 500


class QmpEvent(msgspec.Struct, frozen=True):
    name: str
    data: dict[str, Any]


class QmpError(DriverFailed):
    """QEMU understood and refused."""

    def __init__(self, command: str, error: dict[str, Any]) -> None:
        reason = str(error.get("desc", "no reason given"))[:_MOST_REASON]
        super().__init__(f"QEMU refused {command}: {reason}", details={"step": command})


class Qmp:
    """One connection, made by ``connect_qmp``. ``closed`` is set when QEMU has gone or let go."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._listen: Callable[[QmpEvent], None] = lambda event: None
        self._expected: list[tuple[str, str | None, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None
        self.closed = asyncio.Event()

    async def negotiate(self) -> None:
        greeting = msgspec.json.decode(await self._reader.readline(), type=dict[str, Any])
        if "QMP" not in greeting:
            raise ValueError("no QMP greeting")
        self._writer.transport.set_write_buffer_limits(high=0)  # so that a drain waits for all
        self._task = asyncio.create_task(self._read())
        await self.execute("qmp_capabilities")

    def listen(self, listener: Callable[[QmpEvent], None]) -> None:
        """Call ``listener`` with every event from now on."""
        self._listen = listener

    def expect(self, name: str, device: str | None = None) -> asyncio.Future[None]:
        """Done with the next event of this name about ``device``, if it is about any."""
        happened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._expected.append((name, device, happened))
        return happened

    async def execute(
        self, command: str, *, timeout_seconds: float = ANSWER_SECONDS, descriptor: int | None = None, **arguments: Any
    ) -> Any:
        """QEMU's answer; ``descriptor`` is handed over with the command. Raises QmpError if it refuses, Unavailable if it
        has gone or doesn't answer in time."""
        if self.closed.is_set():
            raise Unavailable(f"QEMU ended before {command}")
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        request = {"execute": command, "arguments": arguments, "id": number}
        line = msgspec.json.encode(request) + b"\n"
        try:
            if descriptor is None:
                self._writer.write(line)
            else:
                await self._send(line, descriptor)
            async with asyncio.timeout(timeout_seconds):
                reply = await answer
        except TimeoutError:
            raise Unavailable(f"QEMU doesn't answer {command} within {timeout_seconds:g} s") from None
        finally:
            self._waiting.pop(number, None)
        if "error" in reply:
            raise QmpError(command, reply["error"])
        return reply["return"]

    async def _send(self, line: bytes, descriptor: int) -> None:
        """The transport can't carry descriptors: past it, once it has sent all that it holds."""
        await self._writer.drain()
        with socket.socket(fileno=os.dup(self._writer.get_extra_info("socket").fileno())) as line_to_qemu:
            try:
                sent = socket.send_fds(line_to_qemu, [line], [descriptor])
            except OSError as error:
                raise Unavailable(f"QEMU doesn't take a descriptor: {error}") from None
            self._writer.write(line[sent:])

    @contextlib.asynccontextmanager
    async def lend(self, path: str, flags: int) -> AsyncIterator[str]:
        """A file that QEMU may use for as long as this lasts: the name to tell it. Raises OSError if it can't be opened."""
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            number = (await self.execute("add-fd", descriptor=descriptor))["fdset-id"]
        finally:
            os.close(descriptor)
        try:
            yield f"/dev/fdset/{number}"
        finally:
            with contextlib.suppress(Unavailable, QmpError):
                await self.execute("remove-fd", **{"fdset-id": number})

    def close(self) -> None:
        self.closed.set()
        if self._task is not None:
            self._task.cancel()
        self._writer.transport.abort()
        self._give_up()

    async def _read(self) -> None:
        try:
            while line := await self._reader.readline():
                message = msgspec.json.decode(line, type=dict[str, Any])
                if "event" in message:
                    self._take(msgspec.convert({"name": message["event"], "data": message.get("data", {})}, QmpEvent))
                elif "return" in message or isinstance(message.get("error"), dict):
                    if (answer := self._waiting.get(message.get("id", 0))) and not answer.done():
                        answer.set_result(message)
        except (OSError, ValueError, TypeError, KeyError, RecursionError, msgspec.MsgspecError):
            pass  # a connection that talks nonsense is a lost one
        finally:
            self.closed.set()
            self._writer.transport.abort()
            self._give_up()

    def _take(self, event: QmpEvent) -> None:
        for expected in [e for e in self._expected if e[:2] == (event.name, event.data.get("device"))]:
            self._expected.remove(expected)
            if not expected[2].done():
                expected[2].set_result(None)
        self._listen(event)

    def _give_up(self) -> None:
        for *_, happened in self._expected:
            if not happened.done():
                happened.set_exception(Unavailable("QEMU has ended"))
                happened.exception()  # a caller who waits gets it; there may be none
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(Unavailable("QEMU has ended"))


async def connect_qmp(place: str | socket.socket, *, timeout_seconds: float = ANSWER_SECONDS) -> Qmp:
    """Connect to a monitor socket, or take one whose other end QEMU was given. Raises Unavailable if nobody answers there in
    time."""
    connection: Qmp | None = None
    where: dict[str, Any] = {"path": place} if isinstance(place, str) else {"sock": place}
    try:
        async with asyncio.timeout(timeout_seconds):
            connection = Qmp(*await asyncio.open_unix_connection(**where, limit=LINE_BYTES))
            await connection.negotiate()
            return connection
    except (OSError, ValueError, msgspec.DecodeError, TimeoutError, Unavailable) as error:
        if connection is not None:
            connection.close()
        at = f" at {place}" if isinstance(place, str) else ""
        raise Unavailable(f"QEMU's monitor{at} doesn't answer: {error or 'time-out'}") from error
