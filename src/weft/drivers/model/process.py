"""One process that runs models, from the gateway's side: what is asked goes out at once, and answers come in by number.

It never waits for the process. ``ended`` is set when that has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.edge.model_runner import ModelFile
from weft.drivers.model.messages import MOST_BYTES, Ask, Begin, Loading, ModelAnswer, Stage, frame, read_from_process
from weft.objects.errors import Unavailable

MOST_WAITING = 256  # questions without an answer


class RunnerProcess(asyncio.Protocol):
    """``note_answer`` gets number, value and problem of each answer; ``note_end`` is called when it has ended."""

    def __init__(
        self, clock: Clock, note_answer: Callable[[int, float | None, str], None], note_end: Callable[[], None]
    ) -> None:
        self._clock, self._note_answer, self._note_end = clock, note_answer, note_end
        self._process: asyncio.subprocess.Process | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._received = bytearray()
        self._ready = asyncio.Event()
        self._places: dict[str, int] = {}
        self._sent: dict[str, str] = {}  # versions that it is to load, by model
        self.versions: dict[str, str] = {}  # that run, by model
        self.refused: dict[str, str] = {}  # why others don't, by model
        self.crowded: set[str] = set()  # of these: for want of memory, or of a file, not for what the file is
        self.loading = ""  # the model that is being loaded
        self.progress_at = clock.elapsed()  # when it said something last, as long as it loads
        self.waiting: deque[tuple[int, str, float]] = (
            deque()
        )  # number, model and time of each question, the oldest first
        self.answered_at = clock.elapsed()  # when the last answer came
        self.ended = asyncio.Event()
        self.pid = 0

    async def start(self, files: Mapping[str, ModelFile], make_command: Callable[[int], Sequence[str]]) -> None:
        """Start it with ``files``, by model. Raises Unavailable."""
        ours, theirs = socket.socketpair()
        opened: list[int] = []
        loads: list[Loading] = []
        try:
            for uid, one in files.items():
                try:
                    opened.append(os.open(one.path, os.O_RDONLY | os.O_CLOEXEC))
                except OSError as problem:
                    self.refused[uid] = f"its file can't be read: {problem.strerror}"
                    self.crowded.add(uid)
                    continue
                self._places[uid] = len(loads)
                loads.append(Loading(uid, opened[-1], one.sha256, one.inputs, one.output, one.index))
            self._process = await asyncio.create_subprocess_exec(
                *make_command(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *opened),
            )
        except OSError as problem:
            ours.close()
            raise Unavailable(f"the process of models can't start: {problem.strerror or problem}") from None
        finally:
            theirs.close()
            for one_file in opened:
                os.close(one_file)
        self.pid = self._process.pid
        self._sent = {uid: files[uid].version for uid in self._places}
        self._transport, _ = await asyncio.get_running_loop().create_connection(lambda: self, sock=ours)
        self._transport.write(frame(Begin(loads)))

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    async def is_loading(self, most_seconds: float, seconds: float) -> bool:
        """Wait ``seconds`` at most; whether it loads on. It does not if it has ended, or sent nothing for ``most_seconds``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ready.wait()
        is_slow = self._clock.elapsed() - self.progress_at >= most_seconds
        return not (self.is_ready or self.ended.is_set() or is_slow)

    def ask(self, number: int, uid: str, inputs: Sequence[float]) -> bool:
        place = self._places.get(uid)
        if place is None or uid not in self.versions or self._transport is None or len(self.waiting) >= MOST_WAITING:
            return False
        self.waiting.append((number, uid, self._clock.elapsed()))
        self._transport.write(frame(Ask(number, place, list(inputs))))
        return True

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        if self._transport is not None:
            self._transport.abort()

    async def end(self) -> str:
        """End it, and say how it ended."""
        self.kill()
        code = await self._process.wait() if self._process is not None else 0
        self.ended.set()
        if code >= 0:
            return f"exit code {code}"
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
        return f"signal {-code}"

    # --- asyncio.Protocol --------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= 4:
            size = int.from_bytes(self._received[:4], "big")
            if size > MOST_BYTES:
                return self.kill()
            if len(self._received) < 4 + size:
                return None
            body = bytes(self._received[4 : 4 + size])
            del self._received[: 4 + size]
            try:
                message = read_from_process(body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return self.kill()  # it says something else: it isn't trusted any more
            if isinstance(message, ModelAnswer):
                self._take_answer(message)
            else:
                self._take_stage(message)
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()
        self._note_end()

    def _take_answer(self, answer: ModelAnswer) -> None:
        if not self.waiting or self.waiting[0][0] != answer.n:
            return self.kill()  # it answers in order, or it isn't itself any more
        self.waiting.popleft()
        self.answered_at = self._clock.elapsed()
        return self._note_answer(answer.n, answer.y, answer.problem[:300])

    def _take_stage(self, stage: Stage) -> None:
        self.progress_at = self._clock.elapsed()
        if not stage.uid:
            self._ready.set()
        elif not stage.done:
            self.loading = stage.uid
        elif stage.uid in self._places:
            self.loading = ""
            if stage.problem:
                self.refused[stage.uid] = stage.problem[:300]
                if stage.is_crowded:
                    self.crowded.add(stage.uid)
            else:
                self.versions[stage.uid] = self._sent[stage.uid]
