"""When rules fire: each for each of its devices, once for each time that its condition begins to hold. Pure; times are passed in.

A rule fires when its condition has held for ``for_seconds``. It fires again only after the condition has ceased to hold, and not
before ``cooldown_seconds`` have passed: if it holds again meanwhile, it fires when they have. A device that is silent has no values
of now: its rules wait from the beginning, unless they read ``phase``.
A new process knows nothing of this: a rule that holds then fires again, since twice is better than never.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

import msgspec

from weft.contracts.device import Value
from weft.edge.rule.expression import Condition, compile_condition
from weft.language.tree import attributes_of

LEAST_PAUSE_SECONDS = (
    0.05  # between two firings of a rule for a device, whatever its cooldown: a circle of rules stays slow
)
PHASE = "phase"


class Effect(msgspec.Struct, frozen=True):
    """Set properties of ``device`` ("": the rule's own), for ``expires_seconds`` at most, if given; or tell people ``event``."""

    device: str = ""
    set: dict[str, Value] = {}
    expires_seconds: float | None = None
    event: str = ""


class Rule(msgspec.Struct, frozen=True):
    """``devices`` are the uids that it watches."""

    uid: str
    project: str
    name: str
    when: str
    for_seconds: float = 0.0
    cooldown_seconds: float = 0.0
    then: tuple[Effect, ...] = ()


class Fired(msgspec.Struct):
    """How often a rule fired at this gateway, ever, and when last (Unix seconds by this machine's clock)."""

    count: int = 0
    at: float = 0.0
    problem: str = ""


class Firing(msgspec.Struct, frozen=True):
    rule: Rule
    device: str  # uid
    at: float  # clock's elapsed seconds


class _Watch:
    """One rule for one device."""

    __slots__ = ("fired", "fired_at", "has_fired", "is_queued", "rule", "since")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.since: float | None = None  # the condition holds since
        self.fired = False  # in this time that it holds
        self.has_fired = False
        self.fired_at = 0.0
        self.is_queued = (
            False  # it has its one entry in the heap, which may be earlier than it is due, and is never later
        )

    def find_due(self) -> float | None:
        if self.since is None or self.fired:
            return None
        due = self.since + self.rule.for_seconds
        if self.has_fired:
            due = max(due, self.fired_at + max(self.rule.cooldown_seconds, LEAST_PAUSE_SECONDS))
        return due


class RuleEngine:
    def __init__(self) -> None:
        self._conditions: dict[str, tuple[Condition, frozenset[str]]] = {}
        self._watches: dict[str, dict[str, _Watch]] = {}  # by device, by rule
        self._rules: dict[str, tuple[Rule, frozenset[str]]] = {}
        self._due: list[tuple[float, str, str]] = []  # a heap: when, device, rule

    def put(self, rule: Rule, devices: Iterable[str]) -> None:
        """Add or replace a rule. What it knows of a device stays if the rule is the same. Raises InvalidInput for its condition."""
        chosen = frozenset(devices)
        condition, tree = compile_condition(rule.when)
        before = self._rules.get(rule.uid)
        if before == (rule, chosen):
            return
        if before is not None and before[0] != rule:
            self.remove(rule.uid)
            before = None
        if before is not None:
            self._forget(before[1] - chosen, rule.uid)
        self._conditions[rule.uid] = condition, frozenset(attributes_of(tree))
        self._rules[rule.uid] = rule, chosen
        for device in chosen:
            self._watches.setdefault(device, {}).setdefault(rule.uid, _Watch(rule))

    def remove(self, uid: str) -> None:
        _, devices = self._rules.pop(uid, (None, frozenset[str]()))
        self._conditions.pop(uid, None)
        self._forget(devices, uid)

    def list_rules(self) -> set[str]:
        return set(self._rules)

    def watches(self, device: str) -> bool:
        return device in self._watches

    def note(self, device: str, values: Mapping[str, Value], at: float, *, is_silent: bool = False) -> list[Firing]:
        """Values of a device changed, or its phase did. Returns what fires now."""
        firings = []
        for uid, watch in self._watches.get(device, {}).items():
            condition, reads = self._conditions[uid]
            holds = condition(values) and (not is_silent or PHASE in reads)
            if not holds:
                watch.since, watch.fired = None, False
                continue
            if watch.since is None:
                watch.since = at
            due = watch.find_due()
            if due is None:
                continue
            if due <= at:
                firings.append(self._fire(watch, device, at))
            elif not watch.is_queued:
                watch.is_queued = True
                heapq.heappush(self._due, (due, device, uid))
        return firings

    def tick(self, at: float) -> list[Firing]:
        """Return what fires because time passed."""
        firings = []
        while self._due and self._due[0][0] <= at:
            _, device, uid = heapq.heappop(self._due)
            watch = self._watches[device][uid]
            watch.is_queued = False
            due = watch.find_due()
            if due is None:
                continue
            if due <= at:
                firings.append(self._fire(watch, device, at))
            else:
                watch.is_queued = True
                heapq.heappush(self._due, (due, device, uid))
        return firings

    def find_next(self) -> float | None:
        """When ``tick`` is needed next (clock's elapsed seconds)."""
        return self._due[0][0] if self._due else None

    def _fire(self, watch: _Watch, device: str, at: float) -> Firing:
        watch.fired = watch.has_fired = True
        watch.fired_at = at
        return Firing(watch.rule, device, at)

    def _forget(self, devices: Iterable[str], uid: str) -> None:
        """Nothing of the rule stays for these devices."""
        is_queued = False
        for device in devices:
            watches = self._watches[device]
            is_queued |= watches.pop(uid).is_queued
            if not watches:
                del self._watches[device]
        if is_queued:
            gone = set(devices)
            self._due = [one for one in self._due if one[2] != uid or one[1] not in gone]
            heapq.heapify(self._due)
