"""Refuses changes of a VM that is migrating to another cluster, since they would be lost; and, once the VM has been handed over,
the deletion of the link with that cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from weft.api.admission.view import View
from weft.api.context import ApiContext
from weft.kinds.migration import ENDED, MIGRATION, MigrationSpec, MigrationStatus
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.kinds.snapshot import SnapshotSpec, read_workload
from weft.kinds.vm import VM
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.errors import IllegalTransition, InUse
from weft.objects.identity import kind_prefix
from weft.objects.spec_change import FieldChange

_PAGE = 500
_FREE = ("run", "restart_generation")  # these end the migration, as long as the guest hasn't been handed over


class _Migrating(msgspec.Struct):
    """The only field of the status that counts here: to read all of them takes five times as long."""

    migration: str = ""


async def refuse_departing(view: View, kind: Kind, current: Envelope, changes: Sequence[FieldChange]) -> None:
    """Raise IllegalTransition for changes of a VM that migrates to another cluster now."""
    if kind is not VM or all(change.path.removeprefix("spec.") in _FREE for change in changes):
        return
    if (found := await _find_departure(view, current)) is not None:
        name, cluster = found
        raise IllegalTransition(
            f"vm/{current.name} migrates to cluster {cluster} now: a change here would stay behind",
            reason="migratesAway",
            field=changes[0].path,
            hint=f"weft wait migration/{name}, then change it there; or: weft migration cancel {name}",
            details={"migration": name},
        )


async def refuse_late_snapshot(view: View, project: str | None, spec: Any) -> None:
    """Raise IllegalTransition for a snapshot of a VM that migrates to another cluster now: its disks go before it is taken."""
    if not isinstance(spec, SnapshotSpec) or spec.backup or spec.replica:
        return
    kind, name = read_workload(spec)
    vm = await view.get(VM, project, name) if BY_NAME.get(kind) is VM else None
    found = await _find_departure(view, vm) if vm is not None else None
    if found is not None:
        raise IllegalTransition(
            f"vm/{name} migrates to cluster {found[1]} now: its snapshots stay here, and it wouldn't wait for this one",
            reason="migratesAway",
            field="spec.of",
            hint=f"weft wait migration/{found[0]}, then snapshot it there; or: weft migration cancel {found[0]}",
            details={"migration": found[0]},
        )


async def _find_departure(view: View, vm: Envelope) -> tuple[str, str] | None:
    """The migration to another cluster that the VM is in, and that cluster."""
    name = decode_part(vm.status, _Migrating).migration
    migration = await view.get(MIGRATION, vm.project, name) if name else None
    if migration is None or decode_part(migration.status, MigrationStatus).phase in ENDED:
        return None
    cluster = decode_part(migration.spec, MigrationSpec).cluster
    return (name, cluster) if cluster else None


async def refuse_unlinking(context: ApiContext, link: Envelope) -> None:
    """Raise InUse for the deletion of a link while a VM was handed over to its cluster: only that one can say whether it runs."""
    after = None
    while True:
        page = await context.store.list(kind_prefix(MIGRATION.name), limit=_PAGE, after=after)
        for entry in page.entries:
            migration = decode_envelope(entry.value, entry.revision)
            spec, status = decode_part(migration.spec, MigrationSpec), decode_part(migration.status, MigrationStatus)
            waits = status.handed_over_at is not None and status.phase not in (*ENDED, "Finishing")
            if spec.cluster == link.name and waits:
                of = f" --project {migration.project}" if migration.project != "default" else ""
                raise InUse(
                    f"{spec.workload} was handed over to cluster {link.name}, and only that one can say whether it runs there: "
                    f"migration/{migration.name}",
                    hint=f"weft wait migration/{migration.name}{of}; if that cluster is lost for good: "
                    f"weft migration reclaim {migration.name}{of}",
                    details={"migration": migration.name, "project": migration.project},
                )
        if page.next is None:
            return
        after = page.next
