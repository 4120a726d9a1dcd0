"""A VM on its way to another cluster stays as it is: what is changed here meanwhile would stay behind, and be lost."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.api.admission.view import View
from weft.kinds.migration import ENDED, MIGRATION, MigrationSpec, MigrationStatus
from weft.kinds.record import Kind
from weft.kinds.vm import VM
from weft.objects.envelope import Envelope, decode_part
from weft.objects.errors import IllegalTransition
from weft.objects.spec_change import FieldChange

_FREE = ("run", "restart_generation")  # these end the migration, as long as the guest hasn't been handed over


class _Migrating(msgspec.Struct):
    """The only field of the status that counts here: to read all of them takes five times as long."""

    migration: str = ""


async def refuse_departing(view: View, kind: Kind, current: Envelope, changes: Sequence[FieldChange]) -> None:
    """Raise IllegalTransition for changes of a VM that migrates to another cluster now."""
    if kind is not VM or all(change.path.removeprefix("spec.") in _FREE for change in changes):
        return
    name = decode_part(current.status, _Migrating).migration
    migration = await view.get(MIGRATION, current.project, name) if name else None
    if migration is None or decode_part(migration.status, MigrationStatus).phase in ENDED:
        return
    if cluster := decode_part(migration.spec, MigrationSpec).cluster:
        raise IllegalTransition(
            f"vm/{current.name} migrates to cluster {cluster} now: a change here would stay behind",
            reason="migratesAway",
            field=changes[0].path,
            hint=f"weft wait migration/{name}, then change it there; or: weft migration cancel {name}",
            details={"migration": name},
        )
