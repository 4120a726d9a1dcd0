"""The thin client of Redis against servers that lie: sizes, lists, rubbish, silence, and a password that comes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from weft.contracts.clock import SystemClock
from weft.drivers.cache.redis.driver import RedisCache
from weft.drivers.cache.redis.place import RedisAddress, read_place
from weft.objects.errors import InvalidInput, TimedOut, Unavailable


@asynccontextmanager
async def answering(folder: Path, answers: bytes, *, ends: bool = True) -> AsyncIterator[RedisAddress]:
    """A server that says ``answers`` whatever it is asked."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.read(1)
        writer.write(answers)
        if ends:
            writer.write_eof()

    path = folder / "lies.sock"
    server = await asyncio.start_unix_server(serve, path)
    try:
        yield RedisAddress(path=str(path))
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await server.wait_closed()


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (b"$1048577\r\n", "1048577 bytes"),
        (b"$" + b"9" * 4000 + b"\r\n", "a number that is none"),
        (b"$-2\r\n", "-2 bytes"),
        (b"$x\r\n", "a number that is none"),
        (b"$\xd9\xa3\r\nabc\r\n", "a number that is none"),
        (b"$3\r\nabcdefgh", "without its end"),
        (b"$3\r\nab", "closed the connection"),
        (b"*1\r\n" * 10_000, "begins with"),
        (b"*-1\r\n", "begins with"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "begins with"),
        (b"\r\n", "begins with"),
        (b"+" + b"a" * 5000 + b"\r\n", "too long"),
        (b"+" + b"a" * 300_000, "too long"),
        (b"$1048576\r\n" + bytes(2_000_000), "without its end"),
        (b"", "closed the connection"),
        (b":7\r\n", "isn't a value"),
        (b"-\r\n", "lies.sock: "),
        (b"-OOM command not allowed\r\n", "memory is full; raise maxmemory"),
        (b"-NOAUTH Authentication required.\r\n", "cache_password"),
        (b"-MOVED 866 10.0.0.7:7001\r\n", "part of a cluster; give the address"),
        (b"-ERR \x1b[31mred\r\n", r"ERR \?\[31mred"),
    ],
)
async def test_an_answer_that_can_t_be_is_refused_with_words(tmp_path: Path, answers: bytes, words: str) -> None:
    async with answering(tmp_path, answers) as place:
        cache = RedisCache(place, SystemClock())
        with pytest.raises(Unavailable, match=words):
            await cache.get("k")
        await cache.close()


async def test_a_silent_server_costs_its_time_once_and_then_calls_fail_at_once(tmp_path: Path) -> None:
    async with answering(tmp_path, b"$5\r\nab", ends=False) as place:
        cache = RedisCache(place, SystemClock(), answer_seconds=0.1)
        with pytest.raises(TimedOut, match=r"no answer in 0\.1 s"):
            await cache.get("k")
        failed = await asyncio.gather(*(cache.get("k") for _ in range(500)), return_exceptions=True)
        assert all(isinstance(one, Unavailable | TimedOut) for one in failed)
        assert cache.connections <= 10
        await cache.close()


async def test_a_password_is_never_in_what_is_said_also_where_the_server_repeats_it(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("s3cret word\n")
    async with answering(
        tmp_path, b"-ERR unknown command 'AUTH', with args beginning with: 's3cret word'\r\n"
    ) as place:
        cache = RedisCache(place, SystemClock(), password=file)
        with pytest.raises(Unavailable, match="it refuses the login") as refused:
            await cache.get("k")
        assert "s3cret" not in str(refused.value)
    file.write_text("s3cret" * 30 + "\n")  # Redis repeats the first 128 bytes
    cut = ("s3cret" * 30)[:128].encode()
    async with answering(tmp_path, b"-ERR unknown command 'AUTH', with args beginning with: '%s'\r\n" % cut) as place:
        with pytest.raises(Unavailable) as refused:
            await RedisCache(place, SystemClock(), password=file).get("k")
        assert "s3cret" not in str(refused.value)
    for text, words in (("", "on one line"), ("x" * 5000, "4096 bytes")):
        file.write_text(text)
        with pytest.raises(Unavailable, match=words):
            await RedisCache(RedisAddress(path="/absent"), SystemClock(), password=file).get("k")
    with pytest.raises(Unavailable, match="No such file"):
        await RedisCache(RedisAddress(path="/absent"), SystemClock(), password=tmp_path / "absent").get("k")


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (b"$1048576\r\n" + bytes(1 << 20) + b"\r\n", "a value of 1048576 bytes"),
        (b"$-1\r\n" * 50, "doesn't say that it has kept a value"),
        (b":1\r\n" * 50, "doesn't say that it has kept a value"),
        (b"+OK\r\n" * 49 + b"+QUEUED\r\n", "doesn't say that it has kept a value"),
    ],
)
async def test_a_write_counts_only_when_each_value_is_said_to_be_kept_and_answers_to_it_are_small(
    tmp_path: Path, answers: bytes, words: str
) -> None:
    async with answering(tmp_path, answers) as place:
        cache = RedisCache(place, SystemClock())
        with pytest.raises(Unavailable, match=words):
            await cache.put({f"k{number}": b"v" for number in range(50)}, 60.0)
        await cache.close()


async def test_a_name_service_that_hangs_takes_one_thread_of_its_own_and_none_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()

    def hang(*_: object, **__: object) -> list[object]:
        answered.wait(60)
        return []

    monkeypatch.setattr("weft.drivers.cache.redis.errand.socket.getaddrinfo", hang)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    cache = RedisCache(RedisAddress("cache.example"), SystemClock(), answer_seconds=0.05)
    try:
        with pytest.raises(TimedOut):
            await cache.get("k")
        cache._retry_at = 0.0
        with pytest.raises(Unavailable, match="still being read"):
            await cache.get("k")
        assert [thread.name for thread in threading.enumerate()].count("weft-cache-errand") == 1
        async with asyncio.timeout(30):
            assert await asyncio.to_thread(lambda: "the twins are saved") == "the twins are saved"
    finally:
        answered.set()
        await cache.close()


def test_an_address_is_read_and_a_wrong_one_refused_without_what_may_be_a_password() -> None:
    assert read_place("redis://cache.example") == RedisAddress("cache.example")
    assert read_place("rediss://edge@[fd00::7]:6380/3") == RedisAddress(
        "fd00::7", 6380, number=3, user="edge", tls=True
    )
    assert read_place("redis://[fd00::7]").words == "[fd00::7]:6379"
    assert read_place("unix:///run/r.sock") == RedisAddress(path="/run/r.sock")
    for wrong in (
        "",
        "memory",
        "http://cache",
        "redis://",
        "redis://:6379",
        "redis://a:0",
        "redis://a:70000",
        "redis://a:b",
        "redis://a/x",
        "redis://a/0/1",
        "redis://a b",
        "redis://a\n",
        "redis://fd00::7",
        "redis://@a",
        "redis://a..b",
        "redis://-a",
        "redis://" + "a" * 64,
        "redis://u:hidden@a",
        "redis://:hidden@a",
        "http://u:hidden@a",
        "unix://r.sock",
        "unix:///" + "x" * 107,
    ):
        with pytest.raises(InvalidInput) as refused:
            read_place(wrong)
        assert refused.value.hint and "hidden" not in str(refused.value) + refused.value.hint, wrong
