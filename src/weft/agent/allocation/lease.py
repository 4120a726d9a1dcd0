"""Where a lease is in time, by this node's clock. Pure."""

from __future__ import annotations

import math
from typing import Literal

from weft.kinds.fields.lease import AllocatedLease

# waits: nothing is begun; ahead: it boots, to run at its start; active: it runs, as without a lease; over: it ends.
Stage = Literal["waits", "ahead", "active", "over"]


def find_stage(lease: AllocatedLease | None, now: float) -> tuple[Stage, float]:
    """The stage at ``now`` (seconds since 1970), and in how many seconds the next one begins; infinite if none does."""
    if lease is None:
        return "active", math.inf
    if lease.cancelled:
        return "over", math.inf
    if now < lease.prepare_at:
        return "waits", lease.prepare_at - now
    if now < lease.start:
        return "ahead", lease.start - now
    if lease.end is None:
        return "active", math.inf
    return ("active", lease.end - now) if now < lease.end else ("over", math.inf)
