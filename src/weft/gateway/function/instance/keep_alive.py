"""Tells agents how long idle instances stay and how many should stand ready, as functions say or as it is learnt from how they are
invoked. Woken by the clock; an agent hears it when it is first told of a recipe, and when it changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.function import Recipe
from weft.gateway.function.instance.keep_alive_model import Choice, Learnt
from weft.gateway.function.instance.snapshots import Demand
from weft.kinds.function import FunctionSpec, keep_alive_of, ready_of
from weft.protocol.invocations import Keep

LOOK_SECONDS = 10.0
REFILL_SECONDS = 5.0  # how long it takes to have ready again what was taken
MOST_READY = 8  # that are learnt, of one function
READY_HALF_LIFE_SECONDS = 600.0
DEMAND_SECONDS = 60.0  # for so long after its last end something counts as being invoked
LEAST_MORE = 2  # instances that should fit where what is being invoked is prepared
LEAST_CHANGE = 0.2  # of the seconds; less isn't worth a message


class Talks(Protocol):
    """The part of what agents are told that is needed here."""

    def keep(self, digest: str, keep: Keep, node: str | None) -> None:
        """Tell all nodes that know the recipe; all but ``node`` to have none ready."""

    def best_of(self, digest: str) -> str | None:
        """The node where instances of the recipe should stand ready."""


class _Kept(msgspec.Struct):
    """One recipe that was invoked."""

    recipe: Recipe
    learnt: Learnt
    definition: FunctionSpec
    under_way: int = 0
    ended_at: float = -math.inf
    burst: int = 0  # cold starts in the refill time that runs
    burst_until: float = 0.0
    wanted: float = 0.0  # of such a time, the most of late
    told: Keep | None = None
    told_node: str | None = None


class KeepAliveController:
    """``begin`` and ``end`` hear of each invocation."""

    def __init__(self, clock: Clock, make: Callable[[], Learnt] = Learnt) -> None:
        self._clock, self._make = clock, make
        self._kept: dict[str, _Kept] = {}  # by digest
        self._looked_at = clock.elapsed()

    def begin(self, recipe: Recipe, spec: FunctionSpec) -> None:
        kept = self._kept.get(recipe.digest)
        if kept is None:
            kept = self._kept[recipe.digest] = _Kept(recipe, self._make(), spec)
        kept.definition = spec
        kept.under_way += 1
        kept.learnt.begin(self._clock.elapsed())

    def expect(self, recipe: Recipe, spec: FunctionSpec) -> None:
        """A recipe that is to have instances ready, or not to keep them, whether it is invoked or not."""
        kept = self._kept.setdefault(recipe.digest, _Kept(recipe, self._make(), spec))
        kept.definition = spec

    def disconnect(self, node: str) -> None:
        """That node has lost what was sent to it."""
        for kept in self._kept.values():
            if kept.told_node == node:
                kept.told = None

    def end(self, digest: str, *, cold: bool) -> None:
        kept = self._kept.get(digest)
        if kept is None:
            return
        now = self._clock.elapsed()
        kept.under_way = max(0, kept.under_way - 1)
        kept.ended_at = now
        kept.learnt.end(now)
        if cold:
            if now > kept.burst_until:
                kept.burst, kept.burst_until = 0, now + REFILL_SECONDS
            kept.burst += 1
            kept.wanted = max(kept.wanted, float(kept.burst))

    def keep_of(self, digest: str) -> Keep | None:
        """What to tell a node that hears of the recipe for the first time: none ready, that is for the update that follows."""
        kept = self._kept.get(digest)
        if kept is not None and kept.told is not None:
            return msgspec.structs.replace(kept.told, ready=0)
        seconds = None if kept is None else keep_alive_of(kept.definition)
        return Keep(digest, Choice().idle_seconds if seconds is None else seconds)

    def update(self, talks: Talks) -> None:
        """Tell agents what is another by now."""
        now = self._clock.elapsed()
        share = 0.5 ** ((now - self._looked_at) / READY_HALF_LIFE_SECONDS)
        self._looked_at = now
        for digest, kept in self._kept.items():
            kept.wanted *= share
            keep = self._choose(kept, now)
            node = talks.best_of(digest) if keep.ready else None
            if kept.told is None or node != kept.told_node or _differs(kept.told, keep):
                kept.told, kept.told_node = keep, node
                talks.keep(digest, keep, node)

    def find_demands(self) -> list[Demand]:
        """What is being invoked in machines of its own: as many instances again as are at work now may be wanted next."""
        now = self._clock.elapsed()
        return [
            Demand(kept.recipe, min(max(LEAST_MORE, kept.under_way), kept.definition.max_concurrent - kept.under_way))
            for kept in self._kept.values()
            if kept.recipe.isolation == "vm" and (kept.under_way or now - kept.ended_at < DEMAND_SECONDS)
        ]

    def forget(self, digests: Iterable[str]) -> None:
        for digest in digests:
            self._kept.pop(digest, None)

    def _choose(self, kept: _Kept, now: float) -> Keep:
        seconds, ready = keep_alive_of(kept.definition), ready_of(kept.definition)
        choice = Choice(seconds) if seconds is not None else kept.learnt.choose(now)
        since = 0.0 if kept.under_way else now - kept.ended_at
        is_due = choice.warm_after > 0 and choice.warm_after <= since + LOOK_SECONDS and since < choice.warm_until
        idle = choice.warm_until - choice.warm_after if is_due else choice.idle_seconds
        if ready is None:
            ready = self._learn_ready(kept, since, choice, is_due=is_due)
        return Keep(kept.recipe.digest, round(idle, 1), ready)

    def _learn_ready(self, kept: _Kept, since: float, choice: Choice, *, is_due: bool) -> int:
        """Copies of a template are had ahead of demand for as long as an idle instance would be kept, as many as were lately needed
        at once; of other instances, which are as dear ready as idle, one where it was ended to be started anew."""
        if kept.recipe.isolation != "vm":
            return 1 if is_due else 0
        if since > max(choice.idle_seconds, LOOK_SECONDS) and not is_due:
            return 0
        return min(MOST_READY, max(1, math.ceil(kept.wanted - 0.5)))


def _differs(told: Keep, keep: Keep) -> bool:
    return told.ready != keep.ready or abs(told.idle_seconds - keep.idle_seconds) > LEAST_CHANGE * told.idle_seconds
