"""The place of a lease in time, by this node's clock. Pure."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from weft.contracts.driver.runtime import GuestFacts
from weft.kinds.fields.lease import AllocatedLease, find_pause

# waits: nothing is begun; ahead: it boots; imminent: its machine is held, to go on at its start; active: it runs, as without a
# lease; suspended: another workload has its capacity, from now on or for a planned pause; over: it ends.
Stage = Literal["waits", "ahead", "imminent", "active", "suspended", "over"]
FETCH_AHEAD_SECONDS = 3600.0  # before its preparation: a slow registry mustn't take the time for that
HELD_SECONDS = (
    10.0  # before its start: by then it has booted, its own network included, or little of that is left to do
)


def find_stage(lease: AllocatedLease | None, now: float) -> tuple[Stage, float]:
    """The stage at ``now`` (seconds since 1970), and in how many seconds the next one begins; infinite if none does."""
    if lease is None:
        return "active", math.inf
    if lease.cancelled:
        return "over", math.inf
    if lease.suspension is not None:
        if now >= lease.suspension.at:
            return "suspended", math.inf
        stage, wait = find_stage(msgspec.structs.replace(lease, suspension=None), now)
        return stage, min(wait, lease.suspension.at - now)
    if now < lease.prepare_at:
        return "waits", lease.prepare_at - now
    if now < lease.start - HELD_SECONDS:
        return "ahead", lease.start - HELD_SECONDS - now
    if now < lease.start:
        return "imminent", lease.start - now
    if lease.end is None:
        return "active", math.inf
    if now >= lease.end:
        return "over", math.inf
    pause = find_pause(lease, now)
    if pause is None:
        return "active", lease.end - now
    if now >= pause.at:
        return "suspended", min(pause.until, lease.end) - now
    return "active", min(pause.at, lease.end) - now


def is_soon(lease: AllocatedLease | None, now: float) -> bool:
    """Whether a lease's image may be fetched ahead of its preparation."""
    return lease is not None and now >= lease.prepare_at - FETCH_AHEAD_SECONDS


def postpone(stage: Stage, *, prepares: bool) -> Stage:
    """The stage of a lease that may not begin; ``prepares``: its preparation has begun."""
    if stage in ("ahead", "imminent", "active") and not prepares:
        return "waits"
    return "imminent" if stage == "active" else stage


def closes_ports(lease: AllocatedLease | None, guest: GuestFacts | None, now: float, *, begun: bool = True) -> bool:
    """Whether the ports of an allocation let nothing through: its guest may boot ahead of its lease. One that is held answers
    nobody, so its ports are open by its start, which waits for no network."""
    held = guest is not None and guest.held
    return not held and (not begun or find_stage(lease, now)[0] in ("waits", "ahead", "imminent"))
