"""QEMU's block node of a disk: the one it was started with, one it was relocated to since, or one that a snapshot put over it; and
how those go that it no longer is."""

from __future__ import annotations

import contextlib
import os
import re
from typing import Any

from weft.drivers.runtime.qemu.devices.ids import DISK_ID, disk_node, find_serial
from weft.drivers.runtime.qemu.qmp import Qmp, QmpError

_FDSET = re.compile(r"/dev/fdset/(\d+)")


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


async def list_nodes(qmp: Qmp) -> dict[str, dict[str, Any]]:
    """All nodes that there are, by name, as QEMU describes them."""
    return {str(node["node-name"]): node for node in await qmp.execute("query-named-block-nodes", flat=True)}


def find_fdsets(node: dict[str, Any]) -> list[int]:
    """The sets of descriptors through which QEMU has opened a node's files: those below it first, its own last."""
    return [int(number) for number in _FDSET.findall(str(node["image"]["filename"]))]


async def list_fdsets(qmp: Qmp) -> dict[int, dict[int, str]]:
    """The descriptors in each set, by their numbers in QEMU, and what they were given for."""
    sets: list[dict[str, Any]] = await qmp.execute("query-fdsets")
    return {one["fdset-id"]: {fd["fd"]: str(fd.get("opaque", "")) for fd in one["fds"]} for one in sets}


def stat_given(pid: int, descriptor: int) -> os.stat_result | None:
    """The file of a descriptor that the QEMU of this process was given; None: it is closed."""
    try:
        return os.stat(f"/proc/{pid}/fd/{descriptor}")
    except OSError:
        return None


async def close_unused(qmp: Qmp, pid: int, path: str) -> None:
    """Close the descriptors of a file that no node uses: else it takes up space until the guest ends, also without a name."""
    try:
        wanted = os.stat(path)
    except FileNotFoundError:
        return
    used = {number for node in (await list_nodes(qmp)).values() for number in find_fdsets(node)}
    for number, given in (await list_fdsets(qmp)).items():
        files = [stat_given(pid, descriptor) for descriptor in given] if number not in used else []
        if any(file is not None and os.path.samestat(file, wanted) for file in files):
            with contextlib.suppress(QmpError):
                await qmp.execute("remove-fd", **{"fdset-id": number})


async def drop_nodes(qmp: Qmp, serial: str, keep: str = "") -> None:
    """Close the nodes of a disk but ``keep`` and what that stands on, and the files that QEMU was given for them."""
    nodes = {name: node for name, node in (await list_nodes(qmp)).items() if find_serial(name) == serial}
    nodes.pop(keep, None)
    closed = True
    while closed:  # what stands on others goes before them
        closed = False
        for name in list(nodes):
            gone: dict[str, Any] = {"node-name": name}
            with contextlib.suppress(QmpError):  # it is in use
                await qmp.execute("blockdev-del", **gone)
                closed = True
                for number in find_fdsets(nodes.pop(name)):  # it stays open else, and its space used
                    with contextlib.suppress(QmpError):
                        await qmp.execute("remove-fd", **{"fdset-id": number})
