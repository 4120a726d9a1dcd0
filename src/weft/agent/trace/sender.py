"""Brings the node's spans to the server: from the files to which they are written, which outlive the agent. What
was sent but not noted as such is sent again, and counts once."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec

from weft.agent.server.client import Server
from weft.contracts.clock import Clock
from weft.contracts.trace.span import Tracer
from weft.objects.errors import WeftError
from weft.protocol.traces import MOST_SPANS, SpansAnswer, SpansInput
from weft.telemetry.spool import Spool, forget_read, read_spool

log = logging.getLogger("weft.agent")
STEP_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
PIECE_BYTES = 256 << 10
CLOCK_SECONDS = 60.0  # after which the clocks are compared again
_POSITION = "sent"


class SpanSender:
    """Sender of spans of node ``node``; ``tracer`` records into ``folder``."""

    def __init__(self, folder: Path, node: str, server: Server, clock: Clock) -> None:
        self._folder, self._node, self._server, self._clock = folder, node, server, clock
        self.spool = Spool(folder)
        self.tracer = Tracer(f"node/{node}", clock, self.spool.put)
        self._position: str | None = None
        self._offset: float | None = None  # of the server's clock, in seconds
        self._compared_at = -CLOCK_SECONDS

    async def keep(self) -> None:
        """Send for ever."""
        pause = STEP_SECONDS
        try:
            while True:
                await self._clock.sleep(pause)
                try:
                    more = await asyncio.to_thread(self._send)
                    pause = 0.0 if more else STEP_SECONDS
                except (WeftError, OSError) as problem:
                    log.debug("spans: %s", problem)
                    pause = min(max(STEP_SECONDS, 2 * pause), LONGEST_PAUSE_SECONDS)
        finally:
            self.spool.close()

    def _send(self) -> bool:
        """Send a piece; whether there may be more. Raises WeftError, OSError."""
        before = self._read_position()
        data, after = read_spool(self._folder, before, PIECE_BYTES)
        lines = [msgspec.Raw(line) for line in data.split(b"\n") if _is_json(line)]
        if lines and (self._offset is None or self._clock.elapsed() - self._compared_at >= CLOCK_SECONDS):
            self._ask(SpansInput())
        for start in range(0, len(lines), MOST_SPANS):
            self._ask(SpansInput(lines[start : start + MOST_SPANS], self._offset))
        if after != before:
            self._position = after
            if data:
                fresh = self._folder / f"{_POSITION}.new"
                fresh.write_text(after)
                fresh.replace(self._folder / _POSITION)
            forget_read(self._folder, after)
        return bool(data)

    def _ask(self, given: SpansInput) -> SpansAnswer:
        """Each answer tells the server's clock: at the middle of the request, to half of what that took."""
        sent_at = self._clock.now()
        answer = self._server.put_spans(self._node, given)
        if not given.spans:
            self._offset = answer.now - (sent_at + self._clock.now()) / 2
            self._compared_at = self._clock.elapsed()
        return answer

    def _read_position(self) -> str:
        if self._position is None:
            try:
                self._position = (self._folder / _POSITION).read_text()[:64]
            except (OSError, UnicodeDecodeError):
                self._position = ""
        return self._position


def _is_json(line: bytes) -> bool:
    """Torn lines would spoil the request."""
    try:
        msgspec.json.decode(line)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True
