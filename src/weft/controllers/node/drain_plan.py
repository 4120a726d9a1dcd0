"""Whose migration away from a node begins next, and what is told of it: who is to leave in, choices and words out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec

from weft.kinds.migration import MigrationStatus
from weft.kinds.node import NodeSpec

AT_ONCE = 2  # migrations from one node: more than one, so that one that prepares doesn't leave the link idle
AHEAD_SECONDS = 3.0  # before a migration leaves the link the next one begins: about as long as it takes to get ready
_NAMED = 5  # workloads that are told by name

Way = Literal["live", "cold", "runsOut", "notYet", "never"]  # runsOut: it is waited for


class Evictee(msgspec.Struct, frozen=True, kw_only=True):
    """A workload that is to leave. ``cost``: bytes that will go over. ``verdict``: why it has no target, of the Migration
    ``migration`` that is under way, or why the last one (whose uid is ``last``) failed, which is ``retry_seconds`` from being
    tried again. ``leaves_link``: in about how many seconds that one needs the link no more; None: that can't be told yet."""

    key: str
    name: str
    uid: str
    project: str | None
    way: Way
    phase: str
    cost: int
    networks: tuple[str, ...] = ()
    migration: str = ""
    target: str = ""
    verdict: str = ""
    retry_seconds: float = 0.0
    last: str = ""
    leaves_link: float | None = None

    @property
    def stuck(self) -> bool:
        """Nothing of it migrates, and not for want of its turn."""
        return bool(self.verdict) or self.way == "never"


class Window(msgspec.Struct, frozen=True):
    """Whether workloads may begin to leave now; ``note`` says why not. It changes after so many seconds; 0: never."""

    open: bool = True
    note: str = ""
    changes_after: float = 0.0

    @classmethod
    def of(cls, spec: NodeSpec, now: float) -> Window:
        begin, end = spec.drain_not_before, spec.drain_not_after
        if begin is not None and now < begin:
            at = datetime.fromtimestamp(begin, UTC)
            return cls(False, f"the drain starts at {at:%Y-%m-%d %H:%M} UTC", begin - now)
        if end is not None and now >= end:
            return cls(False, "the drain window is over; drain the node again, or uncordon it")
        return cls(changes_after=end - now if end is not None else 0.0)


def choose_next(leavers: Sequence[Evictee], free: int) -> list[Evictee]:
    """Whose migration begins now: as many as may use the link, beside those that need it for no longer than others take to get
    ready, else it would lie idle between two migrations. Those that share a network go one after the other, so that they are
    apart for a short time; the cheapest such group first, and in it the cheapest. What finds no target holds up nobody."""
    groups = _find_groups(leavers)
    waiting = [
        leaver
        for leaver in leavers
        if not leaver.migration and leaver.way in ("live", "cold") and not leaver.retry_seconds
    ]
    weight = {leaver.key: (groups[leaver.key], leaver.cost, leaver.key) for leaver in leavers}
    waiting.sort(key=lambda leaver: weight[leaver.key])
    migrating = [leaver for leaver in leavers if leaver.migration and not leaver.stuck]
    busy = sum(leaver.leaves_link is None or leaver.leaves_link > AHEAD_SECONDS for leaver in migrating)
    return waiting[: max(0, min(AT_ONCE - busy, 2 * AT_ONCE - len(migrating), free - busy))]


def find_end(status: MigrationStatus) -> float | None:
    """In about how many seconds a migration needs the link no more; None: that can't be told."""
    if status.phase in ("Switching", "Finishing"):
        return 0.0
    progress = status.progress
    if status.phase != "Migrating" or progress is None or not progress.bytes_per_second or not progress.sent_bytes:
        return None
    net = progress.bytes_per_second - progress.dirty_bytes_per_second
    return progress.remaining_bytes / net if net > 0 else None


def _find_groups(leavers: Sequence[Evictee]) -> dict[str, tuple[int, str]]:
    """By workload: what its group costs, and the group's mark. A group is what reaches each other over shared networks."""
    mark = {leaver.key: leaver.key for leaver in leavers}
    by_network: dict[str, str] = {}
    for leaver in leavers:
        for network in leaver.networks:
            one, other = mark[leaver.key], by_network.setdefault(network, mark[leaver.key])
            if one != other:
                mark = {key: other if now == one else now for key, now in mark.items()}
                by_network = {name: other if now == one else now for name, now in by_network.items()}
    costs: dict[str, int] = {}
    for leaver in leavers:
        costs[mark[leaver.key]] = costs.get(mark[leaver.key], 0) + leaver.cost
    return {leaver.key: (costs[mark[leaver.key]], mark[leaver.key]) for leaver in leavers}


def describe_drain(leavers: Sequence[Evictee], begun: set[str]) -> tuple[str, str]:
    """The condition's reason and message."""
    if not leavers:
        return "Drained", "nothing is left on the node"
    stuck = [leaver for leaver in leavers if leaver.stuck]
    migrating = [leaver for leaver in leavers if not leaver.stuck and (leaver.migration or leaver.key in begun)]
    ending = sum(leaver.way == "runsOut" for leaver in leavers)
    waiting = len(leavers) - len(stuck) - len(migrating) - ending
    parts = [f"{len(leavers)} left"]
    if migrating:
        parts.append(
            "migrating: "
            + ", ".join(f"{one.name} → {one.target}" if one.target else one.name for one in migrating[:_NAMED])
        )
    if waiting:
        parts.append(f"{waiting} wait{'s' if waiting == 1 else ''} for {'its' if waiting == 1 else 'their'} turn")
    if ending:
        parts.append(f"{ending} run{'s' if ending == 1 else ''} once, and end{'s' if ending == 1 else ''} here")
    parts += [f"{leaver.name} can't leave: {_tell(leaver)}" for leaver in stuck[:_NAMED]]
    if len(stuck) > _NAMED:
        parts.append(f"and {len(stuck) - _NAMED} more can't")
    return "Blocked" if len(stuck) == len(leavers) else "Draining", "; ".join(parts)


def _tell(leaver: Evictee) -> str:
    return leaver.verdict or f"it is {leaver.phase}; it can move once it runs or is stopped"
