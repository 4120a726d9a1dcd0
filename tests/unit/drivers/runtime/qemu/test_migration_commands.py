"""What is decided about a move before QEMU is asked, and how QEMU's words are read."""

from __future__ import annotations

import uuid

import msgspec
import pytest

from weft.contracts.driver.migration import MigrationSettings
from weft.contracts.driver.runtime import BootKernel, GuestDisk, GuestPlan
from weft.drivers.runtime.qemu.machine_shape import find_live_bar, plan_frame
from weft.drivers.runtime.qemu.migration.arrival import read_frame
from weft.drivers.runtime.qemu.migration.commands import check_mode, check_same, describe_migration
from weft.drivers.runtime.qemu.record import MigrationRecord
from weft.objects.errors import InvalidInput

GIB = 1 << 30
PLAN = GuestPlan(
    id="0123456789", uid="7a9c", name="web", incarnation=1, machine="q35", cpu=1, vcpus=1, memory_bytes=GIB,
    boot=BootKernel("/k", "/i", ""), disks=[GuestDisk("/d", "qcow2", "root")], nics=[],
)  # fmt: skip
FRAME = plan_frame(PLAN, 4, 4 * GIB)


def test_an_emulated_guest_whose_writes_qemu_does_not_follow_moves_only_standing_still() -> None:
    check_mode(PLAN, FRAME, "tcg", MigrationSettings())
    frame = msgspec.structs.replace(FRAME, plugged_bytes=GIB)
    bar = "an emulated guest with hot-plugged memory can't migrate live; after a restart it can"
    with pytest.raises(InvalidInput, match=bar):
        check_mode(PLAN, frame, "tcg", MigrationSettings())
    bars = [find_live_bar(*one) for one in ((GIB, "tcg"), (GIB, "kvm"), (0, "tcg"))]
    assert bars == [bar, "", ""]
    check_mode(PLAN, frame, "kvm", MigrationSettings())
    check_mode(PLAN, frame, "tcg", MigrationSettings(mode="stop-and-copy"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": "9.0,firmware=/etc/shadow"},
        {"cpu_model": "max,+x -readconfig /x"},
        {"uuid": "1 -drive file=/etc/shadow"},
        {"port_count": 1 << 40},
        {"ports": dict.fromkeys(map(str, range(300)), 1)},
        {"vcpus": 0},
        {"plugged_vcpus": 64},
        {"most_vcpus": 1 << 30},
        {"memory_bytes": 1 << 60},
        {"plugged_bytes": -1},
        {"most_memory_bytes": 1 << 60},
        {"vcpus": "many"},
    ],
)
def test_a_machine_that_a_hostile_node_describes_is_refused_before_it_becomes_words_for_qemu(
    wrong: dict[str, object],
) -> None:
    frame = msgspec.structs.replace(FRAME, version="9.2", cpu_model="Haswell-noTSX", uuid=str(uuid.uuid4()))
    assert read_frame(PLAN, msgspec.to_builtins(frame)) == frame
    with pytest.raises(InvalidInput) as refused:
        read_frame(PLAN, msgspec.to_builtins(frame) | wrong)
    assert refused.value.field == "machine"


def test_another_machine_than_the_one_that_comes_is_refused_by_its_field() -> None:
    check_same(msgspec.structs.replace(PLAN, disks=[GuestDisk("/elsewhere", "raw", "root")]), PLAN)
    for field, value in (("machine", "microvm"), ("name", "other"), ("disks", []), ("screen", True)):
        with pytest.raises(InvalidInput) as refused:
            check_same(msgspec.structs.replace(PLAN, **{field: value}), PLAN)
        assert refused.value.field == field


@pytest.mark.parametrize(
    ("status", "source", "target"),
    [
        ("none", "waiting", "waiting"),
        ("setup", "migrating", "waiting"),
        ("active", "migrating", "migrating"),
        ("device", "switching", "failed"),
        ("completed", "handedOver", "arrived"),
        ("postcopy-active", "failed", "failed"),
        ("cancelled", "failed", "failed"),
        ("a word of a later QEMU", "failed", "failed"),
    ],
)
def test_only_what_qemu_never_takes_back_counts_as_handed_over(status: str, source: str, target: str) -> None:
    for role, phase in (("source", source), ("target", target)):
        migration = MigrationRecord("key", "source" if role == "source" else "target", MigrationSettings())
        assert describe_migration(migration, {"status": status}, "postmigrate").phase == phase


def test_memory_that_could_be_plugged_in_and_is_not_is_none_to_move() -> None:
    migration, told = (
        MigrationRecord("key", "source", MigrationSettings(), sending=True),
        {"status": "active", "ram": {"total": 22 << 30}},
    )
    assert describe_migration(migration, told, "running", 21 << 30).total_bytes == 1 << 30


def test_a_guest_that_came_here_has_not_left_because_its_coming_is_complete() -> None:
    migration = MigrationRecord("key", "source", MigrationSettings(), sending=True)
    assert describe_migration(migration, {"status": "completed"}, "running").phase == "waiting"
