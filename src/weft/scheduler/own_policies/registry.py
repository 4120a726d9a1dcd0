"""Users' own policies as the engine sees them: each gives a valid answer in time, or is skipped.

If one is skipped, the fallback decides instead, and the failure is kept for the placement policy's status. One that doesn't
answer in time, or whose worker ends, gets a new worker, after a pause that doubles each time; one that raises or answers nonsense
three times in a row isn't asked for such a pause. So no decision waits longer than TIMEOUT_SECONDS, and a broken policy doesn't
slow decisions down.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from weft.contracts.clock import Clock, SystemClock
from weft.contracts.policy import Column, Occasion, Policy, Reads, Request, Table
from weft.kinds.fields.strategy import DEFAULT_STRATEGY, Term, parse_strategy
from weft.scheduler.own_policies.process import PolicyFailed, PolicyWorker
from weft.scheduler.policies import POLICIES
from weft.scheduler.table.snapshot import Snapshot

TIMEOUT_SECONDS = 0.2
STRIKES = 3
SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
CHECK_EVERY_SECONDS = 1.0  # whether a file has changed
SOUND_AFTER = 10  # valid answers in a row, after a failure
MOST_WORKERS = 8


class Health(msgspec.Struct, frozen=True):
    """Whether a policy works; if not, why, as token and sentence."""

    working: bool
    reason: str
    message: str = ""


class OwnPolicy:
    """The policy behind one own term. ``skipped`` is why the fallback gave the last answer; empty if it didn't."""

    reads: Reads = "fabric"

    def __init__(self, term: Term, fallback: Policy, clock: Clock, timeout_seconds: float, *, isolated: bool) -> None:
        self.name = term.name
        self.skipped = ""
        self.health: Health | None = None
        self.used_at = clock.elapsed()
        self._fallback = fallback
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._isolated = isolated
        self._worker: PolicyWorker | None = None
        self._file: tuple[int, ...] | None = None
        self._checked_at = float("-inf")
        self._pauses_until = float("-inf")
        self._pause = SHORTEST_PAUSE_SECONDS
        self._strikes = 0
        self._good = 0
        self._kept: tuple[object, list[Column]] | None = None

    @property
    def starting(self) -> bool:
        """Whether its worker has been started and isn't ready yet."""
        return self._worker is not None and not self._worker.ready

    @property
    def has_worker(self) -> bool:
        return self._worker is not None

    def prepare(self, seconds: float = 0.0) -> bool:
        """Start a worker unless it pauses, and wait at most ``seconds`` for it; False while it starts for the first time."""
        self._follow_file()
        self._kept = None
        now = self.used_at = self._clock.elapsed()
        try:
            if self._worker is None and now >= self._pauses_until:
                if not self._isolated:
                    raise PolicyFailed("notIsolated", "the server must run as root to isolate the policy's worker")
                self._worker = PolicyWorker(self.name)
            if self._worker is not None and self._worker.start(seconds) and self.health is None:
                self.health = Health(True, "Answers")
        except PolicyFailed as problem:
            self._fail(problem, fatal=True)
        return self.health is not None

    def terms(self, table: Table, request: Request, occasion: Occasion) -> list[Column]:
        if not len(table.names):
            return self._fallback.terms(table, request, occasion)
        moment = _moment_of(table, request, occasion)
        if self._kept is not None and self._kept[0] == moment and moment is not None:
            return self._kept[1]  # to explain the same decision
        columns = self._ask(table, request, occasion) or self._fallback.terms(table, request, occasion)
        self._kept = (moment, columns)
        return columns

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _ask(self, table: Table, request: Request, occasion: Occasion) -> list[Column] | None:
        now = self.used_at = self._clock.elapsed()
        worker = self._worker
        if worker is None or not worker.ready or now < self._pauses_until:
            known = f": {self.health.reason}: {self.health.message}" if self.health and not self.health.working else ""
            self.skipped = known or ": its worker is starting"
            return None
        stamp = table.facts_epoch if isinstance(table, Snapshot) else None
        try:
            columns = worker.ask(table, request, occasion, stamp, self._timeout_seconds)
        except PolicyFailed as problem:
            self._fail(problem, fatal=problem.fatal)
            return None
        self.skipped = ""
        self._strikes = 0
        self._good += 1
        if self._good >= SOUND_AFTER:
            self._pause = SHORTEST_PAUSE_SECONDS
            if self.health is not None and not self.health.working:
                self.health = Health(True, "Answers")
        return columns

    def _fail(self, problem: PolicyFailed, *, fatal: bool) -> None:
        self.skipped = f": {problem.reason}: {problem.message}"
        if self.health is None or (self.health.working or self.health.reason != problem.reason):
            self.health = Health(False, problem.reason, problem.message)
        self._good = 0
        self._strikes += 1
        if fatal:
            self.close()
        if fatal or self._strikes >= STRIKES:
            self._strikes = 0
            self._pauses_until = self._clock.elapsed() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    def _follow_file(self) -> None:
        """Start a new worker if the policy's file has changed."""
        scheme, _, path = self.name.partition(":")
        now = self._clock.elapsed()
        if scheme != "file" or now < self._checked_at + CHECK_EVERY_SECONDS:
            return
        self._checked_at = now
        try:
            status = os.stat(path)
            file: tuple[int, ...] = (status.st_ino, status.st_size, status.st_mtime_ns)
        except OSError:
            file = ()
        if self._file is not None and file != self._file:
            self.close()
            self._pauses_until, self._pause = float("-inf"), SHORTEST_PAUSE_SECONDS
            self._strikes = 0
            self.health = None
        self._file = file


class OwnPolicies:
    """All own policies in use. ``fallback`` decides where one is skipped; none runs unless its worker is ``isolated``, which
    takes root."""

    def __init__(
        self,
        fallback: Policy,
        clock: Clock | None = None,
        *,
        isolated: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> None:
        self._fallback = fallback
        self._clock = clock or SystemClock()
        self._isolated = os.geteuid() == 0 if isolated is None else isolated
        self._timeout_seconds = TIMEOUT_SECONDS if timeout_seconds is None else timeout_seconds
        self._known: dict[str, OwnPolicy] = {}
        self._reported: dict[str, Health] = {}

    def find(self, term: Term) -> OwnPolicy:
        """The policy of an own term."""
        policy = self._known.get(term.name)
        if policy is None:
            policy = self._known[term.name] = OwnPolicy(
                term, self._fallback, self._clock, self._timeout_seconds, isolated=self._isolated
            )
        return policy

    def prepare(self, strategy: str, seconds: float = 0.0) -> bool:
        """Start the own policies of ``strategy``, waiting at most ``seconds``; False while one starts for the first time."""
        ready = [policy.prepare(seconds) for policy in self._of(strategy)]
        self._end_idle()
        return all(ready)

    def starting(self) -> bool:
        """Whether some worker was starting until now; notes those that are ready."""
        starting = [policy for policy in self._known.values() if policy.starting]
        for policy in starting:
            policy.prepare()
        return bool(starting)

    def skipped(self, strategy: str) -> list[str]:
        """Policies that the last decision by ``strategy`` skipped, and why."""
        return [f"{policy.name} was skipped{policy.skipped}" for policy in self._of(strategy) if policy.skipped]

    def take_news(self) -> dict[str, Health]:
        """Policy's name → its health, for those whose health has changed since the last call."""
        news = {
            name: policy.health
            for name, policy in self._known.items()
            if policy.health is not None and self._reported.get(name) != policy.health
        }
        self._reported.update(news)
        return news

    def health(self, strategy: str) -> Sequence[tuple[str, Health]]:
        """The health of the own policies of ``strategy``, where it is known."""
        return [(policy.name, policy.health) for policy in self._of(strategy) if policy.health is not None]

    def close(self) -> None:
        for policy in self._known.values():
            policy.close()

    def _of(self, strategy: str) -> list[OwnPolicy]:
        if ":" not in strategy or strategy.startswith("@"):
            return []
        return [self.find(term) for term in parse_strategy(strategy) if term.own]

    def _end_idle(self) -> None:
        working = [policy for policy in self._known.values() if policy.has_worker]
        for policy in sorted(working, key=lambda policy: policy.used_at)[:-MOST_WORKERS]:
            policy.close()


def find_fallback(strategy: str) -> Policy:
    """The policy that decides where an own one is skipped: the server's ``strategy``, if all its policies are weft's."""
    shipped = not strategy.startswith("@") and not any(term.own for term in parse_strategy(strategy))
    return POLICIES[strategy if shipped else DEFAULT_STRATEGY]


def _moment_of(table: Table, request: Request, occasion: Occasion) -> object:
    """Equal for the same state and the same question; None if that isn't known."""
    if not isinstance(table, Snapshot):
        return None
    return (id(table), table.epoch, table.facts_epoch, len(table.log), request, occasion.uid, occasion.last)
