"""Deadlines of guarded guests on this node, and what is said of them. Pure. Times are seconds of CLOCK_BOOTTIME."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from weft.contracts.guard import MOST_GUESTS, Held
from weft.failover.timing import CLUSTERS, NODES
from weft.objects.quantity import format_duration
from weft.protocol.failover.guarded import HELD, READY
from weft.protocol.failover.stamp import read_stamp

START_SECONDS = 3.0  # that must be left for a guest to be started
REVIEW_SECONDS, RETRY_SECONDS = 10.0, 1.0
UNCONFIRMED = (
    "neither the witness nor the other cluster has confirmed that this cluster is primary for it: it starts once one of them "
    "does, unless the other cluster took over; if both are gone for good and it runs nowhere else: weft replication run-alone NAME"
)
UNHEARD = "the servers have not confirmed lately that it belongs on this node: it starts once they do, unless it has another then"


class GuardedGuest(msgspec.Struct, frozen=True):
    """A guest that may be ended: its cluster isn't known to be primary for it (``mode``), or its node isn't heard."""

    id: str  # the allocation's short id
    workload: str  # uid
    mode: Literal["", "begin", "hold"]
    was_held: bool = False  # the guard has held it here before, so its replica may have been told to take over
    ends_if_lost: bool = False
    was_guarded: bool = False  # the guard has held it for that, so the servers may count on it
    lease: float = NODES.lease  # how long it may run from an answered report on
    answered_until: float | None = None  # by the newest one; None: none counts now


class GuardPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The plan that the guard receives."""

    renew: dict[str, float] = {}  # until when, by the guest's id
    drop: tuple[str, ...] = ()


def find_until(stamp: str, boot_id: str, now: float) -> float | None:
    """The time until which a guest may run whose cluster was confirmed as primary after ``stamp``; None for a stamp that means
    nothing."""
    at = read_stamp(stamp, boot_id, now)
    return None if at is None else at + CLUSTERS.lease


def plan_guard(guests: Mapping[str, GuardedGuest], until: Mapping[str, float], held: Mapping[str, Held]) -> GuardPlan:
    """Plan the guard. ``until``: as stamps say; ``held``: what the guard holds. It refuses more than MOST_GUESTS: then some that it
    holds would end, since nobody renewed them."""
    ends = {name: find_end(guest, until.get(name), held.get(name)) for name, guest in guests.items()}
    drop = tuple(sorted(name for name in held if ends.get(name) is None))
    renew = {name: at for name, at in ends.items() if at is not None and name in held and held[name].until != at}
    free = MOST_GUESTS - len(held) + len(drop)
    fresh = [name for name, at in ends.items() if at is not None and name not in held]
    fresh.sort(
        key=lambda name: not (guests[name].was_held or guests[name].was_guarded)
    )  # others may count on their end
    return GuardPlan(renew=renew | {name: at for name in fresh[:free] if (at := ends[name]) is not None}, drop=drop)


def find_end(guest: GuardedGuest, confirmed: float | None, held: Held | None) -> float | None:
    """The time until which the guard lets it run: the earlier one of both reasons counts. None: it isn't held."""
    ends = [at for applies, at in _list_ends(guest, confirmed, held) if applies and at is not None]
    if not ends and held is not None and (guest.mode == "hold" or guest.ends_if_lost):
        return held.until  # by an agent that was killed before it saved that
    return min(ends, default=None)


def _list_ends(
    guest: GuardedGuest, confirmed: float | None, held: Held | None
) -> tuple[tuple[bool, float | None], tuple[bool, float | None]]:
    """Whether it ends with its cluster, and with its node, and until when each lets it run.

    A guest that was held for a reason, and was never confirmed here since what the guard held was lost, ends: it may have another
    place. One that was never held waits for its first confirmation, None: nobody counts on it before this node has reported
    that."""

    def find(at: float | None, was_held: bool) -> float | None:
        return max(at or 0.0, held.until if held is not None else 0.0) if was_held else at

    return (
        (guest.mode == "hold", find(confirmed, guest.was_held)),
        (guest.ends_if_lost, find(guest.answered_until, guest.was_guarded)),
    )


def explain_wait(
    guest: GuardedGuest, confirmed: float | None, held: Held | None, now: float, *, can_hold: bool = True
) -> str:
    """Why a guest that has to be held may not start now, or "". ``can_hold``: this node has a guard; without one, a guest that ends
    with its node needs the servers' word only."""
    (ends, at), (ends_if_lost, heard) = _list_ends(guest, confirmed, held)
    if ends_if_lost and not _lasts(heard if can_hold else guest.answered_until, now):
        return UNHEARD
    if ends and not _lasts(at, now):
        return UNCONFIRMED
    if (ends or (ends_if_lost and can_hold)) and not _lasts(held.until if held is not None else None, now):
        return UNCONFIRMED if ends else UNHEARD
    return ""


def _lasts(until: float | None, now: float) -> bool:
    return until is not None and until - now > START_SECONDS


def explain_end(guest: GuardedGuest, confirmed: float | None) -> str:
    """Why the guard has ended it."""
    if guest.ends_if_lost and (guest.mode != "hold" or (confirmed or 0.0) > (guest.answered_until or 0.0)):
        return f"the servers had not confirmed this node's heartbeats for {format_duration(guest.lease)}"
    return "neither the witness nor the other cluster confirmed in time that this cluster is primary for it"


def describe_guard(guest: GuardedGuest, until: float | None, held: Held | None, now: float, problem: str) -> str:
    """Describe a guest for the node's report. ``problem``: why guests can't be ended here, or ""."""
    if problem:
        return problem
    if guest.mode == "hold":
        return HELD if held is not None and guest.was_held else READY
    return READY if until is not None and until > now else ""


def find_pause(held: Mapping[str, Held], now: float) -> float:
    """Seconds until the words about one of them may change without any news."""
    times = [at - now for one in held.values() for at in (one.until - START_SECONDS, one.until) if at > now]
    return min([REVIEW_SECONDS, *times])
