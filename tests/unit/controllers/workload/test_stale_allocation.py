"""A place whose guest has moved on in a history that the store has lost: whose word counts for it, and whose doesn't."""

from __future__ import annotations

import msgspec
import pytest

from weft.contracts.store import Put
from weft.controllers.workload.stale_allocation import OrphanCopies, _plan_leaving, _plan_never_ran
from weft.informer.view import Item, make_view
from weft.kinds.allocation import AllocatedImage, AllocationReport, AllocationSpec, Resources
from weft.kinds.fields.allocated_migration import AllocatedMigration
from weft.kinds.parts.node.orphan import GuestLocation, OrphanCopy
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.identity import Ref

VM = Item(Envelope(kind="vm", name="web", uid="vm-1", project="default"))
OTHER = Item(Envelope(kind="node", name="n2", uid="node-2"))


def spec(incarnation: int = 2, migration: AllocatedMigration | None = None) -> AllocationSpec:
    return AllocationSpec(
        node="n1",
        node_uid="node-1",
        workload=Ref("vm", "web", "vm-1", "default"),
        workload_generation=1,
        incarnation=incarnation,
        resources=Resources(cpu=1, memory=1 << 28),
        image=AllocatedImage(name="tiny", uid="i", sha256="0" * 64, size=1, url="file:///tiny"),
        migration=migration,
    )


def place() -> Item:
    """Its node says that another one took its guest over."""
    report = AllocationReport(incarnation=2, state="stopped", reason="migrated")
    parts = [msgspec.Raw(msgspec.json.encode(part)) for part in (spec(), report)]
    return Item(Envelope(kind="allocation", name="node-1.a", uid="a", spec=parts[0], report=parts[1]))


def found(standing: GuestLocation, *, incarnation: int = 3, of: str = "a") -> OrphanCopies:
    """What another node says of it."""
    migration = AllocatedMigration(key="m", peer="n1", peer_uid="node-1", peer_allocation=of)
    return [(OTHER, OrphanCopy("b", spec(incarnation, migration), standing, "m"))]


def test_the_word_of_a_target_that_never_ran_is_kept_with_the_place_that_it_was_to_come_from() -> None:
    commit = _plan_never_ran(VM, place(), found("abandoned"))
    assert commit is not None
    [write] = commit.writes
    assert isinstance(write, Put)
    assert decode_part(decode_envelope(write.value).spec, AllocationSpec).back_from == ["m"]
    assert _plan_never_ran(VM, place(), found("abandoned", of="another place of it")) is None
    assert _plan_never_ran(VM, place(), found("here")) is None


@pytest.mark.parametrize(
    ("others", "silent", "goes"),
    [
        (found("here", incarnation=3), False, True),  # it went on there
        (found("here", incarnation=3), True, True),
        (found("here", incarnation=2), False, False),  # that is no later one than this
        (found("open", incarnation=3), False, False),
        ([*found("open", incarnation=3), *found("abandoned")], False, True),  # it went on there, and no further
        ([], False, True),  # nobody has it
        ([], True, False),  # somebody may who hasn't spoken
    ],
)
def test_a_place_goes_once_it_is_certain_that_its_guest_is_not_there(
    others: OrphanCopies, silent: bool, goes: bool
) -> None:
    commit = _plan_leaving(make_view(), VM, place(), others, silent, 5.0)
    assert (commit is not None) is goes
