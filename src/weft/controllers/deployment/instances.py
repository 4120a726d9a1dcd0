"""A deployment's instances as a plan counts, makes and deletes them. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Literal

import msgspec
from msgspec.structs import replace

from weft.controllers.deployment.facts import DeploymentFacts, DeploymentOutcome, Instance, Key, NewInstance

MOST_AT_ONCE = 50  # instances in one commit, beside the deployment
MOST_BYTES = 600_000
MOST_DELETED = 20
LOOK_SECONDS = 5.0  # between two looks at what requests say, or at a quota
LATE_SECONDS = 30.0  # after which whatever nodes have counted is in the history
_ENVELOPE_BYTES = 1500
_ORDER = ("healthy", "coming", "unhealthy", "rests", "failed", "lost")
_NAMED = 4


class Instances:
    """The facts, and what is planned so far."""

    def __init__(self, facts: DeploymentFacts) -> None:
        self._facts, self._spec, self._asked, self._now = facts, facts.spec, facts.actions, facts.now
        old = facts.status
        self._status = status = replace(old, slots=list(old.slots), revisions=list(old.revisions))
        status.message = status.reason = ""
        self._out = DeploymentOutcome(status)
        self._live = [one for one in facts.instances if not one.deleting]
        self._gone: set[str] = set()  # names of those that go in this plan
        self._taken: set[Key] = set()  # that an instance gets in place
        self._left = dict(facts.left)
        self._waits: list[str] = []  # what it waits for, as sentences
        self._granted = self._retries = self._has_deadline = self._has_begun = False
        if status.back and (status.no_surge or not facts.spec.strategy.max_surge):
            self._count_out_silent()
        size = len(msgspec.json.encode(facts.spec.template)) + _ENVELOPE_BYTES
        self._most = max(1, min(MOST_AT_ONCE, MOST_BYTES // size))

    def _count_out_silent(self) -> None:
        """No instance fits beside those that a rollback replaces: silent ones of these don't count as serving, though they may keep
        connections, so that they can go."""
        target = self._status.revision
        self._live = [
            replace(one, state="coming") if one.silent and one.revision != target else one for one in self._live
        ]

    def _can_spare(self, number: int) -> bool:
        """Whether there are enough instances without those of this revision: healthy ones, and those that are only busy."""
        others = [one for one in self._live if one.revision != number and one.slot < len(self._status.slots)]
        return sum(one.serves or one.silent for one in others) >= self._floor

    def _find(self, key: Key) -> Instance | None:
        """The best instance of a slot in a revision."""
        found = [one for one in self._live if one.key == key and one.name not in self._gone]
        return min(found, key=lambda one: (_ORDER.index(one.state), one.attempt), default=None)

    def _wanted(self) -> list[Key]:
        status = self._status
        keys = [(revision, slot) for slot, revision in enumerate(status.slots)]
        if status.stage == "test":
            keys += [(status.revision, slot) for slot in range(self._count_tested())]
        elif status.stage == "roll":
            beside = {one.key for one in self._live if one.revision == status.revision and one.name not in self._gone}
            keys += sorted(key for key in beside if key[1] < len(status.slots))
        elif status.stage == "keep":
            old = {one.key for one in self._live if one.revision != status.revision}
            keys += sorted(key for key in old if key[1] < len(status.slots))
        return list(dict.fromkeys(keys))

    def _count_tested(self) -> int:
        status, replicas = self._status, len(self._status.slots)
        if status.strategy == "blue-green":
            return replicas
        return min(replicas, max(1, math.ceil(replicas * self._share())))

    def _share(self) -> float:
        strategy = self._spec.strategy
        if self._status.strategy == "blue-green":
            return strategy.traffic_split
        return strategy.canary_steps[min(self._status.step, len(strategy.canary_steps) - 1)]

    def _serving(self) -> int:
        slots = len(self._status.slots)
        return sum(one.serves and one.slot < slots and one.name not in self._gone for one in self._live)

    def _may_spare(self, one: Instance, leaving: Collection[str] = ()) -> bool:
        """Whether enough that answer are left without it, if it is one of them: silent ones may be broken. A rollback asks for no
        more than that they serve. ``leaving``: names of those that go besides."""
        if one.silent or self._status.back:
            return True
        slots, gone = len(self._status.slots), {one.name, *leaving, *self._gone}
        left = [other for other in self._live if other.slot < slots and other.name not in gone]
        return sum(other.serves and not other.silent for other in left) >= self._floor

    @property
    def _floor(self) -> int:
        return max(0, len(self._status.slots) - self._spec.strategy.max_unavailable)

    def _count_restarts(self, one: Instance) -> int:
        """Number of restarts since it has its revision, or people let the rollout go on."""
        return max(0, one.restarts - self._status.restarts.get(one.name, 0))

    def _old_slots(self) -> list[int]:
        return [slot for slot, revision in enumerate(self._status.slots) if revision != self._status.revision]

    def _is_served(self, key: Key) -> bool:
        one = self._find(key)
        return one is not None and one.serves

    def _has_taken_over(self, key: Key) -> bool:
        """Whether it serves in the place of an older one. What is silent may be busy, but has yet to show that it isn't broken:
        only a rollback, which goes to what was shown before, counts it."""
        one = self._find(key)
        return one is not None and one.serves and (self._status.back or not one.silent)

    def _frees_capacity(self) -> bool:
        """Whether an instance is about to leave its node."""
        there = [one for one in self._facts.instances if one.state != "lost"]
        return any(one.deleting or one.draining_since is not None for one in there)

    def _count_there(self) -> int:
        """Those that count as further ones: not what only finishes its connections, nor in a rollback what hangs."""
        back = self._status.back
        stay = [
            one
            for one in self._live
            if one.name not in self._gone and one.draining_since is None and not (back and one.hangs)
        ]
        return len(stay) - len(self._out.drain) + len(self._out.make)

    def _list_leaving(self) -> list[str]:
        """Names of those that serve still, though nobody wants them any more."""
        keys = set(self._wanted())
        return [one.name for one in self._live if one.serves and one.key not in keys]

    def _may_go(self, one: Instance) -> bool:
        if all(self._left.get(budget, 0) > 0 for budget in one.budgets):
            return True
        self._waits.append(f"{one.name} stays: {one.held}" if one.held else f"{one.name} waits for its turn")
        return False

    def _use_budgets(self, one: Instance) -> None:
        for budget in one.budgets:
            self._left[budget] = self._left.get(budget, 0) - 1

    def _make(self, key: Key) -> None:
        is_planned = key in self._taken or any((one.revision, one.slot) == key for one in self._out.make)
        if is_planned or len(self._out.make) >= self._most:
            return None
        same = [one for one in self._facts.instances if one.key == key]
        if any(one.kept for one in same):  # it starts again once it has stopped
            return self._requeue(0.1)
        attempts = [one.attempt for one in same]
        self._out.make.append(NewInstance(*key, max(attempts, default=0) + 1))
        return None

    def _delete(self, one: Instance) -> None:
        if one.name not in self._gone:
            self._gone.add(one.name)
            self._out.delete.append(one)

    def _await(self, keys: Iterable[Key]) -> None:
        """Note what is waited for."""
        found = [one for key in keys if (one := self._find(key)) is not None]
        silent = [one.name for one in found if one.serves and one.silent]
        quiet = [one.name for one in found if not (one.unplaced or one.trouble or one.name in silent)]
        if quiet:
            more = f" and {len(quiet) - _NAMED} more" if len(quiet) > _NAMED else ""
            self._waits.append(f"waits for {', '.join(quiet[:_NAMED])}{more}")
        self._waits += [f"{name} doesn't answer its check, as hardly any does" for name in silent[:_NAMED]]
        troubled = [one for one in found if one.unplaced or one.trouble]
        self._waits += [f"{one.name}: {one.unplaced or one.trouble}" for one in troubled[:_NAMED]]

    def _note(self, kind: Literal["Normal", "Warning"], reason: str, text: str) -> None:
        self._out.events.append((kind, reason, text))

    def _requeue(self, seconds: float) -> None:
        out = self._out
        out.requeue_after = min(seconds, out.requeue_after) if out.requeue_after is not None else seconds
