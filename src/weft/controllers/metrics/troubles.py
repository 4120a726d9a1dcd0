"""The samples of what goes wrong, for alert rules: kills for lack of memory, migrations that take long, leases at risk, backups
that failed. Pure, but for the counts of kills, which begin with the controllers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from weft.informer.view import Changed, Item, View
from weft.kinds.allocation import DISK_FAILED, AllocationReport, AllocationSpec
from weft.kinds.backup import PROJECT, BackupSpec, BackupStatus
from weft.kinds.fields.lease import LEASE_AT_RISK, LEASE_CONFLICT
from weft.kinds.fields.subject import split_subject
from weft.kinds.migration import MigrationSpec, MigrationStatus, is_under_way, read_workload
from weft.kinds.registry import BY_NAME, WORKLOADS
from weft.objects.identity import object_key
from weft.telemetry.metrics.devices import CERTIFICATE_METRIC
from weft.telemetry.metrics.sample import Sample

OUT_OF_MEMORY = "outOfMemory"
MOST_KILLED = 10_000  # workloads whose kills are counted; beyond that the counts begin again
_FAILED = ("failed", "damaged")
Key = tuple[str, str, str, str]  # project, kind, name, node


class Kills:
    """Counts how often each workload was ended because it exceeded its memory, as allocations change."""

    def __init__(self) -> None:
        self._counts: dict[Key, int] = {}

    def notice(self, changes: Sequence[Changed]) -> None:
        for change in changes:
            if change.new is None or not _was_killed(report := change.new.report(AllocationReport)):
                continue
            old = change.old.report(AllocationReport) if change.old is not None else None
            if old is not None and _was_killed(old) and old.restarts == report.restarts:
                continue
            if len(self._counts) >= MOST_KILLED:
                self._counts.clear()
            spec = change.new.spec(AllocationSpec)
            key = (spec.workload.project or "", spec.workload.kind, spec.workload.name, spec.node)
            self._counts[key] = self._counts.get(key, 0) + 1

    def list_samples(self, view: View, at: int) -> Iterator[Sample]:
        """A counter of each workload that has an allocation: from 0, so that the first kill is an increase, too; and a 1 of each
        whose machine stands still for a disk that can't be written."""
        for item in view.of_kind("allocation").values():
            spec = item.spec(AllocationSpec)
            key = (spec.workload.project or "", spec.workload.kind, spec.workload.name, spec.node)
            labels = tuple(zip(("project", "kind", "name", "node"), key, strict=True))
            yield Sample("weft_guest_memory_kills_total", labels, at, float(self._counts.get(key, 0)))
            if item.report(AllocationReport).reason == DISK_FAILED:
                yield Sample("weft_guest_disk_failed", labels, at, 1.0)


def _was_killed(report: AllocationReport) -> bool:
    restarts = report.reason == "restarting" and report.message.startswith(f"it ended ({OUT_OF_MEMORY}")
    return report.reason == OUT_OF_MEMORY or restarts


def list_troubles(view: View, at: int) -> Iterator[Sample]:
    """Yield how long migrations have been under way, a 1 for each lease at risk, and whether the newest backup of each subject
    failed. ``at`` in ms.
    """
    for item in view.of_kind("migration").values():
        spec, status = item.spec(MigrationSpec), item.status(MigrationStatus)
        if is_under_way(spec, status) and status.started_at is not None:
            kind, name = read_workload(spec)
            labels = (*_label(item, kind, name), ("migration", item.envelope.name))
            yield Sample("weft_migration_running_seconds", labels, at, max(0.0, at / 1000 - status.started_at))
    for kind in WORKLOADS:
        for item in view.of_kind(kind).values():
            placed = item.envelope.condition("Placed") if item.envelope.conditions else None
            if placed is not None and placed.reason in (LEASE_AT_RISK, LEASE_CONFLICT) and placed.status == "True":
                yield Sample("weft_lease_at_risk", _label(item, kind, item.envelope.name), at, 1.0)
    newest: dict[tuple[str | None, str], Item] = {}
    for item in view.of_kind("backup").values():
        key = (item.envelope.project, item.spec(BackupSpec).of)
        if key not in newest or _find_rank(item, at) > _find_rank(newest[key], at):
            newest[key] = item
    for (_, of), item in newest.items():
        backup = item.status(BackupStatus)
        kind, name = split_subject(of)
        if kind in BY_NAME and kind != PROJECT and view.get(object_key(kind, item.envelope.project, name)) is None:
            continue  # it is gone, so no better backup of it comes
        failed = backup.phase == "Failed" or backup.state in _FAILED
        yield Sample("weft_backup_failed", _label(item, kind, name), at, float(failed))


def _find_rank(backup: Item, at: int) -> tuple[bool, float]:
    """The order of backups, the newest highest. One with a time ahead was made before the clock was set back."""
    created = backup.envelope.created_at
    return created * 1000 <= at, created


def list_certificates(ends: Mapping[str, float], at: int) -> Iterator[Sample]:
    """When the server's certificates end, by name."""
    for name, end in ends.items():
        yield Sample(CERTIFICATE_METRIC, (("certificate", name),), at, end)


def _label(item: Item, kind: str, name: str) -> tuple[tuple[str, str], ...]:
    return ("project", item.envelope.project or ""), ("kind", kind), ("name", name)
