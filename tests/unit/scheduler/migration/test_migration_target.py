"""What may move: a workload's one place, while nothing else is done with it."""

from __future__ import annotations

import msgspec
import pytest

from weft.informer.view import Item, make_view
from weft.kinds.allocation import AllocatedImage, AllocationSpec, Resources
from weft.kinds.migration import MigrationSpec
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Envelope
from weft.objects.identity import Ref
from weft.scheduler.migration.target import read_migration_candidate
from weft.scheduler.workload.request import Waiting

SPEC = MigrationSpec(workload="vm/web")


@pytest.mark.parametrize(
    ("role", "deleting"), [("source", False), ("target", False), ("reserved", False), ("active", True)]
)
def test_what_is_on_its_way_or_goes_is_no_place_to_move_from(role: str, deleting: bool) -> None:
    view = make_view()
    raw = msgspec.Raw(msgspec.json.encode(VmSpec(image="tiny", node="n1")))
    vm = Item(Envelope(kind="vm", name="web", uid="v", project="default", spec=raw))

    def put(role: str, deleting: bool) -> Waiting:
        spec = AllocationSpec(
            node="n1",
            node_uid="u",
            workload=Ref("vm", "web", "v", "default"),
            workload_generation=1,
            incarnation=1,
            role=role,  # type: ignore[arg-type]
            resources=Resources(cpu=1, memory=1 << 28),
            image=AllocatedImage(name="tiny", uid="i", sha256="0" * 64, size=1, url="file:///tiny"),
        )
        place = Envelope(kind="allocation", name="u.a", uid="a", spec=msgspec.Raw(msgspec.json.encode(spec)))
        place.deleting_since = 1.0 if deleting else None
        view.put_item(place.key, Item(place))
        mover = read_migration_candidate(view, vm, SPEC, "least_loaded", [])
        assert isinstance(mover, Waiting)
        return mover

    assert put(role, deleting).reason == "notPlaced"
    assert put("active", False).reason == "pinned", "it could move from there, were it not bound to it"
