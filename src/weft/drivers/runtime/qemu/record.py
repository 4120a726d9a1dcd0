"""The driver's record of each guest, so that a driver rebuilt after a crash knows all that the old one knew.

One file per guest, ``guest.json`` in its state folder, replaced in one rename. What a later decision hangs on (that a
start was begun, that memory is saved, how it ended) is on disk before the step it speaks of; the rest may be lost.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Literal

import msgspec

from weft.contracts.driver.identity import Identity
from weft.contracts.driver.migration import MigratingGuest, MigrationSettings
from weft.contracts.driver.runtime import DiskLayer, GuestDisk, GuestPlan, GuestState, ProcessFacts
from weft.contracts.driver.snapshot import SnapshotFacts, SnapshotPlan
from weft.contracts.durable_file import sync_folder, write_durably
from weft.drivers.linux.processes import ProcessId
from weft.drivers.runtime.qemu.machine_shape import Frame
from weft.drivers.runtime.qemu.translate import GuestPaths

POWERED_OFF = "guestPoweredOff"
INSIDE = "rbd:"  # before what a snapshot lies in that has no file
MARK_BYTES = 512  # a sector, written whole or not at all: longer than any migration's key


class GuestEnd(msgspec.Struct, frozen=True):
    state: GuestState
    reason: str
    message: str = ""


class MigrationRecord(msgspec.Struct, frozen=True):
    """A migration with this node as its source or target. Each mark is on disk before the step that makes it true: ``sending``: the
    source's memory may be on its way; ``taken``: the target may have run, which a file beside says first; ``left``: the
    source was ordered to leave."""

    key: str
    role: Literal["source", "target"]
    settings: MigrationSettings
    sending: bool = False
    taken: bool = False
    left: bool = False


class RelocationRecord(msgspec.Struct, frozen=True):
    """A disk on its way to another file, ``disk``. Each stage is on disk before the next step: ``pivoting``: the guest may stand
    still for it; ``there``: ``disk`` is what it writes to, and may run."""

    key: str
    disk: GuestDisk
    stage: Literal["copying", "pivoting", "there"] = "copying"
    node: str = ""

    @property
    def job(self) -> str:
        return f"storage-{self.disk.serial}"


class SnapshotRecord(msgspec.Struct, frozen=True):
    """A snapshot of the guest. It is on disk, ``switching``, before anything is done for it, and ``saving`` once the guest's plan
    has the overlays."""

    plan: SnapshotPlan
    facts: SnapshotFacts
    nodes: dict[str, str] = {}  # serial → the node of its overlay
    machine: MigratingGuest | None = None  # that the memory is of
    held: bool = False  # the guest stood still before it

    @property
    def overlays(self) -> dict[str, str]:
        """serial → the path of a file, of disks that get one."""
        return {serial: path for serial, path in self.plan.overlays.items() if not path.startswith(INSIDE)}

    @property
    def inside(self) -> dict[str, str]:
        """serial → the name of the snapshot inside of the disk's image, of disks that get one."""
        return {
            serial: path.rpartition("@")[2]
            for serial, path in self.plan.overlays.items()
            if path.startswith(INSIDE) and "@" in path
        }

    @property
    def is_over(self) -> bool:
        return self.facts.phase in ("done", "failed")

    @property
    def freezes(self) -> bool:
        """Whether the guest's agent is to freeze its file systems."""
        return self.plan.freeze and not self.plan.memory and not self.held

    @property
    def pending(self) -> str:
        """The path to which the memory is written."""
        return f"{self.plan.memory}.pending"


class Renewal(msgspec.Struct, frozen=True):
    """The renewal that a guest that began from a snapshot's memory still needs. Without an identity it goes on as the guest that it
    was."""

    identity: Identity | None = None
    macs: dict[str, str] = {}  # the MAC that it knows → its own
    setup: str = ""  # a shell script to run in it then


class GuestRecord(msgspec.Struct):
    plan: GuestPlan  # what the machine was brought to last
    accelerator: str
    host_boot_id: str
    started_at: float
    frame: Frame | None = None  # how the machine was built; None: the record that had it was lost
    next: GuestPlan | None = None  # what the machine is being brought to
    process: ProcessId | None = None
    ready: bool = False
    boot_id: str | None = None
    process_report: ProcessFacts | None = None  # the newest report of the process that the machine is there for
    stopping: bool = False
    memory: Literal["none", "saved", "loaded"] = (
        "none"  # saved: whole, not run since; loaded: in a machine, which may have run
    )
    disk_times: dict[str, int] = {}  # mtime in ns of each writable disk when memory was saved: whether it has run since
    end: GuestEnd | None = None
    migration: MigrationRecord | None = None
    relocation: RelocationRecord | None = None
    snapshot: SnapshotRecord | None = None
    renewal: Renewal | None = None

    @property
    def pid(self) -> int:
        """The process id of the guest's QEMU, which runs."""
        assert self.process is not None
        return self.process.pid

    @property
    def uuid(self) -> str:
        """The machine's own, which its command line holds; empty if that isn't known any more."""
        return (self.frame.uuid or self.plan.uid) if self.frame is not None else ""


def read_record(paths: GuestPaths) -> GuestRecord | None:
    """None if there is none, or none that can be read: then nothing of this guest was ever begun."""
    try:
        record = msgspec.json.decode(paths.record.read_bytes(), type=GuestRecord)
    except (OSError, msgspec.DecodeError):
        return None
    if record.migration is not None and record.migration.role == "target" and _read_mark(paths) == record.migration.key:
        record.migration = msgspec.structs.replace(record.migration, taken=True)
    return record


def prepare_mark(paths: GuestPaths) -> None:
    """Reserve disk space for ``mark_taken``, so that it changes nothing but the bytes of one sector. Raises OSError."""
    write_durably(paths.taken, bytes(MARK_BYTES), 0o644)


def mark_taken(paths: GuestPaths, key: str) -> None:
    """Record that the guest of migration ``key`` may have run here, on disk when this returns. A record that is replaced waits
    for the disk three times and for whatever else the file system has to write; this waits once, for one sector, within the
    guest's pause. Raises OSError where no space was reserved."""
    descriptor = os.open(paths.taken, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, key.encode().ljust(MARK_BYTES, b"\0"), 0)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _read_mark(paths: GuestPaths) -> str:
    try:
        return paths.taken.read_bytes().rstrip(b"\0").decode(errors="replace")
    except OSError:
        return ""


def write_record(paths: GuestPaths, record: GuestRecord, *, durable: bool) -> None:
    """Replace the record; ``durable``: it is on disk when this returns, and so is the folder it lies in."""
    paths.state.mkdir(parents=True, exist_ok=True)
    data = msgspec.json.encode(record)
    if durable:
        write_durably(paths.record, data, 0o644)
        sync_folder(paths.state.parent)
    else:
        pending = paths.record.with_suffix(".pending")
        pending.write_bytes(data)
        pending.replace(paths.record)


def disk_times(plan: GuestPlan) -> dict[str, int]:
    """mtime in ns of each writable disk; one that is missing has none."""
    times = {}
    for disk in plan.disks:
        if not disk.read_only:
            path = find_own_file(disk)
            with contextlib.suppress(OSError):
                times[path] = os.stat(path).st_mtime_ns
    return times


def find_own_file(disk: GuestDisk) -> str:
    """Find the file that the guest writes to. Once a snapshot is finished, its overlay has the name of the file below it: until the
    machine starts anew, the record has the name from before."""
    paths = [disk.path, *(layer.path for layer in reversed(disk.layers))]
    return next((path for path in paths if os.path.exists(path)), disk.path)


def note_switched(record: GuestRecord) -> None:
    """The disks of its snapshot have their overlays over them."""
    assert record.snapshot is not None
    overlays = record.snapshot.overlays
    record.plan = _lay_over(record.plan, overlays)
    record.next = record.next and _lay_over(record.next, overlays)


def _lay_over(plan: GuestPlan, overlays: Mapping[str, str]) -> GuestPlan:
    disks = [lay_over(disk, overlays[disk.serial]) if disk.serial in overlays else disk for disk in plan.disks]
    return msgspec.structs.replace(plan, disks=disks)


def lay_over(disk: GuestDisk, overlay: str) -> GuestDisk:
    """Pure. The disk with its file as a layer under that overlay; one that has it already stays as it is."""
    if disk.path == overlay:
        return disk
    layers = [*disk.layers, DiskLayer(disk.path, disk.format)]
    return msgspec.structs.replace(disk, path=overlay, format="qcow2", layers=layers)


def end_snapshot(record: GuestRecord, *, is_whole: bool) -> None:
    """Its machine has ended. Nobody knows whether a switch that was under way was done; an overlay that nothing was written to is
    as good as none, so it counts. ``is_whole``: the memory has its name."""
    snapshot = record.snapshot
    if snapshot is None or snapshot.is_over:
        return
    if snapshot.facts.phase == "switching":
        note_switched(record)
    ended = "the guest's machine ended before its memory was saved" if snapshot.plan.memory else ""
    facts = msgspec.structs.replace(
        snapshot.facts,
        switched=True,
        phase="done" if is_whole else "failed",
        message="" if is_whole else ended or "the guest's machine ended while its disks were switched",
    )
    record.snapshot = msgspec.structs.replace(snapshot, facts=facts)


def decide_end(
    record: GuestRecord, *, shutdown: str | None, pid_file_left: bool, out_of_memory: bool, host_boot_id: str
) -> GuestEnd:
    """Pure. Why a machine has ended. ``shutdown`` is QEMU's own reason, if it was received; else the pidfile shows it: QEMU
    removes it when it ends in order, and can't when it is killed."""
    if record.migration is not None and record.migration.left:
        return GuestEnd("stopped", "migrated")
    if record.stopping:
        return GuestEnd("stopped", "stopRequested")
    match shutdown:
        case "guest-shutdown":
            return GuestEnd("stopped", POWERED_OFF)
        case "guest-panic" | "guest-reset":  # the latter of a machine that may not start over
            return GuestEnd("failed", "guestPanicked", "the guest's kernel panicked; its console log says why")
        case "host-signal":
            return GuestEnd("failed", "terminated", "QEMU was ended by a signal from this node")
        case "host-qmp-quit":
            return GuestEnd("stopped", "quit", "QEMU got a quit command on its monitor")
    if record.process is None:
        return GuestEnd("failed", "startInterrupted", "the start was interrupted before the machine ran")
    if record.host_boot_id != host_boot_id:
        return GuestEnd("failed", "nodeRestarted", "this node restarted while it ran")
    if out_of_memory:
        return GuestEnd("failed", "outOfMemory", "QEMU exceeded the guest's memory limit on this node")
    if pid_file_left:
        return GuestEnd("failed", "killed", "QEMU was killed or crashed")
    return GuestEnd("stopped", POWERED_OFF, "it shut down cleanly while weft's agent was not running")
