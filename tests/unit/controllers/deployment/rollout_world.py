"""A deployment whose instances only pretend: time moves by hand, and a plan may be lost before it is written."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from weft.controllers.deployment.facts import DeploymentFacts, DeploymentOutcome, Instance, State, Verdict
from weft.controllers.deployment.plan import plan_deployment
from weft.kinds.deployment import DeploymentActions, DeploymentSpec
from weft.kinds.fields.deployment.instance import instance_name
from weft.kinds.fields.deployment.status import DeploymentStatus
from weft.kinds.fields.deployment.strategy import RolloutStrategy

# late: it crashes after it was healthy for a while; flaps: it is healthy for 8 s of each 20 s, slot after slot
Manner = Literal["good", "never", "crashes", "late", "flaps"]
LATE_SECONDS = 40.0
GONE_SECONDS = 3.0


class Guest(msgspec.Struct):
    name: str
    revision: int
    slot: int
    attempt: int
    made_at: float
    draining_since: float | None = None
    deleting_since: float | None = None
    failed: bool = False
    lost_since: float | None = None
    restarts: int = 0
    placed: bool = True
    in_place: bool = False


class World:
    def __init__(self, replicas: int = 3, *, capacity: int = 1000, drain: float = 0.0, **strategy: Any) -> None:
        self.spec = DeploymentSpec(
            template={"image": "shop:1"},
            replicas=replicas,
            min_healthy=2.0,
            strategy=RolloutStrategy(**{"health_check_timeout": 30.0, **strategy}),
        )
        self.actions, self.author, self.status = DeploymentActions(), "", DeploymentStatus()
        self.guests: dict[str, Guest] = {}
        self.now, self.capacity, self.drain, self.generation = 1000.0, capacity, drain, 1
        self.manners: dict[int, Manner] = {}
        self.boot_seconds = 3.0
        self.verdict, self.judged = Verdict("wait", ""), False
        self.answered, self.quota = True, 1000
        self.left: dict[str, int] = {}
        self.departs = True  # nodes say that they send nothing new to what drains
        self.silent: set[str] = set()  # names of guests that say nothing to their service's check
        self.keeps_silent = False  # they keep their connections nevertheless
        self.can_change_in_place = False
        self.events: list[str] = []
        self.most_there = 0
        self.least_served = 1000

    def change(self, **fields: Any) -> None:
        self.spec = msgspec.structs.replace(self.spec, **fields)
        self.generation += 1

    def ask(self, **actions: Any) -> None:
        self.actions = msgspec.structs.replace(self.actions, **actions)
        self.generation += 1

    def update(self, image: str, **strategy: Any) -> None:
        """As the verb does."""
        kept = msgspec.structs.replace(self.spec.strategy, **strategy)
        self.change(template={"image": image}, strategy=kept, paused=False)
        self.ask(rollout=self.actions.rollout + 1)

    def undo(self, image: str) -> None:
        """As the verb does."""
        self.update(image)
        self.ask(undos=self.actions.undos + 1)

    def resume(self) -> None:
        self.change(paused=False)
        self.ask(resumes=self.actions.resumes + 1)

    def state_of(self, guest: Guest) -> tuple[State, float]:
        if guest.lost_since is not None:
            return "lost", guest.lost_since
        manner, age = self.manners.get(guest.revision, "good"), self.now - guest.made_at
        if age < 0:  # the clock was set back
            guest.made_at, age = self.now, 0.0
        fails_at = {"crashes": 1.0, "late": LATE_SECONDS}.get(manner)
        if fails_at is not None and age >= fails_at:
            guest.failed = True
        if guest.failed:
            return "failed", guest.made_at + (fails_at or 0.0)
        if not guest.placed or manner == "never" or age < self.boot_seconds + self.spec.min_healthy:
            return "coming", guest.made_at
        if manner == "flaps" and (age + 10.0 * guest.slot) % 20.0 >= 8.0:
            return "unhealthy", guest.made_at
        return "healthy", guest.made_at + self.boot_seconds

    def facts(self) -> DeploymentFacts:
        seen = []
        for guest in self.guests.values():
            state, since = self.state_of(guest)
            silent = state == "healthy" and guest.name in self.silent
            seen.append(
                Instance(
                    name=guest.name,
                    revision=guest.revision,
                    slot=guest.slot,
                    attempt=guest.attempt,
                    state="coming" if silent and not self.keeps_silent else state,
                    silent=silent,
                    since=since,
                    deleting=guest.deleting_since is not None,
                    draining_since=guest.draining_since,
                    departed_at=guest.draining_since if self.departs else None,
                    unplaced="" if guest.placed else "insufficientResources: no node has memory left",
                    trouble="exit code 1" if state == "failed" else "",
                    budgets=tuple(self.left),
                    restarts=guest.restarts,
                    in_place=self.can_change_in_place and state == "healthy",
                )
            )
        return DeploymentFacts(
            name="web",
            spec=self.spec,
            actions=self.actions,
            author=self.author,
            status=self.status,
            instances=seen,
            now=self.now,
            generation=self.generation,
            drain_seconds=self.drain,
            left=self.left,
            verdict=self.verdict,
            judged=self.judged,
            answered=self.answered,
            fitting=max(0, self.quota - len(self.guests)),
            excess=f"instances: {len(self.guests)} of {self.quota} used",
        )

    def serving(self) -> list[Guest]:
        """Those that requests reach."""
        alive = [one for one in self.guests.values() if one.deleting_since is None and one.draining_since is None]
        return [one for one in alive if self.state_of(one)[0] == "healthy" and one.name not in self.silent]

    @property
    def floor(self) -> int:
        return self.spec.replicas - self.spec.strategy.max_unavailable

    def plan(self, *, written: bool = True) -> DeploymentOutcome:
        """Plan once; a plan that isn't ``written`` was its controller's last. Fails if it takes too many down."""
        outcome = plan_deployment(self.facts())
        if not written:
            return outcome
        before = len(self.serving())
        for new in outcome.make:
            name = instance_name("web", new.revision, new.slot, new.attempt)
            assert name not in self.guests, f"{name} is there already"
            there = sum(one.placed for one in self.guests.values())  # until they are gone
            fits = there < self.capacity
            self.guests[name] = Guest(name, new.revision, new.slot, new.attempt, self.now, placed=fits)
        for one, number in outcome.change:
            self.guests[one.name].revision = number
        for one in (*outcome.drain, *outcome.delete):
            if one in outcome.drain:
                self.guests[one.name].draining_since = self.now
            else:
                self.guests[one.name].deleting_since = self.now
        for one in outcome.undrain:
            self.guests[one.name].draining_since = None
        assert len(self.serving()) >= min(before, self.floor), "too many were taken down"
        self.status = outcome.status
        self.events += [reason for _, reason, _ in outcome.events]
        return outcome

    def settle(self) -> None:
        """Plan until there is nothing to write."""
        for _ in range(200):
            before = (self.status, [msgspec.structs.astuple(one) for one in self.guests.values()])
            self.plan()
            if before == (self.status, [msgspec.structs.astuple(one) for one in self.guests.values()]):
                return
        raise AssertionError("the plan never rests")

    def pass_time(self, seconds: float, step: float = 1.0) -> None:
        for _ in range(round(seconds / step)):
            self.now += step
            gone = [one for one in self.guests.values() if one.deleting_since is not None and one.lost_since is None]
            for one in gone:
                if self.now - (one.deleting_since or 0.0) >= GONE_SECONDS:
                    del self.guests[one.name]
            there = sum(one.placed for one in self.guests.values())
            for one in self.guests.values():
                if not one.placed and there < self.capacity:
                    one.placed, one.made_at, there = True, self.now, there + 1
            self.settle()
            self.most_there = max(self.most_there, sum(one.deleting_since is None for one in self.guests.values()))
            self.least_served = min(self.least_served, len(self.serving()))

    def until(self, *phases: str, seconds: float = 400.0) -> None:
        ends_at = self.now + seconds
        self.settle()
        while self.status.phase not in phases:
            assert self.now < ends_at, (self.status.phase, self.status.message, self.status.verdict)
            self.pass_time(1.0)

    def begin(self) -> None:
        """Run the first revision, and count from then on."""
        self.until("Promoted")
        self.most_there, self.least_served = 0, 1000

    def revisions(self) -> list[int]:
        """Of the instances that serve."""
        return sorted(one.revision for one in self.serving())
