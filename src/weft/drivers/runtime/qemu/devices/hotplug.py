"""Gives a running guest other CPUs, memory, disks and NICs than it has. Every step first reads what the machine has, by the
devices' ids, so that after a killed driver the next one goes on.

Speaks to the guest's monitor and passes it files and taps; nothing is recorded here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import GuestDisk, GuestNic, GuestPlan
from weft.drivers.runtime.qemu.devices.block_nodes import drop_nodes, find_node, list_nodes
from weft.drivers.runtime.qemu.devices.ids import (
    DISK_ID,
    NIC_ID,
    describe_disk,
    disk_id,
    disk_node,
    disk_properties,
    find_serial,
    given_name,
    is_movable,
    key_id,
    layer_name,
    nic_backend,
    nic_id,
    nic_name,
    nic_properties,
)
from weft.drivers.runtime.qemu.devices.inherited_fds import open_inherited_fds, plan_disk, plan_nic
from weft.drivers.runtime.qemu.machine_shape import BLOCK_BYTES, Frame
from weft.drivers.runtime.qemu.qmp import Qmp, QmpError
from weft.drivers.runtime.qemu.translate import MEMORY_ID, PORT_ID
from weft.objects.errors import DriverFailed, InvalidInput
from weft.objects.quantity import format_bytes

UNPLUG_SECONDS = 20.0  # a guest that is still booting answers late
SHRINK_SECONDS = 10.0
_PERIPHERAL = "/machine/peripheral"
_LOOK_SECONDS = 0.1
_SECTOR = 512


def check_adjustment(frame: Frame, plan: GuestPlan) -> None:
    """Pure. Raises InvalidInput (``restartNeeded``) for what a machine built as ``frame`` can't come to while it runs."""
    for field, wanted, most in (
        ("cpu", plan.vcpus, frame.most_vcpus),
        ("memory", plan.memory_bytes, frame.memory_bytes + frame.pluggable_bytes),
    ):
        if wanted > most:
            limit = format_bytes(most) if field == "memory" else str(most)
            raise InvalidInput(
                f"vm/{plan.name}: {field} can grow to {limit} while it runs",
                reason="restartNeeded",
                field=f"spec.{field}",
                hint=f"weft vm restart {plan.name}",
            )


async def adjust_machine(qmp: Qmp, frame: Frame, plan: GuestPlan, clock: Clock) -> None:
    """Bring the machine to ``plan``. Raises InvalidInput, DriverFailed (``guestHolds``: the guest doesn't release something),
    Unavailable."""
    check_adjustment(frame, plan)
    await plug_cpus(qmp, plan.vcpus)
    await _change_disks(qmp, frame, plan)
    await _change_nics(qmp, frame, plan)
    await _size_memory(qmp, frame, plan, clock)


async def inspect_frame(qmp: Qmp, frame: Frame) -> Frame:
    """``frame`` with what has come and gone since the machine was built: what one must be built like that takes its memory."""
    ports = {}
    for device in await _devices(qmp, (DISK_ID, NIC_ID)):
        bus = str(await qmp.execute("qom-get", path=f"{_PERIPHERAL}/{device}", property="parent_bus"))
        name = bus.rpartition("/")[2]
        if name.startswith(PORT_ID):
            ports[device] = int(name.removeprefix(PORT_ID))
    plugged = await _requested(qmp) if frame.pluggable_bytes else 0
    cpus = len(await qmp.execute("query-cpus-fast")) - frame.vcpus
    return msgspec.structs.replace(frame, plugged_vcpus=cpus, plugged_bytes=plugged, ports=ports)


async def _devices(qmp: Qmp, kinds: tuple[str, ...]) -> list[str]:
    found = await qmp.execute("qom-list", path=_PERIPHERAL)
    return sorted(entry["name"] for entry in found if entry["name"].startswith(kinds))


async def plug_cpus(qmp: Qmp, wanted: int) -> None:
    """Plug in CPUs until there are so many. CPUs are only added: an emulated machine doesn't survive their removal; fewer is a
    limit."""
    missing = wanted - len(await qmp.execute("query-cpus-fast"))
    if missing <= 0:
        return
    slots = await qmp.execute("query-hotpluggable-cpus")
    free = sorted((slot for slot in slots if "qom-path" not in slot), key=lambda slot: sorted(slot["props"].items()))
    for slot in free[:missing]:
        name = "-".join(["cpu", *(str(number) for _, number in sorted(slot["props"].items()))])
        await qmp.execute("device_add", driver=slot["type"], id=name, **slot["props"])


async def _change_disks(qmp: Qmp, frame: Frame, plan: GuestPlan) -> None:
    wanted = {disk_id(disk): disk for disk in plan.disks}
    there = await _devices(qmp, (DISK_ID,))
    for device in [device for device in there if device not in wanted]:
        await _unplug(qmp, plan, device)
    nodes = await list_nodes(qmp)
    known = {disk.serial for disk in plan.disks}
    for serial in {serial for name in nodes if (serial := find_serial(name)) is not None} - known:
        await drop_nodes(qmp, serial)  # also of one whose device had gone already
    for device, disk in wanted.items():
        if device not in there and is_movable(plan, disk):
            await drop_nodes(qmp, disk.serial)  # left by a driver that died
            await _open_disk(qmp, disk)
            await _plug(qmp, frame, "virtio-blk-pci", disk_properties(disk), plan)
        elif disk.size_bytes > nodes[await find_node(qmp, disk.serial)]["image"]["virtual-size"]:
            await _resize(qmp, disk)


async def _open_disk(qmp: Qmp, disk: GuestDisk) -> None:
    with open_inherited_fds(plan_disk(disk)) as fds:
        sets, names = {}, {}
        for name, descriptor in fds.items():
            given = await qmp.execute("add-fd", descriptor=descriptor)
            sets[name], names[name] = given["fdset-id"], given_name(disk, given["fdset-id"], given["fd"])
    try:
        await give_key(qmp, disk)
        node = describe_disk(disk, names)
        await qmp.execute("blockdev-add", **node)
        if disk.size_bytes > (await list_nodes(qmp))[disk_node(disk.serial)]["image"]["virtual-size"]:
            await _resize(qmp, disk)
    except BaseException:
        await _forget_files(qmp, sets.values())
        raise
    kept = {
        layer_name(disk, number) for number in range(len(disk.layers))
    }  # by them QEMU says later which of its nodes is which
    await _forget_files(qmp, [number for name, number in sets.items() if name not in kept])


async def give_key(qmp: Qmp, disk: GuestDisk) -> None:
    """Let QEMU read what is on an encrypted disk: it keeps the passphrase in its memory, as long as it knows the disk."""
    if disk.key:
        with contextlib.suppress(QmpError):  # left by a driver that died, or by a disk that has gone
            await qmp.execute("object-del", id=key_id(disk))
        passphrase = await asyncio.to_thread(Path(disk.key).read_text)
        secret: dict[str, Any] = {"qom-type": "secret", "id": key_id(disk), "data": passphrase}
        await qmp.execute("object-add", **secret)


async def _forget_files(qmp: Qmp, sets: Iterable[int]) -> None:
    """QEMU has opened its own by now, or never will."""
    for number in sets:
        with contextlib.suppress(QmpError):
            await _execute(qmp, "remove-fd", {"fdset-id": number})


async def _resize(qmp: Qmp, disk: GuestDisk) -> None:
    size = -(-disk.size_bytes // _SECTOR) * _SECTOR
    await _execute(qmp, "block_resize", {"node-name": await find_node(qmp, disk.serial), "size": size})


async def _change_nics(qmp: Qmp, frame: Frame, plan: GuestPlan) -> None:
    wanted = {nic_id(nic): nic for nic in plan.nics}
    there = await _devices(qmp, (NIC_ID,))
    for device in [device for device in there if device not in wanted]:
        await _unplug(qmp, plan, device)
        await _drop_backend(qmp, device)
    for device, nic in wanted.items():
        if device not in there:
            await _drop_backend(qmp, device)
            await _open_nic(qmp, nic)
            await _plug(qmp, frame, "virtio-net-pci", {**nic_properties(nic), "romfile": ""}, plan)


async def _open_nic(qmp: Qmp, nic: GuestNic) -> None:
    backend = nic_backend(nic_id(nic))
    with open_inherited_fds([plan_nic(nic)]) as fds:
        await qmp.execute("getfd", descriptor=fds[nic_name(nic)], fdname=backend)
    await qmp.execute("netdev_add", type="tap", id=backend, fd=backend)


async def _drop_backend(qmp: Qmp, device: str) -> None:
    with contextlib.suppress(QmpError):  # there is none: it went with the device, or never came
        await qmp.execute("netdev_del", id=nic_backend(device))


async def _plug(qmp: Qmp, frame: Frame, driver: str, properties: dict[str, str | int], plan: GuestPlan) -> None:
    used = (await inspect_frame(qmp, frame)).ports.values()
    port = next((port for port in range(frame.port_count) if port not in used), None)
    if port is None:
        raise InvalidInput(
            f"vm/{plan.name}: it has no free slot for another disk or NIC until it is restarted",
            reason="restartNeeded",
            hint=f"weft vm restart {plan.name}",
        )
    await _execute(qmp, "device_add", {"driver": driver, "bus": f"{PORT_ID}{port}", **properties})


async def _execute(qmp: Qmp, command: str, arguments: dict[str, Any]) -> Any:
    """Execute a command whose arguments have names that aren't Python identifiers."""
    return await qmp.execute(command, **arguments)


async def _unplug(qmp: Qmp, plan: GuestPlan, device: str) -> None:
    """Ask the guest to release a device, and wait until it has."""
    gone = qmp.expect("DEVICE_DELETED", device)
    try:
        await qmp.execute("device_del", id=device)
    except QmpError:
        if device not in await _devices(qmp, (device,)):
            return
        # else it was asked before, and is at it
    try:
        async with asyncio.timeout(UNPLUG_SECONDS):
            await gone
    except TimeoutError:
        if device in await _devices(qmp, (device,)):
            raise DriverFailed(
                f"vm/{plan.name} doesn't release {device.partition('-')[2]}",
                reason="guestHolds",
                hint="end what uses it in the guest; the node asks again",
            ) from None


async def _size_memory(qmp: Qmp, frame: Frame, plan: GuestPlan, clock: Clock) -> None:
    more = max(0, plan.memory_bytes - frame.memory_bytes)
    plugged = -(-more // BLOCK_BYTES) * BLOCK_BYTES
    if frame.pluggable_bytes and await _requested(qmp) != plugged:
        await qmp.execute("qom-set", path=f"{_PERIPHERAL}/{MEMORY_ID}", property="requested-size", value=plugged)
    least = min(plan.memory_bytes, frame.memory_bytes)
    await qmp.execute("balloon", value=least if not plugged else frame.memory_bytes + plugged)
    deadline = clock.elapsed() + SHRINK_SECONDS
    while (left := await _excess(qmp, frame, plugged, least)) > 0:
        if clock.elapsed() > deadline:
            raise DriverFailed(
                f"vm/{plan.name} still uses {format_bytes(left)} of the memory to remove",
                reason="guestHolds",
                hint="end what uses the memory in the guest; the node asks again",
            )
        await clock.sleep(_LOOK_SECONDS)


async def _requested(qmp: Qmp) -> int:
    return int(await qmp.execute("qom-get", path=f"{_PERIPHERAL}/{MEMORY_ID}", property="requested-size"))


async def _excess(qmp: Qmp, frame: Frame, plugged: int, least: int) -> int:
    """Bytes that the guest has too many."""
    excess = 0
    if frame.pluggable_bytes:
        size = int(await qmp.execute("qom-get", path=f"{_PERIPHERAL}/{MEMORY_ID}", property="size"))
        excess += max(0, size - plugged)
    if least < frame.memory_bytes:
        excess += max(0, int((await qmp.execute("query-balloon"))["actual"]) - least - plugged)
    return excess
