"""What a deployment does next with its instances: facts in, what to make, change, drain and delete out. Pure.

Each slot has a revision, and the slots stand in the status: whichever process dies when, an instance that is missing is made again
in its slot's revision, under a name that follows from both. Three rules hold in every phase: no healthy instance goes if fewer than
``replicas - max_unavailable`` would be left; a rollback needs nothing of what is broken; and whatever waits has a deadline, after
which the rollout ends with a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from weft.controllers.deployment.facts import Facts, Instance, Key, NewInstance, Outcome
from weft.kinds.deployment import (
    MOST_REVISIONS_BYTES,
    DeploymentStatus,
    Revision,
    TrafficShare,
    count_instances,
    mark_template,
)
from weft.kinds.quota import REASON as OVER_QUOTA
from weft.objects.quantity import format_duration

REPLACE_SECONDS = 10.0  # after which an instance that failed is replaced; twice as long for each one before it that did
MOST_REPLACE_SECONDS = 300.0
CALM_SECONDS = 300.0  # for which an instance must be healthy before the ones before it are forgotten
LOST_SECONDS = 60.0  # after which one on a silent node is
CRASHES = 2  # restarts of a new instance that mean it fails
LOOK_SECONDS = 5.0  # between two looks at what requests say, or at a quota
LATE_SECONDS = 30.0  # after which whatever nodes have counted is in the history
DEPART_SECONDS = 15.0  # after which an instance gets no new connections, though a node hasn't said so: it may be older
MOST_AT_ONCE = 50  # instances in one commit, beside the deployment
MOST_BYTES = 600_000
_ENVELOPE_BYTES = 1500
_MOST_DELETED, _MOST_CHANGED = 20, 10
_ORDER = ("healthy", "coming", "unhealthy", "rests", "failed", "lost")
_NAMED = 4


def plan_deployment(facts: Facts) -> Outcome:
    """What to do now."""
    return _Planner(facts).plan()


class _Planner:
    def __init__(self, facts: Facts) -> None:
        self._facts, self._spec, self._now = facts, facts.spec, facts.now
        old = facts.status
        self._status = status = replace(old, slots=list(old.slots), revisions=list(old.revisions))
        status.message = status.reason = ""
        self._out = Outcome(status)
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

    def plan(self) -> Outcome:
        status = self._status
        queued = self._take_spec()
        if self._retries:
            self._forget_failures()
        self._fit_slots()
        self._set_pause()
        if self._has_begun:
            self._requeue(0.1)  # what can be had in place is known by then
        elif status.stage == "keep":
            self._keep()
        elif status.stage == "test" and (status.phase == "Progressing" or status.awaits):
            self._test()
        elif status.stage == "roll" and status.phase == "Progressing":
            self._roll()
        self._replace()
        self._remove()
        self._end_split()
        self._fill()
        if self._has_deadline and status.phase == "Progressing":
            self._check_deadline()
        self._finish()
        self._count()
        self._out.delete, self._out.drain = self._out.delete[:_MOST_DELETED], self._out.drain[:_MOST_DELETED]
        if queued:
            self._waits.insert(0, queued)
        if not status.message:
            status.message = "; ".join(dict.fromkeys(self._waits))[:400]
        return self._out

    # What people want.

    def _take_spec(self) -> str:
        """Begin a rollout if the template asks for one; a sentence if that waits for another rollout to end."""
        status, spec = self._status, self._spec
        mark = mark_template(spec.template, spec.labels)
        if spec.resumes > status.resumes:
            self._resume()
        if (mark, spec.rollout) == (status.template, status.rollout):
            status.observed_generation = self._facts.generation
            return ""
        known = self._find_known(mark)
        number = known.number if known is not None else max((one.number for one in status.revisions), default=0) + 1
        is_undo = known is not None and spec.undos > status.undos
        is_busy = status.phase in ("Progressing", "Paused") and status.stage in ("test", "roll")
        if is_busy and status.stable and number != status.stable and not is_undo:
            return f"a change of the template waits for the end of the rollout of revision {status.revision}"
        if known is None:
            new = Revision(number=number, template=spec.template, labels=spec.labels, created_at=self._now)
            new.instance = spec.instance or (spec.adopt if number == 1 else "")
            status.revisions.append(new)
        status.template, status.rollout, status.observed_generation = mark, spec.rollout, self._facts.generation
        status.undos = spec.undos
        # People asked for it, or it is what ran before the rollout that this one ends.
        back = (is_undo and number <= status.stable) or status.revision != number == status.stable
        self._begin(number, back=back)
        return ""

    def _find_known(self, mark: str) -> Revision | None:
        """The revision with that template; None if there must be another one, as a further instance shall run."""
        status, spec = self._status, self._spec
        same = [one for one in status.revisions if mark_template(one.template, one.labels) == mark]
        if spec.undos > status.undos:
            same = [one for one in same if one.number != status.revision] or same
        elif spec.rollout > status.rollout and spec.instance:
            same = [one for one in same if one.instance == spec.instance]
        elif spec.rollout > status.rollout and spec.adopt and spec.strategy.type != "rolling":
            # The adopted VM has changed since: it can't run beside itself as it was.
            same = [one for one in same if one.instance != spec.adopt or one.number in status.slots]
        return max(same, key=lambda one: (one.number == status.stable, one.number), default=None)

    def _begin(self, number: int, *, back: bool, why: str = "") -> None:
        status, spec = self._status, self._spec
        is_same = number == status.revision == status.stable and status.stage in ("", "keep")
        leaves, self._retries, self._has_begun = status.revision, True, True
        status.strategy, status.revision, status.back = spec.strategy.type, number, back and not is_same
        status.started_at = status.progressed_at = self._now
        status.step, status.step_since, status.ended_at, status.migrated = 0, None, None, []
        status.awaits, status.no_surge, status.verdict, status.phase = False, "", why, "Progressing"
        status.most_updated, status.restarts, status.failures = 0, {}, {}
        if is_same:
            status.stage = ""
            self._end("Promoted", f"revision {number} is what runs already: nothing changes")
            return
        if status.back:
            self._mark_outcome(leaves, "RolledBack")
            known = {number, status.stable} - {leaves}  # those with a share that are ready have the requests
            spared = bool(status.split) or (self._facts.verdict.word == "bad" and self._can_spare(leaves))
            status.split = _split({**{one: 1000 // len(known) for one in known}, leaves: 0}) if spared else []
            self._give_up_broken()
        else:
            self._mark_outcome(number, "")
        is_tested = not back and status.stable and spec.strategy.type != "rolling"
        status.stage = "test" if is_tested else "roll"
        if is_tested:
            status.split = _split({status.stable: 1000, number: 0})
        doing = "rolling back to" if back else "rolling out"
        self._note(
            "Normal", "RolloutStarted", f"{doing} revision {number} ({status.strategy})" + (f": {why}" if why else "")
        )

    def _give_up_broken(self) -> None:
        """Free the slots of whatever doesn't serve: a rollback waits for none of it."""
        status = self._status
        for slot in self._old_slots():
            one = self._find((status.slots[slot], slot))
            if one is None or not (one.serves or one.in_place or one.silent):
                status.slots[slot] = status.revision

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

    def _resume(self) -> None:
        status = self._status
        status.resumes = self._spec.resumes
        self._granted, status.awaits = status.awaits, False
        if status.phase == "Undecided" and status.stage and not self._granted:
            status.verdict, status.no_surge, self._retries, status.step_since = "", "", True, None
        if status.phase in ("Undecided", "Paused"):
            status.phase, status.ended_at, status.progressed_at = "Progressing", None, self._now

    def _set_pause(self) -> None:
        status = self._status
        if status.stage not in ("test", "roll") or status.phase == "Undecided":
            return
        if self._spec.paused and not status.back:
            status.phase, status.message = "Paused", "paused; weft rollout resume goes on"
        elif status.awaits:
            status.phase = "Paused"
            status.message = f"{status.verdict}; weft rollout resume promotes, weft rollout undo goes back"
        elif status.phase == "Paused":
            status.phase, status.progressed_at = "Progressing", self._now
            status.step_since = self._now if status.step_since is not None else None

    def _fit_slots(self) -> None:
        status = self._status
        proven = status.stable if status.stage and status.stable and not status.back else status.revision
        status.replicas = self._spec.replicas
        status.slots = status.slots[: status.replicas] + [proven] * (status.replicas - len(status.slots))

    # What there is.

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

    @property
    def _floor(self) -> int:
        return max(0, len(self._status.slots) - self._spec.strategy.max_unavailable)

    # One step of a rollout.

    def _find_broken(self) -> str:
        """What shows that the new revision fails; "" if nothing does."""
        status = self._status
        if status.back or not status.stable:
            return ""
        for one in self._live:
            if one.name in self._gone or one.revision != status.revision:
                continue
            restarts = self._count_restarts(one)
            if one.state == "failed" or restarts >= CRASHES:
                why = one.trouble or "it failed"
                return (
                    f"{one.name}: {why}" if one.state == "failed" else f"{one.name} restarted {restarts} times: {why}"
                )
        return ""

    def _count_restarts(self, one: Instance) -> int:
        """Since it has its revision, or people let the rollout go on."""
        return max(0, one.restarts - self._status.restarts.get(one.name, 0))

    def _forget_failures(self) -> None:
        """Hold nothing of an earlier try against the new revision."""
        status = self._status
        status.failures = {}
        if status.back or not status.stable:
            return
        for one in [one for one in self._live if one.revision == status.revision]:
            is_broken = one.state == "failed" or self._count_restarts(one) >= CRASHES
            status.restarts = {**status.restarts, one.name: one.restarts}
            if is_broken and not (one.adopted or one.serves):
                self._delete(one)

    def _test(self) -> None:
        """New instances run beside all old ones until they are judged."""
        status = self._status
        if broken := self._find_broken():
            return self._fail(broken)
        wanted = [(status.revision, slot) for slot in range(self._count_tested())]
        found = [self._find(key) for key in wanted]
        unplaced = next((one for one in found if one is not None and one.unplaced), None)
        if unplaced is not None and not self._frees_capacity():
            beside = "the parallel set" if status.strategy == "blue-green" else "a canary"
            return self._fail(f"no node has capacity for {beside}: {unplaced.name}: {unplaced.unplaced}")
        if not all(one is not None and one.serves for one in found):
            self._await(key for key, one in zip(wanted, found, strict=True) if one is None or not one.serves)
            self._has_deadline = status.phase == "Progressing"
            return None
        per_mille = round(self._share() * 1000)
        if status.step_since is None or status.step_since > self._now:
            status.step_since = self._now
            text = f"revision {status.revision} is healthy on {count_instances(len(found))} beside the old ones"
            self._note("Normal", "StepStarted", f"{text}, and gets {per_mille / 10:g} % of the requests")
        status.split = _split({status.stable: 1000 - per_mille, status.revision: per_mille})
        if self._granted:
            more = status.strategy == "canary" and status.step + 1 < len(self._spec.strategy.canary_steps)
            why = f"a person promoted revision {status.revision}" + (f" ({status.verdict})" if status.verdict else "")
            return self._advance(why) if more else self._pass(why)
        if self._facts.verdict.word == "bad":
            return self._fail(self._facts.verdict.why)
        if status.awaits:
            return None
        if status.strategy == "blue-green" and not (per_mille and self._spec.strategy.auto_promote):
            where = f"all {len(found)} instances" if len(found) != 1 else "its instance"
            why = f"revision {status.revision} is healthy on {where} beside the old ones"
            return self._pass(why) if self._spec.strategy.auto_promote else self._hold(why)
        return self._judge()

    def _judge(self) -> None:
        status, strategy, facts, verdict = self._status, self._spec.strategy, self._facts, self._facts.verdict
        assert status.step_since is not None
        left = status.step_since + strategy.monitor_duration - self._now
        if left > 0:
            part = (
                f"step {status.step + 1} of {len(strategy.canary_steps)}" if status.strategy == "canary" else "the set"
            )
            judged = verdict.why or "no requests yet"
            self._waits.append(f"{part} is watched for {format_duration(strategy.monitor_duration)}: {judged}")
            return self._requeue(min(left, LOOK_SECONDS))
        if verdict.word == "good":
            return self._advance(verdict.why)
        if facts.judged and -left < LATE_SECONDS:
            self._waits.append(f"waits for the last counts of the requests: {verdict.why}")
            return self._requeue(LOOK_SECONDS)
        if not (facts.answered or facts.trouble) and -left < strategy.health_check_timeout:
            self._waits.append("waits for what the history of metrics says of the requests")
            return self._requeue(LOOK_SECONDS)
        if facts.answered and not facts.trouble and not facts.judged:
            restarts = sum(self._count_restarts(one) for one in self._live if one.revision == status.revision)
            if not restarts:
                healthy = f"revision {status.revision} was healthy for {format_duration(strategy.monitor_duration)}"
                return self._advance(f"{healthy} without a restart; no requests were judged")
        unheard = facts.trouble or ("" if facts.answered else "the history of metrics doesn't answer")
        why = f"undecided: {unheard or verdict.why or 'no requests came'}"
        if strategy.on_undecided == "promote":
            return self._advance(f"{why}; promoted, as on_undecided says")
        if strategy.on_undecided == "revert":
            return self._fail(f"{why}; reverted, as on_undecided says", reverts=True)
        self._end("Undecided", why)
        status.awaits = True
        return None

    def _advance(self, why: str) -> None:
        """Go on with the next step, or end the test."""
        status, steps = self._status, self._spec.strategy.canary_steps
        if status.strategy == "canary" and status.step + 1 < len(steps):
            status.step, status.step_since, status.progressed_at = status.step + 1, None, self._now
            self._note("Normal", "StepPassed", f"step {status.step} of {len(steps)} passed: {why}")
            return
        if self._spec.strategy.auto_promote:
            self._pass(why)
        else:
            self._hold(why)

    def _hold(self, why: str) -> None:
        self._status.awaits, self._status.verdict = True, why
        self._set_pause()
        self._note("Normal", "AwaitsPromotion", why)

    def _pass(self, why: str) -> None:
        """The new revision takes over: blue-green by the split alone, since its whole set is there."""
        status = self._status
        status.verdict, status.progressed_at = why, self._now
        if status.strategy == "blue-green":
            old, status.slots = status.stable, [status.revision] * len(status.slots)
            status.stage, status.split = "keep", _split({status.revision: 1000, old: 0})
            self._end("Promoted", why)
        else:
            status.stage, status.split = "roll", []

    def _keep(self) -> None:
        """The old set stays a while after the switch."""
        status = self._status
        left = (status.ended_at or self._now) + self._spec.strategy.keep_old - self._now
        if left > 0 and any(one.revision != status.revision for one in self._live):
            return self._requeue(left)
        status.stage = ""

    def _end_split(self) -> None:
        """All ready instances get requests alike, once no other revision gets any."""
        status, gone = self._status, {one.name for one in self._out.delete[:_MOST_DELETED]}
        if not status.stage and all(one.revision == status.revision or one.name in gone for one in self._live):
            status.split = []

    def _roll(self) -> None:
        """Replace old instances by new ones."""
        status, target = self._status, self._status.revision
        if broken := self._find_broken():
            return self._fail(broken)
        if self._facts.verdict.word == "bad" and status.stable and not status.back:
            return self._fail(self._facts.verdict.why)
        if status.back or not status.stable:
            self._give_up_broken()
        elif self._judges_first():
            return None
        for slot in self._old_slots():
            if self._is_served((target, slot)):
                status.slots[slot], status.progressed_at = target, self._now
        if old := self._old_slots():
            self._roll_next(old)
        if status.revision != target or status.phase != "Progressing":
            return None
        unserved = [(target, slot) for slot in range(len(status.slots)) if not self._is_served((target, slot))]
        left = self._old_slots()
        self._await(key for key in unserved if key[1] not in left or self._find(key) is not None)
        self._has_deadline = True
        return None

    def _judges_first(self) -> bool:
        """Whether the first new instances of a rolling update stay alone, as what their requests say of them isn't known yet."""
        status, facts = self._status, self._facts
        if status.step or status.strategy != "rolling":
            return False
        counts = facts.judged or not facts.answered
        if not counts or facts.trouble or not any(one.serves and one.revision == status.revision for one in self._live):
            return False
        if status.step_since is None or status.step_since > self._now:
            status.step_since = self._now
        left = status.step_since + LATE_SECONDS - self._now
        if left > 0 and facts.verdict.word == "wait":
            why = facts.verdict.why or "no requests yet"
            self._waits.append(f"the first new instance is watched for up to {format_duration(LATE_SECONDS)}: {why}")
            self._requeue(min(left, LOOK_SECONDS))
            return True
        status.step, status.progressed_at = 1, self._now
        return False

    def _roll_next(self, old: Sequence[int]) -> None:
        status, strategy, target = self._status, self._spec.strategy, self._status.revision
        fits = [slot for slot in old if (one := self._find((status.slots[slot], slot))) is not None and one.in_place]
        if fits:
            return self._change_in_place(fits)
        beside = [slot for slot in old if self._find((target, slot)) is not None]
        unplaced = next((one for slot in beside if (one := self._find((target, slot))) and one.unplaced), None)
        if unplaced is not None and not status.no_surge and not self._frees_capacity():
            status.no_surge = unplaced.unplaced
            text = f"no node has capacity for a further instance ({unplaced.unplaced}): max_unavailable counts instead"
            self._note("Warning", "NoSurge", text)
            if status.back:
                self._count_out_silent()
        if status.no_surge:
            for slot in beside:
                one = self._find((target, slot))
                if one is not None and not one.serves:
                    self._delete(one)
        if strategy.max_surge and not status.no_surge:
            missing = sum(self._find((revision, slot)) is None for slot, revision in enumerate(status.slots))
            free = len(status.slots) + strategy.max_surge - self._count_there() - missing
            for slot in [slot for slot in old if slot not in beside][: max(0, free)]:
                self._make((target, slot))
            return
        silent = [slot for slot in old if (one := self._find((status.slots[slot], slot))) is not None and one.silent]
        if not strategy.max_unavailable and not (status.back and silent):
            return self._fail(f"no further instance is possible ({status.no_surge}), and max_unavailable is 0")
        self._take_down(old)

    def _change_in_place(self, fits: Sequence[int]) -> None:
        """Let running instances take the new template."""
        status, target = self._status, self._status.revision
        most = max(1, self._spec.strategy.max_surge, self._spec.strategy.max_unavailable)
        busy = sum(
            not self._is_served((target, slot)) for slot in range(len(status.slots)) if status.slots[slot] == target
        )
        for slot in fits[: max(0, min(most - busy, _MOST_CHANGED))]:
            one = self._find((status.slots[slot], slot))
            assert one is not None
            self._out.change.append((one, target))
            self._taken.add((target, slot))
            status.restarts = {**status.restarts, one.name: one.restarts}
            status.slots[slot] = target

    def _take_down(self, old: Sequence[int]) -> None:
        """Free slots for the new revision: those that serve nobody first, then as many as may be missing."""
        status, target = self._status, self._status.revision
        slots = range(len(status.slots))
        busy = sum(not self._is_served((target, slot)) for slot in slots if status.slots[slot] == target)
        free = max(1, self._spec.strategy.max_unavailable) - busy
        spare = self._serving() - self._floor - self._count_leaving()
        for slot in sorted(old, key=lambda slot: self._is_served((status.slots[slot], slot))):
            one = self._find((status.slots[slot], slot))
            if free <= 0:
                return
            if one is not None and one.serves:
                if spare <= 0 or not self._may_go(one):
                    continue
                spare -= 1
            status.slots[slot] = target
            free -= 1

    def _old_slots(self) -> list[int]:
        return [slot for slot, revision in enumerate(self._status.slots) if revision != self._status.revision]

    def _is_served(self, key: Key) -> bool:
        one = self._find(key)
        return one is not None and one.serves

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

    def _count_leaving(self) -> int:
        """Those that serve still, though nobody wants them any more."""
        keys = set(self._wanted())
        return sum(one.serves and one.key not in keys for one in self._live)

    # What follows for single instances.

    def _replace(self) -> None:
        """Replace what failed or was lost, unless it is what a rollout is judged by."""
        status, now = self._status, self._now
        is_judged = status.stage in ("test", "roll") and bool(status.stable) and not status.back
        waiting: list[tuple[str, int, float]] = []  # name, how many in a row, after how many seconds
        self._forget_calm()
        for key in self._wanted():
            one = self._find(key)
            if one is None or one.adopted or (is_judged and key[0] == status.revision and one.state == "failed"):
                continue
            if one.state not in ("failed", "lost"):
                continue
            before = status.failures.get(str(one.slot), 0)
            backs_off = min(REPLACE_SECONDS * 2.0 ** min(before, 10), MOST_REPLACE_SECONDS)
            seconds = backs_off if one.state == "failed" else LOST_SECONDS
            left = one.since + seconds - now
            if 0 < left <= seconds:
                self._requeue(left)
                if one.state == "failed" and before:
                    waiting.append((one.name, before + 1, seconds))
                continue
            self._delete(one)
            if one.state == "failed":
                status.failures = {**status.failures, str(one.slot): before + 1}
            why = one.trouble or ("its node sends nothing" if one.state == "lost" else "it ended")
            self._note("Warning", "InstanceReplaced", f"{one.name} is replaced: {why}")
        if waiting:
            name, count, seconds = max(waiting, key=lambda one: one[1])
            more = f" (and {len(waiting) - 1} more)" if len(waiting) > 1 else ""
            self._waits.append(f"{name}{more} failed, {count} in a row: replaced after {format_duration(seconds)}")

    def _forget_calm(self) -> None:
        """Forget what failed in slots whose instances are healthy for long, or which are no more."""
        status = self._status
        calm = {str(one.slot) for one in self._live if one.serves and self._now - one.since >= CALM_SECONDS}
        there = {str(slot) for slot in range(len(status.slots))}
        status.failures = {slot: count for slot, count in status.failures.items() if slot in there - calm}

    def _remove(self) -> None:
        """Delete whom nobody wants: those that serve only as long as enough are left, and after they have drained."""
        facts, keys = self._facts, set(self._wanted())
        kept = {one.name for key in keys if (one := self._find(key)) is not None}
        self._out.undrain += [one for one in self._live if one.name in kept and one.draining_since is not None]
        changed = {one.name for one, _ in self._out.change}
        spare = self._serving() - self._floor
        for one in sorted(self._live, key=lambda one: (one.serves, -one.slot, one.name)):
            if one.name in kept or one.name in self._gone or one.name in changed:
                continue
            if one.draining_since is not None and one.state in ("healthy", "coming", "unhealthy"):  # it runs
                departed = one.departed_at is not None
                since = one.departed_at if one.departed_at is not None else one.draining_since + DEPART_SECONDS
                left = since + facts.drain_seconds - self._now
                if 0 < left <= facts.drain_seconds + (0.0 if departed else DEPART_SECONDS):
                    waits = (
                        "finishes its connections"
                        if departed
                        else "leaves: waits until nodes stop sending it connections"
                    )
                    self._waits.append(f"{one.name} {waits}")
                    self._requeue(left)
                    continue
                self._status.progressed_at = self._now
            elif one.serves and one.slot < len(self._status.slots):
                if spare <= 0 or not self._may_go(one):
                    continue
                self._use_budgets(one)
                spare -= 1
                self._status.progressed_at = self._now
                if facts.drain_seconds > 0:
                    self._out.drain.append(one)
                    self._requeue(facts.drain_seconds)
                    continue
            elif one.serves and self._serving() < self._floor:
                self._waits.append(f"{one.name} stays until enough others are healthy")
                continue
            elif (one.serves or one.silent) and facts.drain_seconds > 0:
                self._out.drain.append(one)
                self._requeue(facts.drain_seconds)
                continue
            self._delete(one)

    def _may_go(self, one: Instance) -> bool:
        if all(self._left.get(budget, 0) > 0 for budget in one.budgets):
            return True
        self._waits.append(f"{one.name} stays: {one.held}" if one.held else f"{one.name} waits for its turn")
        return False

    def _use_budgets(self, one: Instance) -> None:
        for budget in one.budgets:
            self._left[budget] = self._left.get(budget, 0) - 1

    def _fill(self) -> None:
        """Make what is missing."""
        status, spec = self._status, self._spec
        most = self._most
        if status.stage == "roll" and (status.stable or status.back) and status.phase == "Progressing":
            surge = 0 if status.no_surge else spec.strategy.max_surge
            most = min(most, len(status.slots) + surge - self._count_there())
        made = len(self._out.make)
        for key in self._wanted():
            if self._find(key) is None and key not in self._taken and len(self._out.make) - made < most:
                self._make(key)
        fitting = self._facts.fitting
        if fitting is not None and len(self._out.make) > fitting:
            del self._out.make[fitting:]
            status.reason = OVER_QUOTA
            self._waits.append(self._facts.excess)
            self._requeue(LOOK_SECONDS)
            if not fitting:
                self._give_up_surge()
        elif len(self._out.make) >= self._most:
            self._requeue(0.1)

    def _give_up_surge(self) -> None:
        """The quota has no amounts left, and nothing that goes frees any."""
        status = self._status
        goes = self._out.delete or any(one.deleting or one.draining_since is not None for one in self._facts.instances)
        is_rolling = status.stage == "roll" and status.stable and status.phase == "Progressing"
        if is_rolling and not goes and not self._out.drain and not status.no_surge:
            status.no_surge = self._facts.excess
            text = f"the quota allows no further instance ({self._facts.excess}): max_unavailable counts instead"
            self._note("Warning", "NoSurge", text)
            self._requeue(0.1)

    def _make(self, key: Key) -> None:
        is_planned = key in self._taken or any((one.revision, one.slot) == key for one in self._out.make)
        if is_planned or len(self._out.make) >= self._most:
            return
        attempts = [one.attempt for one in self._facts.instances if one.key == key]
        self._out.make.append(NewInstance(*key, max(attempts, default=0) + 1))

    def _delete(self, one: Instance) -> None:
        if one.name not in self._gone:
            self._gone.add(one.name)
            self._out.delete.append(one)

    # How it ends.

    def _await(self, keys: Iterable[Key]) -> None:
        """Note what is waited for."""
        found = [one for key in keys if (one := self._find(key)) is not None]
        quiet = [one.name for one in found if not (one.unplaced or one.trouble)]
        if quiet:
            more = f" and {len(quiet) - _NAMED} more" if len(quiet) > _NAMED else ""
            self._waits.append(f"waits for {', '.join(quiet[:_NAMED])}{more}")
        troubled = [one for one in found if one.unplaced or one.trouble]
        self._waits += [f"{one.name}: {one.unplaced or one.trouble}" for one in troubled[:_NAMED]]

    def _check_deadline(self) -> None:
        """Give up what waits too long."""
        status, timeout = self._status, self._spec.strategy.health_check_timeout
        updated = sum(one.serves for one in self._live if one.revision == status.revision)
        if any(one.draining_since is not None for one in self._live) or self._out.drain:
            return  # which has a deadline of its own
        # What was healthy once and fell ill is no progress when it is healthy again.
        if status.progressed_at is None or status.progressed_at > self._now or updated > status.most_updated:
            status.progressed_at = self._now
        status.most_updated = max(updated, status.most_updated)
        left = status.progressed_at + timeout - self._now
        if left > 0:
            self._requeue(left)
            return
        waits = "; ".join(self._waits) or "nothing became healthy"
        self._fail(f"no progress for {format_duration(timeout)}: {waits}")

    def _fail(self, why: str, *, reverts: bool = False) -> None:
        """The rollout failed: go back, or wait for people."""
        status, strategy = self._status, self._spec.strategy
        may_go_back = status.stable and not status.back
        if may_go_back and (reverts or strategy.rollback_on_failure or status.strategy == "canary"):
            self._note("Warning", "RolloutFailed", f"revision {status.revision}: {why}")
            self._begin(status.stable, back=True, why=why)
            self._requeue(0.1)
            return
        self._end("Undecided", why)

    def _finish(self) -> None:
        """Promote what has taken over altogether."""
        status, target = self._status, self._status.revision
        if status.phase != "Progressing" or status.stage not in ("roll", "") or not target:
            return
        slots = range(len(status.slots))
        there = [one for one in self._live if one.name not in self._gone and one.state != "lost"]
        settled = all(status.slots[slot] == target and self._is_served((target, slot)) for slot in slots)
        rest = [one for one in there if one.revision != target or one.slot not in slots]
        if not settled or rest or self._out.make or self._out.change or self._out.undrain:
            return
        status.stage, status.split = "", []
        told = status.verdict
        where = f"all {len(slots)} instances" if len(slots) != 1 else "its instance"
        count = f"revision {target} is healthy on {where}" if slots else "no instances are wanted"
        if status.back:
            self._end("RolledBack", f"{told}; {count} again" if told else f"{count} again")
        else:
            judged = self._facts.verdict.why if self._facts.judged else "no requests were judged"
            unjudged = "" if told else f"; {judged}"
            self._end("Promoted", f"{told}; {count}" if told else f"{count}{unjudged}")
        status.stable, status.back = target, False

    def _end(self, phase: Literal["Promoted", "RolledBack", "Undecided"], why: str) -> None:
        status = self._status
        status.phase, status.verdict, status.ended_at, status.awaits = phase, why[:1000], self._now, False
        if phase == "Promoted" and status.stage == "keep":
            status.stable = status.revision
        self._mark_outcome(status.revision, "Undecided" if phase == "Undecided" else "Promoted")
        self._note("Warning" if phase == "Undecided" else "Normal", phase, f"revision {status.revision}: {why}")
        if phase != "Undecided":
            self._trim()

    def _mark_outcome(self, number: int, outcome: str) -> None:
        revisions = self._status.revisions
        for place, one in enumerate(revisions):
            if one.number == number and one.outcome != outcome:
                revisions[place] = replace(one, outcome=outcome)

    def _trim(self) -> None:
        """Drop the oldest revisions beyond the limit, in number or in bytes."""
        status = self._status
        needed = {status.stable, status.revision, *status.slots, *(one.revision for one in self._live)}
        sizes = {one.number: len(msgspec.json.encode(one)) for one in status.revisions}
        for one in sorted(status.revisions, key=lambda one: one.number):
            kept = sum(sizes.values())
            if len(sizes) > self._spec.revision_limit + 1 or kept > MOST_REVISIONS_BYTES:
                if one.number not in needed:
                    del sizes[one.number]
        status.revisions = [one for one in status.revisions if one.number in sizes]

    def _count(self) -> None:
        status = self._status
        serving = [one for one in self._live if one.serves and one.name not in self._gone]
        wanted = set(self._wanted())
        status.ready = sum(one.key in wanted for one in serving)
        status.updated = sum(one.revision == status.revision for one in serving)
        soon = [one.since + self._spec.min_healthy - self._now for one in self._live if one.state == "coming"]
        if due := [left for left in soon if 0 < left <= self._spec.min_healthy]:
            self._requeue(min(due))
        elif soon:
            self._requeue(LOOK_SECONDS)

    def _note(self, kind: Literal["Normal", "Warning"], reason: str, text: str) -> None:
        self._out.events.append((kind, reason, text))

    def _requeue(self, seconds: float) -> None:
        out = self._out
        out.requeue_after = min(seconds, out.requeue_after) if out.requeue_after is not None else seconds


def _split(shares: dict[int, int]) -> list[TrafficShare]:
    return [TrafficShare(revision, per_mille) for revision, per_mille in sorted(shares.items())]


def list_numbers(status: DeploymentStatus) -> list[int]:
    """The revisions that are kept, newest first."""
    return sorted((one.number for one in status.revisions), reverse=True)
