"""The driver's record of each container, so that a driver made anew after a crash knows all the old one knew.

One file per container, replaced in one rename. The start is on disk before anything runs, the end before anyone learns of it.
The processes are recorded in the run folder until then: they mean nothing after a power cut, and aren't worth waiting for a
disk.
"""

from __future__ import annotations

import msgspec

from weft.contracts.driver.container import ContainerPlan
from weft.contracts.durable_file import write_durably
from weft.drivers.container.end import ContainerEnd, end_of_process
from weft.drivers.linux.processes import ProcessId
from weft.drivers.runtime.oci.paths import ContainerPaths

SAVED = "saved"


class ContainerRecord(msgspec.Struct):
    """``process`` is the container's first one, ``shim`` the one that holds its output and waits for its end; ``started``: the
    runtime was ordered to start it, and did. ``first_user`` of the node is its root; None: it has the node's users. ``held_by``
    is the address of a containerd; empty: conmon."""

    plan: ContainerPlan
    runtime: str
    host_boot_id: str
    started_at: float
    first_user: int | None = None
    held_by: str = ""
    process: ProcessId | None = None
    shim: ProcessId | None = None
    started: bool = False
    stopping: bool = False
    note: str = ""  # of a run that was to go on from where it was saved, and begins afresh: why
    end: ContainerEnd | None = None


class Begun(msgspec.Struct, frozen=True):
    """``started_at`` is its record's: what is left of a run before says nothing."""

    started_at: float
    process: ProcessId | None
    shim: ProcessId | None


def read_record(paths: ContainerPaths) -> ContainerRecord | None:
    """None if there is none, or none that can be read: then nothing of this container was ever begun."""
    try:
        record = msgspec.json.decode(paths.record.read_bytes(), type=ContainerRecord)
    except (OSError, msgspec.DecodeError):
        return None
    if not record.started and record.end is None:
        try:
            begun = msgspec.json.decode(paths.begun.read_bytes(), type=Begun)
        except (OSError, msgspec.DecodeError):
            return record
        if begun.started_at == record.started_at:
            record.process, record.shim, record.started = begun.process, begun.shim, True
    return record


def note_begun(paths: ContainerPaths, record: ContainerRecord) -> None:
    """Record that its process runs, for the next agent when this one is killed."""
    work = paths.begun.with_suffix(".new")
    work.write_bytes(msgspec.json.encode(Begun(record.started_at, record.process, record.shim)))
    work.rename(paths.begun)


def write_record(paths: ContainerPaths, record: ContainerRecord) -> None:
    paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_durably(paths.record, msgspec.json.encode(record))


def decide_end(
    record: ContainerRecord, *, exit_code: int | None, out_of_memory: bool, host_boot_id: str, saved: bool = False
) -> ContainerEnd:
    """Pure. Why a container has ended; ``exit_code`` as the shim wrote it (None: it didn't). ``saved``: its processes are."""
    if saved:
        return ContainerEnd("suspended", SAVED)
    if record.stopping:
        return ContainerEnd("stopped", "stopRequested", "", exit_code)
    if exit_code is None and record.host_boot_id != host_boot_id:
        return ContainerEnd("failed", "nodeRestarted", "this node restarted while it ran")
    if record.process is None or not record.started:
        return ContainerEnd("failed", "startInterrupted", "the start was interrupted before it ran")
    if exit_code is None:
        return ContainerEnd(
            "failed", "shimLost", "the process that waits for its exit was killed: its exit code is lost"
        )
    return end_of_process(record.plan, exit_code, out_of_memory=out_of_memory)
