"""Run times of leases, learned as they end, and kept in accounting records, so that a new scheduler knows them.

A run time is that in which a best-effort lease had its capacity. Records are written some seconds after a lease has ended: a kill
forgets those of these seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from weft.informer.commit import Commit, Draft
from weft.informer.view import Changed, Item, View
from weft.kinds.accounting_record import (
    ACCOUNTING_RECORD,
    RECENT,
    AccountingSpec,
    AccountingStatus,
    RunTime,
    name_recent,
)
from weft.kinds.allocation import AllocationReport, AllocationSpec, has_ended_for_good, is_lease_over
from weft.objects.identity import object_key
from weft.scheduler.lease.backfill import LeaseQueue

WRITE_SECONDS = 10.0
MOST_USERS = 200  # of one project that are kept: those whose leases ended last
_BEGUN = ("running", "stopping", "suspended")
_EQUAL_SECONDS = 1.0  # a lease that lasts so much longer than requested was not extended


class Learned:
    def __init__(self, leases: LeaseQueue) -> None:
        self._leases = leases
        self._users: dict[str, dict[str, None]] = {}  # by project, those whose leases ended last at the end
        self._changed: set[str] = set()  # projects
        self._write_at = math.inf

    def load(self, view: View) -> None:
        """Load what earlier schedulers have kept."""
        for item in view.of_kind(ACCOUNTING_RECORD.name).values():
            spec = item.spec(AccountingSpec)
            if spec.period == RECENT:
                for user, ended in item.status(AccountingStatus).run_times.items():
                    self._leases.run_times.put((spec.project, user), ended)
                    self._users.setdefault(spec.project, {})[user] = None

    def notice(self, change: Changed, now: float, elapsed: float) -> bool:
        """Note a change of an allocation. Returns whether its lease ended by it."""
        found = read_run_time(change, now)
        if found is None:
            return False
        project, user = change.item.spec(AllocationSpec).workload.project or "", change.item.envelope.creator
        self._leases.learn((project, user), found.seconds, extended=found.extended)
        users = self._users.setdefault(project, {})
        users.pop(user, None)
        users[user] = None
        if len(users) > MOST_USERS:
            del users[next(iter(users))]
        self._changed.add(project)
        self._write_at = min(self._write_at, elapsed + WRITE_SECONDS)
        return True

    def wait(self, elapsed: float) -> float | None:
        """Seconds until the next write; None: there is nothing to write."""
        return max(0.0, self._write_at - elapsed) if self._changed else None

    def plan(self, view: View, now: float) -> list[Commit]:
        commits = [self._write(view, project, now) for project in sorted(self._changed)]
        self._changed.clear()
        self._write_at = math.inf
        return commits

    def retry(self, failed: Iterable[Commit], elapsed: float) -> None:
        """Write these again later."""
        self._changed.update(commit.key.rpartition("/")[2].removeprefix(name_recent("")) for commit in failed)
        self._write_at = elapsed + WRITE_SECONDS

    def _write(self, view: View, project: str, now: float) -> Commit:
        name, draft = name_recent(project), Draft()
        run_times = {user: self._leases.run_times.list_of((project, user)) for user in self._users[project]}
        status = AccountingStatus(through=now, run_times=run_times)
        key = object_key(ACCOUNTING_RECORD.name, None, name)
        item = view.get(key)
        if item is None:
            spec = AccountingSpec(project=project, period=RECENT, start=now)
            draft.make(ACCOUNTING_RECORD.make(name, spec, now, status=status))
        else:
            draft.change(item, status=status)
        return Commit(key, draft.writes, draft.preconditions)


def read_run_time(change: Changed, now: float) -> RunTime | None:
    """Run time of an allocation's best-effort lease, if it ends with this change."""
    if change.new is not None and change.new.spec(AllocationSpec).role != "active":
        return None  # it migrates: its lease goes on
    if change.old is None or not _runs(change.old) or (change.new is not None and _runs(change.new)):
        return None
    lease, report = change.old.spec(AllocationSpec).lease, change.old.report(AllocationReport)
    began = report.state in _BEGUN or change.item.report(AllocationReport).started_at is not None
    if lease is None or lease.end is None or not began:
        return None
    until = min(now, lease.suspension.at) if lease.suspension is not None else now
    seconds = round(max(0.0, until - lease.start - lease.suspended_seconds), 3)
    given = lease.end - lease.start - lease.suspended_seconds
    extended = 0.0 < lease.requested < min(given, seconds) - _EQUAL_SECONDS
    return RunTime(seconds, extended)


def _runs(allocation: Item) -> bool:
    """Whether its best-effort lease has capacity, or keeps its memory."""
    spec, report = allocation.spec(AllocationSpec), allocation.report(AllocationReport)
    queued = spec.lease is not None and spec.lease.mode == "best-effort" and spec.role == "active" and spec.slot is None
    return queued and not has_ended_for_good(spec, report) and not is_lease_over(spec, report)
