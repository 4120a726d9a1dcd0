"""Bounds on queries of metrics, checked before the database sees them. Pure.

They keep out what the database itself doesn't bound: ranges, the number of points, functions that make a label longer at each
call, which no time limit ends, and functions that make many series of one. Only Prometheus' own functions may be called: the
database has a hundred more, and each release of it may bring others.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Sequence

from weft.objects.errors import InvalidInput, NotFound, UnknownField
from weft.objects.schema import suggest

MOST_QUERY = 4096  # characters
MOST_POINTS = 11_000  # of one series, as in Prometheus
MOST_RANGE_SECONDS = 400 * 86_400.0
MOST_QUERY_SECONDS = 10.0
MOST_SELECTORS = 20  # match[]
MOST_LABEL_CALLS = 3
MOST_LABEL_WORDS = 48  # strings, and $1 in them, where labels are made
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
_STRING = re.compile(r"""#[^\n]*|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`[^`]*`""")
_WITH = re.compile(r"\bwith\s*\(", re.IGNORECASE)
_LABEL_CALL = re.compile(r"\blabel_\w+\s*\(", re.IGNORECASE)
_CALL = re.compile(r"""([^\s()\[\]{},=!<>~+\-*/%^@"'`]+)\s*\(""")
# What may stand before a parenthesis: Prometheus' functions and aggregations, without count_values, which makes a series of each
# value, and the words of its operators.
_CALLABLE = frozenset(
    """
    abs absent absent_over_time acos acosh asin asinh atan atanh avg_over_time ceil changes clamp clamp_max clamp_min cos cosh
    count_over_time day_of_month day_of_week day_of_year days_in_month deg delta deriv exp floor histogram_avg histogram_count
    histogram_fraction histogram_quantile histogram_stddev histogram_stdvar histogram_sum hour idelta increase irate label_join
    label_replace last_over_time ln log10 log2 mad_over_time max_over_time min_over_time minute month pi predict_linear
    present_over_time quantile_over_time rad rate resets round scalar sgn sin sinh sort sort_desc sqrt stddev_over_time
    stdvar_over_time sum_over_time tan tanh time timestamp vector year
    avg bottomk count group limitk max min quantile stddev stdvar sum topk
    and atan2 bool by end group_left group_right ignoring on or start unless without
    """.split()
)


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


def check_query(text: str, field: str) -> str:
    """``text`` if it is harmless; whether it is a query, the database says. Raises InvalidInput."""
    if not text.strip():
        raise InvalidInput(f"parameter {field} is missing", field=field, hint="like weft_guest_cpu_cores")
    if len(text) > MOST_QUERY:
        raise InvalidInput(
            f"{field} has {len(text)} characters; at most {MOST_QUERY} are read", field=field, hint="ask in parts"
        )
    strings = _STRING.findall(text)
    bare = _STRING.sub(" ", text)
    if "\\" in bare:
        raise InvalidInput(f"{field}: a backslash stands outside a string", field=field, hint="remove it")
    if _WITH.search(bare):
        raise InvalidInput(
            f"{field}: WITH templates are not part of PromQL", field=field, hint="write the expression out"
        )
    for name in _CALL.findall(bare):
        if name.lower() not in _CALLABLE:
            meant = suggest(name.lower(), sorted(_CALLABLE))
            raise InvalidInput(
                f"{field}: {name[:40]!r} is not a function that queries may use",
                field=field,
                hint=f"did you mean {meant}?" if meant else "use Prometheus' functions, but for count_values",
            )
    calls = len(_LABEL_CALL.findall(bare))
    if calls > MOST_LABEL_CALLS or (calls and len(strings) + text.count("$") > MOST_LABEL_WORDS):
        raise InvalidInput(
            f"{field}: too much of the query makes labels (at most {MOST_LABEL_CALLS} calls, {MOST_LABEL_WORDS} strings)",
            field=field,
            hint="rename the labels where the answer is shown",
        )
    return text


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
    return [("start", f"{start:.3f}"), ("end", f"{end:.3f}"), ("step", f"{step:.3f}")]
