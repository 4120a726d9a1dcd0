"""Times in what is printed for programs: RFC 3339 in UTC, to the millisecond, where the API has seconds since 1970. Pure.

It works on the JSON text, since a list of 10,000 objects is taken apart and put together again several times as slowly: which
numbers are times is known by their fields' names, and a test holds every field of every kind to that.
"""

from __future__ import annotations

import functools
import re
import time

_NAMES = frozenset((b"at", b"since", b"start", b"end", b"last_run", b"next_run", b"retry_at"))
_ENDINGS = (b"_at", b"_since", b"not_before", b"not_after")
_NUMBER = re.compile(rb":(\d{9,11}(?:\.\d+)?)(?=[,}])")  # times before 1973 are none that weft has to tell
_LONGEST_NAME = 40
_MAPS = re.compile(rb'"retry_at":\{[^}]*\}')  # of times, by what isn't a name
_NEVER = re.compile(rb'"(?:since|at)":0(?:\.0)?(?=[,}])')


def is_moment(name: str) -> bool:
    """Whether numbers in fields called so are times, in seconds since 1970."""
    return _is_moment(name.encode())


def render_moments(document: bytes) -> bytes:
    """``document``, JSON without blanks between its parts, with its times as text; null where there was none yet."""
    rendered = _NUMBER.sub(_render, document)
    if b'"retry_at":{"' in rendered:
        rendered = _MAPS.sub(lambda found: _NUMBER.sub(lambda one: b":" + _write(one[1]), found[0]), rendered)
    if b'"since":0' in rendered or b'"at":0' in rendered:
        rendered = _NEVER.sub(lambda found: found[0].partition(b":")[0] + b":null", rendered)
    return rendered


def _render(found: re.Match[bytes]) -> bytes:
    text, end = found.string, found.start() - 1
    begin = text.rfind(b'"', max(0, end - _LONGEST_NAME), end)
    if begin < 0 or text[end : end + 1] != b'"' or not _is_moment(text[begin + 1 : end]):
        return found[0]
    return b":" + _write(found[1])


@functools.lru_cache(256)
def _is_moment(name: bytes) -> bool:
    return name in _NAMES or name.endswith(_ENDINGS)


@functools.lru_cache(1024)
def _write(seconds: bytes) -> bytes:
    whole, thousandths = divmod(round(float(seconds) * 1000), 1000)
    year, month, day, hour, minute, second = time.gmtime(whole)[:6]
    return b'"%04d-%02d-%02dT%02d:%02d:%02d.%03dZ"' % (year, month, day, hour, minute, second, thousandths)
