"""Sends agents how long idle instances stay and how many should be ready, by the function's spec or as learnt from its invocations.
Woken by the clock; an agent gets it with a new recipe, and when it changes."""

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

CHECK_SECONDS = 10.0
REFILL_SECONDS = 5.0  # how long it takes to replace a ready instance
MOST_READY = 8  # that are learnt, of one function
READY_HALF_LIFE_SECONDS = 600.0
DEMAND_SECONDS = 60.0  # for so long after its last invocation a function counts as being invoked
LEAST_MORE = 2  # more instances should fit on the nodes that have prepared a function in demand
LEAST_CHANGE = 0.2  # of the seconds; less isn't worth a message


class Talks(Protocol):
    """The part of Agents that is needed here."""

    def keep(self, digest: str, keep: Keep, node: str | None) -> None:
        """Send ``keep`` to all nodes that have the recipe; with none ready to all but ``node``."""

    def best_of(self, digest: str) -> str | None:
        """The node where instances of the recipe should be ready."""


class _KeptRecipe(msgspec.Struct):
    """One recipe that was invoked."""

    recipe: Recipe
    learnt: Learnt
    definition: FunctionSpec
    under_way: int = 0
    ended_at: float = -math.inf
    burst: int = 0  # cold starts in the present refill time
    burst_until: float = 0.0
    wanted: float = 0.0  # the most cold starts in a refill time of late
    sent: Keep | None = None
    sent_node: str | None = None


class KeepAliveController:
    """``begin`` and ``end`` are called for each invocation."""

    def __init__(self, clock: Clock, make: Callable[[], Learnt] = Learnt) -> None:
        self._clock, self._make = clock, make
        self._kept: dict[str, _KeptRecipe] = {}  # by digest
        self._updated_at = clock.elapsed()

    def begin(self, recipe: Recipe, spec: FunctionSpec) -> None:
        kept = self._kept.get(recipe.digest)
        if kept is None:
            kept = self._kept[recipe.digest] = _KeptRecipe(recipe, self._make(), spec)
        kept.definition = spec
        kept.under_way += 1
        kept.learnt.begin(self._clock.elapsed())

    def expect(self, recipe: Recipe, spec: FunctionSpec) -> None:
        """A recipe whose spec has instances ready, or keeps none: it counts before its first invocation."""
        kept = self._kept.setdefault(recipe.digest, _KeptRecipe(recipe, self._make(), spec))
        kept.definition = spec

    def disconnect(self, node: str) -> None:
        """Note that the node has lost the messages sent to it."""
        for kept in self._kept.values():
            if kept.sent_node == node:
                kept.sent = None

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
        """The Keep of a node with a new recipe: none ready; the next update sends that."""
        kept = self._kept.get(digest)
        if kept is not None and kept.sent is not None:
            return msgspec.structs.replace(kept.sent, ready=0)
        seconds = None if kept is None else keep_alive_of(kept.definition)
        return Keep(digest, Choice().idle_seconds if seconds is None else seconds)

    def update(self, talks: Talks) -> None:
        """Send agents what has changed."""
        now = self._clock.elapsed()
        share = 0.5 ** ((now - self._updated_at) / READY_HALF_LIFE_SECONDS)
        self._updated_at = now
        for digest, kept in self._kept.items():
            kept.wanted *= share
            keep = self._choose(kept, now)
            node = talks.best_of(digest) if keep.ready else None
            if kept.sent is None or node != kept.sent_node or _differs(kept.sent, keep):
                kept.sent, kept.sent_node = keep, node
                talks.keep(digest, keep, node)

    def find_demands(self) -> list[Demand]:
        """The demand for recipes in machines of their own: next, twice as many instances as now may be needed."""
        now = self._clock.elapsed()
        return [
            Demand(kept.recipe, min(max(LEAST_MORE, kept.under_way), kept.definition.max_concurrent - kept.under_way))
            for kept in self._kept.values()
            if kept.recipe.isolation == "vm" and (kept.under_way or now - kept.ended_at < DEMAND_SECONDS)
        ]

    def forget(self, digests: Iterable[str]) -> None:
        for digest in digests:
            self._kept.pop(digest, None)

    def _choose(self, kept: _KeptRecipe, now: float) -> Keep:
        seconds, ready = keep_alive_of(kept.definition), ready_of(kept.definition)
        choice = Choice(seconds) if seconds is not None else kept.learnt.choose(now)
        since = 0.0 if kept.under_way else now - kept.ended_at
        is_due = choice.warm_after > 0 and choice.warm_after <= since + CHECK_SECONDS and since < choice.warm_until
        idle = choice.warm_until - choice.warm_after if is_due else choice.idle_seconds
        if ready is None:
            ready = self._learn_ready(kept, since, choice, is_due=is_due)
        return Keep(kept.recipe.digest, round(idle, 1), ready)

    def _learn_ready(self, kept: _KeptRecipe, since: float, choice: Choice, *, is_due: bool) -> int:
        """Clones of a template stay ready for as long as an idle instance would be kept, as many as were lately needed at once.
        Other instances cost as much ready as idle: one is started ahead of need where an idle one was ended early."""
        if kept.recipe.isolation != "vm":
            return 1 if is_due else 0
        if since > max(choice.idle_seconds, CHECK_SECONDS) and not is_due:
            return 0
        return min(MOST_READY, max(1, math.ceil(kept.wanted - 0.5)))


def _differs(sent: Keep, keep: Keep) -> bool:
    return sent.ready != keep.ready or abs(sent.idle_seconds - keep.idle_seconds) > LEAST_CHANGE * sent.idle_seconds
