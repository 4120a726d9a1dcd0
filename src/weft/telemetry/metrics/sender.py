"""Sends samples to the database for metrics, in order, and keeps them while it is away: so many, and no more.

What doesn't fit is thinned: of all moments that wait every second one is dropped, so that after a long time the oldest are far
apart, and none of the time is missing. Once the database is back it is told how long samples are thin or missing, in the metrics
``weft_metrics_dropped_samples_total`` and ``weft_metrics_gap_seconds``, and the log says the same."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

from weft.contracts.clock import Clock
from weft.objects.errors import WeftError
from weft.telemetry.metrics.database import Asker, Database
from weft.telemetry.metrics.sample import HEADERS, Sample, encode_samples

MOST_KEPT = 500_000  # samples; about 100 MB
MOST_SENT = 5_000  # in one request
WRITE_PATH = "/api/v1/write"
_SECONDS = 10.0
_MOST_ANSWER_BYTES = 65_536
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0
_log = logging.getLogger("weft.metrics")


class SampleBatch:
    """Samples of the recording at ``moment`` (unix ms), encoded once for all that they are sent to."""

    def __init__(self, moment: int, samples: Sequence[Sample]) -> None:
        self.moment, self.count = moment, len(samples)
        self.first, self.last = samples[0].at, samples[-1].at
        self._samples: Sequence[Sample] = samples
        self._body: asyncio.Future[bytes] | None = None

    async def encode(self) -> bytes:
        """The body of the request."""
        if self._body is None:
            self._body = asyncio.ensure_future(asyncio.to_thread(encode_samples, self._samples))
            self._samples = ()
        return await asyncio.shield(self._body)


def split_samples(samples: Sequence[Sample]) -> list[SampleBatch]:
    """Batches of MOST_SENT; the last sample's moment is that of all."""
    return [
        SampleBatch(samples[-1].at, samples[start : start + MOST_SENT]) for start in range(0, len(samples), MOST_SENT)
    ]


class Sender:
    """``find`` gives the database of the moment; it raises Unavailable while there is none."""

    def __init__(self, find: Callable[[], Database], clock: Clock, most_kept: int = MOST_KEPT) -> None:
        self._find, self._clock, self._most_kept = find, clock, most_kept
        self._asker = Asker(clock, 1)
        self._batches: deque[SampleBatch] = deque()
        self._kept = 0
        self._woken = asyncio.Event()
        self._lost: tuple[int, int] | None = None  # the moments, in ms, that the present gap goes from and to
        self.dropped = 0  # samples, since the start

    @property
    def kept(self) -> int:
        """Samples that wait."""
        return self._kept

    def put(self, batches: Sequence[SampleBatch]) -> None:
        """Send these; never waits."""
        self._batches.extend(batches)
        self._kept += sum(batch.count for batch in batches)
        if self._kept > self._most_kept:
            self._thin()
        while self._kept > self._most_kept:  # a single moment has too many
            self._forget(self._batches.popleft())
        self._woken.set()

    def _thin(self) -> None:
        moments = sorted({batch.moment for batch in self._batches})
        gone = set(moments[-2::-2])  # the newest stays
        waiting, self._batches = self._batches, deque()
        for batch in waiting:
            if batch.moment in gone:
                self._forget(batch)
            else:
                self._batches.append(batch)

    def _forget(self, batch: SampleBatch) -> None:
        self._kept -= batch.count
        self._drop(batch)

    async def run(self) -> None:
        """Send for ever."""
        pause, is_away = _FIRST_PAUSE_SECONDS, False
        try:
            while True:
                if not self._batches:
                    self._woken.clear()
                    await self._woken.wait()
                batch = self._batches[0]
                try:
                    await self._send(batch)
                except WeftError as problem:
                    if not is_away:
                        _log.warning("%s; samples are kept until then", problem.message)
                    is_away = True
                    await self._clock.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                    continue
                if is_away:
                    _log.warning("the database for metrics is back")
                pause, is_away = _FIRST_PAUSE_SECONDS, False
                if self._batches and self._batches[0] is batch:  # else it was dropped meanwhile
                    self._batches.popleft()
                    self._kept -= batch.count
                self._report_gap()
        finally:
            self._asker.close()

    async def _send(self, batch: SampleBatch) -> None:
        """Raises a WeftError if it must be sent again."""
        body = await batch.encode()
        reply = await self._asker.ask(
            self._find(), WRITE_PATH, body, HEADERS, seconds=_SECONDS, most_bytes=_MOST_ANSWER_BYTES
        )
        if reply.status < 300:
            return
        text = reply.body[:300].decode(errors="replace").strip()
        if reply.status >= 500 or reply.status in (
            401,
            403,
            404,
            429,
        ):  # a full disk; or settings that people will mend
            raise WeftError(f"the database for metrics takes no samples: HTTP {reply.status} {text}")
        self._drop(batch)
        _log.warning("the database for metrics refused %d samples: HTTP %d %s", batch.count, reply.status, text)

    def _drop(self, batch: SampleBatch) -> None:
        self.dropped += batch.count
        first, last = batch.first, batch.last
        self._lost = (first, last) if self._lost is None else (min(self._lost[0], first), max(self._lost[1], last))

    def _report_gap(self) -> None:
        if self._lost is None:
            return
        (first, last), self._lost = self._lost, None
        now = int(self._clock.now() * 1000)
        _log.warning("%d samples of %d s are missing", self.dropped, round((last - first) / 1000))
        dropped = Sample("weft_metrics_dropped_samples_total", (), now, float(self.dropped))
        self.put(split_samples([dropped, Sample("weft_metrics_gap_seconds", (), now, (last - first) / 1000)]))
