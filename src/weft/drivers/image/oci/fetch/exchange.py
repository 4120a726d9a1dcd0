"""The parent's side of ``worker.py``: sends one request at a time, and ends a process that makes no progress."""

from __future__ import annotations

import asyncio
import json
import os
import re
import struct
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from weft.contracts.clock import SystemClock
from weft.drivers.image.oci.fetch.framing import FRAME, GUARDED, PIECE_BYTES

_KNOWN = re.compile(r"\w+_proxy|SSL_CERT_\w+|PATH|LANG|LD_LIBRARY_PATH", re.IGNORECASE)  # of the environment
_clock = SystemClock()


class Patience(msgspec.Struct, frozen=True):
    """``idle_seconds``: a source that gives less than 64 KiB in so long hangs. ``tries`` in a row that bring nothing are all
    there are, ``resumes`` in all; the pause between them grows from ``pause_seconds``, eightfold at most."""

    connect_seconds: float = 10.0
    idle_seconds: float = 30.0
    tries: int = 3
    resumes: int = 20
    pause_seconds: float = 0.5


class Broken(Exception):
    """A failed exchange. ``kind`` as in ``wire.Failed``, or hangs, or ended (the process did)."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message


class RegistryAnswer:
    """The head of an answer; ``body`` is read once and to its end, or the connection can't be used any more."""

    def __init__(self, head: dict[str, Any], body: AsyncIterator[bytes]) -> None:
        self.head, self.body = head, body

    async def read(self, most: int) -> bytes:
        """All of the body. Raises Broken (badAnswer) for more than ``most`` bytes."""
        data = bytearray()
        async for chunk in self.body:
            data += chunk
            if len(data) > most:
                raise Broken("badAnswer", f"it sends more than {most} bytes")
        return bytes(data)


class Exchange:
    """One process of ``worker.py``, started when it is first needed, and again after one that was ended."""

    def __init__(self, patience: Patience, own_file: str = "", reach: Sequence[str] | None = None) -> None:
        self._patience, self._own_file, self._reach = patience, own_file, reach
        self._process: asyncio.subprocess.Process | None = None

    @asynccontextmanager
    async def ask(self, request: dict[str, Any]) -> AsyncIterator[RegistryAnswer]:
        """Raises Broken, also from the answer's body."""
        process = self._process = self._process or await self._start()
        whole = False
        try:
            assert process.stdin is not None
            patience = {
                "connect_seconds": self._patience.connect_seconds,
                "idle_seconds": self._patience.idle_seconds + 5,
            }
            data = json.dumps(patience | request).encode()
            process.stdin.write(struct.pack("!I", len(data)) + data)
            until = _clock.elapsed() + self._patience.connect_seconds + self._patience.idle_seconds
            kind, head = await self._frame(process, until)
            if kind != b"H":
                raise Broken("ended", "the fetch process sent an invalid answer")
            answer = RegistryAnswer(json.loads(head), self._body(process))
            yield answer
            async for _ in answer.body:
                raise Broken("badAnswer", "it sends more than was requested")
            whole = True
        except Broken as problem:
            whole = problem.kind in ("connect", "tls", "cut", "gone", "denied")
            raise
        finally:
            if not whole:
                await self.close()

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def end(self) -> None:
        """Close an exchange that nothing is asked of just now: it ends by itself."""
        process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()
            try:
                async with asyncio.timeout(5.0):
                    await process.wait()
            finally:
                await self.close()

    async def _start(self) -> asyncio.subprocess.Process:
        if not self._own_file:
            return await self._spawn()
        try:
            given = os.open(
                self._own_file, os.O_RDONLY | os.O_CLOEXEC
            )  # one each: where it is read is the process's own
        except OSError as problem:
            raise Broken("gone", problem.strerror or str(problem)) from None
        try:
            return await self._spawn(given)
        finally:
            os.close(given)

    async def _spawn(self, *given: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-m",
            "weft.drivers.image.oci.fetch.worker",
            str(os.getpid()),
            *([GUARDED + " ".join(self._reach)] if self._reach is not None else ()),
            *((self._own_file, str(given[0])) if given else ()),
            pass_fds=given,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=2 * PIECE_BYTES,
            env={name: value for name, value in os.environ.items() if _KNOWN.fullmatch(name)},
            cwd="/",
        )

    async def _body(self, process: asyncio.subprocess.Process) -> AsyncIterator[bytes]:
        arrived, until = 0, _clock.elapsed() + self._patience.idle_seconds
        while True:
            kind, data = await self._frame(process, until)
            if kind == b"E":
                return
            arrived += len(data)
            if arrived >= PIECE_BYTES // 4:
                arrived, until = 0, _clock.elapsed() + self._patience.idle_seconds
            waited = _clock.elapsed()
            yield data
            until += _clock.elapsed() - waited  # our own disk may take its time

    async def _frame(self, process: asyncio.subprocess.Process, until: float) -> tuple[bytes, bytes]:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(until - _clock.elapsed()):
                kind, length = FRAME.unpack(await process.stdout.readexactly(FRAME.size))
                data = await process.stdout.readexactly(length)
        except TimeoutError:
            raise Broken("hangs", f"it sent almost nothing for {self._patience.idle_seconds:g} s") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            raise Broken("ended", "the fetch process ended") from None
        if kind == b"X":
            error = json.loads(data)
            raise Broken(error["kind"], error["message"])
        return kind, data


class Exchanges:
    """A pool of at most ``places`` parallel exchanges; each process serves again. ``own_file`` can be read besides what everybody
    may; ``reach`` are the near addresses that they may connect to, None: all."""

    def __init__(
        self,
        patience: Patience,
        places: asyncio.Semaphore,
        own_file: str = "",
        reach: Sequence[str] | None = None,
    ) -> None:
        self.patience, self._places, self._own_file, self._reach = patience, places, own_file, reach
        self._idle: list[Exchange] = []
        self._closed = False

    @asynccontextmanager
    async def ask(self, request: dict[str, Any]) -> AsyncIterator[RegistryAnswer]:
        async with self._places:
            exchange = self._idle.pop() if self._idle else Exchange(self.patience, self._own_file, self._reach)
            try:
                async with exchange.ask(request) as answer:
                    yield answer
            finally:
                self._idle.append(exchange)
                if self._closed:  # somebody else still waits for what one of them brings
                    await self.close()

    async def close(self) -> None:
        """End those that are idle now, and others when they are."""
        self._closed = True
        while self._idle:
            await self._idle.pop().end()
