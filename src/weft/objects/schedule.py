"""When a schedule is due: cron's five fields, or hourly, daily, weekly, …, in a time zone. Pure.

On a day with a clock change, a schedule that names an hour runs once, as Debian's cron does: right after an hour that is left out;
in an hour that comes twice, the first time. Source: crontab(5), cron(8) of Debian.
"""

from __future__ import annotations

import functools
import importlib
import re
from datetime import UTC, datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from weft.objects.errors import InvalidInput, begin_small

LONGEST = 256
_NAMED = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_LONG_STEP = re.compile(r"/\d{5}")
_HINT = "write MINUTE HOUR DAY MONTH WEEKDAY, like '30 2 * * 1-5', or hourly, daily, weekly, monthly"


@functools.cache
def _cron() -> Any:
    """The library, loaded at the first schedule: every command loads the kinds that may have one."""
    return importlib.import_module("cronsim")


def check_schedule(
    text: str, zone: str = "UTC", *, field: str = "spec.schedule", zone_field: str = "spec.time_zone"
) -> None:
    """Raises InvalidInput, which names the field, for a schedule that can't be read or is never due, and for an unknown zone."""
    _read_zone(zone, zone_field)
    try:
        next_run(text, zone, 0.0)
    except (_cron().CronSimError, StopIteration) as problem:
        why = begin_small(str(problem)) if str(problem) else "it never comes due"
        raise InvalidInput(f"{field}: {text[:60]!r} is not a schedule: {why}", field=field, hint=_HINT) from None


def check_zone(zone: str, field: str = "spec.time_zone") -> None:
    """Raises InvalidInput for an unknown time zone."""
    _read_zone(zone, field)


def next_run(text: str, zone: str, after: float) -> float:
    """When a schedule that was checked is due next, strictly later than ``after``; both in seconds since 1970."""
    place = _read_zone(zone, "time_zone")
    moments = _cron().CronSim(_read_fields(text), datetime.fromtimestamp(after, place))
    # In an hour that comes twice the library counts on from the first one, even in the second.
    return next(moment for moment in (float(m.timestamp()) for m in moments) if moment > after)


def _read_fields(text: str) -> str:
    word = text.strip().lower()
    fields = _NAMED.get(word) or _NAMED.get(f"@{word}", text)
    if len(fields) > LONGEST:
        raise _cron().CronSimError(f"longer than {LONGEST} characters")
    if len(fields.split()) != 5:
        raise _cron().CronSimError("it doesn't have five fields")
    if _LONG_STEP.search(fields):
        raise _cron().CronSimError("a step has more than four digits")
    return fields


def read_zone(zone: str) -> tzinfo:
    """One that was checked."""
    return _read_zone(zone, "time_zone")


def _read_zone(zone: str, field: str) -> tzinfo:
    if zone in ("", "UTC"):
        return UTC
    try:
        return ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidInput(
            f"{field}: {zone[:60]!r} is not a time zone", field=field, hint="write one like UTC or Europe/Berlin"
        ) from None
