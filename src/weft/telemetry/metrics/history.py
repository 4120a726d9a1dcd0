"""The history of metrics as arrays: a PromQL range query to the database for metrics, or a list of samples in memory."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlencode

import msgspec
import numpy as np

from weft.contracts.history import MOST_MOMENTS, MOST_OF_PROJECT, MOST_SAMPLES, Floats, Labels, Span
from weft.objects.errors import InvalidInput, TooLarge, Unavailable
from weft.telemetry.metrics.database import Asker, Database
from weft.telemetry.metrics.sample import Sample

SECONDS = 30.0
PEOPLE_SECONDS = 10.0  # of a query that people wrote: others wait for theirs
MOST_BYTES = 64 << 20
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class _Series(msgspec.Struct):
    metric: dict[str, str] = {}
    values: msgspec.Raw = msgspec.Raw(
        b"[]"
    )  # read one series at a time: as objects they are ten times as large as their text


class _Result(msgspec.Struct):
    result: list[_Series] = []


class _Answer(msgspec.Struct):
    status: str = ""
    data: _Result = msgspec.field(default_factory=_Result)
    error: str = ""


_decoder = msgspec.json.Decoder(list[tuple[float, str]])


class DatabaseHistory:
    """History in the database that ``find`` names now."""

    def __init__(self, asker: Asker, find: Callable[[], Database]) -> None:
        """``find`` raises Unavailable while there is none."""
        self._asker, self._find = asker, find

    async def read(self, query: str, span: Span, project: str = "") -> Mapping[Labels, Floats]:
        """See ``contracts.history.History``."""
        if span.count > MOST_MOMENTS:
            raise TooLarge(f"{span.count} moments are too many for one answer: the most are {MOST_MOMENTS}")
        database = self._find()
        form = {"query": query, "start": repr(span.start), "end": repr(span.end), "step": repr(span.step)}
        if project:
            form |= _limit_to(database, query, project)
        reply = await self._asker.ask(
            database,
            "/api/v1/query_range",
            urlencode(form).encode(),
            _FORM,
            seconds=PEOPLE_SECONDS if project else SECONDS,
            most_bytes=MOST_BYTES,
        )
        answer, found = await asyncio.to_thread(_read_series, reply.body, span)  # megabytes: not in the loop
        if reply.status in (400, 422):
            raise InvalidInput(f"the database for metrics refuses the query: {answer.error[:200]}", field="query")
        if reply.status != 200 or answer.status != "success":
            raise Unavailable(f"the database for metrics answers {reply.status}: {answer.error[:200]}")
        if len(answer.data.result) * span.count > MOST_SAMPLES:
            raise TooLarge(f"{len(answer.data.result)} series of {span.count} samples are too many for one answer")
        return found


_NAME_OF_PROJECT = re.compile(r'(\w+)\{project="([^"]+)"\}')


class SampleHistory:
    """History of samples in memory, by the name of their metric: a query is a name, or a name with ``{project="…"}``."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = list(samples)

    async def read(self, query: str, span: Span, project: str = "") -> Mapping[Labels, Floats]:
        """See ``contracts.history.History``."""
        found: dict[Labels, Floats] = {}
        if (match := _NAME_OF_PROJECT.fullmatch(query)) is not None:
            query, project = match[1], match[2]
        for sample in self._samples:
            at = span.index(sample.at / 1000)
            if project and ("project", project) not in sample.labels:
                continue
            if sample.name == query and at is not None:
                row = found.setdefault(Labels.of(dict(sample.labels)), np.full(span.count, math.nan))
                row[at] = sample.value
        return found


def _limit_to(database: Database, query: str, project: str) -> dict[str, str]:
    """The parameters of a project's query. Raises Unavailable where the database can't tell projects apart."""
    if database.kind != "victoriametrics":
        raise Unavailable("the server's metrics are in a Prometheus, which can't tell projects apart")
    # The parenthesis is on a line of its own, for a comment may stand before it.
    return {
        "query": f"limitk({MOST_OF_PROJECT}, (\n{query}\n))",
        "extra_filters[]": f'{{__name__=~"weft_.*",project="{project}"}}',
    }


def _read_series(body: bytes, span: Span) -> tuple[_Answer, dict[Labels, Floats]]:
    """The answer, and its series; none where they are too many."""
    try:
        answer = msgspec.json.decode(body, type=_Answer)
        if len(answer.data.result) * span.count > MOST_SAMPLES:
            return answer, {}
        return answer, {Labels.of(one.metric): _place(one.values, span) for one in answer.data.result}
    except (msgspec.DecodeError, ValueError):
        return _Answer(error="its answer isn't one of Prometheus'"), {}


def _place(values: msgspec.Raw, span: Span) -> Floats:
    row = np.full(span.count, math.nan)
    for when, value in _decoder.decode(values):
        at = span.index(when)
        if at is not None:
            row[at] = float(value)
    return row
