"""Deadlines of guarded guests on this node, and what is said of them. Pure. Times are seconds of CLOCK_BOOTTIME."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from weft.contracts.guard import Held
from weft.failover.timing import CLUSTERS
from weft.protocol.failover.guarded import HELD, READY
from weft.protocol.failover.stamp import read_stamp

START_SECONDS = 3.0  # that must be left for a guest to be started
REVIEW_SECONDS, RETRY_SECONDS = 10.0, 1.0


class GuardedGuest(msgspec.Struct, frozen=True):
    id: str  # the allocation's short id
    workload: str  # uid
    mode: Literal["begin", "hold"]
    was_held: bool = False  # the guard has held it here before, so its replica may have been told to take over


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
    """Plan the guard. ``until``: as stamps say; ``held``: what the guard holds. A guest that was held, and was never confirmed here
    since what the guard held was lost, ends: the other cluster may have taken over. One that was never held waits for its first
    stamp: nothing takes over before this node has reported that it is held."""
    wanted = {
        guest.id: until.get(guest.id, 0.0)
        for guest in guests.values()
        if guest.mode == "hold" and (guest.id in until or guest.id in held or guest.was_held)
    }
    return GuardPlan(
        renew={name: at for name, at in wanted.items() if name not in held or held[name].until < at},
        drop=tuple(sorted(held.keys() - wanted.keys())),
    )


def explain_unheld(held: Held | None, now: float) -> str:
    """Why a guest that has to be held may not start now, or ""."""
    if held is not None and held.until - now > START_SECONDS:
        return ""
    return (
        "neither the witness nor the other cluster has confirmed that this cluster is primary for it: it starts once one of them "
        "does, unless the other cluster took over; if both are gone for good and it runs nowhere else: weft replication run-alone "
        "NAME"
    )


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
