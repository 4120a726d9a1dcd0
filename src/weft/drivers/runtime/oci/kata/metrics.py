"""A container's usage, as its runtime reports it to containerd: by the counters of the node's version of control groups.
Pure."""

from __future__ import annotations

from typing import Any

from weft.contracts.driver.runtime import GuestStats
from weft.drivers.runtime.oci.containerd.messages import METRICS_V1, METRICS_V2, messages

NOTHING = GuestStats(0.0, 0, 0, 0)


def read_metrics(data: Any, *, disks: bool) -> GuestStats:
    """``data`` is an Any; zeros for what it doesn't have."""
    if data.type_url.endswith(METRICS_V1):
        metrics = messages["MetricsV1"].FromString(data.value)
        counts = {"read": 0, "write": 0}
        for entry in metrics.blkio.io_service_bytes_recursive:
            if entry.op.lower() in counts:
                counts[entry.op.lower()] += entry.value
        seconds, memory = metrics.cpu.usage.total / 1e9, metrics.memory.usage.usage
        read, written = counts["read"], counts["write"]
    elif data.type_url.endswith(METRICS_V2):
        metrics = messages["MetricsV2"].FromString(data.value)
        seconds, memory = metrics.cpu.usage_usec / 1e6, metrics.memory.usage
        read, written = sum(entry.rbytes for entry in metrics.io.usage), sum(entry.wbytes for entry in metrics.io.usage)
    else:
        return NOTHING
    return GuestStats(seconds, memory, *((read, written) if disks else (0, 0)))
