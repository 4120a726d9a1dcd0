"""Whose word says where a guest is that the store doesn't list: each row of decision 0041."""

from __future__ import annotations

import msgspec
import pytest

from weft.controllers.workload.adoption import has_guest, plan_adoption
from weft.informer.view import Item, View, make_view
from weft.kinds.allocation import AllocatedImage, AllocationSpec, Resources
from weft.kinds.fields.allocated_migration import AllocatedMigration
from weft.kinds.migration import MIGRATED_ON, MigrationSpec, MigrationStatus
from weft.kinds.node import NodeReport
from weft.kinds.parts.node.orphan import GuestLocation, OrphanCopy, read_copies
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Envelope, decode_envelope
from weft.objects.identity import Ref

KEY = "m"


def copy(
    standing: GuestLocation, role: str = "source", *, migration: str = KEY, back_from: tuple[str, ...] = ()
) -> OrphanCopy:
    spec = AllocationSpec(
        node="n1",
        node_uid="node-1",
        workload=Ref("vm", "web", "vm-1", "default"),
        workload_generation=1,
        incarnation=1,
        resources=Resources(cpu=1, memory=1 << 28),
        image=AllocatedImage(name="tiny", uid="i", sha256="0" * 64, size=1, url="file:///tiny"),
        role=role,  # type: ignore[arg-type]
        back_from=list(back_from),  # type: ignore[arg-type]
        migration=AllocatedMigration(key=migration, peer="n2", peer_uid="node-2", peer_allocation="b")
        if role != "active"
        else None,
    )
    return OrphanCopy("a", spec, standing, migration)


def migration(phase: str, reason: str = "") -> Item:
    parts = MigrationSpec(workload="vm/web"), MigrationStatus(phase=phase, reason=reason)  # type: ignore[arg-type]
    spec, status = (msgspec.Raw(msgspec.json.encode(part)) for part in parts)
    return Item(Envelope(kind="migration", name="web-1", uid=KEY, project="default", spec=spec, status=status))


GIVEN_UP = copy("abandoned", "target")
BACK = copy("here", "active", migration="", back_from=(KEY,))


@pytest.mark.parametrize(
    ("found", "others", "ended", "has"),
    [
        (copy("here", "active", migration=""), [], None, True),
        (copy("here", "target"), [], None, True),
        (copy("here", "target"), [BACK], None, False),  # the word went to the source that this one never ran
        (copy("left"), [], None, False),
        (copy("left"), [GIVEN_UP], ("Failed", ""), False),
        (GIVEN_UP, [], None, False),
        (copy("open"), [], None, False),
        (copy("open"), [GIVEN_UP], None, True),
        (copy("open", migration="m.2"), [GIVEN_UP], None, False),  # that was another try
        (copy("open", "target"), [GIVEN_UP], None, False),
        (copy("open"), [], ("Failed", "timedOut"), True),
        (copy("open"), [], ("Cancelled", "cancelled"), True),
        (copy("open"), [], ("Failed", MIGRATED_ON), False),
        (copy("open"), [], ("Succeeded", ""), False),
        (copy("open"), [], ("Migrating", ""), False),
    ],
)
def test_a_guest_is_taken_up_only_where_it_surely_is(
    found: OrphanCopy, others: list[OrphanCopy], ended: tuple[str, str] | None, has: bool
) -> None:
    view = make_view()
    if ended is not None:
        item = migration(*ended)
        view.put_item(item.key, item)
    assert has_guest(view, found, [found, *others]) is has


def view_of(*told: tuple[OrphanCopy, str]) -> tuple[View, Item]:
    """A VM and what nodes tell of its guests, each with its uid."""
    spec = msgspec.Raw(msgspec.json.encode(VmSpec(image="tiny")))
    view, vm = make_view(), Item(Envelope(kind="vm", name="web", uid="vm-1", project="default", spec=spec))
    view.put_item(vm.key, vm)
    for number, (found, uid) in enumerate(told, 1):
        found.uid, found.spec.node_uid = uid, f"node-{number}"
        orphan = f"{uid} {vm.key.removeprefix('/')} {found.spec.incarnation}"
        report = NodeReport(orphans=[orphan], orphan_allocations=[msgspec.json.encode(found).decode()])
        raw = msgspec.Raw(msgspec.json.encode(report))
        node = Item(Envelope(kind="node", name=f"n{number}", uid=f"node-{number}", report=raw))
        view.put_item(node.key, node)
    return view, vm


def taken_up(view: View, vm: Item, *, silent: bool) -> str | None:
    commit = plan_adoption(view, vm, silent, 0.0)
    return decode_envelope(commit.writes[0].value).uid if commit is not None else None  # type: ignore[union-attr]


def test_of_two_guests_of_a_vm_the_one_is_taken_up_that_runs_else_the_later() -> None:
    runs, ended = copy("here", "active", migration=""), copy("here", "active", migration="")
    ended.spec.incarnation, ended.runs = 2, False
    assert taken_up(*view_of((runs, "a"), (ended, "b")), silent=False) == "a"
    ended.runs = True
    assert taken_up(*view_of((runs, "a"), (ended, "b")), silent=False) == "b"


def test_a_guest_that_would_have_to_be_begun_is_taken_up_once_no_node_is_silent_that_may_have_one_that_runs() -> None:
    guest = copy("here", "active", migration="")
    assert taken_up(*view_of((guest, "a")), silent=True) == "a"
    guest.runs = False
    assert taken_up(*view_of((guest, "a")), silent=True) is None
    assert taken_up(*view_of((guest, "a")), silent=False) == "a"


def test_a_source_that_has_broken_its_move_off_is_believed_and_one_of_an_agent_that_says_nothing_is_not() -> None:
    said = copy("here")
    said.migration = ""  # it has no part in it any more
    silent = msgspec.json.encode({"uid": said.uid, "spec": said.spec}).decode()
    report = NodeReport(orphan_allocations=[msgspec.json.encode(said).decode(), silent])
    assert [(found.standing, found.migration) for found in read_copies(report)] == [("here", ""), ("open", KEY)]
