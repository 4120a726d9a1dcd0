"""Read a file of samples for a question: at which level, and its answer as JSON, a series at a time. Pure but
for reading the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import floor
from typing import Any

import msgspec

from weft.objects.errors import InvalidInput
from weft.objects.quantity import format_age
from weft.objects.schema import suggest
from weft.telemetry.samples.file import SampleFile
from weft.telemetry.samples.layout import LEVELS, NAN, Series

INF = float("inf")
_DIGITS = {"cores": 4, "s": 6, "bytes": 0, "bytes/s": 1}


class SampleQuery(msgspec.Struct, frozen=True):
    """Points from ``first`` to ``last`` (unix seconds), one each ``step_ms``, made of the slots of ``level``."""

    first: float
    last: float
    step_ms: int
    level: int
    extremes: bool = False


def plan_question(
    now: float, seconds: float, until: float, granularity: float, *, extremes: bool = False
) -> SampleQuery:
    """``seconds`` that end ``until`` seconds ago, one point every ``granularity`` seconds; 0 is the finest that is kept so long.
    Raises InvalidInput."""
    kept = [(level, facts) for level, facts in enumerate(LEVELS) if facts.span_seconds >= seconds + until]
    if not kept:
        raise InvalidInput(
            f"time_range: samples are kept for {_span(len(LEVELS) - 1)}",
            field="time_range",
            hint="use a shorter time range",
        )
    if granularity > LEVELS[-1].span_seconds:
        raise InvalidInput(
            f"granularity: samples are kept for {_span(len(LEVELS) - 1)}",
            field="granularity",
            hint="use a finer granularity",
        )
    step_ms = round(granularity * 1000) or kept[0][1].step_ms
    fitting = [level for level, facts in kept if step_ms >= facts.step_ms and step_ms % facts.step_ms == 0]
    if not fitting:
        finest, least = kept[0][0], kept[0][1].step_ms / 1000
        if step_ms < kept[0][1].step_ms and finest:
            raise InvalidInput(
                f"granularity: samples finer than {least:g}s are kept for {_span(finest - 1)}",
                field="granularity",
                hint=f"use {least:g}s, or a shorter time range",
            )
        raise InvalidInput(
            f"granularity: {step_ms / 1000:g}s is not a multiple of {least:g}s",
            field="granularity",
            hint=f"use {least:g}s",
        )
    return SampleQuery(now - until - seconds, now - until, step_ms, fitting[-1], extremes)


def _span(level: int) -> str:
    return format_age(LEVELS[level].span_seconds)


def answer(
    file: SampleFile | None, question: SampleQuery, wanted: Sequence[str], series: Sequence[Series]
) -> Iterator[bytes]:
    """The pieces of the JSON document. ``wanted``: names of series, or how they begin (``nic0``); none: all. ``series`` are those
    of a guest that nothing was measured of yet, without a ``file``. Raises InvalidInput for a name of none, OSError."""
    per = question.step_ms // LEVELS[question.level].step_ms
    first, last = (int(at * 1000) // question.step_ms for at in (question.first, question.last))
    first += 1  # the step that the range begins in began before it
    known = file.layout.series if file is not None else series
    for word in wanted if file is not None else ():
        if not any(_is_wanted(one, word) for one in known):
            raise _refuse_series(word, [one.name for one in known])
    block = file.read(question.level, first * per, last * per + per - 1) if file is not None else None
    if block is None or not any(block.valid[-per:]):
        last -= 1  # nothing of it is measured yet
    times = [round(slot * question.step_ms / 1000, 1) for slot in range(first, last + 1)]
    head = {
        "granularity": question.step_ms / 1000,
        "from": times[0] if times else 0.0,
        "until": times[-1] if times else 0.0,
    }
    yield msgspec.json.encode(head)[:-1] + b',"series":[\n'
    comma = b""
    for index, one in enumerate(known):
        if wanted and not any(_is_wanted(one, word) for word in wanted):
            continue
        scale = 10.0 ** _DIGITS.get(one.unit, 3)
        parts = ("mean", "min", "max") if question.extremes else ("mean",)
        columns: list[list[float | None]] = []
        for part in parts:
            values = block.column(index, part) if block is not None else [NAN] * (len(times) * per)
            if per > 1:
                values = [_join(values[at : at + per], part) for at in range(0, len(values), per)]
            # As round() does it, in half the time: of an hour of a guest it is most of the answer.
            columns.append(
                [floor(value * scale + 0.5) / scale if -INF < value < INF else None for value in values[: len(times)]]
            )
        document: dict[str, Any] = {
            "name": one.name,
            "unit": one.unit,
            "points": list(zip(times, columns[0], strict=True)),
        }
        document |= dict(zip(parts[1:], columns[1:], strict=True))
        yield comma + msgspec.json.encode(document)
        comma = b",\n"
    yield b"\n]}"


def _is_wanted(one: Series, word: str) -> bool:
    """Whether ``word`` is its name or how that begins; ``nic`` is every NIC."""
    first = one.name.partition(".")[0]
    return one.name == word or one.name.startswith(f"{word}.") or first.rstrip("0123456789") == word


def _refuse_series(word: str, known: list[str]) -> InvalidInput:
    meant = suggest(word, known)
    return InvalidInput(
        f"series: {word[:40]!r} is not measured",
        field="series",
        hint=f"did you mean {meant}?" if meant else "there are " + ", ".join(known),
    )


def _join(values: Sequence[float], part: str) -> float:
    numbers = [value for value in values if value == value]
    if not numbers:
        return NAN
    return min(numbers) if part == "min" else max(numbers) if part == "max" else sum(numbers) / len(numbers)
