"""Talks to a qemu-guest-agent: one JSON request at a time over a virtio-serial port, and commands as polled processes.

It is what any distribution ships. It has no streams: a command gets the input that is there when it begins, its output
comes whole at its end, and it gets no terminal. Where weft's own agent answers too, that one runs the commands.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.runtime import ExecChunk, ExecRequest
from weft.objects.errors import DriverFailed, InvalidInput, TooLarge, Unavailable

ANSWER_SECONDS = 20.0
INPUT_PAUSE_SECONDS = 0.3  # no input for so long: the command begins with what there is
INPUT_BYTES = 8 << 20
POLL_SECONDS = (0.02, 0.5)  # between looks at a command: at first, at most
_LINE_BYTES = 48 << 20  # what a command has said (16 MiB on either channel, in base64) comes in one line
_BOOT_ID_LETTERS = 64
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


T = TypeVar("T")


class _Read(msgspec.Struct, rename="kebab"):
    buf_b64: str


class _Started(msgspec.Struct):
    pid: int


class _Status(msgspec.Struct, rename="kebab"):
    exited: bool
    exitcode: int | None = None
    signal: int | None = None
    out_data: str = ""
    err_data: str = ""
    out_truncated: bool = False
    err_truncated: bool = False


class QemuAgent:
    """One connection to one guest's agent, made by ``connect_agent`` once it has answered."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, clock: Clock) -> None:
        self._reader, self._writer, self._clock = reader, writer, clock
        self._turn = asyncio.Lock()
        self.lost = asyncio.Event()

    async def synchronise(self) -> None:
        """Return once the agent answers us, which may take until the guest has booted; what it still had to say to a
        predecessor is dropped."""
        number = int.from_bytes(os.urandom(4), "little")
        request = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        self._writer.write(b"\xff" + msgspec.json.encode(request) + b"\n")
        while True:
            try:
                line = await self._reader.readline()
            except ValueError:
                raise Unavailable("the guest's agent sends a line without an end") from None
            if not line:
                raise Unavailable("QEMU has closed the agent's port")
            with contextlib.suppress(msgspec.DecodeError):
                answer = msgspec.json.decode(line.rpartition(b"\xff")[2])
                if isinstance(answer, dict) and answer.get("return") == number:
                    return

    async def execute(self, command: str, reply: type[T], **arguments: Any) -> T:
        """The agent's answer. Raises DriverFailed if it refuses, Unavailable if it doesn't answer in time or answers
        with nonsense: the guest is a stranger."""
        async with self._turn:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    self._send(command, arguments)
                    line = await self._reader.readline()
                answer = msgspec.json.decode(line.lstrip(b"\xff"), type=dict[str, Any])
                if "return" in answer:
                    return msgspec.convert(answer["return"], reply)
                refused = msgspec.convert(answer.get("error"), dict[str, Any])
            except (TimeoutError, OSError, ValueError) as problem:  # what msgspec raises is a ValueError too
                self.close()  # an answer that comes late would be taken for the next one's
                raise Unavailable("the guest's agent doesn't answer", retry_after_seconds=0.5) from problem
        raise DriverFailed(f"the guest's agent refused {command}: {str(refused.get('desc', 'no reason given'))[:500]}")

    async def boot_id(self) -> str:
        """The guest kernel's own id of this boot; "" where the agent may not read it."""
        try:
            handle = await self.execute("guest-file-open", int, path=_BOOT_ID, mode="r")
            read = await self.execute("guest-file-read", _Read, handle=handle, count=_BOOT_ID_LETTERS)
            await self.execute("guest-file-close", dict, handle=handle)
        except DriverFailed:
            return ""
        return _decode(read.buf_b64)[:_BOOT_ID_LETTERS].decode(errors="replace").strip()

    def power(self) -> None:
        """Ask the guest to power off; it does so in its own time and never answers."""
        self._send("guest-shutdown", {"mode": "powerdown"})

    async def set_time(self, unix_seconds: float) -> None:
        """Set the guest's clock. Raises DriverFailed, Unavailable."""
        await self.execute("guest-set-time", dict, time=int(unix_seconds * 1e9))

    def exec(self, request: ExecRequest) -> QemuAgentSession:
        """Start a command. Raises InvalidInput for one that needs a terminal."""
        if request.tty:
            raise InvalidInput(
                "the guest's agent (qemu-guest-agent) gives no terminals",
                field="tty", reason="unsupported", hint="weft ssh NAME, or weft vm console NAME",
            )  # fmt: skip
        return QemuAgentSession(self, request, self._clock)

    def close(self) -> None:
        self.lost.set()
        self._writer.transport.abort()

    def _send(self, command: str, arguments: dict[str, Any]) -> None:
        self._writer.write(msgspec.json.encode({"execute": command, "arguments": arguments}) + b"\n")


class QemuAgentSession:
    """One command, as contracts.runtime.ExecSession wants it."""

    def __init__(self, agent: QemuAgent, request: ExecRequest, clock: Clock) -> None:
        self._agent, self._request, self._clock = agent, request, clock
        self._input = bytearray()
        self._arrived, self._input_ended = asyncio.Event(), False

    async def write(self, data: bytes) -> None:
        """Keep stdin for the beginning of the command. Raises TooLarge."""
        if len(self._input) + len(data) > INPUT_BYTES:
            raise TooLarge(
                f"a command's input may be {INPUT_BYTES >> 20} MiB over qemu-guest-agent", field="stdin",
                hint="send it in parts, or by weft ssh",
            )  # fmt: skip
        self._input += data
        self._arrived.set()

    async def close_stdin(self) -> None:
        self._input_ended = True
        self._arrived.set()

    async def output(self) -> AsyncIterator[ExecChunk]:
        """All that it wrote, once it has ended, then ``exit``. Raises Unavailable if the guest was lost before that."""
        await self._gather_input()
        request = self._request
        argv = request.argv
        if request.cwd:
            argv = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', request.cwd, *argv]
        started = await self._agent.execute(
            "guest-exec",
            _Started,
            path=argv[0],
            arg=argv[1:],
            env=[f"{name}={value}" for name, value in {**_ENVIRONMENT, **request.env}.items()],
            **{"capture-output": True, "input-data": base64.b64encode(self._input).decode()},
        )
        pause, longest = POLL_SECONDS
        while not (told := await self._agent.execute("guest-exec-status", _Status, pid=started.pid)).exited:
            await self._clock.sleep(pause)
            pause = min(longest, pause * 1.5)
        if told.out_data:
            yield ExecChunk("stdout", _decode(told.out_data))
        if told.err_data:
            yield ExecChunk("stderr", _decode(told.err_data))
        if told.out_truncated or told.err_truncated:
            yield ExecChunk("stderr", b"weft: qemu-guest-agent has cut off what this command wrote\n")
        yield ExecChunk("exit", code=told.exitcode, signal=told.signal)

    async def close(self) -> None:
        """Nobody waits for it any more. The agent knows no way to hang up on a command: it goes on."""

    async def _gather_input(self) -> None:
        while not self._input_ended:
            self._arrived.clear()
            waiting, pause = asyncio.ensure_future(self._arrived.wait()), asyncio.ensure_future(self._pause())
            await asyncio.wait((waiting, pause), return_when=asyncio.FIRST_COMPLETED)
            quiet = not waiting.done()
            waiting.cancel()
            pause.cancel()
            if quiet:
                return

    async def _pause(self) -> None:
        await self._clock.sleep(INPUT_PAUSE_SECONDS)


_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "USER": "root"}


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except ValueError as problem:
        raise Unavailable("the guest's agent answers with nonsense") from problem


async def connect_agent(path: str, clock: Clock, on_connected: Callable[[QemuAgent], None]) -> QemuAgent:
    """Connect to the port and wait until an agent answers; ``on_connected`` hears of the connection at once. Raises
    Unavailable, OSError."""
    agent = QemuAgent(*await asyncio.open_unix_connection(path, limit=_LINE_BYTES), clock)
    on_connected(agent)
    await agent.synchronise()
    return agent
