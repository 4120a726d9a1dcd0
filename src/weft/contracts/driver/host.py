"""Facts that a driver may know about the machine it runs on. No driver uses a path, address or total that is not in here."""

from __future__ import annotations

import msgspec


class Capacity(msgspec.Struct, frozen=True):
    """The capacity that this node offers to guests: ``cpu`` in cores, the rest in bytes."""

    cpu: float
    memory_bytes: int
    disk_bytes: int


class Host(msgspec.Struct, frozen=True):
    """One node's machine, as its drivers see it."""

    node: str
    node_uid: str
    state_dir: str  # survives a reboot: disks, images, saved memory, durable allocations
    run_dir: str  # short (socket paths have ~107 bytes), and may vanish at boot
    link_prefix: (
        str  # of every link and namespace weft makes here; ≤ 4 characters, so a 10-character id fits the kernel's 15
    )
    underlay_address: str  # this node's address towards the other nodes (VXLAN local end)
    underlay_link: str  # the interface that holds it
    cgroup: str  # below each controller's mount (relative, e.g. ``weft/ab12cd/n1``)
    capacity: Capacity
    vxlan_port: int = 4789
    dns_upstream: bool = True
    sysfs: str = "/sys"  # where the kernel lists its devices
    devices: bool = True  # False: the devices there belong to another node of the same machine
    echo_port: int = 8445  # UDP port that answers other nodes' probes
