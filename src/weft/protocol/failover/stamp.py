"""A moment by a node's own clock, which others carry and give back. No two machines' clocks are compared so: who gets a stamp
back knows that what it was given for happened later. A stamp of another start of the machine means nothing."""

from __future__ import annotations


def write_stamp(boot_id: str, at: float) -> str:
    """Write a stamp; ``at``: seconds of CLOCK_BOOTTIME, rounded down to a millisecond."""
    return f"{boot_id}/{int(at * 1000)}"


def read_stamp(stamp: str, boot_id: str, now: float) -> float | None:
    """Seconds of CLOCK_BOOTTIME; None for one that isn't of this start of the machine, or of a moment that hasn't come."""
    of, _, written = stamp.partition("/")
    if of != boot_id or not written.isascii() or not written.isdigit() or len(written) > 15:
        return None
    at = int(written) / 1000
    return at if at <= now else None
