"""Choose which workload of a drained node migrates next, and describe the drain. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec

from weft.kinds.migration import MigrationStatus
from weft.kinds.node import NOTHING_LEAVES, NodeActions

AT_ONCE = 2  # migrations from one node: more than one, so that the link isn't idle while one prepares
AHEAD_SECONDS = 3.0  # before a migration frees the link the next one begins: about as long as it takes to get ready
_NAMED, _REASONS = 5, 3  # most workloads that a message names, and most reasons for which they can't leave

Way = Literal["live", "cold", "runsOut", "notYet", "never"]  # runsOut: the drain waits for its end


class Evictee(msgspec.Struct, frozen=True, kw_only=True):
    """A workload that must leave the node."""

    key: str
    name: str
    uid: str
    project: str | None
    creator: str = ""
    way: Way
    phase: str
    cost: int  # bytes to transfer
    networks: tuple[str, ...] = ()
    migration: str = ""  # the one under way
    target: str = ""
    verdict: str = ""  # why that has no target, or why the last one failed
    retry_seconds: float = 0.0  # until a failed one is tried again
    last: str = ""  # uid of the last ended one
    link_free_in: float | None = None  # seconds until the migration needs the link no more; None: not known yet
    budgets: tuple[str, ...] = ()  # keys of disruption budgets that count it, if its migration stops it
    held: str = ""  # what one of them says, if others must come up first

    @property
    def stuck(self) -> bool:
        """Whether it can't migrate at present, even in its turn."""
        return bool(self.verdict) or self.way == "never"


class DrainWindow(msgspec.Struct, frozen=True):
    """Whether workloads may begin to leave now."""

    open: bool = True
    note: str = ""  # why not
    changes_after: float = 0.0  # seconds; 0: never

    @classmethod
    def of(cls, asked: NodeActions, now: float) -> DrainWindow:
        begin, end = asked.drain_not_before, asked.drain_not_after
        if begin is not None and now < begin:
            at = datetime.fromtimestamp(begin, UTC)
            return cls(False, f"the drain starts at {at:%Y-%m-%d %H:%M} UTC", begin - now)
        if end is not None and now >= end:
            return cls(False, "the drain window is over; drain the node again, or uncordon it")
        return cls(changes_after=end - now if end is not None else 0.0)


def choose_next(evictees: Sequence[Evictee], free: int, left: Mapping[str, int] = {}) -> list[Evictee]:
    """Those whose migration begins now: as many as may use the link, not counting migrations that free it before another gets
    ready, else it would be idle between two. Workloads that share a network go one after the other, so that they are on different
    nodes only briefly; the cheapest such group first, and in it the cheapest. A migration without a target delays no other, nor
    does one for which a budget has nothing ``left``: how many more may go down, by its key."""
    groups = _find_groups(evictees)
    waiting = [
        evictee
        for evictee in evictees
        if not evictee.migration and evictee.way in ("live", "cold") and not evictee.retry_seconds
    ]
    weight = {evictee.key: (groups[evictee.key], evictee.cost, evictee.key) for evictee in evictees}
    waiting.sort(key=lambda evictee: weight[evictee.key])
    migrating = [evictee for evictee in evictees if evictee.migration and not evictee.stuck]
    busy = sum(evictee.link_free_in is None or evictee.link_free_in > AHEAD_SECONDS for evictee in migrating)
    most, begun, left = (
        max(0, min(AT_ONCE - busy, 2 * AT_ONCE - len(migrating), free - busy)),
        list[Evictee](),
        dict(left),
    )
    for evictee in waiting:
        if len(begun) < most and all(left[budget] > 0 for budget in evictee.budgets):
            left.update({budget: left[budget] - 1 for budget in evictee.budgets})
            begun.append(evictee)
    return begun


def find_end(status: MigrationStatus) -> float | None:
    """Estimated seconds until a migration stops using the link; None if unknown."""
    if status.phase in ("Switching", "Finishing"):
        return 0.0
    progress = status.progress
    if status.phase != "Migrating" or progress is None or not progress.bytes_per_second or not progress.sent_bytes:
        return None
    net = progress.bytes_per_second - progress.dirty_bytes_per_second
    return progress.remaining_bytes / net if net > 0 else None


def _find_groups(evictees: Sequence[Evictee]) -> dict[str, tuple[int, str]]:
    """Cost and mark of each workload's group, by workload. Workloads that reach each other over shared networks are a group."""
    mark = {evictee.key: evictee.key for evictee in evictees}
    by_network: dict[str, str] = {}
    for evictee in evictees:
        for network in evictee.networks:
            one, other = mark[evictee.key], by_network.setdefault(network, mark[evictee.key])
            if one != other:
                mark = {key: other if now == one else now for key, now in mark.items()}
                by_network = {name: other if now == one else now for name, now in by_network.items()}
    costs: dict[str, int] = {}
    for evictee in evictees:
        costs[mark[evictee.key]] = costs.get(mark[evictee.key], 0) + evictee.cost
    return {evictee.key: (costs[mark[evictee.key]], mark[evictee.key]) for evictee in evictees}


def describe_drain(evictees: Sequence[Evictee], begun: set[str]) -> tuple[str, str]:
    """The condition's reason and message."""
    if not evictees:
        return "Drained", "nothing is left on the node"
    stuck = [evictee for evictee in evictees if evictee.stuck]
    migrating = [evictee for evictee in evictees if not evictee.stuck and (evictee.migration or evictee.key in begun)]
    ending = sum(evictee.way == "runsOut" for evictee in evictees)
    held: dict[str, list[str]] = {}
    for evictee in evictees:
        if evictee.held and not evictee.stuck:
            held.setdefault(evictee.held, []).append(evictee.name)
    waiting = len(evictees) - len(stuck) - len(migrating) - ending - sum(map(len, held.values()))
    parts = [f"{len(evictees)} left"]
    parts += _list_migrating(migrating)
    if waiting:
        parts.append(f"{waiting} wait{'s' if waiting == 1 else ''} for {'its' if waiting == 1 else 'their'} turn")
    if ending:
        parts.append(f"{ending} run{'s' if ending == 1 else ''} once, and end{'s' if ending == 1 else ''} here")
    parts += [f"{_name(names)} wait{'s' if len(names) == 1 else ''}: {why}" for why, names in held.items()]
    return "Blocked" if len(stuck) == len(evictees) else "Draining", "; ".join([*parts, *_list_stuck(stuck)])


def describe_silence(evictees: Sequence[Evictee], window: DrainWindow) -> tuple[str, str]:
    """The same of a silent node: whatever else keeps workloads there isn't the reason."""
    migrating = [evictee for evictee in evictees if not evictee.stuck and evictee.migration]
    notes = [*_list_migrating(migrating), *([] if window.open else [window.note])]
    return "Draining" if migrating else "Waiting", "; ".join([NOTHING_LEAVES, f"{len(evictees)} left", *notes])


def _list_migrating(migrating: Sequence[Evictee]) -> list[str]:
    names = [f"{one.name} → {one.target}" if one.target else one.name for one in migrating]
    return [f"migrating: {_name(names)}"] if names else []


def _list_stuck(stuck: Sequence[Evictee]) -> list[str]:
    """Workloads that can't leave, by what keeps them; each of a few reasons once."""
    by_reason: dict[str, list[str]] = {}
    for one in sorted(stuck, key=lambda one: one.key):
        why = one.verdict or f"phase {one.phase}; it can migrate once it runs or is stopped"
        by_reason.setdefault(why, []).append(one.name)
    shown = list(by_reason.items())[:_REASONS]
    more = len(stuck) - sum(len(names) for _, names in shown)
    parts = [f"{_name(names)} can't leave: {why}" for why, names in shown]
    return [*parts, f"and {more} more can't"] if more else parts


def _name(names: Sequence[str]) -> str:
    """Not all of many."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
