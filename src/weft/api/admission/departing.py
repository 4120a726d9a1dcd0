"""Refuses changes that would be lost: of a VM that is migrating to another cluster, and of the published ports of an instance that
its deployment replaces. Refuses the deletion of the link with a cluster once a VM has been handed over to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from weft.api.admission.view import View
from weft.api.context import ApiContext
from weft.kinds.deployment import DEPLOYMENT, DeploymentSpec
from weft.kinds.fields.deployment.status import DeploymentStatus
from weft.kinds.migration import ENDED, MIGRATION, MigrationSpec, MigrationStatus
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.kinds.snapshot import SnapshotSpec, came_from_elsewhere, read_workload
from weft.kinds.vm import VM
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.errors import IllegalTransition, InUse
from weft.objects.identity import kind_prefix
from weft.objects.spec_change import FieldChange

_PAGE = 500
_FREE = (
    "spec.run",
    "actions.restart_generation",
)  # these end the migration, as long as the guest hasn't been handed over


class _Migrating(msgspec.Struct):
    """The only field of the status that counts here: to read all of them takes five times as long."""

    migration: str = ""


async def refuse_departing(view: View, kind: Kind, current: Envelope, changes: Sequence[FieldChange]) -> None:
    """Raise IllegalTransition for changes of a VM that migrates to another cluster now."""
    if kind is not VM or all(change.path in _FREE for change in changes):
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


async def refuse_late_snapshot(view: View, project: str | None, spec: Any, marks: Any) -> None:
    """Raise IllegalTransition for a snapshot of a VM that migrates to another cluster now: its disks go before it is taken."""
    if not isinstance(spec, SnapshotSpec) or came_from_elsewhere(marks):
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


async def refuse_lost_ports(view: View, current: Envelope, old: Any, new: Any) -> None:
    """Raise IllegalTransition for further ports of an instance, other than the VM whose ports an update takes along."""
    owner, had = current.owner, getattr(old, "publish", ())
    more = [port for port in getattr(new, "publish", ()) if port not in had]
    deployment = await view.get(DEPLOYMENT, current.project, owner.name) if more and owner is not None else None
    if deployment is None or deployment.ref != owner or deployment.deleting_since is not None:
        return
    adopt = decode_part(deployment.spec, DeploymentSpec).adopt
    holder = decode_part(deployment.status, DeploymentStatus).holder or adopt
    if holder == current.name:
        return
    by_service = (
        f"weft service create NAME --selector weft/deployment={deployment.name} --port PORT --publish HOST:PORT"
    )
    raise IllegalTransition(
        f"spec.publish: {current.kind}/{current.name} is an instance of deployment/{deployment.name}, whose next update would end"
        f" port {', '.join(more)} with it",
        field="spec.publish",
        hint=f"weft vm set {holder} --publish … changes the ports of the VM that serves" if holder else by_service,
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
