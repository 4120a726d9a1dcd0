"""Saved memory that becomes a guest here: whether this node's QEMU can build the machine that it is of, and the guest's record
then. Pure, but for looking at the guest's disks."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from weft.contracts.driver.migration import MigratingGuest
from weft.contracts.driver.runtime import GuestDisk, GuestNic, GuestPlan
from weft.drivers.linux.processes import host_boot_id
from weft.drivers.runtime.qemu.devices.ids import disk_id, nic_id
from weft.drivers.runtime.qemu.machine_shape import Frame
from weft.drivers.runtime.qemu.migration.commands import check_same
from weft.drivers.runtime.qemu.record import GuestRecord, disk_times
from weft.drivers.runtime.qemu.translate import QemuHostFacts
from weft.objects.errors import DriverFailed, InvalidInput

MOST_CPUS, MOST_MEMORY_BYTES, MOST_PORTS = 1024, 1 << 46, 256
_CPU, _VERSION = re.compile(r"[A-Za-z0-9._-]{0,64}"), re.compile(r"(\d{1,3}\.\d{1,3})?")
_UUID = re.compile(r"[0-9A-Za-z-]{0,64}")

Part = TypeVar("Part", GuestDisk, GuestNic)


def check_machine(plan: GuestPlan, guest: MigratingGuest, frame: Frame, facts: QemuHostFacts) -> None:
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


def read_frame(plan: GuestPlan, machine: dict[str, Any]) -> Frame:
    """The machine that comes. Its node may be hostile, so all of it that becomes words for QEMU is bounded. Raises InvalidInput."""
    try:
        frame = msgspec.convert(machine, Frame)
    except msgspec.ValidationError as problem:
        raise InvalidInput(
            f"vm/{plan.name}: the arriving machine is unknown here: {problem}", field="machine"
        ) from problem
    named = all(
        form.fullmatch(text) for form, text in ((_CPU, frame.cpu_model), (_VERSION, frame.version), (_UUID, frame.uuid))
    )
    cpus = 0 < frame.vcpus <= frame.vcpus + frame.plugged_vcpus <= frame.most_vcpus <= MOST_CPUS
    memory = 0 < frame.memory_bytes <= frame.most_memory_bytes <= MOST_MEMORY_BYTES
    plugged = 0 <= frame.plugged_bytes <= frame.pluggable_bytes
    ports = 0 <= frame.port_count <= MOST_PORTS and len(frame.ports) <= MOST_PORTS
    if not (named and cpus and memory and plugged and ports):
        raise InvalidInput(
            f"vm/{plan.name}: the arriving machine is none that this node builds",
            field="machine",
            hint="restart the VM where it is, and migrate it then",
        )
    return frame


def make_record(plan: GuestPlan, coming: MigratingGuest, facts: QemuHostFacts, now: float, hint: str) -> GuestRecord:
    """Make the record of a guest that is suspended here. Raises DriverFailed, InvalidInput if it can't go on here; ``hint`` is for
    one that comes from a newer QEMU."""
    what, details = f"vm/{plan.name}: its saved memory", {"step": "expect"}
    check_same(plan, coming.plan)
    try:
        frame = read_frame(plan, coming.machine)
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
