"""A running guest's disks switch to overlays, all at once: opened beside, put over the present files in one transaction.

Speaks to one guest's monitor; passes QEMU the overlays open. What a disk writes to is what QEMU says of its device.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from weft.drivers.runtime.qemu.devices.block_nodes import (
    close_unused,
    drop_nodes,
    find_fdsets,
    find_nodes,
    list_fdsets,
    list_nodes,
)
from weft.drivers.runtime.qemu.devices.ids import find_serial
from weft.drivers.runtime.qemu.qmp import Qmp
from weft.drivers.runtime.qemu.record import SnapshotRecord

TO_READ = "to read"


async def open_overlays(qmp: Qmp, snapshot: SnapshotRecord, files: Mapping[str, str]) -> None:
    """Open them, each over nothing yet. ``files``: the present ones, by serial. Raises OSError, QmpError."""
    present, nodes = await find_nodes(qmp), await list_nodes(qmp)
    for serial, node in snapshot.nodes.items():
        async with qmp.lend(snapshot.overlays[serial], os.O_RDWR) as name:
            file = {"driver": "file", "filename": name}
            how: dict[str, Any] = {
                "driver": "qcow2",
                "node-name": node,
                "discard": "unmap",
                "backing": None,
                "file": file,
            }
            await qmp.execute("blockdev-add", **how)
        # For the next snapshot: by then it has another name.
        await _allow_reading(qmp, (await list_nodes(qmp))[node], snapshot.overlays[serial])
        now = nodes[present[serial]]
        size = now["image"]["virtual-size"]
        if (await list_nodes(qmp))[node]["image"]["virtual-size"] < size:
            grown: dict[str, Any] = {"node-name": node, "size": size}
            await qmp.execute("block_resize", **grown)
        await _allow_reading(qmp, now, files[serial])


async def _allow_reading(qmp: Qmp, node: dict[str, Any], path: str) -> None:
    """QEMU opens a file that is written to no more once again, to read it; if it can't, it keeps everyone else from standing on
    it, too."""
    for number in find_fdsets(node)[-1:]:
        given = (await list_fdsets(qmp)).get(number, {})
        if TO_READ in given.values():
            continue  # by a driver that died
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            await qmp.execute("add-fd", descriptor=descriptor, opaque=TO_READ, **{"fdset-id": number})
        finally:
            os.close(descriptor)


async def let_others_read(qmp: Qmp) -> None:
    """Close, after the switch, what the former files were written through, with which QEMU's lock on them goes."""
    given = await list_fdsets(qmp)
    for node in (await list_nodes(qmp)).values():
        for number in find_fdsets(node)[-1:] if node["ro"] else []:
            descriptors = given.pop(number, {})
            for descriptor, purpose in descriptors.items():
                if purpose != TO_READ and TO_READ in descriptors.values():
                    await qmp.execute("remove-fd", fd=descriptor, **{"fdset-id": number})


async def switch(qmp: Qmp, snapshot: SnapshotRecord, present: Mapping[str, str]) -> None:
    """All or none. ``present``: the nodes of the disks now, by serial. Raises QmpError."""
    actions = [
        {"type": "blockdev-snapshot", "data": {"node": present[serial], "overlay": node}}
        for serial, node in snapshot.nodes.items()
    ]
    # Nothing that the guest writes is done any more on a disk that has had its turn: so what comes later depends on none of it.
    actions += [
        {"type": "blockdev-snapshot-internal-sync", "data": {"device": present[serial], "name": name}}
        for serial, name in snapshot.inside.items()
    ]
    if actions:
        await qmp.execute("transaction", actions=actions)


async def have_switched(qmp: Qmp, snapshot: SnapshotRecord) -> bool:
    present = await find_nodes(qmp)
    if snapshot.nodes or not snapshot.inside:
        return any(present.get(serial) == node for serial, node in snapshot.nodes.items())
    nodes = await list_nodes(qmp)
    return any(name in _list_inside(nodes.get(present.get(serial, ""))) for serial, name in snapshot.inside.items())


def _list_inside(node: dict[str, Any] | None) -> list[str]:
    return [str(one["name"]) for one in node["image"].get("snapshots", [])] if node is not None else []


async def drop_overlays(qmp: Qmp, pid: int, snapshot: SnapshotRecord) -> None:
    """Close those that no disk writes to. ``pid``: QEMU's."""
    present = await find_nodes(qmp)
    for serial in {serial for node in snapshot.nodes.values() if (serial := find_serial(node)) is not None}:
        await drop_nodes(qmp, serial, keep=present.get(serial, ""))
    for path in snapshot.overlays.values():  # one that a driver gave before it died
        await close_unused(qmp, pid, path)
