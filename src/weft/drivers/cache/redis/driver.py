"""The cache in a Redis or Valkey: for programs on all machines of a site. A thin client of its own, over one connection.

A connection that broke is made again by a later call, after pauses that grow; until then calls fail at once. What the server is
full of goes by its own ``maxmemory-policy``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from weft.contracts.clock import Clock
from weft.contracts.edge.cache import MOST_VALUE_BYTES, check_keys, check_put
from weft.drivers.cache.redis.errand import Errand, Way, find_way
from weft.drivers.cache.redis.place import RedisAddress
from weft.drivers.cache.redis.replies import (
    MOST_WORD_BYTES,
    Broken,
    Refusal,
    explain_login,
    explain_refusal,
    read_reply,
    write_command,
)
from weft.objects.errors import TimedOut, Unavailable

ANSWER_SECONDS = 5.0  # of a call, with what connects before it
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0
MOST_CALLS = 100  # that wait for each other
_ENDS_CONNECTION = ("NOAUTH", "READONLY", "MASTERDOWN")  # a later connection may get another answer


class RedisCache:
    """``password``: a file with the password, read at each connection, None: there is none. ``authority``: a PEM file of those who
    signed the server's certificate, None: those that the machine trusts."""

    def __init__(
        self,
        place: RedisAddress,
        clock: Clock,
        *,
        password: Path | None = None,
        authority: Path | None = None,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._answer_seconds = answer_seconds
        self._place, self._clock, self._password, self._authority = place, clock, password, authority
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._pause = FIRST_PAUSE_SECONDS
        self._retry_at = float("-inf")
        self._secret = ""
        self._errand = Errand()
        self.connections = 0  # made so far

    async def get(self, key: str) -> bytes | None:
        check_keys([key])
        (value,) = await self._ask([write_command("GET", key)], MOST_VALUE_BYTES)
        if value is not None and not isinstance(value, bytes):
            raise Unavailable(f"cache {self._place.words}: it answers {key[:60]!r} with something that isn't a value")
        return value

    async def put(self, values: Mapping[str, bytes], seconds: float) -> None:
        check_put(values, seconds)
        life = str(max(1, round(seconds * 1000)))
        answers = await self._ask([write_command("SET", key, value, "PX", life) for key, value in values.items()])
        if any(answer != b"OK" for answer in answers):
            self._note_broken()  # whatever it is, its next answers are no better
            raise Unavailable(f"cache {self._place.words}: it doesn't say that it has kept a value")

    async def delete(self, keys: Sequence[str]) -> None:
        check_keys(keys)
        if keys:
            await self._ask([write_command("DEL", *keys)])

    async def close(self) -> None:
        self._drop()

    async def _ask(self, commands: Sequence[bytes], most_bytes: int = MOST_WORD_BYTES) -> list[bytes | int | None]:
        """The answers, in order, of ``most_bytes`` each. Raises Unavailable, TimedOut."""
        if self._waiting >= MOST_CALLS:
            raise Unavailable(f"cache {self._place.words}: {MOST_CALLS} calls wait for it already")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._answer_seconds):
                async with self._lock:
                    return await self._ask_alone(commands, most_bytes)
        except TimeoutError:
            raise TimedOut(f"cache {self._place.words}: no answer in {self._answer_seconds:g} s") from None
        finally:
            self._waiting -= 1

    async def _ask_alone(self, commands: Sequence[bytes], most_bytes: int) -> list[bytes | int | None]:
        if self._link is None and self._clock.elapsed() < self._retry_at:
            raise Unavailable(f"cache {self._place.words}: it couldn't be reached just now; it is tried again soon")
        whole = False
        try:
            link = self._link = self._link or await self._connect()
            answers = await self._exchange(link, commands, most_bytes)
            whole = True
        except Broken as problem:
            raise Unavailable(f"cache {self._place.words}: {problem}") from None
        except OSError as problem:
            raise Unavailable(f"cache {self._place.words}: {getattr(problem, 'strerror', '') or problem}") from None
        finally:
            if (
                not whole
            ):  # also when the caller's time is over: an answer that comes later would be taken for the next one's
                self._note_broken()
        refusals = [one for one in answers if isinstance(one, Refusal)]
        if refusals:
            if refusals[0].code in _ENDS_CONNECTION:
                self._note_broken()
            raise Unavailable(f"cache {self._place.words}: {explain_refusal(refusals[0], [self._secret])}")
        self._pause = FIRST_PAUSE_SECONDS
        return [one for one in answers if not isinstance(one, Refusal)]

    async def _exchange(
        self,
        link: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        commands: Sequence[bytes],
        most_bytes: int = MOST_WORD_BYTES,
    ) -> list[bytes | int | Refusal | None]:
        reader, writer = link
        sending = asyncio.ensure_future(_send(writer, commands))
        try:  # both at once: a server whose answers nobody reads stops reading
            return [await read_reply(reader, most_bytes) for _ in commands]
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await sending

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        place = self._place
        way = await self._errand.run(lambda: find_way(place, self._password, self._authority))
        self._secret = way.password
        link = await _open(place, way)
        self.connections += 1
        self._link = link  # dropped, too, if the greeting breaks
        if self._secret:
            words = [place.user, self._secret] if place.user else [self._secret]
            (answer,) = await self._exchange(link, [write_command("AUTH", *words)])
            if isinstance(answer, Refusal):
                raise Broken(explain_login(answer))
        if place.number:
            (answer,) = await self._exchange(link, [write_command("SELECT", str(place.number))])
            if isinstance(answer, Refusal):
                raise Broken(explain_refusal(answer, [self._secret]))
        return link

    def _note_broken(self) -> None:
        self._drop()
        self._retry_at = self._clock.elapsed() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    def _drop(self) -> None:
        if self._link is not None:
            self._link[1].transport.abort()
        self._link = None


async def _send(writer: asyncio.StreamWriter, commands: Sequence[bytes]) -> None:
    for command in commands:
        writer.write(command)
        await writer.drain()


async def _open(place: RedisAddress, way: Way) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Raises OSError of the last address, if none takes the connection."""
    if place.path:
        return await asyncio.open_unix_connection(place.path)
    name = place.host if way.tls is not None else None
    for address in way.addresses[:-1]:
        with contextlib.suppress(OSError):
            return await asyncio.open_connection(address, place.port, ssl=way.tls, server_hostname=name)
    return await asyncio.open_connection(way.addresses[-1], place.port, ssl=way.tls, server_hostname=name)
