"""Disks and NICs as QEMU knows them: their ids, and how each is described, at a start or while the guest runs. Pure.

A device's id says what it is (the disk's serial, the NIC's MAC), so that a driver that finds a machine knows what it has.
"""

from __future__ import annotations

from typing import Any

from weft.contracts.driver.runtime import GuestDisk, GuestNic, GuestPlan

DISK_ID, NIC_ID = "blk-", "nic-"


def disk_name(disk: GuestDisk) -> str:
    """The name of a disk's file among the inherited descriptors."""
    return f"disk {disk.serial}"


def base_name(disk: GuestDisk) -> str:
    """The same for the image it is a clone of."""
    return f"base of {disk.serial}"


def nic_name(nic: GuestNic) -> str:
    """The same for a NIC's tap."""
    return f"tap {nic.ifname}"


def disk_node(serial: str) -> str:
    """The name of a disk's block node in QEMU's monitor."""
    return f"disk-{serial}"


def node_names(serial: str) -> tuple[str, str]:
    """The names that a disk's block node may have: a node can't be named anew, so what a disk is relocated to takes the other."""
    return disk_node(serial), f"alt-{serial}"


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


def describe_disk(disk: GuestDisk, file: str, base_file: str | None) -> dict[str, Any]:
    """The block node of a disk. It always names the backing file, so QEMU doesn't read that from the disk's header."""
    node: dict[str, Any] = {
        "driver": disk.format,
        "node-name": disk_node(disk.serial),
        "discard": "unmap",
        "read-only": disk.read_only,
        "file": {"driver": "file", "filename": file},
    }
    if disk.format == "qcow2":
        node["backing"] = None
    if base_file is not None:
        base = {"driver": disk.base_format, "file": {"driver": "file", "filename": base_file}, "read-only": True}
        node["backing"] = base | ({"backing": None} if disk.base_format == "qcow2" else {})
    return node


def disk_properties(disk: GuestDisk) -> dict[str, str | int]:
    return {"drive": disk_node(disk.serial), "serial": disk.serial, "id": disk_id(disk)}


def nic_properties(nic: GuestNic) -> dict[str, str | int]:
    id_ = nic_id(nic)
    return {"netdev": nic_backend(id_), "mac": nic.mac, "host_mtu": nic.mtu, "id": id_}
