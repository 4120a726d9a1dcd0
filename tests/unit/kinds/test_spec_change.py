"""What a change of a VM takes: from its fields, and from the room that its running machine has."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.kinds.parts.workload import MIB
from weft.kinds.vm import VmSpec, refuse_shrinking
from weft.kinds.volume import VolumeSpec
from weft.kinds.volume import guard_size as refuse_smaller_volume
from weft.objects.envelope import Envelope
from weft.objects.errors import InvalidInput
from weft.objects.spec_change import plan_change

ROOM = {"cpu": 4, "memory": 1024 * MIB, "disk": 2**50, "volumes": 2, "networks": 2}


def cost(room: dict[str, int] | None, **changes: tuple[Any, Any]) -> dict[str, str]:
    old, new = ({field: pair[side] for field, pair in changes.items()} for side in (0, 1))
    return {c.path.removeprefix("spec."): c.mode for c in plan_change(old, new, VmSpec, room)}


@pytest.mark.parametrize(
    ("change", "mode"),
    [
        ({"cpu": (1, 4)}, "live"),
        ({"cpu": (1, 5)}, "restart"),
        ({"cpu": (4, 0.5)}, "live"),
        ({"memory": (256 * MIB, 1024 * MIB)}, "live"),
        ({"memory": (256 * MIB, 1025 * MIB)}, "restart"),
        ({"disk": (0, 2**32)}, "live"),
        ({"volumes": ([], ["a", "b"])}, "live"),
        ({"volumes": (["x"], ["a", "b", "c"])}, "restart"),
        ({"volumes": (["a", "b"], [])}, "live"),
        ({"networks": (["blue"], ["red"])}, "live"),
        ({"networks": (["blue:10.0.0.5"], ["blue:10.0.0.6"])}, "restart"),
        ({"machine": ("q35", "microvm")}, "restart"),
        ({"grace": (1, 2)}, "live"),
        ({"image": ("a", "b")}, "replace"),
    ],
)
def test_a_running_machine_takes_what_it_has_room_for(change: dict[str, tuple[Any, Any]], mode: str) -> None:
    assert list(cost(ROOM, **change).values()) == [mode]


def test_a_machine_that_tells_of_no_room_takes_nothing() -> None:
    assert cost({}, cpu=(1, 2), volumes=([], ["a"])) == {"cpu": "restart", "volumes": "restart"}


def test_what_does_not_run_gets_everything_with_its_start() -> None:
    assert cost(None, cpu=(1, 99), machine=("q35", "microvm")) == {"cpu": "start", "machine": "start"}


GIB = 2**30


def stored(kind: str, spec: object, status: dict[str, object]) -> Envelope:
    raw = [msgspec.Raw(msgspec.json.encode(part)) for part in (spec, status)]
    return Envelope(kind=kind, name="web", uid="u", project="default", spec=raw[0], status=raw[1])


def placed(disk: int, has: int) -> Envelope:
    """A VM that asks for ``disk``, and whose allocation has a disk of ``has`` bytes."""
    return stored("vm", VmSpec(image="tiny", disk=disk), {"node": "n1", "resources": {"disk": has}})


def test_a_root_disk_never_becomes_smaller_than_it_is() -> None:
    for disk in (GIB, 0):
        with pytest.raises(InvalidInput, match=r"can't shrink from 2\.0 GiB to"):
            refuse_shrinking(placed(2 * GIB, 2 * GIB), VmSpec(image="tiny", disk=disk), 0.0)
    with pytest.raises(InvalidInput, match=r"can't shrink from 2\.0 GiB to 1\.0 GiB"):
        refuse_shrinking(placed(900 * GIB, 2 * GIB), VmSpec(image="tiny", disk=GIB), 0.0)


def test_a_growth_of_a_root_disk_that_has_not_happened_can_be_taken_back() -> None:
    for disk in (2 * GIB, 3 * GIB, 0):
        refuse_shrinking(placed(900 * GIB, 2 * GIB), VmSpec(image="tiny", disk=disk), 0.0)
    without_place = stored("vm", VmSpec(image="tiny", disk=900 * GIB), {})
    refuse_shrinking(without_place, VmSpec(image="tiny", disk=GIB), 0.0)


def test_a_volume_never_becomes_smaller_than_it_is_and_a_growth_that_has_not_happened_can_be_taken_back() -> None:
    used = stored("volume", VolumeSpec(size=900 * GIB), {"node": "n1", "node_uid": "n", "size": 2 * GIB})
    refuse_smaller_volume(used, VolumeSpec(size=2 * GIB), 0.0)
    with pytest.raises(InvalidInput, match=r"can't shrink from 2\.0 GiB to 1\.0 GiB"):
        refuse_smaller_volume(used, VolumeSpec(size=GIB), 0.0)
    refuse_smaller_volume(stored("volume", VolumeSpec(size=900 * GIB), {}), VolumeSpec(size=GIB), 0.0)
