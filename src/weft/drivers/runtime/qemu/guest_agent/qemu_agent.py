"""Talks to a qemu-guest-agent: one JSON request at a time over a virtio-serial port, and commands as polled processes.

It is what any distribution ships. It has no streams: a command gets the input that is there when it begins, its output
comes whole at its end, and it gets no terminal. Where weft's own agent answers too, that one runs the commands.

Who is root in the guest may answer in its place: a line is short, unless it is what a command has printed, and of those that are
long a node takes few at once.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Hashable
from typing import Annotated, Any, TypeVar

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import ExecChunk, ExecRequest
from weft.drivers.runtime.qemu.guest_agent.frames import WORD_LETTERS, decode_word
from weft.drivers.runtime.qemu.guest_agent.unread_output import Unread
from weft.objects.errors import DriverFailed, InvalidInput, TooLarge, Unavailable

ANSWER_SECONDS = 20.0
INPUT_PAUSE_SECONDS = 0.3  # no input for so long: the command begins with what there is
INPUT_BYTES = 8 << 20
POLL_SECONDS = (0.02, 0.5)  # between looks at a command: at first, at most
LINE_BYTES = 64 << 10
LONG_LINE_BYTES = 48 << 20  # a command's output (16 MiB on either channel, in base64) comes in one line
LONG_SECONDS = 60.0  # for other guests' long answers
NOISE_BYTES = 1 << 20  # from one that has yet to answer: then it is given a rest
PIECE_BYTES = 64 << 10  # of output, to be read at once
MOST_REASON = 500
_MOST_TRIMMED = 1 << 60  # bytes; what a guest says may be anything
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


T = TypeVar("T")


class _Read(msgspec.Struct, rename="kebab"):
    buf_b64: str


class _Started(msgspec.Struct):
    pid: int


_Code = Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 32)]


class _Status(msgspec.Struct, rename="kebab"):
    exited: bool
    exitcode: _Code | None = None
    signal: _Code | None = None
    out_data: str = ""
    err_data: str = ""
    out_truncated: bool = False
    err_truncated: bool = False


class _TrimmedPath(msgspec.Struct):
    trimmed: Annotated[int, msgspec.Meta(ge=0)] | None = None
    error: str = ""


class _Trimmed(msgspec.Struct):
    paths: list[_TrimmedPath] = []


class QemuAgent:
    """One connection to one guest's agent, made by ``connect_agent`` once it has answered. ``unread`` counts what waits of all
    guests' output, of this one's under ``guest``."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, clock: Clock, unread: Unread, guest: Hashable
    ) -> None:
        self._reader, self._writer, self._clock = reader, writer, clock
        self.unread, self.guest = unread, guest
        self._turn = asyncio.Lock()
        self.lost = asyncio.Event()

    async def synchronise(self) -> None:
        """Return once the agent answers us, which may take until the guest has booted; what it still had to say to a
        predecessor is dropped. Raises Unavailable, also for one that says too much before it answers."""
        number = int.from_bytes(os.urandom(4), "little")
        request = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        self._writer.write(b"\xff" + msgspec.json.encode(request) + b"\n")
        noise = 0
        while noise < NOISE_BYTES:
            try:
                line = await self._reader.readline()
            except ValueError:
                raise Unavailable("the guest's agent sends a line without an end") from None
            if not line:
                raise Unavailable("QEMU has closed the agent's port")
            noise += len(line)
            with contextlib.suppress(ValueError):
                if _decode_answer(line.rpartition(b"\xff")[2]).get("return") == number:
                    return
        raise Unavailable("the guest's agent sends unrequested data")

    async def execute(
        self,
        command: str,
        reply: type[T],
        *,
        long: bool = False,
        within: float = ANSWER_SECONDS,
        **arguments: Any,
    ) -> T:
        """The agent's answer ``within`` so many seconds, which may be ``long``. Raises DriverFailed if it refuses, Unavailable if
        it doesn't answer in time or answers with nonsense: the guest is a stranger."""
        async with self._turn:
            try:
                async with asyncio.timeout(within):
                    self._send(command, arguments)
                    line = await self._read_short()
                if line is None and long:
                    async with self._long_turn(), asyncio.timeout(ANSWER_SECONDS):
                        return self._read_answer(command, await self._read_long(), reply)
                return self._read_answer(command, line or b"", reply)
            except (TimeoutError, OSError, ValueError) as problem:  # what msgspec raises is a ValueError too
                self.close()  # an answer that comes late would be taken for the next one's
                raise Unavailable("the guest's agent doesn't answer", retry_after_seconds=0.5) from problem

    def _read_answer(self, command: str, line: bytes | bytearray, reply: type[T]) -> T:
        """Raises DriverFailed, ValueError."""
        answer = _decode_answer(line)
        if "return" in answer:
            return msgspec.convert(answer["return"], reply)
        refused = msgspec.convert(answer.get("error"), dict[str, Any])
        raise DriverFailed(
            f"the guest's agent refused {command}: {str(refused.get('desc', 'no reason given'))[:MOST_REASON]}"
        )

    async def _read_short(self) -> bytes | None:
        """None: it is longer, and waits."""
        try:
            return await self._reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as cut:
            return cut.partial
        except asyncio.LimitOverrunError:
            return None

    async def _read_long(self) -> bytearray:
        """Read a long line; what comes after its end was not asked for. Raises ValueError for one that is too long."""
        line = bytearray()
        while (piece := await self._reader.read(LINE_BYTES)) and len(line) <= LONG_LINE_BYTES:
            end = piece.find(b"\n")
            line += piece if end < 0 else piece[:end]
            if end >= 0:
                return line
        raise ValueError("no end of it")

    @contextlib.asynccontextmanager
    async def _long_turn(self) -> AsyncIterator[None]:
        async with asyncio.timeout(LONG_SECONDS):
            await self.unread.turns.acquire()
        try:
            yield
        finally:
            self.unread.turns.release()

    async def boot_id(self) -> str:
        """The guest kernel's own id of this boot; "" where the agent may not read it."""
        try:
            handle = await self.execute("guest-file-open", int, path=_BOOT_ID, mode="r")
            read = await self.execute("guest-file-read", _Read, handle=handle, count=WORD_LETTERS)
            await self.execute("guest-file-close", dict, handle=handle)
        except DriverFailed:
            return ""
        return decode_word(_decode(read.buf_b64))

    def power(self) -> None:
        """Ask the guest to power off; it does so in its own time and never answers."""
        self._send("guest-shutdown", {"mode": "powerdown"})

    async def set_time(self, unix_seconds: float) -> None:
        """Set the guest's clock. Raises DriverFailed, Unavailable."""
        await self.execute("guest-set-time", dict, time=int(unix_seconds * 1e9))

    async def freeze(self) -> int:
        """Freeze the guest's file systems until ``thaw``: how many. Raises DriverFailed, Unavailable."""
        return await self.execute("guest-fsfreeze-freeze", int)

    async def thaw(self) -> int:
        """Let them go: how many were still frozen. Raises DriverFailed, Unavailable."""
        return await self.execute("guest-fsfreeze-thaw", int)

    async def trim(self, within: float) -> int:
        """Give back the blocks that no file uses: how many bytes. Raises DriverFailed, Unavailable."""
        found = await self.execute("guest-fstrim", _Trimmed, within=within)
        if found.paths and not any(path.trimmed is not None for path in found.paths):
            why = next((path.error for path in found.paths if path.error), "no reason given")
            raise DriverFailed(f"the guest couldn't trim its file systems: {why[:MOST_REASON]}", reason="notTrimmed")
        return min(sum(path.trimmed or 0 for path in found.paths), _MOST_TRIMMED)

    def exec(self, request: ExecRequest) -> QemuAgentSession:
        """Start a command. Raises InvalidInput for one that needs a terminal."""
        if request.tty:
            raise InvalidInput(
                "the guest's agent (qemu-guest-agent) has no terminals",
                field="tty", reason="unsupported", hint="use weft ssh NAME, or weft vm console NAME",
            )  # fmt: skip
        return QemuAgentSession(self, request, self._clock)

    def close(self) -> None:
        self.lost.set()
        self._writer.transport.abort()

    def _send(self, command: str, arguments: dict[str, Any]) -> None:
        self._writer.write(msgspec.json.encode({"execute": command, "arguments": arguments}) + b"\n")


class QemuAgentSession:
    """One command, as contracts.driver.runtime.ExecSession wants it."""

    def __init__(self, agent: QemuAgent, request: ExecRequest, clock: Clock) -> None:
        self._agent, self._request, self._clock = agent, request, clock
        self._input = bytearray()
        self._arrived, self._input_ended = asyncio.Event(), False
        self._waiting: dict[str, bytes] = {}
        self._cut = False

    async def write(self, data: bytes) -> None:
        """Keep stdin for the beginning of the command. Raises TooLarge."""
        if len(self._input) + len(data) > INPUT_BYTES:
            raise TooLarge(
                f"over qemu-guest-agent, a command's input is limited to {INPUT_BYTES >> 20} MiB", field="stdin",
                hint="send it in parts, or use weft ssh",
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
        arguments: dict[str, Any] = {
            "path": argv[0],
            "arg": argv[1:],
            "env": [f"{name}={value}" for name, value in {**_ENVIRONMENT, **request.env}.items()],
            "capture-output": True,
            "input-data": base64.b64encode(self._input).decode(),
        }
        started = await self._agent.execute("guest-exec", _Started, **arguments)
        pause, longest = POLL_SECONDS
        while not (status := await self._ask(started.pid)).exited:
            await self._clock.sleep(pause)
            pause = min(longest, pause * 1.5)
        code, signal, truncated = status.exitcode, status.signal, status.out_truncated or status.err_truncated
        self._keep({"stdout": _decode(status.out_data), "stderr": _decode(status.err_data)})
        del status
        for channel in ("stdout", "stderr"):
            at = 0
            while piece := self._waiting.get(channel, b"")[at : at + PIECE_BYTES]:
                yield ExecChunk("stdout" if channel == "stdout" else "stderr", piece)
                at += PIECE_BYTES
        if self._cut:
            raise Unavailable("the command's output was not read, and its node keeps no more of it")
        self._drop()
        if truncated:
            yield ExecChunk("stderr", b"weft: qemu-guest-agent has cut off what this command wrote\n")
        yield ExecChunk("exit", code=code, signal=signal)

    async def _ask(self, pid: int) -> _Status:
        return await self._agent.execute("guest-exec-status", _Status, long=True, pid=pid)

    def _keep(self, output: dict[str, bytes]) -> None:
        self._waiting = output
        self._agent.unread.take(self._agent.guest, self._cut_off, sum(map(len, output.values())))

    def _drop(self) -> None:
        output, self._waiting = self._waiting, {}
        if output:
            self._agent.unread.take(self._agent.guest, self._cut_off, -sum(map(len, output.values())))

    def _cut_off(self) -> None:
        self._cut = True
        self._drop()

    async def close(self) -> None:
        """Nobody waits for it any more. The agent knows no way to hang up on a command: it goes on."""
        self._drop()

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


def _decode_answer(line: bytes | bytearray) -> dict[str, Any]:
    """Raises ValueError."""
    try:
        return msgspec.json.decode(line.lstrip(b"\xff"), type=dict[str, Any])
    except RecursionError:
        raise ValueError("too deep") from None


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except ValueError as problem:
        raise Unavailable("the guest's agent sends an invalid answer") from problem


async def connect_agent(
    path: str,
    clock: Clock,
    on_connected: Callable[[QemuAgent], None],
    unread: Unread | None = None,
    guest: Hashable = "",
) -> QemuAgent:
    """Connect to the port and wait until an agent answers; ``on_connected`` hears of the connection at once. Raises
    Unavailable, OSError."""
    reader, writer = await asyncio.open_unix_connection(path, limit=LINE_BYTES)
    agent = QemuAgent(reader, writer, clock, unread or Unread(), guest)
    on_connected(agent)
    await agent.synchronise()
    return agent
