"""Find the backups that were kept long enough. Pure.

The newest good one is never among them, whatever the clock says; and one that was made later than now, since the clock was set back
afterwards, is as new as any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, tzinfo

import msgspec

from weft.informer.view import Item
from weft.kinds.backup import BackupSpec, BackupStatus
from weft.kinds.backup_policy import BackupPolicySpec, read_keep
from weft.kinds.fields.backup_verification import DAMAGED, FAILED
from weft.objects.schedule import read_zone

MAKING = ("Pending", "Snapshotting", "Copying")
BAD_SECONDS = 7 * 86400.0  # how long one that failed or is damaged is shown, if every good one isn't kept for a time


class Made(msgspec.Struct, frozen=True):
    """A backup of the thing at hand."""

    item: Item
    to: str
    keep: float
    phase: str
    is_good: bool
    at: float  # the instant of its disks, or when it was created
    locked_until: float


def read_made(item: Item) -> Made:
    spec, status = item.spec(BackupSpec), item.status(BackupStatus)
    is_good = status.phase == "Ready" and status.state not in (DAMAGED, FAILED) and not item.deleting
    return Made(
        item,
        spec.to,
        spec.keep,
        status.phase,
        is_good,
        status.taken_at or item.envelope.created_at,
        status.locked_until,
    )


def list_old(made: Iterable[Made], spec: BackupPolicySpec, now: float) -> list[Item]:
    """Those that have ended and that the policy doesn't keep; all are its own, and of one thing."""
    ended = [one for one in made if one.phase not in MAKING]
    newest = find_newest(ended, now)
    kept = {one.item.uid for one in choose_periods([one for one in ended if one.is_good and one.at <= now], spec)}
    keep = read_keep(spec)
    return [
        one.item
        for one in ended
        if one is not newest
        and one.item.uid not in kept
        and now > one.locked_until
        and now - one.at > (keep if one.is_good else keep or BAD_SECONDS)
    ]


def is_over(made: Made, others: Iterable[Made], now: float) -> bool:
    """Whether its own time is over, and it isn't the newest good one in its repository; ``others`` are of the same thing."""
    if not made.keep or made.phase in MAKING or now - made.item.envelope.created_at <= made.keep:
        return False
    if now <= made.locked_until:  # it was to be kept for longer once
        return False
    return made is not find_newest([made, *(one for one in others if one.to == made.to)], now)


def find_newest(made: Iterable[Made], now: float) -> Made | None:
    """The newest good one, of those that were not made later than now if there are any. Without a good one, the newest that is
    Ready: a boot may have failed for another reason than the backup."""
    ready = [one for one in made if one.phase == "Ready" and not one.item.deleting]
    good = [one for one in ready if one.is_good] or ready
    return max(good, key=lambda one: (one.at <= now, one.at), default=None)


def choose_periods(good: Sequence[Made], spec: BackupPolicySpec) -> list[Made]:
    """The newest backup of each of the latest days, weeks and months that have one."""
    zone = read_zone(spec.time_zone)
    chosen = list[Made]()
    for count, period in ((spec.keep_daily, _day), (spec.keep_weekly, _week), (spec.keep_monthly, _month)):
        chosen += _newest_of_each(good, count, zone, period)
    return chosen


def _newest_of_each(good: Sequence[Made], count: int, zone: tzinfo, period: Callable[[date], object]) -> list[Made]:
    found: dict[object, Made] = {}
    for one in sorted(good, key=lambda one: one.at, reverse=True):
        found.setdefault(period(datetime.fromtimestamp(one.at, zone).date()), one)
    return list(found.values())[:count]


def _day(day: date) -> object:
    return day


def _week(day: date) -> object:
    return day.isocalendar()[:2]


def _month(day: date) -> object:
    return day.year, day.month
