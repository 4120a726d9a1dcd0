"""Counts what the workloads of each project hold and use, and keeps it in accounting records.

Reads allocations, the nodes' leases (what guests use, once a minute) and its own records; writes records. What is stored says up to
when it is counted, in the same commit, and a new leader goes on from there with the allocations that there are: nothing is counted
twice. What a kill loses: of allocations that ended in the seconds before, or before the next
leader, their time since the last write.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.controllers.accounting.ledger import NOTHING, Account, Ledger, Rate
from weft.controllers.loop import Plan
from weft.informer.commit import Commit, Draft
from weft.informer.view import Changed, Item, View
from weft.kinds.accounting_record import (
    ACCOUNTING_RECORD,
    DAY,
    HOUR,
    KEPT_DAYS,
    KEPT_HOURLY_DAYS,
    RECENT,
    AccountingSpec,
    AccountingStatus,
    add_entries,
    name_day,
    name_month,
    start_of_day,
    start_of_month,
)
from weft.kinds.allocation import AllocationReport, AllocationSpec, account, is_slot
from weft.objects.errors import StoreUnavailable
from weft.objects.identity import object_key
from weft.protocol.heartbeat import LEASE_PREFIX, read_digest

TICK_SECONDS = 5.0  # so soon after an allocation ends its project is written
WRITE_SECONDS = 60.0
SAMPLE_SECONDS = 60.0
MOST_FOLDED = 50  # days in one round
TICK = ""  # the key that stands for "write what is due"
_KIND = ACCOUNTING_RECORD.name


class Accounting:
    name = "accounting"
    kinds = (_KIND, "allocation")  # records first: they say up to when allocations are counted

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._ledger = Ledger(self._read_day)
        self._view: View | None = None
        self._loading = True  # until all that an earlier leader wrote is read
        self._written_at = clock.elapsed()
        self._sampled_at = clock.elapsed()
        self._swept_hour = 0.0

    def route(self, view: View, change: Changed) -> Iterable[str]:
        first, self._view, now = self._view is None, view, self._clock.now()
        if change.kind == "allocation":
            self._note(change, now)
        elif change.new is not None and self._loading:
            spec, status = change.new.spec(AccountingSpec), change.new.status(AccountingStatus)
            self._ledger.skip(spec.project, status.through, now)
        return (TICK,) if first else ()

    def _note(self, change: Changed, now: float) -> None:
        allocation = change.new
        spec = change.item.spec(AllocationSpec)
        counts = spec.role in ("active", "source") or is_slot(spec)  # else a migration would be counted twice
        if allocation is None or not counts or is_withdrawn(allocation):
            self._ledger.release(change.key, now)
            return
        begins = allocation.envelope.created_at
        if spec.lease is not None:
            begins = max(begins, spec.lease.prepare_at)
        rate = rate_of(spec, allocation.report(AllocationReport))
        of = Account(spec.workload.project or "", allocation.envelope.creator)
        self._ledger.hold(change.key, of, spec.workload.uid, rate, begins, now)

    async def observe(self) -> None:
        """Count what the guests use, once a minute."""
        elapsed = self._clock.elapsed()
        seconds = elapsed - self._sampled_at
        if seconds < SAMPLE_SECONDS:
            return
        try:
            leases = await self._store.leases(LEASE_PREFIX, digests=True)
        except StoreUnavailable:
            return  # the next sample stands for this time too
        self._sampled_at = elapsed
        found = [digest for lease in leases if (digest := read_digest(lease.digest)) is not None and digest.measured]
        for digest in found:
            guests = {uid: (use.cpu / 1000, float(use.memory), float(use.disk)) for uid, use in digest.guests.items()}
            self._ledger.use(guests, min(seconds, 2 * SAMPLE_SECONDS), self._clock.now())

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        self._loading = False
        plan = Plan(later={TICK: TICK_SECONDS})
        due = self._clock.elapsed() - self._written_at >= WRITE_SECONDS
        if due or self._ledger.released:
            self._ledger.close(now)
        if due:
            self._written_at = self._clock.elapsed()
        plan.commits += self._write_days(view, None if due else self._ledger.released, now)
        self._ledger.released = set()
        if self._swept_hour != now // HOUR:
            folds = list(plan_folds(view, now))
            plan.commits += folds
            if not folds:
                self._swept_hour = now // HOUR
        return plan

    def _write_days(self, view: View, projects: set[str] | None, now: float) -> Iterator[Commit]:
        """Write the days that have changed, of ``projects`` or of all, and those that could not be written."""
        for (project, start), day in self._ledger.days.items():
            item = view.get(_key_of_day(project, start))
            if day.sent is not None:
                stored = item is not None and item.status(AccountingStatus).through == day.sent
                day.sent = None
                if not stored:
                    day.changed = True
                    projects = projects if projects is None else {*projects, project}
            if not day.changed or (projects is not None and project not in projects):
                continue
            day.changed, day.sent = False, now
            status = AccountingStatus(through=now, entries=day.list_entries())
            yield _write(item, AccountingSpec(project=project, period="day", start=start), status, now)
        self._ledger.forget(start_of_day(now))

    def _read_day(self, project: str, start: float) -> AccountingStatus | None:
        item = self._view.get(_key_of_day(project, start)) if self._view is not None else None
        return item.status(AccountingStatus) if item is not None else None


def plan_folds(view: View, now: float) -> Iterator[Commit]:
    """Old days become an entry of their month, and go in the same commit; months that are over for long are deleted."""
    last_hourly, last = start_of_day(now) - KEPT_HOURLY_DAYS * DAY, start_of_day(now) - KEPT_DAYS * DAY
    months = set[str]()  # each changes once in a round
    for item in sorted(view.of_kind(_KIND).values(), key=lambda item: item.key):
        spec = item.spec(AccountingSpec)
        start = item.status(AccountingStatus).through if spec.period == RECENT else spec.start
        if len(months) >= MOST_FOLDED or start >= (last_hourly if spec.period == "day" else last - 31 * DAY):
            continue
        key = object_key(_KIND, None, name_month(spec.project, spec.start))
        if key in months:
            continue
        months.add(key)
        if spec.period != "day":
            draft = Draft()
            draft.delete(item)
            yield Commit(item.key, draft.writes, draft.preconditions)
        else:
            yield _fold(view.get(key), item, spec, now)


def _fold(month: Item | None, day: Item, spec: AccountingSpec, now: float) -> Commit:
    """``day`` as an entry for each user in ``month``."""
    hours = day.status(AccountingStatus)
    users = sorted({entry.user for entry in hours.entries})
    sums = [add_entries(entry for entry in hours.entries if entry.user == user) for user in users]
    days = [msgspec.structs.replace(one, start=spec.start) for one in sums]
    former = month.status(AccountingStatus) if month is not None else AccountingStatus()
    entries = sorted(
        [*(one for one in former.entries if one.start != spec.start), *days], key=lambda one: (one.start, one.user)
    )
    status = AccountingStatus(through=max(former.through, hours.through), entries=entries)
    of_month = AccountingSpec(project=spec.project, period="month", start=start_of_month(spec.start))
    written = _write(month, of_month, status, now)
    draft = Draft()
    draft.delete(day)
    return Commit(written.key, [*written.writes, *draft.writes], [*written.preconditions, *draft.preconditions])


def _write(item: Item | None, spec: AccountingSpec, status: AccountingStatus, now: float) -> Commit:
    draft = Draft()
    name = (name_day if spec.period == "day" else name_month)(spec.project, spec.start)
    if item is None:
        draft.make(ACCOUNTING_RECORD.make(name, spec, now, status=status))
    else:
        draft.change(item, status=status)
    return Commit(object_key(_KIND, None, name), draft.writes, draft.preconditions)


def is_withdrawn(allocation: Item) -> bool:
    """Whether it is a lease's former place, which was never begun: its node may be lost, and never release it."""
    leased = allocation.spec(AllocationSpec).lease is not None
    return leased and allocation.deleting and allocation.report(AllocationReport).state == "pending"


def rate_of(spec: AllocationSpec, report: AllocationReport) -> Rate:
    """The rate at which an allocation uses its node."""
    held = account(spec, report)
    if held == held.__class__():
        return NOTHING
    gpus = sum(gpu.share for gpu in spec.gpus) if held.cpu else 0
    return round(held.cpu * 1000), held.memory, held.disk, gpus


def _key_of_day(project: str, start: float) -> str:
    return object_key(_KIND, None, name_day(project, start))
