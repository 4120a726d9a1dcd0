"""Times in what is printed for programs: RFC 3339 in UTC, to the millisecond, where the API has seconds since 1970. Pure.

It works on the JSON text, since a list of 10,000 objects is taken apart and put together again several times as slowly: which
numbers are times is known by their fields' names, and a test holds every field of every kind to that.
"""

from __future__ import annotations

import functools
import re
import time

_NAMES = ("at", "since", "start", "end", "last_run", "next_run", "retry_at")
_ENDINGS = ("_at", "_since", "not_before", "not_after")
_NUMBER = rb"\d{9,11}(?:\.\d+)?(?=[,}])"  # times before 1973 are none that weft has to tell
_NAMED = "|".join([f'(?<="{name}":)' for name in _NAMES] + [f'(?<={ending}":)' for ending in _ENDINGS]).encode()
_NEVER = rb"""(?:(?<="since":)|(?<="at":))"""
_OF_MAP = rb"""(?<="retry_at":)"""  # of times, by what isn't a name
# What may follow is looked at before the names, which takes longer.
_MOMENT = re.compile(
    rb'":(?=[\d{])(?:(?=\d{9})(?:%b)|(?=0[.,}])%b|(?={")%b)(%b|0(?:\.0)?(?=[,}])|{[^}]*})'
    % (_NAMED, _NEVER, _OF_MAP, _NUMBER)
)
_IN_MAP = re.compile(rb"""(?<=":)""" + _NUMBER)


def is_moment(name: str) -> bool:
    """Whether numbers in fields called so are times, in seconds since 1970."""
    return name in _NAMES or name.endswith(_ENDINGS)


def render_moments(document: bytes) -> bytes:
    """``document``, JSON without blanks between its parts, with its times as text; null where there was none yet."""
    parts = _MOMENT.split(document)  # every other one is a time
    written = {found: b'":' + _write(found) for found in set(parts[1::2])}
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
