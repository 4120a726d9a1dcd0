"""Disks and NICs as QEMU knows them: their ids, and how each is described, at a start or while the guest runs. Pure.

A device's id says what it is (the disk's serial, the NIC's MAC), so that a driver that finds a machine knows what it has.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Container, Mapping
from typing import Any

from weft.contracts.driver.runtime import DiskLayer, GuestDisk, GuestNic, GuestPlan

DISK_ID, NIC_ID = "blk-", "nic-"
PATIENCE_SECONDS, OPEN_SECONDS = 366 * 86400, 300  # for the server of a disk
_NODE = re.compile(r"(?:disk|alt|top[0-9]+)-(.+)")


def disk_name(disk: GuestDisk) -> str:
    """The name of a disk's file among the inherited descriptors."""
    return f"disk {disk.serial}"


def base_name(disk: GuestDisk) -> str:
    """The same for the image it is a clone of."""
    return f"base of {disk.serial}"


def layer_name(disk: GuestDisk, number: int) -> str:
    """The same for one of its layers, the lowest of which is 0."""
    return f"layer {number} of {disk.serial}"


def key_name(disk: GuestDisk) -> str:
    """The same for the passphrase of an encrypted one."""
    return f"key of {disk.serial}"


def key_id(disk: GuestDisk) -> str:
    """QEMU's name for the passphrase."""
    return f"key-{disk.serial}"


def file_names(disk: GuestDisk) -> list[str]:
    """Those of all its files but its key."""
    base = [base_name(disk)] if disk.base is not None else []
    return [disk_name(disk), *base, *(layer_name(disk, number) for number, _ in list_layer_files(disk))]


def list_layer_files(disk: GuestDisk) -> list[tuple[int, DiskLayer]]:
    """Its layers that are files of its own, with their numbers."""
    return [(number, layer) for number, layer in enumerate(disk.layers) if layer.format != "nbd"]


def find_served(disk: GuestDisk) -> DiskLayer | None:
    """The layer that is served elsewhere; None: it has none."""
    return next((layer for layer in disk.layers if layer.format == "nbd"), None)


def nic_name(nic: GuestNic) -> str:
    """The same for a NIC's tap."""
    return f"tap {nic.ifname}"


def disk_node(serial: str) -> str:
    """The name of a disk's block node in QEMU's monitor."""
    return f"disk-{serial}"


def free_node(serial: str, taken: Container[str]) -> str:
    """A name for one more block node of the disk: a node can't be named anew, so what comes into its place, or over it, takes one
    that is free."""
    more = (f"top{number}-{serial}" for number in itertools.count(1))
    return next(name for name in itertools.chain((disk_node(serial), f"alt-{serial}"), more) if name not in taken)


def served_node(serial: str) -> str:
    """The block node of the server that a disk stands on."""
    return f"served-{serial}"


def find_serial(node: str) -> str | None:
    """The serial of the disk that a block node is or was the top of; None for any other node."""
    match = _NODE.fullmatch(node)
    return match and match[1]


def disk_id(disk: GuestDisk) -> str:
    return DISK_ID + disk.serial


def nic_id(nic: GuestNic) -> str:
    return NIC_ID + nic.mac.replace(":", "")


def nic_backend(id_: str) -> str:
    """The id of the backend of NIC ``id_``."""
    return f"net-{id_.removeprefix(NIC_ID)}"


def is_movable(plan: GuestPlan, disk: GuestDisk) -> bool:
    """Whether the disk can be taken from the guest while it runs: all but what it boots from and reads once."""
    return not disk.read_only and disk.serial != plan.disks[0].serial


def fdset(number: int) -> str:
    """QEMU's name for a file it was given open in set ``number``."""
    return f"/dev/fdset/{number}"


def given_name(disk: GuestDisk, number: int, descriptor: int) -> str:
    """QEMU's name for a file of the disk that it was given as ``descriptor``, in set ``number``. Of an RBD image that is the
    client's configuration, which librados opens for itself."""
    return f"/proc/self/fd/{descriptor}" if disk.rbd is not None else fdset(number)


def describe_disk(disk: GuestDisk, files: Mapping[str, str]) -> dict[str, Any]:
    """The block node of a disk. ``files``: what QEMU calls its files, by their names here. Each says what it stands on, so QEMU
    doesn't read that from a header."""
    more = {"node-name": disk_node(disk.serial), "discard": "unmap", "read-only": disk.read_only}
    if disk.rbd is not None:
        there = {"pool": disk.rbd.pool, "image": disk.rbd.image, "user": disk.rbd.user}
        return {"driver": "rbd", **there, "conf": files[disk_name(disk)], **more}
    below: list[tuple[str, str]] = [(base_name(disk), disk.base_format)] if disk.base is not None else []
    backing: dict[str, Any] | None = None
    served = find_served(disk)
    if served is not None:  # that is the whole disk, so nothing below it is seen
        below, backing = [], _connect(served_node(disk.serial), served.server)
    below += [(layer_name(disk, number), layer.format) for number, layer in list_layer_files(disk)]
    for name, format_ in below:
        backing = _stand(format_, files[name], backing) | {"read-only": True}
    encrypt = {"encrypt": {"format": "luks", "key-secret": key_id(disk)}} if disk.key else {}
    return _stand(disk.format, files[disk_name(disk)], backing) | encrypt | more


def _connect(node: str, server: str) -> dict[str, Any]:
    """Reads wait for as long as the server is away."""
    name, _, export = server.partition("/")
    return {
        "driver": "nbd",
        "node-name": node,
        "server": {"type": "unix", "path": name, "abstract": True, "tight": True},
        "export": export,
        "reconnect-delay": PATIENCE_SECONDS,
        "open-timeout": OPEN_SECONDS,
        "read-only": True,
    }


def _stand(format_: str, file: str, backing: dict[str, Any] | None) -> dict[str, Any]:
    node: dict[str, Any] = {"driver": format_, "file": {"driver": "file", "filename": file}}
    return node | {"backing": backing} if format_ == "qcow2" else node


def disk_properties(disk: GuestDisk) -> dict[str, str | int]:
    return {"drive": disk_node(disk.serial), "serial": disk.serial, "id": disk_id(disk)}


def nic_properties(nic: GuestNic) -> dict[str, str | int]:
    id_ = nic_id(nic)
    return {"netdev": nic_backend(id_), "mac": nic.mac, "host_mtu": nic.mtu, "id": id_}
