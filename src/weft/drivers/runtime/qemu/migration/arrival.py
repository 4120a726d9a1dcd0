"""Saved memory that becomes a guest here: whether this node's QEMU can build the machine that it is of, and the guest's record
then. Pure, but for looking at the guest's disks."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from weft.contracts.driver.migration import MigratingGuest
from weft.contracts.driver.runtime import GuestDisk, GuestNic, GuestPlan
from weft.drivers.linux.processes import host_boot_id
from weft.drivers.runtime.qemu.devices.ids import disk_id, nic_id
from weft.drivers.runtime.qemu.machine_shape import Frame
from weft.drivers.runtime.qemu.migration.commands import check_same
from weft.drivers.runtime.qemu.record import GuestRecord, disk_times
from weft.drivers.runtime.qemu.translate import Facts
from weft.objects.errors import DriverFailed

Part = TypeVar("Part", GuestDisk, GuestNic)


def check_machine(plan: GuestPlan, guest: MigratingGuest, frame: Frame, facts: Facts) -> None:
    """Raises DriverFailed where this node's QEMU can't build the machine that comes: one of a version that it has no words for,
    or another kind of CPU."""
    own, its = ".".join(map(str, facts.version[:2])), frame.version or guest.version
    newer = bool(frame.version) and facts.version[:2] >= tuple(map(int, its.split(".")))
    for what, here, there, fits in (
        ("runtime", "qemu", guest.driver, False),
        ("QEMU version", own, its, newer),
        ("accelerator", facts.accelerator, guest.accelerator, False),
    ):
        if here != there and not fits:
            raise DriverFailed(
                f"vm/{plan.name}: it comes from {what} {there}, and this node has {here}",
                hint="migrate it with --cold, or to a matching node",
                details={"step": "expect"},
            )


def make_record(plan: GuestPlan, coming: MigratingGuest, facts: Facts, now: float, hint: str) -> GuestRecord:
    """Of a guest that is suspended here. Raises DriverFailed, InvalidInput if it can't go on here; ``hint`` is for one that
    comes from a newer QEMU."""
    what, details = f"vm/{plan.name}: its saved memory", {"step": "expect"}
    check_same(plan, coming.plan)
    try:
        frame = msgspec.convert(coming.machine, Frame)
        check_machine(plan, coming, frame, facts)
        older = facts.version[:2] < tuple(map(int, coming.version.split(".")))
    except (ValueError, msgspec.ValidationError) as problem:
        raise DriverFailed(f"{what} is of a machine unknown here: {problem}", details=details) from problem
    if older:
        own = ".".join(map(str, facts.version[:2]))
        raise DriverFailed(f"{what} is of QEMU {coming.version}, and this node has {own}", hint=hint, details=details)
    its = coming.plan  # the sizes that the machine had: what is wanted otherwise by now is for ``adjust``
    sizes = [disk.size_bytes for disk in its.disks]
    record = GuestRecord(
        plan=msgspec.structs.replace(
            plan,
            cpu=its.cpu,
            vcpus=its.vcpus,
            memory_bytes=its.memory_bytes,
            disks=[msgspec.structs.replace(d, size_bytes=n) for d, n in zip(plan.disks, sizes, strict=True)],
        ),
        accelerator=facts.accelerator,
        host_boot_id=host_boot_id(),
        started_at=now,
        frame=frame,
        boot_id=coming.boot_id,
        memory="saved",
    )
    record.disk_times = disk_times(record.plan)
    return record


def pass_for(plan: GuestPlan, saved: MigratingGuest) -> tuple[MigratingGuest, dict[str, str]]:
    """A machine that was saved as another guest's, with the names, serials and MACs that it has in ``plan``; and by the MAC that
    it knows the one that it gets. Disks and NICs that have no namesake are taken in their order."""
    its = saved.plan
    disks = _pair(plan.disks, its.disks, [disk.serial for disk in plan.disks], [disk.serial for disk in its.disks])
    nics = _pair(plan.nics, its.nics, [nic.mac for nic in plan.nics], [nic.mac for nic in its.nics])
    own_name = {disk_id(old): disk_id(new) for new, old in disks} | {nic_id(old): nic_id(new) for new, old in nics}
    machine = dict(saved.machine)
    machine["ports"] = {own_name.get(device, device): port for device, port in machine.get("ports", {}).items()}
    machine["uuid"] = plan.uid
    there = msgspec.structs.replace(
        its,
        name=plan.name,
        disks=[msgspec.structs.replace(old, serial=new.serial) for new, old in disks]
        if _is_whole(disks, its.disks)
        else its.disks,
        nics=[msgspec.structs.replace(old, mac=new.mac) for new, old in nics]
        if _is_whole(nics, its.nics)
        else its.nics,
    )
    macs = {old.mac: new.mac for new, old in nics if old.mac != new.mac}
    return msgspec.structs.replace(saved, plan=there, machine=machine), macs


def _pair(own: list[Part], its: list[Part], own_names: list[str], its_names: list[str]) -> list[tuple[Part, Part]]:
    """Each of ``own`` with its counterpart, in the order of ``own``."""
    namesakes = {name: part for name, part in zip(its_names, its, strict=True) if name in own_names}
    others = iter([part for name, part in zip(its_names, its, strict=True) if name not in namesakes])
    found = [(part, namesakes.get(name) or next(others, None)) for part, name in zip(own, own_names, strict=True)]
    return [(part, counterpart) for part, counterpart in found if counterpart is not None]


def _is_whole(pairs: list[tuple[Part, Part]], its: list[Part]) -> bool:
    return len(pairs) == len(its)
