"""The machine around a guest as it was built: what stays as it is while the guest runs, and how far it can be filled.

Pure. Kept in the guest's record, because a machine that loads saved memory must be built as the one that saved it.
"""

from __future__ import annotations

import msgspec

from weft.contracts.driver.runtime import BootDisk, GuestPlan, GuestShape
from weft.drivers.runtime.qemu.devices.ids import disk_id, is_movable, nic_id

SPARE_PORTS = 4  # a root port costs an emulated boot about 10 ms
MOST_VCPUS = 16
BLOCK_BYTES = 2 << 20  # what memory that comes and goes is counted in
# A kernel that may get memory above 4 GiB sets 64 MiB aside for devices that can't reach it, unless an option forbids that.
_LEAST_FOR_MORE = 512 << 20


class Frame(msgspec.Struct, frozen=True):
    memory_bytes: int  # at boot
    vcpus: int  # at boot
    most_vcpus: int
    most_memory_bytes: int
    plugged_bytes: int = 0  # that came later
    plugged_vcpus: int = 0
    port_count: int = 0  # root ports
    ports: dict[str, int] = {}  # device → its root port
    cpu_model: str = ""  # as QEMU's words name it; "" is all there is
    version: str = ""  # of QEMU, whose q35 it is; "" is that of whichever QEMU builds it
    maps_ram: bool = False  # its RAM is a file that others share: pages that it frees are not given back
    uuid: str = ""  # the machine's own, which it takes along: QEMU compares it over several streams; "" is the plan's

    @property
    def pluggable_bytes(self) -> int:
        """The most memory that can be plugged in."""
        return (self.most_memory_bytes - self.memory_bytes) // BLOCK_BYTES * BLOCK_BYTES


def plan_frame(plan: GuestPlan, most_cpu: float, most_memory_bytes: int, version: str = "") -> Frame:
    """A machine for ``plan`` that can grow up to what its node has, as that version of QEMU builds it."""
    cpu_model = plan.cpu_model.partition("@")[0]
    if plan.machine == "microvm":
        return Frame(plan.memory_bytes, plan.vcpus, plan.vcpus, plan.memory_bytes, cpu_model=cpu_model, uuid=plan.uid)
    devices = [disk_id(disk) for disk in plan.disks if is_movable(plan, disk)] + [nic_id(nic) for nic in plan.nics]
    fixed = isinstance(plan.boot, BootDisk) and plan.memory_bytes < _LEAST_FOR_MORE
    return Frame(
        memory_bytes=plan.memory_bytes,
        vcpus=plan.vcpus,
        most_vcpus=max(plan.vcpus, min(MOST_VCPUS, int(most_cpu))),
        most_memory_bytes=plan.memory_bytes if fixed else max(plan.memory_bytes, most_memory_bytes),
        port_count=len(devices) + SPARE_PORTS,
        ports={device: port for port, device in enumerate(devices)},
        cpu_model=cpu_model,
        version=version,
        maps_ram=bool(plan.ram),
        uuid=plan.uid,
    )


def describe_present(plan: GuestPlan, next_: GuestPlan | None, frame: Frame) -> GuestPlan:
    """Describe the machine in ``frame``, which was on its way from ``plan`` to ``next_`` when that was cut off."""
    if next_ is None or plan.machine == "microvm":
        return plan
    disks = {disk_id(disk): disk for disk in [*plan.disks, *next_.disks]}
    nics = {nic_id(nic): nic for nic in [*plan.nics, *next_.nics]}
    return msgspec.structs.replace(
        plan,
        disks=[disk for id_, disk in disks.items() if id_ in frame.ports or not is_movable(plan, disk)],
        nics=[nic for id_, nic in nics.items() if id_ in frame.ports],
        memory_bytes=frame.memory_bytes + frame.plugged_bytes,
    )


def find_live_bar(plugged_bytes: int, accelerator: str | None) -> str:
    """Why a guest can migrate only while it stands still: QEMU would lose what it writes meanwhile, see translate."""
    if accelerator == "tcg" and plugged_bytes > 0:
        return "an emulated guest with hot-plugged memory can't migrate live; after a restart it can"
    return ""


def describe_shape(plan: GuestPlan, frame: Frame) -> GuestShape:
    """The shape of a guest that was brought to ``plan`` inside ``frame``."""
    movable = [disk for disk in plan.disks if is_movable(plan, disk)]
    return GuestShape(
        cpu=plan.cpu,
        memory_bytes=plan.memory_bytes,
        disks={disk.serial: disk.size_bytes for disk in plan.disks},
        nics=[nic.mac for nic in plan.nics],
        most_cpu=frame.most_vcpus,
        most_memory_bytes=frame.memory_bytes + frame.pluggable_bytes,
        has_slots=frame.port_count > 0,
        free_slots=max(0, frame.port_count - len(movable) - len(plan.nics)),
    )
