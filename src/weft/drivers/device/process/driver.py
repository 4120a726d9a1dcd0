"""A device driver that works in a process of its own. When that ends, or hangs, nothing else does; it is started again with growing
pauses, and gets its devices again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Mapping, Sequence

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.device import AnnouncedDevice, Listener, Thing, Value
from weft.drivers.device.process.messages import (
    Call,
    DriverAnswer,
    Note,
    frame,
    raise_answered,
    read_frame,
    read_from_driver,
)
from weft.objects.errors import NotFound, TimedOut, Unavailable, WeftError

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 60.0
CALM_SECONDS = 60.0  # a process that lived so long begins with the first pause again
ANSWER_SECONDS = 30.0  # a process that takes longer for a word hangs, and is killed
PING_SECONDS = 10.0
MOST_VALUES = 200  # of a message
log = logging.getLogger("weft.edge.process")


class ProcessDriver:
    """``make_command``: the process for a socket's descriptor."""

    def __init__(
        self,
        protocol: str,
        make_command: Callable[[int], Sequence[str]],
        clock: Clock,
        *,
        answer_seconds: float = ANSWER_SECONDS,
        ping_seconds: float = PING_SECONDS,
    ) -> None:
        self.protocol, self._make_command, self._clock = protocol, make_command, clock
        self._answer_seconds, self._ping_seconds = answer_seconds, ping_seconds
        self._things: dict[str, Thing] = {}
        self._listener: Listener | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._calls: dict[int, asyncio.Future[DriverAnswer]] = {}
        self._number = 0
        self._found: list[AnnouncedDevice] = []
        self._discovering: asyncio.Task[None] | None = None
        self._problem = "its driver's process hasn't started yet"
        self.pid = 0
        self.starts = 0

    async def probe(self) -> str:
        if self._problem:
            return self._problem
        try:
            return (await self._call(Call(0, "probe"))).words
        except WeftError as problem:
            return problem.message

    async def discover(self) -> list[AnnouncedDevice]:
        """Return the process's last answer, and ask again: a process that hangs must not hold up the report of all devices."""
        if not self._problem and (self._discovering is None or self._discovering.done()):
            self._discovering = asyncio.create_task(self._ask_found())
        return list(self._found)

    async def _ask_found(self) -> None:
        with contextlib.suppress(WeftError):
            self._found = (await self._call(Call(0, "discover"))).found

    async def connect(self, thing: Thing) -> None:
        if self._things.get(thing.uid) == thing:
            return
        self._things[thing.uid] = thing
        self._send(Call(0, "connect", thing=thing))

    async def disconnect(self, uid: str) -> None:
        if self._things.pop(uid, None) is not None:
            self._send(Call(0, "disconnect", uid=uid))

    async def read(self, uid: str, names: Sequence[str]) -> dict[str, Value]:
        self._check(uid)
        return (await self._call(Call(0, "read", uid=uid, names=list(names)))).values

    async def write(self, uid: str, id: str, values: Mapping[str, Value], seconds: float) -> None:
        if seconds <= 0:
            raise TimedOut("its time is up")
        self._check(uid)
        await self._call(Call(0, "write", uid=uid, id=id, values=dict(values), seconds=seconds))

    def observe(self, listener: Listener) -> None:
        self._listener = listener
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep())

    async def close(self) -> None:
        self._listener = None
        if self._discovering is not None:
            self._discovering.cancel()
            await asyncio.gather(self._discovering, return_exceptions=True)
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            self._keeping = None

    def _check(self, uid: str) -> None:
        if uid not in self._things:
            raise NotFound("the device isn't connected to its driver")

    def _send(self, call: Call) -> None:
        """Nobody waits for the answer. A process that isn't there gets all devices when it starts."""
        if self._writer is not None:
            self._writer.write(frame(call))

    async def _call(self, call: Call, *, is_first: bool = False) -> DriverAnswer:
        """Raises Unavailable where the process has no answer, and what the driver raised."""
        if (self._problem and not is_first) or self._writer is None:
            raise Unavailable(self._problem or "its driver's process has ended")
        self._number += 1
        call.number = self._number
        future = self._calls[call.number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(frame(call))
            async with asyncio.timeout(self._answer_seconds):
                answer: DriverAnswer = await future
        except TimeoutError:
            raise Unavailable(f"its driver's process doesn't answer within {self._answer_seconds:g} s") from None
        finally:
            self._calls.pop(call.number, None)
        raise_answered(answer)
        return answer

    # --- the process -------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        tries = 0
        while True:
            began = self._clock.elapsed()
            try:
                why = await self._run()
            except (
                Exception
            ) as failure:  # whatever a process says, and where descriptors are all taken: it starts again
                log.exception("%s: the driver's process can't be served", self.protocol)
                why = f"it can't be served: {type(failure).__name__}"
            tries = 0 if self._clock.elapsed() - began >= CALM_SECONDS else tries
            pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(tries, 10))
            tries += 1
            self._note_problem(f"its driver's process ended ({why}); it starts again in {pause:g} s")
            await self._clock.sleep(pause)

    async def _run(self) -> str:
        """Start a process, serve it until it ends, and say how it did."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._make_command(theirs.fileno()), stdin=asyncio.subprocess.DEVNULL, pass_fds=(theirs.fileno(),)
            )
        except OSError as problem:
            ours.close()
            return f"it can't start: {problem}"
        finally:
            theirs.close()
        self.pid = process.pid
        self.starts += 1
        pinging: asyncio.Task[None] | None = None
        try:
            reader, self._writer = await asyncio.open_connection(sock=ours)
            for thing in self._things.values():
                self._send(Call(0, "connect", thing=thing))
            self._send(Call(0, "observe"))
            pinging = asyncio.create_task(self._ping(process))
            while body := await read_frame(reader):
                self._take(read_from_driver(body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            log.warning("%s: the driver's process sends something else than messages", self.protocol)
        finally:
            if pinging is not None:
                pinging.cancel()
            self._problem = self._problem or "its driver's process has ended"
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            for future in self._calls.values():
                if not future.done():
                    future.set_exception(Unavailable("its driver's process has ended"))
            await process.wait()
            self.pid = 0
        return _describe(process.returncode or 0)

    async def _ping(self, process: asyncio.subprocess.Process) -> None:
        """Kill a process that doesn't answer any more."""
        while True:
            try:
                await self._call(Call(0, "probe"), is_first=True)
                self._problem = ""
            except Unavailable:
                log.warning("%s: the driver's process hangs, and is killed", self.protocol)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                return
            await self._clock.sleep(self._ping_seconds)

    def _take(self, message: DriverAnswer | Note) -> None:
        if isinstance(message, DriverAnswer):
            future = self._calls.get(message.number)
            if future is not None and not future.done():
                future.set_result(message)
            return
        listener = self._listener
        if listener is None or (message.uid and message.uid not in self._things):
            return
        if message.about == "line":
            listener.note_line(message.words[:300])
        elif message.about == "reach":
            listener.note_reach(message.uid, message.words[:300])
        elif message.about == "refused":
            listener.note_refused(message.uid, message.words[:40], message.name[:100])
        elif len(message.values) > MOST_VALUES:
            listener.note_refused(message.uid, "size")
        elif message.about == "event":
            listener.note_event(message.uid, message.values)
        else:
            listener.note_values(message.uid, message.values)

    def _note_problem(self, problem: str) -> None:
        self._problem = problem
        if self._listener is not None:
            for uid in list(self._things):
                self._listener.note_reach(uid, problem)
            self._listener.note_line(problem)


def _describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
