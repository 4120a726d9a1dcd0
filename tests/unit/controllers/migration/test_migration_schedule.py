"""Whom a Migration that comes, changes or goes concerns: the planned ones only if it is planned, or was."""

from __future__ import annotations

import msgspec

from weft.controllers.migration.controller import Migrations
from weft.informer.view import Changed, View, make_view
from weft.kinds.migration import MigrationSpec, MigrationStatus
from weft.objects.envelope import Envelope, encode_envelope

SOON, LATER = "/migration/default/soon", "/migration/default/later"


def put(view: View, name: str, workload: str, status: MigrationStatus) -> Changed:
    migration = Envelope(kind="migration", name=name, uid=name, project="default")
    migration.spec = msgspec.Raw(msgspec.json.encode(MigrationSpec(workload=workload, not_before=900.0)))
    migration.status = msgspec.Raw(msgspec.json.encode(status))
    changed = view.put(migration.key, encode_envelope(migration), 3)
    assert changed is not None
    return changed


def view_with_a_planned_one() -> View:
    view = make_view()
    put(view, "later", "vm/db", MigrationStatus(phase="Planned"))
    return view


def woken(view: View, change: Changed) -> set[str]:
    return set(Migrations().route(view, change))


def test_one_that_is_not_planned_concerns_itself_only() -> None:
    view = view_with_a_planned_one()
    assert woken(view, put(view, "soon", "vm/web", MigrationStatus(phase="Succeeded"))) == {SOON}
    gone = view.drop(SOON)
    assert gone is not None and woken(view, gone) == {SOON}


def test_one_that_is_planned_no_more_or_from_now_on_concerns_all_that_are() -> None:
    view = view_with_a_planned_one()
    for phase in ("Planned", "Migrating", "Planned"):
        assert woken(view, put(view, "soon", "vm/web", MigrationStatus(phase=phase))) == {SOON, LATER}
    gone = view.drop(SOON)
    assert gone is not None and woken(view, gone) == {SOON, LATER}
