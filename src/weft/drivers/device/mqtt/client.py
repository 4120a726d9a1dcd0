"""An MQTT 5 client for one process's own broker: connects again for ever, acknowledges what it has handed on.

The server keeps its session: what came for it while it was away comes after it, once.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from weft.contracts.clock import Clock
from weft.drivers.device.mqtt.packets import (
    CONNACK,
    DISCONNECT,
    GOODBYE,
    PING,
    PUBACK,
    PUBLISH,
    REFUSALS,
    SUBACK,
    Broken,
    Publish,
    Reader,
    read_publish,
    read_reason,
    write_connect,
    write_puback,
    write_publish,
    write_subscribe,
)
from weft.objects.errors import TimedOut, Unavailable

KEEP_ALIVE_SECONDS = 20
CONNECT_SECONDS = 10.0
ACKNOWLEDGE_SECONDS = 10.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0
MOST_WAITING = 1000  # messages that the server hasn't acknowledged
# While messages come fast, they are taken together: a read and a write for each would cost more than what is done with it.
BUSY_MESSAGES, BUSY_SECONDS = 200, 0.1
REST_SECONDS = 0.003  # between two reads then: the longest that a message waits for it
_MOST_IDS = 65_535


class MqttLogin(NamedTuple):
    """The server's address (host and port, or a Unix socket), and the login there."""

    place: tuple[str, int] | Path
    user: str
    password: str


class Pace:
    """Whether messages come faster than BUSY_MESSAGES in BUSY_SECONDS. Pure: times are the clock's elapsed seconds."""

    __slots__ = ("_count", "_since", "is_busy")

    def __init__(self) -> None:
        self._count, self._since, self.is_busy = 0, 0.0, False

    def note(self, count: int, at: float) -> None:
        """Note that ``count`` messages came at ``at``."""
        passed = at - self._since
        if passed >= BUSY_SECONDS:
            if self._count * BUSY_SECONDS < BUSY_MESSAGES * passed:
                self.is_busy = False
            self._count, self._since = 0, at
        self._count += count
        if self._count >= BUSY_MESSAGES:
            self.is_busy = True


class Login(asyncio.Protocol):
    """One connection."""

    def __init__(self, client: MqttClient) -> None:
        self._client = client
        self._reader = Reader()
        self._pace = Pace()
        self.transport: asyncio.Transport | None = None
        self.is_in = asyncio.get_running_loop().create_future()
        self.ended = asyncio.get_running_loop().create_future()
        self.heard = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard = True
        answers: list[bytes] = []
        messages, on_message = 0, self._client.on_message
        try:
            for kind, flags, body in self._reader.feed(data):
                if kind == PUBLISH:
                    message = read_publish(flags, body)
                    messages += 1
                    on_message(message)
                    if message.id:
                        answers.append(write_puback(message.id))
                elif kind == PUBACK:
                    self._client.note_acknowledged(struct.unpack_from("!H", body)[0], read_reason(body, 2))
                elif kind == CONNACK:
                    self._note_login(read_reason(body, 1))
                elif kind == SUBACK:
                    self._client.note_acknowledged(struct.unpack_from("!H", body)[0], max(body[3:], default=0))
                elif kind == DISCONNECT:
                    self.end(REFUSALS.get(read_reason(body, 0), "it ended the connection"))
        except (Broken, struct.error, IndexError) as problem:
            self.end(f"it doesn't speak MQTT: {problem}")
        if answers and self.transport is not None:
            self.transport.write(b"".join(answers))
        if messages and self.transport is not None:
            self._pace.note(messages, self._client.find_elapsed())
            rest = REST_SECONDS if self._pace.is_busy else 0.0
            if self._client.most_in_second:
                rest = max(rest, messages / self._client.most_in_second)
            if rest:
                self.transport.pause_reading()
                asyncio.get_running_loop().call_later(rest, self.transport.resume_reading)

    def _note_login(self, reason: int) -> None:
        if reason >= 0x80:
            self.end(REFUSALS.get(reason, f"refused with {reason:#x}"))
        elif not self.is_in.done():
            self.is_in.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(str(exc) if exc else "it closed the connection")

    def end(self, problem: str) -> None:
        for future in (self.is_in, self.ended):
            if not future.done():
                future.set_result(problem)
        if self.transport is not None:
            self.transport.abort()


class MqttClient:
    """``on_message`` is called in the loop for each message, and the message is acknowledged after it; ``on_line`` hears "" when a
    connection stands, and why it doesn't. ``find_entry`` is asked before each connection. Without ``session_seconds`` the server
    keeps nothing for it, and sends each message once at most. ``most_in_second``: messages that are taken; 0: all."""

    def __init__(
        self,
        name: str,
        find_entry: Callable[[], MqttLogin],
        topics: Sequence[str],
        on_message: Callable[[Publish], None],
        clock: Clock,
        on_line: Callable[[str], None] = lambda _: None,
        session_seconds: int = 3600,
        most_in_second: int = 0,
    ) -> None:
        self._name, self._find_entry, self.most_in_second = name, find_entry, most_in_second
        self._topics, self.on_message, self._clock, self._on_line = list(topics), on_message, clock, on_line
        self._session_seconds = session_seconds
        self._login: Login | None = None
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._id = 0
        self.find_elapsed = clock.elapsed
        self.problem = "it isn't connected yet"

    @property
    def is_connected(self) -> bool:
        return not self.problem

    async def keep(self) -> None:
        """Stay connected until this is cancelled."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                problem = await self._serve_once()
                pause = FIRST_PAUSE_SECONDS if self.is_connected else pause
            except OSError as failure:
                problem = failure.strerror or str(failure)
            except TimeoutError:
                problem = "no answer in time"
            except Unavailable as failure:
                problem = failure.message
            self._set_problem(problem)
            self._fail_waiting()
            await self._clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        expiry_seconds: int = 0,
        seconds: float = ACKNOWLEDGE_SECONDS,
    ) -> None:
        """Return when the server has it. Raises Unavailable (no connection; refused), TimedOut."""
        login = self._login
        if not self.is_connected or login is None or login.transport is None:
            raise Unavailable(f"the broker can't be reached: {self.problem}")
        if len(self._waiting) >= MOST_WAITING:
            raise Unavailable(f"{MOST_WAITING} messages wait for the broker already", hint="try again later")
        id, future = self._begin()
        login.transport.write(write_publish(topic, payload, id=id, retain=retain, expiry_seconds=expiry_seconds))
        try:
            async with asyncio.timeout(min(seconds, ACKNOWLEDGE_SECONDS)):
                reason = await future
        except TimeoutError:
            raise TimedOut("the broker doesn't acknowledge") from None
        finally:
            self._waiting.pop(id, None)
        if reason < 0:
            raise Unavailable("the connection to the broker was lost")
        if reason >= 0x80:
            raise Unavailable(f"the broker refuses it: {REFUSALS.get(reason, hex(reason))}")

    def publish_unasked(self, topic: str | bytes, payload: bytes, *, retain: bool = False) -> bool:
        """QoS 0: sent if there is a connection."""
        if not self.is_connected or self._login is None or self._login.transport is None:
            return False
        self._login.transport.write(write_publish(topic, payload, retain=retain))
        return True

    def note_acknowledged(self, id: int, reason: int) -> None:
        future = self._waiting.pop(id, None)
        if future is not None and not future.done():
            future.set_result(reason)

    def close(self) -> None:
        if self._login is not None and self._login.transport is not None:
            self._login.transport.write(GOODBYE)
            self._login.transport.close()

    async def _serve_once(self) -> str:
        """One connection until it ends; why it did."""
        entry = self._find_entry()
        async with asyncio.timeout(CONNECT_SECONDS):
            login = await _connect(entry.place, lambda: Login(self))
        assert login.transport is not None
        self._login = login
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                login.transport.write(
                    write_connect(
                        self._name,
                        entry.user,
                        entry.password,
                        keep_alive=2 * KEEP_ALIVE_SECONDS,
                        session_seconds=self._session_seconds,
                        clean=not self._session_seconds,
                    )
                )
                if refused := await login.is_in:
                    return str(refused)
                if self._topics:
                    id, future = self._begin()
                    login.transport.write(
                        write_subscribe(id, self._topics, qos=1 if self._session_seconds else 0, own=False)
                    )
                    if await future >= 0x80:
                        return "it refuses the subscription"
            self._set_problem("")
            return await self._ping(login)
        finally:
            login.end("")

    async def _ping(self, login: Login) -> str:
        assert login.transport is not None
        while True:
            login.heard = False
            login.transport.write(PING)
            waiting = asyncio.ensure_future(self._clock.sleep(KEEP_ALIVE_SECONDS))
            try:
                await asyncio.wait((login.ended, waiting), return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
            if login.ended.done():
                return str(login.ended.result())
            if not login.heard:
                return "it is silent"

    def _begin(self) -> tuple[int, asyncio.Future[int]]:
        while True:
            self._id = self._id % _MOST_IDS + 1
            if self._id not in self._waiting:
                break
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[self._id] = future
        return self._id, future

    def _fail_waiting(self) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_result(-1)
        self._waiting.clear()

    def _set_problem(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self._on_line(problem)


async def _connect(place: tuple[str, int] | Path, make: Callable[[], Login]) -> Login:
    loop = asyncio.get_running_loop()
    if not isinstance(place, Path):
        _, login = await loop.create_connection(make, *place)
        return login
    folder = os.open(place.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await loop.sock_connect(
            line, f"/proc/self/fd/{folder}/{place.name}"
        )  # its whole path may be too long for a socket
        _, login = await loop.create_unix_connection(make, sock=line)
    except BaseException as problem:
        line.close()
        if isinstance(problem, (FileNotFoundError, ConnectionRefusedError)):
            raise Unavailable("the broker isn't running") from None
        raise
    finally:
        os.close(folder)
    return login
