"""What a driver may know of the machine it runs on. No driver uses a path, address or total that is not in here."""

from __future__ import annotations

import msgspec


class Capacity(msgspec.Struct, frozen=True):
    """What this node offers to guests: ``cpu`` in cores, the rest in bytes."""

    cpu: float
    memory_bytes: int
    disk_bytes: int


class Host(msgspec.Struct, frozen=True):
    """One node's machine, as its drivers see it.

    ``state_dir`` survives a reboot (disks, images, saved memory, durable allocations); ``run_dir`` is short
    (socket paths have ~107 bytes) and may vanish at boot. ``link_prefix`` starts every link and namespace name weft
    makes here (≤ 4 characters; with a 10-character short id that fits the kernel's 15). ``underlay_address`` is this
    node's address towards the other nodes (VXLAN local end); ``underlay_link`` the interface that holds it.
    ``sysfs`` is where the kernel tells of its devices; ``devices`` False: those that are there are another node's of the
    same machine. ``echo_port`` is the UDP port that answers other nodes' probes. ``cgroup`` is this node's cgroup path
    below each controller's mount (relative, e.g. ``weft/ab12cd/n1``).
    """

    node: str
    node_uid: str
    state_dir: str
    run_dir: str
    link_prefix: str
    underlay_address: str
    underlay_link: str
    cgroup: str
    capacity: Capacity
    vxlan_port: int = 4789
    dns_upstream: bool = True
    sysfs: str = "/sys"
    devices: bool = True
    echo_port: int = 8445
