"""The leases that wait, as the scheduler asks for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from tests.unit.scheduler.node_items import make_node

from weft.informer.view import Item, make_view
from weft.kinds.vm import VM, VmSpec
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.intake import Intake
from weft.scheduler.lease.backfill import Queued
from weft.scheduler.lease.calendar import CalendarEntry
from weft.scheduler.node.facts import read_node
from weft.scheduler.placement.queued import QueuedLeases
from weft.scheduler.table.snapshot import Snapshot

NOW = 1_000_000.0


class Asked:
    """An intake that notes whether a pass is asked for."""

    pass_due = False

    def enter(self, keys: Iterable[str]) -> None:
        assert not list(keys)
        self.pass_due = True


def make_vm(name: str) -> Item:
    spec = VmSpec(image="tiny", cpu=4.0, memory=2**30)
    return Item(VM.make(name, spec, NOW, project="default", uid=name), spec=spec)


def test_once_the_first_one_leaves_a_pass_gives_back_what_was_kept_for_it() -> None:
    snapshot, intake = Snapshot(), Asked()
    snapshot.put_node(read_node(make_node("n1")))
    engine = Engine(snapshot)
    leases = QueuedLeases(make_view(), engine, cast(Intake, intake), lambda item: None, "least_loaded")  # type: ignore[arg-type, return-value]
    first, other = make_vm("first"), make_vm("other")
    for item in (first, other):
        engine.leases.put(Queued(item.key, "ann", NOW, (4000.0, 2**30), 3600.0, 4.0))
    engine.leases.first = engine.leases.get(first.key)
    engine.leases.kept = {"kept/0": CalendarEntry("u-n1", NOW, NOW + 3600.0, (4000, 2**30))}
    leases.forget(other)
    assert not intake.pass_due
    leases.forget(first)
    assert intake.pass_due
