"""Which of QEMU's block nodes a disk is now: the one it was started with, or the one it was relocated to since."""

from __future__ import annotations

from weft.drivers.runtime.qemu.devices.ids import DISK_ID, disk_node
from weft.drivers.runtime.qemu.qmp import Qmp


async def find_nodes(qmp: Qmp) -> dict[str, str]:
    """The nodes of the disks that are plugged in, by serial."""
    nodes = {}
    for block in await qmp.execute("query-block"):
        device = next((part for part in str(block.get("qdev", "")).split("/") if part.startswith(DISK_ID)), None)
        if device is not None and "inserted" in block:
            nodes[device.removeprefix(DISK_ID)] = str(block["inserted"]["node-name"])
    return nodes


async def find_node(qmp: Qmp, serial: str) -> str:
    """The node of a disk; what it would be started with, if it isn't plugged in."""
    return (await find_nodes(qmp)).get(serial, disk_node(serial))
