"""The driver's record of each container, and its reading of a machine's facts. One file per container, replaced in one rename; that
a run was begun is on disk before its machine is started."""

from __future__ import annotations

import signal
from pathlib import Path

import msgspec

from weft.contracts.driver.container import NEVER_BEGAN, NOT_EXECUTABLE, ContainerPlan
from weft.contracts.driver.runtime import GuestFacts, GuestShape
from weft.contracts.driver.sandbox import SIGNAL_OFFSET
from weft.contracts.durable_file import write_durably
from weft.drivers.container.end import ContainerEnd, end_of_never_began, end_of_process
from weft.drivers.runtime.qemu.microvm import exchange_disk
from weft.drivers.runtime.qemu.microvm.exchange_disk import Head

_STOPPED, _NEVER_RAN = "stopRequested", "startInterrupted"
_NEVER_BEGUN = exchange_disk.UNSTARTED | exchange_disk.AGAIN | exchange_disk.NO_PROGRAM


class MicrovmPaths(msgspec.Struct, frozen=True):
    state: Path

    @property
    def record(self) -> Path:
        return self.state / "container.json"

    @property
    def exchange_disk(self) -> Path:
        return self.state / "exchange-disk"

    @property
    def root(self) -> Path:
        """The root: what the container has written over its image."""
        return self.state / "root.qcow2"


class MicrovmRecord(msgspec.Struct, frozen=True):
    plan: ContainerPlan
    run: str  # a name that no run before had
    base: str  # the file with its image


def read_record(paths: MicrovmPaths) -> MicrovmRecord | None:
    """None if there is none, or none that can be read: then nothing of this container was ever begun."""
    try:
        return msgspec.json.decode(paths.record.read_bytes(), type=MicrovmRecord)
    except (OSError, msgspec.DecodeError):
        return None


def write_record(paths: MicrovmPaths, record: MicrovmRecord) -> None:
    paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_durably(paths.record, msgspec.json.encode(record))


def describe_container(record: MicrovmRecord, guest: GuestFacts, head: Head | None) -> GuestFacts:
    """Pure. The container's facts from its machine's, and from what that wrote to the exchange disk."""
    plan = record.plan
    alive = guest.state in ("starting", "running", "paused")
    # A machine whose program can't be started answers, too, before it ends.
    begun = bool(guest.ready) if head is None else head.run == record.run and _has_begun(head)
    if guest.state == "running" and not begun:
        guest = msgspec.structs.replace(guest, state="starting", ready=False, boot_id=None)
    end = None if alive else decide_end(record, guest, head)
    # What it has can't change while it runs.
    shape = GuestShape(plan.cpu, plan.memory_bytes, {}, [], plan.cpu, plan.memory_bytes) if alive else None
    return GuestFacts(
        id=plan.id,
        uid=plan.uid,
        name=plan.name,
        incarnation=plan.incarnation,
        state=guest.state if end is None else end.state,
        ready=guest.ready,
        boot_id=guest.boot_id,
        pid=guest.pid,
        started_at=guest.started_at,
        reason=guest.reason if end is None else end.reason,
        message=guest.message if end is None else end.message or None,
        accelerator=guest.accelerator,
        shape=shape,
        exit_code=end.exit_code if end is not None else None,
    )


def _has_begun(head: Head) -> bool:
    """Whether its program runs, or ran."""
    return head.state == exchange_disk.RUNNING or (head.state == exchange_disk.ENDED and not head.how & _NEVER_BEGUN)


def decide_end(record: MicrovmRecord, guest: GuestFacts, head: Head | None) -> ContainerEnd:
    """Pure. Why the container has ended whose machine has."""
    if guest.state == "absent":
        return ContainerEnd("failed", _NEVER_RAN, "the start was interrupted before its microVM ran")
    begun = head if head is not None and head.run == record.run else None
    last = begun if begun is not None and begun.state == exchange_disk.ENDED else None
    code = None if last is None or last.how & (exchange_disk.UNSTARTED | exchange_disk.AGAIN) else read_code(last)
    if guest.reason == _STOPPED:
        return ContainerEnd("stopped", _STOPPED, "", SIGNAL_OFFSET + signal.SIGKILL if code is None else code)
    if last is None and (guest.reason == "guestPoweredOff" or (guest.reason == _NEVER_RAN and begun is not None)):
        return ContainerEnd("failed", "lost", "its microVM ended without reporting an exit code")
    if last is None:
        return ContainerEnd("failed", guest.reason or "lost", guest.message or "")
    if code is None:
        what = "booted a second time" if last.how & exchange_disk.AGAIN else "could not start it"
        return ContainerEnd("failed", "guestPanicked", f"its microVM {what}; the console log on its node says why")
    if last.how & exchange_disk.NO_PROGRAM:
        reason = next((reason for reason, known in NEVER_BEGAN.items() if known == code), NOT_EXECUTABLE)
        return end_of_never_began(record.plan, reason)
    return end_of_process(record.plan, code, out_of_memory=bool(last.how & exchange_disk.OUT_OF_MEMORY))


def read_code(head: Head) -> int:
    """The exit code, as a shell has it."""
    return SIGNAL_OFFSET + (head.code & 127) if head.how & exchange_disk.SIGNALLED else head.code & 255
