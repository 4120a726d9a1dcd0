"""Bounds on queries of metrics, checked before the database sees them. Pure.

They keep out what the database itself doesn't bound: ranges and the number of points; what a query may call is in
``kinds/fields/alert/promql.py``.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Sequence

from weft.kinds.fields.alert.promql import check_query
from weft.objects.errors import InvalidInput, NotFound, UnknownField
from weft.objects.schema import suggest

MOST_POINTS = 11_000  # of one series, as in Prometheus
MOST_RANGE_SECONDS = 400 * 86_400.0
MOST_QUERY_SECONDS = 10.0
MOST_SELECTORS = 20  # match[]
PARAMETERS = {
    "query": ("query", "time", "timeout"),
    "query_range": ("query", "start", "end", "step", "timeout"),
    "series": ("match[]", "start", "end"),
    "labels": ("match[]", "start", "end"),
    "values": ("match[]", "start", "end"),
}
_IGNORED = (
    "limit",
    "stats",
    "lookback_delta",
    "nocache",
)  # what clients of Prometheus send too, and what needn't be kept to
_LABEL = re.compile(r"label/[A-Za-z_][A-Za-z0-9_]{0,99}/values")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0, "y": 31_536_000.0}
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:ms|[smhdwy]))+")
_PART = re.compile(r"([0-9]+)(ms|[smhdwy])")


def check_parameters(path: str, given: Sequence[tuple[str, str]], now: float) -> list[tuple[str, str]]:
    """The parameters to pass on for ``/api/v1/PATH``: known ones, with times as unix seconds. ``now`` in unix seconds. Raises
    NotFound, UnknownField, InvalidInput."""
    if "\n" in path or ("/" in path and not _LABEL.fullmatch(path)):
        raise NotFound("unknown path", hint="use label/NAME/values")
    known = PARAMETERS["values" if "/" in path else path]
    one: dict[str, str] = {}
    selectors: list[str] = []
    for name, value in given:
        if name in _IGNORED:
            continue
        if name not in known:
            meant = suggest(name, list(known))
            hint = f"did you mean {meant}?" if meant else "known: " + ", ".join(known)
            raise UnknownField(f"parameter {name[:60]!r} is not known at this path", field=name[:60], hint=hint)
        if name == "match[]":
            selectors.append(check_query(value, name))
        elif name in one:
            raise InvalidInput(f"parameter {name} is given twice", field=name)
        else:
            one[name] = value
    if len(selectors) > MOST_SELECTORS:
        raise InvalidInput(f"more than {MOST_SELECTORS} selectors", field="match[]", hint="join them with a regex")
    out = [("match[]", selector) for selector in selectors]
    if "query" in known:
        out.append(("query", check_query(one.get("query", ""), "query")))
        out.append(("timeout", f"{_read_timeout(one) * 1000:.0f}ms"))
    if path == "query":  # by itself VictoriaMetrics looks a second back: what came in it would be missing
        out += [("time", f"{read_time(one['time'], 'time') if 'time' in one else now:.3f}"), ("nocache", "1")]
    if path == "query_range":
        return out + _read_range(one)
    if "start" in one or "end" in one:
        start, end = read_time(one.get("start", "0"), "start"), read_time(one.get("end", str(now)), "end")
        out += [("start", f"{max(start, end - MOST_RANGE_SECONDS):.3f}"), ("end", f"{end:.3f}")]
    if path == "series" and not selectors:
        raise InvalidInput("a selector is missing", field="match[]", hint='like match[]={__name__=~"weft_guest_.*"}')
    return out


def read_time(text: str, field: str) -> float:
    """Unix seconds from such a number, or from RFC 3339. Raises InvalidInput."""
    try:
        moment = float(text)
    except ValueError:
        try:
            moment = datetime.datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError):
            moment = math.nan
    if not 0 <= moment < 1e11:  # NaN neither
        raise InvalidInput(
            f"{field}: {text[:40]!r} is not a valid time",
            field=field,
            hint="give unix seconds, or write it like 2026-12-24T22:00:00Z",
        )
    return moment


def read_seconds(text: str, field: str) -> float:
    """Seconds from a number, or from a duration like 15s. Raises InvalidInput."""
    if _DURATION.fullmatch(text):
        seconds = sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    else:
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
    if not 0 < seconds < 1e11:
        raise InvalidInput(
            f"{field}: {text[:40]!r} is not a valid duration", field=field, hint="give seconds, or write it like 15s"
        )
    return seconds


def _read_timeout(one: dict[str, str]) -> float:
    return min(read_seconds(one["timeout"], "timeout"), MOST_QUERY_SECONDS) if "timeout" in one else MOST_QUERY_SECONDS


def _read_range(one: dict[str, str]) -> list[tuple[str, str]]:
    for name in ("start", "end", "step"):
        if name not in one:
            raise InvalidInput(f"parameter {name} is missing", field=name, hint="start, end and step are needed")
    start, end, step = read_time(one["start"], "start"), read_time(one["end"], "end"), read_seconds(one["step"], "step")
    if end < start:
        raise InvalidInput("end is before start", field="end", hint="swap them")
    if end - start > MOST_RANGE_SECONDS:
        raise InvalidInput("the range is longer than 400 days", field="start", hint="ask for a part of it")
    points = math.floor((end - start) / step) + 1
    if points > MOST_POINTS:
        raise InvalidInput(
            f"step: {points} points for each series; at most {MOST_POINTS} are given",
            field="step",
            hint=f"use a step of {math.ceil((end - start) / (MOST_POINTS - 1))}s or more, or a shorter range",
        )
    # VictoriaMetrics rounds more than 50 points that it may cache to multiples of the step; Prometheus begins at start.
    return [("start", f"{start:.3f}"), ("end", f"{end:.3f}"), ("step", f"{step:.3f}"), ("nocache", "1")]
