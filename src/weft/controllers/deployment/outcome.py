"""How a rollout begins, fails, goes back and ends, whatever its strategy. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from weft.controllers.deployment.ports import Ports
from weft.kinds.fields.deployment.status import MOST_REVISIONS_BYTES, TrafficShare
from weft.objects.quantity import format_duration

CRASHES = 2  # restarts of a new instance that mean it fails


class Outcomes(Ports):
    """The status of the rollout that is under way."""

    def _begin(self, number: int, *, back: bool, why: str = "") -> None:
        status, spec = self._status, self._spec
        is_same = number == status.revision == status.stable and status.stage in ("", "keep")
        leaves, self._retries, self._has_begun = status.revision, True, True
        is_tested = not back and status.stable and spec.strategy.type != "rolling"
        status.strategy, status.revision, status.back = spec.strategy.type, number, back and not is_same
        status.started_at = status.progressed_at = self._now
        status.step, status.step_since, status.ended_at, status.migrated = 0, None, None, []
        status.awaits, status.no_surge, status.verdict, status.phase = False, "", why, "Progressing"
        status.most_updated, status.restarts, status.failures = 0, {}, {}
        if is_same:
            status.stage = ""
            self._end("Promoted", f"revision {number} is what runs already: nothing changes")
            return
        if is_tested and self._facts.alone:
            self._mark_outcome(number, "RolledBack")
            status.revision, status.stage, status.split = status.stable, "", []
            self._end("RolledBack", f"revision {number} can't be tried beside the old one: {self._facts.alone}")
            return
        if status.back:
            self._mark_outcome(leaves, "RolledBack")
            known = {number, status.stable} - {leaves}  # those with a share that are ready have the requests
            spared = bool(status.split) or (self._facts.verdict.word == "bad" and self._can_spare(leaves))
            shares = {**{one: 1000 // len(known) for one in known}, leaves: 0}
            status.split = self._split(shares) if spared else []
            self._give_up_broken()
        else:
            self._mark_outcome(number, "")
            self._forget_answers()
        status.stage = "test" if is_tested else "roll"
        if is_tested:
            status.split = self._split({status.stable: 1000, number: 0})
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

    def _find_broken(self) -> str:
        """Evidence that the new revision fails; "" if there is none."""
        status = self._status
        if status.back or not status.stable:
            return ""
        for one in self._live:
            if one.name in self._gone or one.revision != status.revision:
                continue
            restarts = self._count_restarts(one)
            if one.state == "failed" or restarts >= CRASHES:
                if one.state == "failed":
                    return f"{one.name}: {one.trouble or 'it failed'}"
                return f"{one.name} restarted {restarts} times" + (f": {one.trouble}" if one.trouble else "")
        return ""

    def _forget_failures(self) -> None:
        """Hold nothing of an earlier try against the new revision."""
        status = self._status
        status.failures = {}
        if status.back or not status.stable:
            return
        for one in [one for one in self._live if one.revision == status.revision]:
            is_broken = one.state == "failed" or self._count_restarts(one) >= CRASHES
            status.restarts = {**status.restarts, one.name: one.restarts}
            if is_broken and not one.serves:
                self._delete(one)

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
        settled = all(status.slots[slot] == target and self._has_taken_over((target, slot)) for slot in slots)
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

    def _keep_serving(self) -> None:
        """Keep the data of whatever serves in the place of an adopted VM from now on: an undo finds it again, and nothing deletes
        it.
        """
        status = self._status
        if self._spec.adopt and status.slots and status.stage in ("", "keep"):
            one = self._find((status.slots[0], 0))
            if one is not None:
                self._keep_instance(one.revision, one.name)

    def _keep_instance(self, number: int, name: str) -> None:
        """Have an undo to the revision find this instance again."""
        revisions = self._status.revisions
        for place, one in enumerate(revisions):
            if one.number == number and one.instance != name:
                revisions[place] = replace(one, instance=name)

    def _split(self, shares: dict[int, int]) -> list[TrafficShare]:
        """No revision has a share of what no service sends."""
        return split_requests(shares) if self._facts.served else []

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


def split_requests(shares: dict[int, int]) -> list[TrafficShare]:
    return [TrafficShare(revision, per_mille) for revision, per_mille in sorted(shares.items())]
