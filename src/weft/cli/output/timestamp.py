"""Times in what is printed for programs: RFC 3339 in UTC, to the millisecond, where the API has seconds since 1970. Pure.

It works on the JSON text, since a list of 10,000 objects is taken apart and put together again several times as slowly: which
numbers are times is known by their fields' names, and a test holds every field of every kind to that.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Sequence

_NAMES = (
    "at",
    "since",
    "start",
    "end",
    "last_run",
    "next_run",
    "retry_at",
    "through",
    "until",
    "expected_start",
    "time",
    "locked_until",
    "last_seen",
    "last_fired",
    "desired_until",
    "autonomous_until",
)
_ENDINGS = ("_at", "_since", "not_before", "not_after")
_REST = rb"\d?\d?(?:\.\d+)?(?=[,}])"
_IN_MAP = re.compile(rb'(?<=":)[1-9]\d{8}' + _REST)


def _follows(names: Sequence[str], endings: Sequence[str], length: int) -> bytes:
    """Looks back over ``length`` characters of a value at its field's name."""
    keys = [*(f'"{name}' for name in names), *endings]
    return "|".join(f'(?<={key}":{"." * length})' for key in keys).encode()


# Nine digits or more are a time (before 1973 there is none that weft has to tell), 0 is "not yet" in a few fields, and one field
# is a map of times. The value is matched before its field's name: few values look like these, but most names must be read to
# their end.
_MOMENT = re.compile(
    rb":([1-9]\d{8}(?:%b)%b|0(?:%b)(?:\.0)?(?=[,}])|{(?:%b)[^}]*})"
    % (
        _follows(_NAMES, _ENDINGS, 9),
        _REST,
        _follows(("since", "at", "locked_until", "looked_at", "cycles_looked_at", "sampled_at", "fold_at"), (), 1),
        _follows(("retry_at", "desired_until"), (), 1),
    )
)


def is_moment(name: str) -> bool:
    """Whether numbers in fields called so are times, in seconds since 1970."""
    return name in _NAMES or name.endswith(_ENDINGS)


def render_moments(document: bytes) -> bytes:
    """``document``, JSON without blanks between its parts, with its times as text; null where there was none yet."""
    parts = _MOMENT.split(document)  # every other one is a time
    written = {found: b":" + _write(found) for found in set(parts[1::2])}
    parts[1::2] = [written[found] for found in parts[1::2]]
    return b"".join(parts)


def _write(found: bytes) -> bytes:
    """A number as a time, or a map of numbers with each as one."""
    if found[:1] == b"{":
        return _IN_MAP.sub(lambda one: _write(one[0]), found)
    if found in (b"0", b"0.0"):
        return b"null"
    whole, thousandths = divmod(round(float(found) * 1000), 1000)
    minute, second = divmod(whole, 60)
    return b'%b%02d.%03dZ"' % (_write_minute(minute), second, thousandths)


@functools.lru_cache(1024)
def _write_minute(minute: int) -> bytes:
    return b'"%04d-%02d-%02dT%02d:%02d:' % time.gmtime(minute * 60)[:5]
