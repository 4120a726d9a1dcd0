"""The strategies blue-green and canary: new instances run beside all old ones until they are judged. Pure."""

from __future__ import annotations

from weft.controllers.deployment.instances import LATE_SECONDS, LOOK_SECONDS, MOST_DELETED
from weft.controllers.deployment.outcome import Outcomes
from weft.kinds.fields.deployment.instance import count_instances
from weft.objects.quantity import format_duration

_UNSERVED = "gets no requests until it is promoted, as no service leads to it"


class Beside(Outcomes):
    """Tests new instances, and lets them take over."""

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
        # A step begins with instances that answer; in the middle of it they may all be busy.
        is_there = self._has_taken_over if status.step_since is None else self._is_served
        if missing := [key for key in wanted if not is_there(key)]:
            self._await(missing)
            self._has_deadline = status.phase == "Progressing"
            return None
        per_mille = round(self._share() * 1000)
        if status.step_since is None or status.step_since > self._now:
            status.step_since = self._now
            text = f"revision {status.revision} is healthy on {count_instances(len(found))} beside the old ones"
            gets = f"gets {per_mille / 10:g} % of the requests" if self._facts.served else _UNSERVED
            self._note("Normal", "StepStarted", f"{text}, and {gets}")
        status.split = self._split({status.stable: 1000 - per_mille, status.revision: per_mille})
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
            if silent := [one.key for one in self._live if one.revision == status.revision and one.silent]:
                self._await(silent)
                self._has_deadline = True
                return None
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
            status.stage, status.split = "keep", self._split({status.revision: 1000, old: 0})
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
        status, gone = self._status, {one.name for one in self._out.delete[:MOST_DELETED]}
        if not status.stage and all(one.revision == status.revision or one.name in gone for one in self._live):
            status.split = []
