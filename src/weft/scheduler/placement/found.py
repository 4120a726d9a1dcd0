"""Inputs of a search for a place, and its results: places, refusals, or what must come first. Values only."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.contracts.clock import Clock
from weft.informer.disruption.budgets import Budgets
from weft.informer.view import View
from weft.scheduler.allocation.bind import Timing
from weft.scheduler.allocation.flexible import Read
from weft.scheduler.allocation.preempt import Way
from weft.scheduler.allocation.replan import Replanned
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.explain import Explanation
from weft.scheduler.gang.search_budget import Budget, ProjectsBudget
from weft.scheduler.own_policies.registry import OwnPolicies
from weft.scheduler.queue.lanes import Queue
from weft.scheduler.table.facts import Load
from weft.scheduler.workload.request import Candidate, Waiting


class Search(msgspec.Struct):
    """State that the searches of one batch share."""

    view: View
    engine: Engine
    clock: Clock
    queue: Queue  # what is known of requests that were refused
    own: OwnPolicies
    gang_budget: Budget  # of time
    plan_budget: ProjectsBudget  # of time, to plan leases anew
    disruptions: Budgets
    read: Read

    def time_since(self, began: float, now: float) -> Timing:
        """The timing of a decision of ``now`` (unix seconds) that ``began`` at that elapsed time."""
        return Timing(now, round((self.clock.elapsed() - began) * 1000, 3))


class Placement(msgspec.Struct, frozen=True):
    """A place for ``candidate``, with its lease and slot filled in, on the node of ``row``."""

    candidate: Candidate
    row: int
    explanation: Explanation
    load: Load | None = None  # what it takes there, where the engine doesn't know that
    way: Way | None = None  # who gives way to it
    others: tuple[ReplannedPlace, ...] = ()  # leases that run at other times for it, or elsewhere


class ReplannedPlace(msgspec.Struct, frozen=True):
    """A lease that is replanned for a placement."""

    lease: Replanned
    place: Placement | None  # on another node


class Refusal(msgspec.Struct, frozen=True):
    """Why ``candidate`` has no place."""

    candidate: Candidate
    explanation: Explanation
    sleeps: bool = True  # with all equal requests, until nodes have what it lacks
    is_over_time: bool = False  # it waits with those that wait for capacity over time


# A place for each, in the order in which they must be counted, or a refusal for each; or what all of them wait for.
PlacementResult = Sequence[Placement | Refusal] | Waiting
