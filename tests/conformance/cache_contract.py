"""What every cache promises, against the engine of its tests: real files, and real servers that are killed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import pytest

from weft.contracts.edge.cache import (
    MOST_KEY_BYTES,
    MOST_PUT_BYTES,
    MOST_SECONDS,
    MOST_TOGETHER,
    MOST_VALUE_BYTES,
    Cache,
)
from weft.objects.errors import InvalidInput, TimedOut, Unavailable

SECONDS = 60.0


class Peer(Protocol):
    cache: Cache

    def open_other(self) -> Cache:
        """The same engine, as another program has it."""

    async def kill(self) -> None:
        """What keeps the values dies, hard, in the middle of a write if there is one; it may forget them."""

    async def mend(self) -> None: ...

    async def empty(self) -> None:
        """Somebody removes all values."""


async def until_works(act: Callable[[], Awaitable[Any]]) -> Any:
    """What it returns, as soon as the cache does it."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                return await act()
            except (Unavailable, TimedOut):
                await asyncio.sleep(0.02)


class CacheContract:
    async def test_a_value_is_read_as_it_was_written_also_by_another_program(self, peer: Peer) -> None:
        body = bytes(range(256)) + b"\r\n$-1\r\n"
        await peer.cache.put({"weft:a": body, "weft:é \n": b""}, 60)
        other = peer.open_other()
        assert [await peer.cache.get("weft:a"), await other.get("weft:é \n")] == [body, b""]
        await other.put({"weft:a": b"2"}, 60)
        assert await peer.cache.get("weft:a") == b"2"
        await other.delete(["weft:a", "absent"])
        assert [await peer.cache.get(key) for key in ("weft:a", "absent")] == [None, None]
        await other.close()

    async def test_a_value_goes_when_its_time_is_over_and_stays_when_it_is_written_again(self, peer: Peer) -> None:
        await peer.cache.put({"short": b"1", "again": b"1"}, 0.2)
        await peer.cache.put({"again": b"2", "long": b"1"}, 600)
        async with asyncio.timeout(SECONDS):
            while await peer.cache.get("short") is not None:
                await asyncio.sleep(0.02)
        assert [await peer.cache.get(key) for key in ("again", "long")] == [b"2", b"1"]

    async def test_the_largest_value_and_the_longest_key_come_back_and_more_is_refused(self, peer: Peer) -> None:
        key, body = "k" * MOST_KEY_BYTES, b"x" * MOST_VALUE_BYTES
        await peer.cache.put({key: body}, MOST_SECONDS)
        assert await peer.cache.get(key) == body
        many = {f"k{number}": b"1" for number in range(MOST_TOGETHER)}
        await peer.cache.put(many, 60)
        assert await peer.cache.get(f"k{MOST_TOGETHER - 1}") == b"1"
        await peer.cache.delete(list(many))
        for values, seconds, words in (
            ({key + "k": b""}, 60.0, "1 to 512 bytes"),
            ({"": b""}, 60.0, "1 to 512 bytes"),
            ({"\ud800": b""}, 60.0, "1 to 512 bytes"),
            ({"k": body + b"x"}, 60.0, "at most 1048576 bytes"),
            ({f"k{number}": body for number in range(MOST_PUT_BYTES // MOST_VALUE_BYTES + 1)}, 60.0, "bytes together"),
            ({**many, "one more": b""}, 60.0, "at most 1000"),
            ({"k": b""}, 0.0, "from 0.001"),
            ({"k": b""}, float("nan"), "from 0.001"),
            ({"k": b""}, MOST_SECONDS + 1, "to 604800"),
        ):
            with pytest.raises(InvalidInput) as refused:
                await peer.cache.put(values, seconds)
            assert words in str(refused.value.hint)
        for act in (peer.cache.get(""), peer.cache.delete([""])):
            with pytest.raises(InvalidInput):
                await act

    async def test_calls_at_the_same_moment_get_their_own_answers(self, peer: Peer) -> None:
        await asyncio.gather(*(peer.cache.put({f"k{number}": b"%d" % number}, 60) for number in range(50)))
        found = await asyncio.gather(*(peer.cache.get(f"k{number}") for number in range(50)))
        assert found == [b"%d" % number for number in range(50)]

    async def test_what_kept_the_values_is_killed_and_the_cache_works_again(self, peer: Peer) -> None:
        await peer.cache.put({"k": b"1"}, 600)
        await peer.kill()
        await peer.mend()
        await until_works(lambda: peer.cache.put({"k": b"2"}, 600))
        assert await peer.cache.get("k") == b"2"

    async def test_a_cache_that_somebody_empties_goes_on(self, peer: Peer) -> None:
        await peer.cache.put({"k": b"1"}, 600)
        await peer.empty()
        assert await until_works(lambda: peer.cache.get("k")) is None
        await peer.cache.put({"k": b"2"}, 600)
        assert await peer.cache.get("k") == b"2"
