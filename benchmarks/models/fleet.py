"""What the device and the gateway of this benchmark both know."""

from __future__ import annotations

import msgspec

PASSWORD = "of the device of a benchmark"
DEVICE = "fridge"


class Outcome(msgspec.Struct):
    """Counts; milliseconds; kilobytes."""

    runs: int
    late: int
    nan: int
    dead: int
    p99_ms: float
    resident: int
    runner_resident: int
