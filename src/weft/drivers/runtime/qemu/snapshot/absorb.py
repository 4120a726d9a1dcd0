"""A layer of a running guest's disk goes: what it holds is copied into the file above it, which QEMU reads instead from then on.

Speaks to one guest's monitor. QEMU says what a disk stands on; a file is known by its inode, since layers get other names while
they are open. The copy is a job of QEMU's; what one has copied stays if it is cut off, so that the next does the rest. Until it is
whole, and not only in QEMU's memory, the layer stays.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import GuestDisk
from weft.drivers.runtime.qemu.devices.block_nodes import (
    close_unused,
    find_fdsets,
    find_nodes,
    list_fdsets,
    list_nodes,
    stat_given,
)
from weft.drivers.runtime.qemu.devices.ids import find_served, list_layer_files, served_node
from weft.drivers.runtime.qemu.guest import Guest
from weft.drivers.runtime.qemu.migration.commands import check_stays
from weft.drivers.runtime.qemu.qmp import Qmp, QmpError
from weft.drivers.runtime.qemu.record import find_own_file
from weft.drivers.runtime.qemu.snapshot.overlays import TO_READ
from weft.objects.errors import DriverFailed, IllegalTransition, Unavailable

BYTES_PER_SECOND = 64 << 20  # so that the guest keeps most of its disk's throughput
LOOK_SECONDS = 0.1
_JOB = "absorb-"
_TO_WRITE = "to absorb"


class _Chain(msgspec.Struct, frozen=True):
    """The chain that a disk stands on, bottom first, with its own file last: nodes, and the sets of descriptors of their files."""

    nodes: list[str]
    fdsets: list[int]


async def begin_absorbing(guest: Guest, serial: str, layer: str) -> str:
    """Begin to copy the layer at this path into the file above it; the job, or "" if the disk doesn't stand on it. Raises
    IllegalTransition, DriverFailed."""
    record, name = guest.record, guest.record.plan.name
    if not guest.running or record.stopping:
        raise IllegalTransition(f"vm/{name} is not running")
    check_stays(guest)
    if record.relocation is not None and record.relocation.stage != "there":
        raise IllegalTransition(f"vm/{name}: one of its disks is being relocated")
    qmp, job = guest.monitor(), name_job(serial)
    if _is_served(guest, serial, layer) and await _find_job(qmp, job) is not None:
        return job  # that an agent which was killed has begun
    chain = await _find_chain(qmp, serial)
    if _is_served(guest, serial, layer):
        if served_node(serial) not in await list_nodes(qmp):
            return ""
        if len(chain.nodes) > 1:
            await _allow_writing(guest, qmp, chain.fdsets[0])
        try:
            await qmp.execute("block-stream", **_stream(job, chain.nodes[0]))
        finally:
            await _close_writing(qmp)
        return job
    at = await _find_layer(guest, qmp, chain, layer)
    if at is None:
        await close_unused(qmp, guest.record.pid, layer)
        return ""
    above, below = chain.nodes[at + 1], chain.nodes[at - 1] if at else None
    if at + 2 < len(chain.nodes):  # the disk's own file is open to write anyway
        await _allow_writing(guest, qmp, chain.fdsets[at + 1])
    how = _stream(job, above)
    if below is not None:
        # No name gets into the header, which nobody reads.
        how |= {"base-node": below, "backing-file": ""}
    try:
        await qmp.execute("block-stream", **how)
    finally:
        await _close_writing(qmp)
    return job


def _stream(job: str, node: str) -> dict[str, Any]:
    return {"job-id": job, "device": node, "auto-dismiss": False, "speed": BYTES_PER_SECOND}


def _is_served(guest: Guest, serial: str, layer: str) -> bool:
    """Whether the layer at this path stands for a disk that is served elsewhere."""
    served = [find_served(disk) for disk in guest.record.plan.disks if disk.serial == serial]
    return any(one is not None and one.path == layer for one in served)


async def follow_absorbing(guest: Guest, job: str, clock: Clock) -> None:
    """Return once the job has ended. Raises DriverFailed, IllegalTransition for a guest that has ended."""
    while (found := await _ask(guest, job)) is not None and found["status"] != "concluded":
        await clock.sleep(LOOK_SECONDS)
    if found is not None and "error" in found:
        await end_absorbing(guest, job)
        error = str(found["error"])
        raise DriverFailed(
            f"vm/{guest.record.plan.name}: a layer of its disk can't be absorbed: {error}",
            reason="noSpace" if "No space left" in error else None,
        )


async def end_absorbing(guest: Guest, job: str) -> None:
    """Dismiss a job that has ended."""
    with contextlib.suppress(QmpError):
        await guest.monitor().execute("job-dismiss", id=job)


async def note_absorbed(guest: Guest, serial: str, layer: str) -> None:
    """Have the copy outlive QEMU, close the layer's file, and have the guest's record know what the disk stands on now. Raises
    DriverFailed if the disk still stands on the layer: a job that was dismissed didn't say how it ended."""
    qmp = guest.monitor()
    chain = await _find_chain(qmp, serial)
    if _is_served(guest, serial, layer):
        await _note_alone(guest, qmp, chain, serial)
        return
    if await _find_layer(guest, qmp, chain, layer) is not None:
        raise DriverFailed(f"vm/{guest.record.plan.name}: a layer of its disk was not absorbed to the end")
    for node in chain.nodes:
        await _flush(qmp, node)
    await close_unused(qmp, guest.record.pid, layer)
    left = len(chain.nodes) - 1
    plan = guest.record.plan
    disks = [_shorten(disk, left) if disk.serial == serial else disk for disk in plan.disks]
    if disks != plan.disks:
        guest.record.plan = msgspec.structs.replace(plan, disks=disks)
        await guest.save_record()


async def _note_alone(guest: Guest, qmp: Qmp, chain: _Chain, serial: str) -> None:
    """The disk stands on no server any more: its files have all of it, so nothing of the image below is seen."""
    if served_node(serial) in await list_nodes(qmp):
        with contextlib.suppress(QmpError):
            gone: dict[str, Any] = {"node-name": served_node(serial)}
            await qmp.execute("blockdev-del", **gone)
    if served_node(serial) in await list_nodes(qmp):
        raise DriverFailed(f"vm/{guest.record.plan.name}: its disk was not copied to the end")
    for node in chain.nodes:
        await _flush(qmp, node)
    plan = guest.record.plan
    disks = [
        msgspec.structs.replace(disk, base=None, layers=[layer for _, layer in list_layer_files(disk)])
        if disk.serial == serial
        else disk
        for disk in plan.disks
    ]
    guest.record.plan = msgspec.structs.replace(plan, disks=disks)
    await guest.save_record()


async def _flush(qmp: Qmp, node: str) -> None:
    """Have the node's file hold what was written to it. A copy's end doesn't see to that: until the guest flushes its disk, where
    the copied clusters are is known only to QEMU, which may be killed. Raises DriverFailed."""
    arguments: dict[str, Any] = {"command-line": f"qemu-io {node} flush"}
    if answer := str(await qmp.execute("human-monitor-command", **arguments)).strip():
        raise DriverFailed(f"QEMU can't flush {node}: {answer}")


async def end_left(guest: Guest) -> None:
    """End what was begun and is not followed any more: nothing else may be done to these disks meanwhile.

    A copy from a server runs on, and is followed again: it ends only once the server answers, which may be far away, and which
    the agent has served again only after this. Such a disk is refused to all else until it is whole.
    """
    served = {name_job(disk.serial) for disk in guest.record.plan.disks if find_served(disk) is not None}
    with contextlib.suppress(DriverFailed, IllegalTransition, Unavailable):  # the guest has just ended
        jobs: list[dict[str, Any]] = await guest.monitor().execute("query-jobs")
        for job in jobs:
            if job["id"].startswith(_JOB) and job["id"] not in served:
                await _close_writing(guest.monitor())
                await _cancel(guest, job["id"], guest.clock)


def name_job(serial: str) -> str:
    return f"{_JOB}{serial}"


def _shorten(disk: GuestDisk, below: int) -> GuestDisk:
    """The disk on so many files. Which of them went is the pool's to say: the record only counts them. So the name of its own file
    must not be among those that go."""
    count = max(0, below - (disk.base is not None))
    layers = disk.layers[len(disk.layers) - count :] if count else []
    return msgspec.structs.replace(disk, path=find_own_file(disk), layers=layers)


async def _find_chain(qmp: Qmp, serial: str) -> _Chain:
    """Raises DriverFailed for a disk that isn't plugged in, or stands on files that QEMU doesn't tell apart."""
    top, nodes = (await find_nodes(qmp)).get(serial), await list_nodes(qmp)
    if top is None or top not in nodes:
        raise DriverFailed(f"disk {serial} is not plugged in")
    fdsets = find_fdsets(nodes[top])
    own = {found[-1]: name for name, node in nodes.items() if node["drv"] != "file" and (found := find_fdsets(node))}
    if not fdsets or any(number not in own for number in fdsets):
        raise DriverFailed(f"QEMU doesn't say what disk {serial} stands on")
    return _Chain([own[number] for number in fdsets], fdsets)


async def _find_layer(guest: Guest, qmp: Qmp, chain: _Chain, layer: str) -> int | None:
    """Find the layer's place in the chain, None if nowhere. Raises DriverFailed if that is unknown."""
    given, wanted = await list_fdsets(qmp), os.stat(layer)
    found = None
    for at, number in enumerate(chain.fdsets[:-1]):
        files = [stat_given(guest.record.pid, descriptor) for descriptor in given.get(number, {})]
        if not files or None in files:
            raise DriverFailed(
                f"vm/{guest.record.plan.name}: it is unknown which file a layer of its disk is",
                hint="it is known after a restart of the VM",
            )
        if any(file is not None and os.path.samestat(file, wanted) for file in files):
            found = at
    return found


async def _allow_writing(guest: Guest, qmp: Qmp, number: int) -> None:
    """QEMU may open the files of this set for writing, and later for reading again, both anew: its locks are those of a descriptor,
    and last for as long as that is in the set."""
    former = (await list_fdsets(qmp)).get(number, {})
    path = f"/proc/{guest.record.pid}/fd/{next(iter(former))}"
    for flags, purpose in ((os.O_RDONLY, TO_READ), (os.O_RDWR, _TO_WRITE)):
        descriptor = os.open(path, flags | os.O_CLOEXEC)
        try:
            await qmp.execute("add-fd", descriptor=descriptor, opaque=purpose, **{"fdset-id": number})
        finally:
            os.close(descriptor)
    for given in former:
        await qmp.execute("remove-fd", fd=given, **{"fdset-id": number})


async def _close_writing(qmp: Qmp) -> None:
    """QEMU has it open itself by now, and can give it up when it is done."""
    for number, given in (await list_fdsets(qmp)).items():
        for descriptor, purpose in given.items():
            if purpose == _TO_WRITE:
                with contextlib.suppress(QmpError):
                    await qmp.execute("remove-fd", fd=descriptor, **{"fdset-id": number})


async def _ask(guest: Guest, job: str) -> dict[str, Any] | None:
    if not guest.running:
        raise IllegalTransition(f"vm/{guest.record.plan.name} has ended in the meantime")
    return await _find_job(guest.monitor(), job)


async def _find_job(qmp: Qmp, job: str) -> dict[str, Any] | None:
    jobs: list[dict[str, Any]] = await qmp.execute("query-jobs")
    return next((one for one in jobs if one["id"] == job), None)


async def _cancel(guest: Guest, job: str, clock: Clock) -> None:
    while (found := await _ask(guest, job)) is not None and found["status"] != "concluded":
        with contextlib.suppress(QmpError):  # it has just ended
            await guest.monitor().execute("block-job-cancel", device=job, force=True)
        await clock.sleep(LOOK_SECONDS / 10)
    await end_absorbing(guest, job)
