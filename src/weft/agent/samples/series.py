"""Series that the samples of a workload or node have, and how counters become their values. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from weft.contracts.driver.network import NicCounts
from weft.protocol.heartbeat import DeviceCounts
from weft.telemetry.samples.layout import NAN, Series

LEAST_SECONDS = 0.05  # between two readings: less is noise
# The unit of what is counted, by its name, or by the last part of it.
_VALUES = {"memory": "bytes", "pool": "bytes", "temperature": "celsius"}
_RATES = {
    "cpu": "cores",
    "steal": "cores",
    "throttled": "cores",
    "pressure": "share",
    "read": "bytes/s",
    "written": "bytes/s",
    "reads": "operations/s",
    "writes": "operations/s",
    "busy": "share",
    "received": "bytes/s",
    "sent": "bytes/s",
    "received_packets": "packets/s",
    "sent_packets": "packets/s",
    "received_drops": "packets/s",
    "sent_drops": "packets/s",
}
_LATENCIES = {"read_seconds": ("read_latency", "reads"), "write_seconds": ("write_latency", "writes")}
_DEVICE = re.compile(r"(disk|nic[0-9]*)\.")
DISK_PARTS = ("read", "written", "reads", "writes", "read_seconds", "write_seconds")
NIC_PARTS = ("received", "received_packets", "received_drops", "sent", "sent_packets", "sent_drops")
assert len(NIC_PARTS) == len(NicCounts._fields)


class Measure(msgspec.Struct, frozen=True):
    """How one series comes from what is counted."""

    series: Series
    counter: str
    grows: bool = True  # the series is how fast; else it is the value itself
    per: str = ""  # how fast as seen from this counter, not from the clock


def plan_measure(counter: str) -> Measure:
    """The series of a counter, which is one that drivers may have: see ``Counted`` and ``NicCounts``."""
    first, _, _ = counter.partition(".")
    before, _, last = counter.rpartition(".")
    if first in _VALUES:
        return Measure(Series(counter, _VALUES[first]), counter, grows=False)
    if _DEVICE.match(counter) is None:
        return Measure(Series(counter, _RATES[first]), counter)
    if last in _LATENCIES:
        name, of = _LATENCIES[last]
        return Measure(Series(f"{before}.{name}", "s"), counter, per=f"{before}.{of}")
    return Measure(Series(counter, _RATES[last]), counter)


def plan_measures(counters: Iterable[str]) -> tuple[Measure, ...]:
    """See ``plan_measure``."""
    return tuple(plan_measure(counter) for counter in counters)


def name_nic_counters(index: int) -> tuple[str, ...]:
    """The counters of a workload's NIC, in the order of ``NicCounts``."""
    return tuple(f"nic{index}.{part}" for part in NIC_PARTS)


def compute_values(
    measures: Iterable[Measure], before: Mapping[str, float], now: Mapping[str, float], seconds: float
) -> list[float]:
    """The value of each, from counters ``seconds`` apart; NaN where one isn't known, or went back because what counts began
    again."""
    values = []
    for measure in measures:
        counter = measure.counter
        value = now.get(counter, NAN)
        if measure.grows:
            per, divisor = measure.per, seconds
            if per:
                divisor = now.get(per, NAN) - before.get(per, NAN)
            grown = value - before.get(counter, NAN)
            value = grown / divisor if grown >= 0 and divisor > 0 else NAN
        values.append(value)
    return values


def gather_devices(counted: Mapping[str, float]) -> DeviceCounts:
    """A workload's counters, disk by disk and NIC by NIC."""
    disks: dict[str, list[float]] = {}
    nics: dict[int, list[int]] = {}
    for name, value in counted.items():
        device, _, part = name.rpartition(".")
        if device.startswith("disk") and part in DISK_PARTS:
            counts = disks.setdefault(device[5:], [-1.0] * len(DISK_PARTS))
            counts[DISK_PARTS.index(part)] = value
        elif device.startswith("nic") and part in NIC_PARTS:
            nics.setdefault(int(device[3:]), [-1] * len(NIC_PARTS))[NIC_PARTS.index(part)] = int(value)
    return DeviceCounts(disks, [nics.get(index, [-1] * len(NIC_PARTS)) for index in range(max(nics, default=-1) + 1)])
