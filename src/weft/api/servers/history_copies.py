"""Copies of what the other servers' histories of metrics have and this one's lacks, so that each server has the whole history. The
server that records sends its samples to all; what did not arrive, since this one was away or hung, is found here by the moments.

Reads the other servers; writes the server's own database. What was last recorded is copied first. Killed at any moment, the next
one compares again: a moment is only there once its samples are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from weft.api.state.history import History
from weft.client.answer import ClientAnswer, read_reason
from weft.client.server.others import ANSWER_SECONDS, OtherServers
from weft.contracts.clock import Clock
from weft.objects.errors import Unavailable, WeftError
from weft.telemetry.metrics.database import Database, make_off
from weft.telemetry.metrics.moments import LATE_SECONDS, Moment, list_missing, read_moments, unpack_samples

EVERY_SECONDS = 5.0
SETTLED_SECONDS = 10.0  # after which samples that are not here were lost on their way, or never sent
OVERLAP_SECONDS = 600.0
DOUBT_SECONDS = 30.0  # before a start of the database: what a killed one had just taken may be there in part
PIECE_SECONDS = 3600.0  # that are copied together
MOST_SPAN_SECONDS = 86_400.0 + LATE_SECONDS  # of one question
COPY_SECONDS = 45.0  # that a piece may take
SHOWN_SECONDS = 12.0  # after which the database shows all that it took, also to questions that it was asked before
FIRST_SECONDS = 5.0  # that a query may wait after a start
_HOUR, _ALONE_SECONDS, _LOOK_SECONDS = 3600.0, 1.0, 0.05
_log = logging.getLogger(__name__)


class Moments(msgspec.Struct):
    """``moments``: pairs of unix ms and how many samples were recorded, oldest first. ``reached``: by the name of a server
    until when (unix seconds) this one has all that it had."""

    moments: list[Moment]
    reached: dict[str, float]


class Behind(NamedTuple):
    """Names of servers that may have moments that this history lacks: those that answer, and surely have, and the others."""

    awake: list[str]
    away: list[str]


class HistoryCopies:
    """``history`` is the server's own; None, and one that it doesn't keep itself, has no copies."""

    def __init__(self, history: History | None, others: OtherServers, clock: Clock) -> None:
        self._history = history if history is not None and history.keep_seconds else None
        self._others, self._clock = others, clock
        self.reached: dict[str, float] = {}  # as in Moments
        self._started: dict[str, float] = {}  # by server: since when the database ran that has these
        self._lacking: set[str] = set()
        self._tried: set[str] = set()  # to compare with, since the start
        self._away: set[str] = set()
        self._troubled: set[str] = set()  # of which the log says so
        self.giving = asyncio.Semaphore(1)  # of samples to other servers

    async def find_behind(self) -> Behind:
        """The servers of which this history may lack something: none where there is one, or a database that is one for all. After
        a start it waits until each was compared, or shown to be away."""
        names = self._others.list_all() if self._history is not None else []
        patience_ends = self._clock.elapsed() + FIRST_SECONDS
        while not self._tried.issuperset(names) and self._clock.elapsed() < patience_ends:
            await self._clock.sleep(_LOOK_SECONDS)
        behind = [name for name in names if name in self._lacking or name not in self.reached]
        away = [name for name in behind if name in self._away or name not in self._tried]
        return Behind([name for name in behind if name in self._lacking and name not in away], away)

    async def run(self) -> None:
        """Copy until cancelled."""
        while self._history is not None:
            names = self._others.list_all()
            self.reached = {name: until for name, until in self.reached.items() if name in names}
            self._lacking &= set(names)
            for name in names:
                await self._take_from(name, self._history)
                self._tried.add(name)
            await self._clock.sleep(EVERY_SECONDS if names else _ALONE_SECONDS)

    async def _take_from(self, name: str, history: History) -> None:
        """Copy what the server ``name`` has and this one lacks."""
        try:
            database = history.find()
            is_new = database.started_at != self._started.get(name)
            doubtful = (database.started_at - DOUBT_SECONDS, database.started_at) if is_new else (0.0, 0.0)
            now, reached = self._clock.now(), dict[str, float]()
            until = max(now - SETTLED_SECONDS, min(now, database.started_at))  # before its start nothing was sent to it
            for start, end in _list_days(self._find_start(name, history, doubtful[0] or until), until):
                theirs = await self._ask_moments(name, start, end)
                own = await read_moments(history.asker, database, start, end)
                for run in list_missing(own, theirs.moments, doubtful, PIECE_SECONDS):
                    self._lacking.add(name)
                    self._tried.add(name)
                    await self._copy(name, history, database, run)
                reached = reached or theirs.reached
                self._tried.add(name)
            if name in self._lacking:
                await self._clock.sleep(SHOWN_SECONDS)
        except WeftError as problem:
            if name not in self._troubled:
                _log.warning("the history of metrics of server %s can't be copied: %s", name, problem.message)
            self._troubled.add(name)
            return
        self._troubled.discard(name)
        self._started[name] = database.started_at
        for whose, reach in {**reached, name: until}.items():  # what that one has of others, this one has, too
            self.reached[whose] = max(self.reached.get(whose, 0.0), min(reach, until))
            if reach >= until - OVERLAP_SECONDS:
                self._lacking.discard(whose)

    def _find_start(self, name: str, history: History, doubtful: float) -> float:
        """The moment from which on the server ``name`` may have what isn't here."""
        first = self._clock.now() - history.keep_seconds + _HOUR
        return max(first, min(self.reached.get(name, 0.0), doubtful) - OVERLAP_SECONDS)

    async def _ask_moments(self, name: str, start: float, end: float) -> Moments:
        """Those of the server ``name``, without what was not asked for. Raises Unavailable; the server counts as away then."""
        try:
            answer = await self._ask(name, "moments", start, end, ANSWER_SECONDS)
            given = msgspec.json.decode(answer.body, type=Moments) if answer.status == 200 else Moments([], {})
        except (Unavailable, msgspec.MsgspecError, RecursionError) as problem:
            self._away.add(name)
            raise Unavailable(
                problem.message if isinstance(problem, Unavailable) else "its moments can't be read"
            ) from None
        self._away.discard(name)
        return Moments([one for one in given.moments if start * 1000 <= one.at <= end * 1000], given.reached)

    async def _ask(self, name: str, what: str, start: float, end: float, seconds: float) -> ClientAnswer:
        """Raises Unavailable."""
        path = f"/v1/history/{what}?start={start:.3f}&end={end:.3f}"
        answer = await self._others.ask(name, "GET", path, seconds=seconds)
        if answer.status not in (200, 413) and read_reason(answer) != make_off().token:
            raise Unavailable(f"it answers {answer.status}")
        return answer

    async def _copy(self, name: str, history: History, database: Database, run: Sequence[Moment]) -> None:
        """Copy the samples of these moments, in pieces, newest first, for half of the time. Raises WeftError."""
        pieces = [run]
        while pieces:
            piece, began = pieces.pop(), self._clock.elapsed()
            start, end = piece[0].at / 1000 - LATE_SECONDS, piece[-1].at / 1000
            answer = await self._ask(name, "samples", start, end, COPY_SECONDS)
            if answer.status == 200:
                await unpack_samples(history.asker, database, answer.body, piece)
                await self._clock.sleep(self._clock.elapsed() - began)
            elif len(piece) > 1:
                half = len(piece) // 2
                pieces += [piece[:half], piece[half:]]
            else:
                _log.warning(
                    "%d samples of one moment are too many to be copied from server %s", piece[0].samples, name
                )


def _list_days(since: float, until: float) -> Iterator[tuple[float, float]]:
    """The span in pieces of a day, newest first."""
    while until > since:
        start = max(since, until - 86_400.0)
        yield start, until
        until = start
