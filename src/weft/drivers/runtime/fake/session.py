"""The commands of the fake runtime: a handful of programs, done in Python, that behave as their namesakes do.

No process is started and nothing is read or written but the session's own streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from weft.contracts.driver.runtime import ExecChunk, ExecRequest
from weft.objects.errors import InvalidInput, Unavailable

WINDOW_CHUNKS = 16


class FakeSession:
    """One command, as contracts.driver.runtime.ExecSession wants it."""

    def __init__(self, request: ExecRequest) -> None:
        if not request.argv:
            raise InvalidInput("this command can't be run: it names no program", field="argv")
        self.over = False
        self._request = request
        self._stdin: asyncio.Queue[bytes | None] = asyncio.Queue(WINDOW_CHUNKS)
        self._chunks: asyncio.Queue[ExecChunk | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())

    async def write(self, data: bytes) -> None:
        """Send stdin; waits while much of it is unread. What a command that ended didn't read is dropped."""
        while not self.over:
            try:
                self._stdin.put_nowait(data)
                return
            except asyncio.QueueFull:
                await asyncio.wait(
                    [self._task, put := asyncio.create_task(self._stdin.put(data))], return_when="FIRST_COMPLETED"
                )
                if put.done():
                    return
                put.cancel()

    async def close_stdin(self) -> None:
        if not self.over:
            await self._stdin.put(None)

    async def output(self) -> AsyncIterator[ExecChunk]:
        """Chunks in order per channel; ends after ``exit``. Raises Unavailable if the guest was lost before that."""
        while True:
            chunk = await self._chunks.get()
            if chunk is None:
                raise Unavailable("the connection to the guest's agent broke; the command's fate is unknown")
            yield chunk
            if chunk.channel == "exit":
                return

    async def close(self) -> None:
        self.over = True
        self._task.cancel()

    def lose(self) -> None:
        """The guest is gone."""
        if not self.over:
            self.over = True
            self._task.cancel()
            self._chunks.put_nowait(None)

    async def _run(self) -> None:
        name = self._request.argv[0].rsplit("/", 1)[-1]
        if name == "cat":
            while (data := await self._stdin.get()) is not None:
                self._chunks.put_nowait(ExecChunk("stdout", data))
            code = 0
        elif name in PROGRAMS:
            out, code = PROGRAMS[name](self._request)
            if out:
                self._chunks.put_nowait(ExecChunk("stdout", out))
        else:
            self._chunks.put_nowait(ExecChunk("stderr", f"fake guest: {name}: not found\n".encode()))
            code = 127
        self.over = True
        self._chunks.put_nowait(ExecChunk("exit", code=code))


def _echo(request: ExecRequest) -> tuple[bytes, int]:
    return " ".join(request.argv[1:]).encode() + b"\n", 0


def _env(request: ExecRequest) -> tuple[bytes, int]:
    return "".join(f"{name}={value}\n" for name, value in request.env.items()).encode(), 0


PROGRAMS: dict[str, Callable[[ExecRequest], tuple[bytes, int]]] = {
    "echo": _echo,
    "env": _env,
    "false": lambda request: (b"", 1),
    "pwd": lambda request: ((request.cwd or "/root").encode() + b"\n", 0),
    "true": lambda request: (b"", 0),
    "uname": lambda request: (b"Fake\n", 0),
}
