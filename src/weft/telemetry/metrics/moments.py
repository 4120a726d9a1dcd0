"""The moments of which a history has all samples, and copies of these: how the histories of several servers become the same.

Each recording ends with a sample of ``METRIC``, so a history that has that one has the others of its moment. What one history lacks
is what another one's moments are more; their samples go from database to database as JSON in gzip (VictoriaMetrics' own packing
cuts no blocks, so a minute would be a day), and the moments follow once they are there. To copy the same twice changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlencode

import msgspec

from weft.contracts.http.connection import Reply
from weft.objects.errors import InvalidInput, TimedOut, TooLarge, Unavailable
from weft.telemetry.metrics.database import Asker, Database
from weft.telemetry.metrics.sample import HEADERS, Sample, encode_samples
from weft.telemetry.metrics.sender import WRITE_PATH

METRIC = "weft_metrics_recorded_samples"
LATE_SECONDS = (
    35.0  # that a sample may be older than the moment of its recording: as long as a heartbeat counts, and more
)
MOST_BYTES = 15 << 20  # of a copy, packed
_SECONDS = 30.0
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}
_PACKED = {"Content-Type": "application/octet-stream", "Content-Encoding": "gzip"}
_GZIP = b"\x1f\x8b"


class Moment(NamedTuple):
    at: int  # unix ms
    samples: int  # how many were recorded


class _Line(msgspec.Struct):
    values: list[float]
    timestamps: list[int]


def mark_moment(at: int, samples: int) -> Sample:
    """The last sample of a recording at ``at`` (unix ms)."""
    return Sample(METRIC, (), at, float(samples))


async def read_moments(asker: Asker, database: Database, start: float, end: float) -> list[Moment]:
    """Those from ``start`` to ``end`` (unix seconds) of the history in ``database``, oldest first. Raises WeftError."""
    reply = await _post(asker, database, "/api/v1/export", f'{{__name__="{METRIC}"}}', start, end, {})
    try:
        lines = [msgspec.json.decode(line, type=_Line) for line in reply.body.splitlines()]
        return sorted(
            Moment(at, int(value)) for line in lines for at, value in zip(line.timestamps, line.values, strict=True)
        )
    except (msgspec.MsgspecError, ValueError, OverflowError):
        raise Unavailable("the database for metrics gave moments that cannot be read") from None


async def pack_samples(asker: Asker, database: Database, start: float, end: float) -> bytes:
    """All samples from ``start`` to ``end``, but for the moments themselves. Raises WeftError; TooLarge beyond MOST_BYTES, and if
    they take too long."""
    selector = f'{{__name__!="{METRIC}"}}'
    try:
        reply = await _post(asker, database, "/api/v1/export", selector, start, end, {"Accept-Encoding": "gzip"})
    except TimedOut as problem:
        raise TooLarge("the samples of this time are too many to be packed", hint="ask for a shorter time") from problem
    if not reply.body.startswith(_GZIP):
        raise Unavailable("the database for metrics gave samples that cannot be read")
    return reply.body


async def unpack_samples(asker: Asker, database: Database, packed: bytes, moments: Sequence[Moment]) -> None:
    """Put what ``pack_samples`` gave into the history of ``database``, and then the moments whose samples these are. Raises
    WeftError; the moments are missing then."""
    if not packed.startswith(_GZIP):
        raise Unavailable("this is not a copy of samples")
    await _put(asker, database, "/api/v1/import", packed, _PACKED)
    await put_samples(asker, database, encode_samples(mark_moment(*moment) for moment in moments))


async def put_samples(asker: Asker, database: Database, body: bytes) -> None:
    """Put samples that ``encode_samples`` encoded into the history of ``database``. Raises InvalidInput if they weren't, and what
    the database's failures are."""
    await _put(asker, database, WRITE_PATH, body, HEADERS)


def list_missing(
    own: Sequence[Moment], others: Sequence[Moment], doubtful: tuple[float, float], longest: float
) -> Iterator[list[Moment]]:
    """The moments that only ``others`` have, newest first, in runs that are no longer than ``longest`` seconds. Own ones between
    ``doubtful`` (unix seconds) count as missing."""
    first, last = doubtful[0] * 1000, doubtful[1] * 1000
    known = {moment.at for moment in own if not first <= moment.at <= last}
    run: list[Moment] = []
    for moment in sorted((one for one in others if one.at not in known), reverse=True):
        if run and run[0].at - moment.at > longest * 1000:
            yield run[::-1]
            run = []
        run.append(moment)
    if run:
        yield run[::-1]


async def _post(
    asker: Asker, database: Database, path: str, selector: str, start: float, end: float, headers: Mapping[str, str]
) -> Reply:
    """The answer to a question for the samples that ``selector`` names. Raises WeftError."""
    form = urlencode({"match[]": selector, "start": f"{start:.3f}", "end": f"{end:.3f}"}).encode()
    reply = await asker.ask(database, path, form, {**_FORM, **headers}, seconds=_SECONDS, most_bytes=MOST_BYTES)
    if reply.status != 200:
        raise Unavailable(f"the database for metrics answers {reply.status}")
    return reply


async def _put(asker: Asker, database: Database, path: str, body: bytes, headers: Mapping[str, str]) -> None:
    reply = await asker.ask(database, path, body, headers, seconds=_SECONDS, most_bytes=MOST_BYTES)
    if reply.status == 400:
        raise InvalidInput("these samples can't be read", hint="send them as Prometheus' remote write does")
    if reply.status >= 300:
        raise Unavailable(f"the database for metrics takes no samples: HTTP {reply.status}")
