"""Runs a controller: collects the keys of objects to check, lets the controller plan, performs the plan.

A controller pursues one goal of the fabric: ``route`` returns which of its objects a change concerns, ``plan`` turns the view into
commits. The loop plans a batch from one revision, commits all of it at once, waits until the view shows it, and takes the
next; so no plan acts on a state that the plan before it made old. What fails is planned again from the state at that time.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.wakeup import Wake
from weft.informer.cache import whole
from weft.informer.commit import Commit
from weft.informer.leader_lease import LeaderLease
from weft.informer.trace.commits import Work, work
from weft.informer.view import Changed, View

BATCH = 200
_SHORTEST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 10.0

_log = logging.getLogger(__name__)


class Plan(msgspec.Struct):
    commits: list[Commit] = []
    later: dict[str, float] = {}  # seconds after which to plan the object of this key again, even if nothing changes


class Controller(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def kinds(self) -> Sequence[str]:
        """The kinds whose changes ``route`` gets."""

    def route(self, view: View, change: Changed) -> Iterable[str]:
        """Keys of the controller's own objects that this change concerns. May note the change, and has no other effect."""

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        """Plan these objects; ``now`` in unix seconds, for timestamps. Pure but for the controller's own notes."""


@runtime_checkable
class Observer(Protocol):
    """A controller whose plan needs what the view doesn't hold."""

    async def observe(self) -> None:
        """Read it. Called before each plan."""


@runtime_checkable
class RefusalListener(Protocol):
    """A controller whose objects say that the store refused what was planned for them."""

    def note_refusal(self, key: str, why: str) -> None:
        """Called before the object is planned again."""


class Queue:
    """Keys of objects to plan: each once, in the order they came; some of them not before their time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wake = Wake(clock)
        self._ready: dict[str, None] = {}
        self._later: list[tuple[float, str]] = []
        self._due: dict[str, float] = {}
        self._failures: dict[str, int] = {}

    def add(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._ready[key] = None
            self._wake.ring()

    def add_later(self, key: str, seconds: float) -> None:
        due = self._clock.elapsed() + seconds
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._later, (due, key))
            self._wake.ring()

    def drop_later(self, key: str) -> None:
        """Forget the time of ``add_later``."""
        self._due.pop(key, None)

    def failed(self, key: str) -> None:
        """Plan it again: at once after the first failure, then after growing pauses."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        if failures == 1:
            self.add([key])
        else:
            self.add_later(key, min(_SHORTEST_PAUSE_SECONDS * 2 ** min(failures - 2, 20), _LONGEST_PAUSE_SECONDS))

    def succeeded(self, key: str) -> None:
        self._failures.pop(key, None)

    async def take(self, most: int) -> list[str]:
        """Up to ``most`` keys, as soon as there is one."""
        while True:
            now = self._clock.elapsed()
            while self._later and self._later[0][0] <= now:
                due, key = heapq.heappop(self._later)
                if self._due.get(key) == due:
                    del self._due[key]
                    self._ready[key] = None
            if self._ready:
                keys = [key for key, _ in zip(self._ready, range(most), strict=False)]
                for key in keys:
                    del self._ready[key]
                return keys
            await self._wake.wait(self._later[0][0] - now if self._later else None)


async def run_controller(controller: Controller, lease: LeaderLease) -> None:
    """Run ``controller`` while ``lease`` is held; raises LeadershipLost at its end."""
    view, queue = lease.cache.view, Queue(lease.clock)
    observer = controller if isinstance(controller, Observer) else None
    refused = controller.note_refusal if isinstance(controller, RefusalListener) else None

    def notice(changes: Sequence[Changed]) -> None:
        for change in changes:
            queue.add(controller.route(view, change))

    unsubscribe = lease.cache.subscribe(notice, controller.kinds)
    try:
        notice(whole(view, controller.kinds))
        while True:
            keys = await queue.take(BATCH)
            work.set(Work(f"controller: {controller.name}", lease.clock.now()))
            if observer is not None:
                await observer.observe()
            plan, failed = _plan(controller, view, keys, lease.clock.now(), queue)
            for key, seconds in plan.later.items():
                queue.add_later(key, seconds)
            if plan.commits:
                failed |= {commit.key for commit in await lease.perform(plan.commits, refused)}
            for key in keys:
                if key in failed:
                    queue.failed(key)
                else:
                    queue.succeeded(key)
    finally:
        unsubscribe()


def _plan(controller: Controller, view: View, keys: Sequence[str], now: float, queue: Queue) -> tuple[Plan, set[str]]:
    """The plan for all keys, and the keys that can't be planned: the others go on without them."""
    try:
        return controller.plan(view, keys, now), set()
    except Exception:  # a defect in one plan must not keep all others from theirs
        if len(keys) == 1:
            _log.exception("%s: %s can't be planned", controller.name, keys[0])
            return Plan(), {keys[0]}
    plan, failed = Plan(), set[str]()
    for key in keys:
        # One at a time, each would plan as if the others weren't there; so only the first that works is carried out.
        if plan.commits:
            queue.add([key])
            continue
        one, broken = _plan(controller, view, [key], now, queue)
        plan.later.update(one.later)
        plan.commits.extend(one.commits)
        failed |= broken
    return plan, failed
