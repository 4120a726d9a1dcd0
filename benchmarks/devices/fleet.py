"""What the devices and the gateway of this benchmark both know."""

from __future__ import annotations

import msgspec

PASSWORD = "of all devices of a benchmark"


def name_device(number: int) -> str:
    return f"sensor-{number}"


class Outcome(msgspec.Struct):
    """Seconds, kilobytes."""

    messages: int
    middle: float
    slow: float  # 99 of 100 came sooner
    slowest: float
    cpu: float
    broker_cpu: float
    resident: int
    broker_resident: int
    fired: int
    refused: int
