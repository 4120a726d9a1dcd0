"""Metrics that an agent measures of its own machine, beside the kernel's counters: its clock, and when its certificate ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from weft.contracts.clock import Clock
from weft.protocol.heartbeat import CERTIFICATE_END, CLOCK, DeviceCounts
from weft.telemetry.metrics.certificate_end import read_ends

Count = Callable[[], tuple[dict[str, DeviceCounts], dict[str, float]]]


def add_own(count: Count, certificate: Path, clock: Clock) -> Count:
    """``count`` with both, for heartbeats."""

    def counted() -> tuple[dict[str, DeviceCounts], dict[str, float]]:
        devices, node = count()
        return devices, {**node, **read_ends({CERTIFICATE_END: certificate}), CLOCK: clock.now()}

    return counted
