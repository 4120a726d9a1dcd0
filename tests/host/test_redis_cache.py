"""The cache in a Redis, against a real one: killed in the middle, frozen, full, with a password, and with TLS."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.conformance.cache_contract import SECONDS, CacheContract, until_works

from weft.contracts.clock import SystemClock
from weft.contracts.edge.cache import Cache
from weft.drivers.cache.redis.driver import RedisCache
from weft.drivers.cache.redis.place import RedisAddress, read_place
from weft.objects.errors import TimedOut, Unavailable

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server (make install-tests)"),
]


class HandClock(SystemClock):
    at = 0.0

    def elapsed(self) -> float:
        return self.at


class RedisPeer:
    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        self.place = RedisAddress(path=str(folder / "r.sock"))
        self.cache: Cache = RedisCache(self.place, SystemClock())
        self.process: asyncio.subprocess.Process | None = None

    def open_other(self) -> Cache:
        return RedisCache(self.place, SystemClock())

    async def mend(self) -> None:
        words = ["--port", "0", "--unixsocket", self.place.path, "--save", "", "--dir", str(self.folder), *self.options]
        self.process = await asyncio.create_subprocess_exec(
            "redis-server", *words, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(SECONDS):
            while True:
                try:
                    _, writer = await asyncio.open_unix_connection(self.place.path)
                except OSError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    return

    async def kill(self) -> None:
        assert self.process is not None
        writing = asyncio.create_task(self.cache.put({f"k{number}": bytes(100_000) for number in range(150)}, 60))
        await asyncio.sleep(0)
        self.process.kill()
        await self.process.wait()
        await asyncio.gather(writing, return_exceptions=True)
        with pytest.raises(Unavailable):
            await self.cache.put({"k": b"1"}, 60)

    async def empty(self) -> None:
        subprocess.run(["redis-cli", "-s", self.place.path, "flushall"], check=True, stdout=subprocess.DEVNULL)

    async def close(self) -> None:
        await self.cache.close()
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[RedisPeer]:
    made = RedisPeer(tmp_path)
    await made.mend()
    yield made
    await made.close()


class TestRedisCache(CacheContract):
    pass


async def test_a_server_that_stands_still_costs_its_time_and_is_used_again_when_it_goes_on(peer: RedisPeer) -> None:
    assert peer.process is not None
    clock = HandClock()
    cache = RedisCache(peer.place, clock, answer_seconds=0.3)
    await peer.cache.put({"k": b"1"}, 600)
    peer.process.send_signal(signal.SIGSTOP)
    with pytest.raises(TimedOut):
        await cache.get("k")
    with pytest.raises(Unavailable, match="tried again soon"):
        await cache.get("k")
    peer.process.send_signal(signal.SIGCONT)

    async def read() -> bytes | None:
        clock.at += 5
        return await cache.get("k")

    assert await until_works(read) == b"1"
    await cache.close()


async def test_a_full_server_a_wrong_password_and_a_database_that_isn_t_there_are_said(tmp_path: Path) -> None:
    file = tmp_path / "password"
    peer = RedisPeer(tmp_path, "--requirepass", "s3cret", "--maxmemory", "3mb")
    await peer.mend()
    try:
        with pytest.raises(Unavailable, match="wants a password; write its file as cache_password"):
            await peer.cache.get("k")
        for words, place, secret in (
            ("WRONGPASS: it refuses the password", peer.place, "other"),
            ("WRONGPASS: it refuses the password", RedisAddress(path=peer.place.path, user="nobody"), "s3cret"),
            ("DB index is out of range", RedisAddress(path=peer.place.path, number=99), "s3cret"),
        ):
            file.write_text(secret)
            cache = RedisCache(place, SystemClock(), password=file)
            with pytest.raises(Unavailable, match=words) as refused:
                await cache.get("k")
            assert secret not in str(refused.value)
        file.write_text("s3cret\n")
        cache = RedisCache(RedisAddress(path=peer.place.path, number=1), SystemClock(), password=file)
        await cache.put({"k": b"1"}, 60)
        with pytest.raises(Unavailable, match="OOM: its memory is full; raise maxmemory"):
            for number in range(20):
                await cache.put({f"k{number}": bytes(1_000_000)}, 60)
        assert await cache.get("k") == b"1" and cache.connections == 1
        await cache.close()
    finally:
        await peer.close()


async def test_tls_is_spoken_with_a_server_whose_certificate_is_signed_as_settings_say(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = (
        f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {key} -out {certificate} -days 2"
    )
    subject = ["-subj", "/CN=cache", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", *words.split(), *subject], check=True, capture_output=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    tls = f"--bind 127.0.0.1 --tls-port {port} --tls-cert-file {certificate} --tls-key-file {key} --tls-auth-clients no"
    peer = RedisPeer(tmp_path, *tls.split())
    await peer.mend()
    try:
        place = read_place(f"rediss://127.0.0.1:{port}")
        cache = RedisCache(place, SystemClock(), authority=certificate)
        await cache.put({"k": b"1" * 300_000}, 60)
        assert len(await cache.get("k") or b"") == 300_000
        await cache.close()
        with pytest.raises(Unavailable, match="certificate"):
            await RedisCache(place, SystemClock()).get("k")
        with pytest.raises(Unavailable, match="cache_authority"):
            await RedisCache(place, SystemClock(), authority=tmp_path / "absent").get("k")
        with pytest.raises(Unavailable, match=r"reset|closed the connection"):  # without TLS
            await RedisCache(read_place(f"redis://127.0.0.1:{port}"), SystemClock()).get("k")
    finally:
        await peer.close()
