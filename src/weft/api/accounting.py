"""Report what projects requested and used over a span of time, from the accounting records."""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncIterator, Iterator, Mapping

import msgspec

from weft.api.auth.authorise import require_permission
from weft.api.context import ApiContext
from weft.api.request.call import Call, json_answer
from weft.api.route import Route
from weft.kinds.accounting_record import (
    ACCOUNTING_RECORD,
    DAY,
    HOUR,
    KEPT_DAYS,
    KEPT_HOURLY_DAYS,
    AccountingEntry,
    AccountingSpec,
    AccountingStatus,
    add_entries,
    list_months,
    name_day,
    name_month,
    start_of_day,
)
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.errors import InvalidInput
from weft.objects.identity import check_name, object_key
from weft.objects.quantity import LAST_MOMENT
from weft.serving.answer import Answer

DEFAULT_DAYS = 30
_PAGE = 500


class RequestedHours(msgspec.Struct, frozen=True):
    """Amounts that allocations held, times hours."""

    core_hours: float
    memory_gib_hours: float
    disk_gib_hours: float
    gpu_hours: float


class UsedHours(msgspec.Struct, frozen=True):
    """Amounts that nodes measured of guests, times hours."""

    core_hours: float
    memory_gib_hours: float
    disk_gib_hours: float


class AccountingItem(msgspec.Struct, frozen=True):
    project: str
    user: str  # who made the workloads; "": unknown
    requested: RequestedHours
    used: UsedHours


class AccountingAnswer(msgspec.Struct, frozen=True):
    since: float  # unix seconds, at the start of an hour
    until: float
    through: float | None  # up to when it is counted; None: nothing is
    items: list[AccountingItem]


async def accounting(context: ApiContext, call: Call, project: str | None = None) -> Answer:
    """``GET /v1/projects/PROJECT/accounting``, and ``/v1/accounting`` for all; ``since`` and ``until`` in unix seconds."""
    require_permission(call.actor, "accounting:get", project, "see what projects requested and used")
    query = call.query("since", "until")
    if project is not None:
        check_name(project, "project")
    now = context.clock.now()
    until = _read_moment(query, "until", now)
    since = _read_moment(query, "since", until - DEFAULT_DAYS * DAY)
    if since >= until:
        raise InvalidInput("since is not before until", field="since", hint="give an earlier start")
    since = max(since, now - (KEPT_DAYS + 31) * DAY) // HOUR * HOUR
    through, entries = 0.0, dict[tuple[str, str], list[AccountingEntry]]()
    folded = set[tuple[str, float]]()  # days that were read by the hour: one may become part of its month meanwhile
    async for spec, status in _read_records(context, project, since, until, now):
        through = max(through, status.through)
        if spec.period == "day":
            folded.add((spec.project, spec.start))
        for entry in status.entries:
            again = spec.period == "month" and (spec.project, entry.start) in folded
            if not again and _is_within(spec, entry, since, until):
                entries.setdefault((spec.project, entry.user), []).append(entry)
    items = [_make_item(project, user, add_entries(found)) for (project, user), found in sorted(entries.items())]
    return json_answer(AccountingAnswer(since, until, through or None, items))


def _is_within(spec: AccountingSpec, entry: AccountingEntry, since: float, until: float) -> bool:
    """Whether the entry's hour begins in the span; a day that is kept as a whole counts from its start."""
    return (since if spec.period == "day" else start_of_day(since)) <= entry.start < until


async def _read_records(
    context: ApiContext, project: str | None, since: float, until: float, now: float
) -> AsyncIterator[tuple[AccountingSpec, AccountingStatus]]:
    """The records that may have entries of the span; days before months, so that one that is folded meanwhile isn't missed."""
    for name in _list_names(project, since, until, now):
        async for envelope in _read(context, name, whole=project is not None):
            yield decode_part(envelope.spec, AccountingSpec), decode_part(envelope.status, AccountingStatus)


def _list_names(project: str | None, since: float, until: float, now: float) -> Iterator[str]:
    """Names of records, or what they begin with."""
    first = max(start_of_day(since), start_of_day(now) - (KEPT_HOURLY_DAYS + 2) * DAY)
    last = min(until, now + 2 * DAY)
    days = itertools.takewhile(lambda day: day < last, itertools.count(first, DAY))
    yield from (name_day(project or "", day) for day in days)
    yield from (name_month(project or "", month) for month in list_months(since, last))


async def _read(context: ApiContext, name: str, *, whole: bool) -> AsyncIterator[Envelope]:
    """The record of that name, or all whose names begin with it."""
    key = object_key(ACCOUNTING_RECORD.name, None, name)
    if whole:
        entry = await context.store.get(key)
        if entry is not None:
            yield decode_envelope(entry.value)
        return
    after = None
    while True:
        page = await context.store.list(key, limit=_PAGE, after=after)
        for each in page.entries:
            yield decode_envelope(each.value)
        if (after := page.next) is None:
            return


def _read_moment(query: Mapping[str, str], name: str, default: float) -> float:
    text = query.get(name, "")
    if not text:
        return default
    try:
        moment = float(text)
    except ValueError:
        moment = math.nan
    if not 0 <= moment <= LAST_MOMENT:
        raise InvalidInput(
            f"query parameter {name}: {text[:20]!r} is not a time", field=name, hint="give seconds since 1970"
        )
    return moment


def _make_item(project: str, user: str, entry: AccountingEntry) -> AccountingItem:
    return AccountingItem(
        project,
        user,
        RequestedHours(_hours(entry.cpu), _hours(entry.memory), _hours(entry.disk), _hours(entry.gpu)),
        UsedHours(_hours(entry.used_cpu), _hours(entry.used_memory), _hours(entry.used_disk)),
    )


def _hours(seconds: float) -> float:
    return round(seconds / HOUR, 6)


_SPAN = ("since", "until")
ROUTES = (
    Route(
        "GET",
        "/v1/accounting",
        accounting,
        "What all projects requested and used",
        permission="accounting:get",
        where="all",
        query=_SPAN,
        answers=AccountingAnswer,
    ),
    Route(
        "GET",
        "/v1/projects/{project}/accounting",
        accounting,
        "What a project requested and used",
        permission="accounting:get",
        where="project",
        query=_SPAN,
        answers=AccountingAnswer,
    ),
)
