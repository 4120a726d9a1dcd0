"""How long leases and promises between two sites and their witness last. Pure.

A voter promises to let nobody else take over for ``promise`` seconds, by its own CLOCK_BOOTTIME, from when it answers. The primary
counts its lease, which is shorter, from before it asked. So no two clocks are compared: what separates both is the time that the
guests need to end, the error of both clocks' rates, and a second of slack.
"""

from __future__ import annotations

import msgspec

from weft.objects.errors import InvalidInput
from weft.objects.quantity import format_duration

RATE_ERROR = 0.01  # of a clock: no machine that keeps time is worse
SLACK_SECONDS = 1.0
PAUSE_SLACK_SECONDS = 5.0


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds."""

    renew: float = 2.0  # between two renewals
    lease: float = 20.0  # from before a renewal was sent: the primary's guests may run as long
    kill: float = 5.0  # from the end of the lease until no guest runs any more
    promise: float = 38.0  # from when a voter answers


# No time is left for a watchdog, which no node has: one whose kernel is stuck writes nothing, and its guard is the first to run
# after that. What two clusters and their witness use:
CLUSTERS = Timing(renew=5.0, lease=30.0, kill=5.0, promise=38.0)

# What a node and its servers use. ``lease`` counts from before a report was sent that was answered, ``promise`` from the node's
# last heartbeat until its guests may be started elsewhere.
NODES = Timing(renew=5.0, lease=45.0, kill=5.0, promise=60.0)


def stretch(seconds: float) -> float:
    """The seconds after which a server may count on a node's clock having counted ``seconds``."""
    return seconds * (1 + 2 * RATE_ERROR)


def count_pause(seconds: float) -> float:
    """The seconds of a pause that a node reads of, if its servers count ``seconds`` from now on: less, by the error of both clocks'
    rates, and by what the servers' own clocks may differ."""
    return max(0.0, seconds * (1 - 2 * RATE_ERROR) - PAUSE_SLACK_SECONDS)


def find_least_promise(timing: Timing) -> float:
    """Seconds that a promise must last, so that no guest of a lapsed primary runs when it ends."""
    return (timing.lease + timing.kill) * (1 + 2 * RATE_ERROR) + SLACK_SECONDS


def check_timing(timing: Timing) -> None:
    """Raises InvalidInput, which names the field."""
    if min(timing.renew, timing.lease, timing.kill) <= 0:
        raise InvalidInput("renew, lease and kill must be longer than 0", field="lease", hint="give them in seconds")
    if timing.renew * 4 > timing.lease:
        raise InvalidInput(
            f"renew: {format_duration(timing.renew)} is too long for a lease of {format_duration(timing.lease)}",
            field="renew",
            hint="four renewals must fit into a lease, so that three that are lost stop nothing",
        )
    if timing.promise < (least := find_least_promise(timing)):
        raise InvalidInput(
            f"promise: {format_duration(timing.promise)} is too short: guests of the former primary could still run",
            field="promise",
            hint=f"give {format_duration(round(least, 1))} at least, or a shorter lease",
        )
