"""A function's output in the form in which the nodes' stores of logs give workloads': JSON lines, chosen by time and text."""

from __future__ import annotations

import msgspec

from weft.contracts.clock import Clock
from weft.gateway.function.record.output_log import STAMP_BYTES, stamp
from weft.kinds.function import FunctionLogsInput
from weft.objects.errors import InvalidInput
from weft.telemetry.logs.lines import PrintedLine
from weft.telemetry.logs.match import Matcher, await_matcher


class AggregatedLog:
    """The log of the function ``name``, as ``asked``; ``close`` it."""

    def __init__(self, name: str, asked: FunctionLogsInput, clock: Clock, matcher: Matcher | None) -> None:
        self._source, self._asked = f"function/{name}", asked
        self._now = clock.now()
        self._matcher = matcher

    @classmethod
    async def open(cls, name: str, asked: FunctionLogsInput, clock: Clock, asker: str) -> AggregatedLog:
        """``asker``: the person. Raises InvalidInput, Unavailable."""
        if asked.follow and asked.until:
            raise InvalidInput("until can't be given together with follow: what follows is later", field="until")
        return cls(name, asked, clock, await await_matcher(asked.filter, asked.regex, clock, asker))

    @property
    def since(self) -> str:
        """The stamp of the oldest lines that are wanted; "": all are."""
        return stamp(self._now - self._asked.since) if self._asked.since else ""

    def read(self, lines: list[bytes]) -> bytes:
        """Choose from those that there are since ``since``. Raises InvalidInput for a pattern that takes too long."""
        asked = self._asked
        if asked.until:
            before = stamp(self._now - asked.until).encode()
            lines = [line for line in lines if line[:STAMP_BYTES] < before]
        chosen = self._match(lines)
        return _encode(chosen if asked.tail < 0 else chosen[len(chosen) - min(asked.tail, len(chosen)) :], self._source)

    def choose(self, lines: list[bytes]) -> bytes:
        """Choose from new lines. Raises as ``read``."""
        return _encode(self._match(lines), self._source)

    def close(self) -> None:
        if self._matcher is not None:
            self._matcher.close()

    def _match(self, lines: list[bytes]) -> list[bytes]:
        if self._matcher is None or not lines:
            return lines
        self._matcher.begin()
        messages = [line[STAMP_BYTES + 1 :] for line in lines]
        places, at = {}, 0
        for index, message in enumerate(messages):
            places[at] = lines[index]
            at += len(message)
        return [places[begin] for begin in self._matcher.find(b"".join(messages)) if begin in places]


def _encode(lines: list[bytes], source: str) -> bytes:
    return b"".join(
        msgspec.json.encode(
            PrintedLine(
                line[: STAMP_BYTES - 1].decode("ascii", "replace") + "000Z",
                source,
                line[STAMP_BYTES + 1 : -1].decode("utf-8", "backslashreplace"),
            )
        )
        + b"\n"
        for line in lines
    )
