"""A moment as people write it: ``22:00``, ``2026-12-24 22:00``, or ``2h`` from now. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from weft.objects.errors import InvalidInput
from weft.objects.quantity import parse_duration

_IN_UTC = re.compile(r"\b\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)? UTC\b")


def read_moment(text: str, now: float, what: str = "time") -> float:
    """Unix seconds of ``text``, by the local clock unless it names an offset; a time of day is the next such one. Raises
    InvalidInput for none, or for one that is over."""
    here = datetime.fromtimestamp(now).astimezone()
    try:
        moment = _read(text.strip(), here, what)
    except (ValueError, OverflowError, InvalidInput):
        raise InvalidInput(
            f"{what}: {text!r} is not a time",
            field=what,
            hint="write 22:00, 2026-12-24T22:00, or 2h for two hours from now",
        ) from None
    if moment <= here:
        raise InvalidInput(f"{what}: {text!r} is in the past", field=what, hint=f"it is {here:%Y-%m-%d %H:%M %Z} now")
    return moment.timestamp()


def read_past(text: str, now: float, what: str = "time") -> float:
    """Unix seconds of ``text``: ``30d`` ago, or a date, or a date and time, by the local clock unless it names an offset. Raises
    InvalidInput."""
    here = datetime.fromtimestamp(now).astimezone()
    try:
        return _read(text.strip(), here, what, -1).timestamp()
    except (ValueError, OverflowError, InvalidInput):
        raise InvalidInput(
            f"{what}: {text!r} is not a time",
            field=what,
            hint="write 30d for thirty days ago, or a date like 2026-11-01",
        ) from None


def _read(text: str, here: datetime, what: str, sign: int = 1) -> datetime:
    if text[-1:].isalpha() and text[-1:] not in "Zz":
        return here + sign * timedelta(seconds=parse_duration(text, what))
    if "-" not in text and ":" in text:
        time = datetime.strptime(text, "%H:%M")
        today = here.replace(hour=time.hour, minute=time.minute, second=0, microsecond=0)
        return today if (today > here) == (sign > 0) else today + sign * timedelta(days=1)
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.astimezone()  # by the clock's rule of that day


def render_time(at: float, *, seconds: bool = False) -> str:
    """``2026-12-24 22:00 CET``; with ``seconds`` ``2026-12-24 22:00:05 CET``."""
    return f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M{':%S' if seconds else ''} %Z}"


def localize(text: str) -> str:
    """``text`` with its times, which notes, conditions and refusals have in UTC, by the local clock."""
    return _IN_UTC.sub(_render_match, text) if " UTC" in text else text


def _render_match(match: re.Match[str]) -> str:
    form = f"%Y-%m-%d %H:%M{':%S' if match[1] else ''} UTC"
    try:
        at = datetime.strptime(match[0], form).replace(tzinfo=UTC).timestamp()
        return render_time(at, seconds=bool(match[1]))
    except (ValueError, OverflowError):
        return match[0]
