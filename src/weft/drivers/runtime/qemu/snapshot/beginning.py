"""A guest that begins from the memory that a snapshot kept, as the guest that it was or as another one.

It is written down as a suspended guest whose memory lies with the snapshot, and then resumes: so whatever cuts this off is
settled as a resume is. What the machine inside still has to get stands in the record until it has it.
"""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec

from weft.contracts.driver.runtime import GuestPlan
from weft.drivers.runtime.qemu.migration.arrival import make_record, pass_for
from weft.drivers.runtime.qemu.migration.carried_memory import read_machine
from weft.drivers.runtime.qemu.migration.commands import check_movable
from weft.drivers.runtime.qemu.record import GuestRecord, Renewal
from weft.drivers.runtime.qemu.translate import QemuHostFacts
from weft.objects.errors import DriverFailed, InvalidInput

COLD_HINT = "restore it without its memory: --no-memory"
_HEADER = struct.Struct(
    ">4sIQIIQIIQ"
)  # of a qcow2: magic, version, …, how many entries its table of tables has and where it is
_MAGIC = b"QFI\xfb"
_MOST_ENTRIES = 1 << 22


def plan_beginning(plan: GuestPlan, facts: QemuHostFacts, now: float) -> GuestRecord:
    """The guest's record, of one that is suspended. Raises DriverFailed, InvalidInput for memory that can't go on in it."""
    name = plan.name
    check_movable(plan, "started from memory")
    saved = read_machine(Path(plan.memory))
    if saved is None:
        raise DriverFailed(
            f"vm/{name}: the memory that its snapshot kept is not whole", hint=COLD_HINT, details={"step": "load"}
        )
    if plan.identity is not None and not plan.has_agent:
        raise InvalidInput(
            f"vm/{name}: without weft's agent its image can't make a running copy another machine",
            reason="noAgent", field="memory", hint=COLD_HINT,
        )  # fmt: skip
    coming, macs = pass_for(plan, saved)
    if macs and plan.identity is None:
        raise InvalidInput(f"vm/{name}: its MACs are not those that its memory knows", field="nics", hint=COLD_HINT)
    for disk in plan.disks:
        if not disk.read_only and not _is_empty(Path(disk.path)):
            raise DriverFailed(
                f"vm/{name}: its disk {disk.serial} was written to since its memory was kept",
                hint=COLD_HINT,
                details={"step": "load"},
            )
    record = make_record(plan, coming, facts, now, COLD_HINT)
    record.renewal = Renewal(plan.identity, macs, plan.setup)
    record.plan = msgspec.structs.replace(record.plan, identity=plan.identity)
    return record


def _is_empty(path: Path) -> bool:
    """Whether the file is a qcow2 to which no guest has written anything: no entry of its table of tables is in use."""
    try:
        with path.open("rb") as file:
            magic, *_, entries, place = _HEADER.unpack(file.read(_HEADER.size))
            if magic != _MAGIC or entries > _MOST_ENTRIES:
                return False
            file.seek(place)
            return not any(file.read(entries * 8))
    except (OSError, struct.error):
        return False
