"""Metrics of the disks and NICs of a workload, and of a node, from what its node counted. Pure.

Nodes may be hostile: there are as many disks and NICs as a workload may have, and their names are short words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from weft.kinds.node import NodePool
from weft.protocol.heartbeat import CERTIFICATE_END, MOST_DISKS, MOST_NICS, DeviceCounts

Labels = tuple[tuple[str, str], ...]
Found = tuple[str, Labels, float]
DISK_METRICS = (
    ("weft_guest_disk_read_bytes_total", "Bytes that a guest read from a disk"),
    ("weft_guest_disk_written_bytes_total", "Bytes that a guest wrote to a disk"),
    ("weft_guest_disk_reads_total", "Reads of a guest from a disk"),
    ("weft_guest_disk_writes_total", "Writes of a guest to a disk"),
    ("weft_guest_disk_read_seconds_total", "Time that these reads took together"),
    ("weft_guest_disk_write_seconds_total", "Time that these writes took together"),
)
NIC_METRICS = (
    ("weft_guest_network_received_bytes_total", "Bytes that a guest received by a NIC"),
    ("weft_guest_network_received_packets_total", "Packets that a guest received by a NIC"),
    ("weft_guest_network_received_dropped_packets_total", "Packets that a guest didn't take in time"),
    ("weft_guest_network_sent_bytes_total", "Bytes that a guest sent by a NIC"),
    ("weft_guest_network_sent_packets_total", "Packets that a guest sent by a NIC"),
    ("weft_guest_network_sent_dropped_packets_total", "Packets of a guest that its node dropped"),
)
CERTIFICATE_METRIC = "weft_certificate_expiry_timestamp_seconds"
# What a node counts, by its name in samples: metric, further labels, help.
NODE_METRICS: Mapping[str, tuple[str, Labels, str]] = {
    "cpu": ("weft_node_worked_cpu_seconds_total", (), "CPU time of all that ran on the node"),
    "memory.available": ("weft_node_memory_available_bytes", (), "Memory of the node that programs could get"),
    CERTIFICATE_END: (CERTIFICATE_METRIC, (("certificate", "node"),), "Time when a certificate ends, in unix seconds"),
    "temperature": ("weft_node_temperature_celsius", (), "Temperature of the hottest sensor"),
    **{
        f"pressure.{resource}{'.full' if full else ''}": (
            "weft_node_pressure_seconds_total",
            (("resource", resource), ("tasks", "all" if full else "some")),
            "Time in which tasks of the node waited for a resource",
        )
        for resource in ("cpu", "memory", "io")
        for full in (False, True)
    },
}
HELP = {
    **dict(DISK_METRICS),
    **dict(NIC_METRICS),
    **{metric: help_ for metric, _, help_ in NODE_METRICS.values()},
}
_DISK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,19}|")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
MOST_POOLS = 16
MOST = 2.0**63  # what counts beyond that lies
ALL_DISKS = "all"  # in place of the name, where they are counted together


def list_devices(labels: Labels, counts: DeviceCounts) -> Iterator[Found]:
    """Name, labels and value of each metric of a workload's disks and NICs."""
    for disk, of_disk in list(counts.disks.items())[:MOST_DISKS]:
        if _DISK.fullmatch(disk):
            yield from _pair(DISK_METRICS, (*labels, ("disk", disk or ALL_DISKS)), of_disk)
    for index, values in enumerate(counts.nics[:MOST_NICS]):
        yield from _pair(NIC_METRICS, (*labels, ("nic", str(index))), values)


def list_node(labels: Labels, counts: Mapping[str, float]) -> Iterator[Found]:
    """The same of a node's kernel."""
    for name, (metric, more, _) in NODE_METRICS.items():
        value = counts.get(name)
        if value is not None and -MOST < value < MOST:
            yield metric, (*labels, *more), value


def list_pools(labels: Labels, pools: Sequence[NodePool]) -> Iterator[Found]:
    """The same of a node's pools."""
    names = set[str]()
    for pool in pools[:MOST_POOLS]:
        if pool.name not in names and _WORD.fullmatch(pool.name):
            names.add(pool.name)
            yield "weft_node_pool_bytes", (*labels, ("pool", pool.name)), pool.total
            yield "weft_node_pool_free_bytes", (*labels, ("pool", pool.name)), pool.free


def _pair(metrics: Sequence[tuple[str, str]], labels: Labels, values: Sequence[float]) -> Iterator[Found]:
    """A value that isn't known is NaN."""
    for (name, _), value in zip(metrics, values, strict=False):
        if 0 <= value < MOST:
            yield name, labels, value
