"""The strategy rolling, and each way back: new instances take the place of old ones. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from weft.controllers.deployment.facts import Instance
from weft.controllers.deployment.instances import LATE_SECONDS, LOOK_SECONDS
from weft.controllers.deployment.outcome import Outcomes
from weft.objects.quantity import format_duration

_MOST_CHANGED = 10


class Rolling(Outcomes):
    """Replaces instances, by a surge or within max_unavailable."""

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
        taker = self._find((target, 0)) if status.slots else None
        if self._spec.adopt and taker is not None and taker.unplaced and not self._frees_capacity():
            return self._fail_full(taker)
        for slot in self._old_slots():
            if self._has_taken_over((target, slot)):
                status.slots[slot], status.progressed_at = target, self._now
        if old := self._old_slots():
            self._roll_next(old)
        if status.revision != target or status.phase != "Progressing":
            return None
        unserved = [(target, slot) for slot in range(len(status.slots)) if not self._has_taken_over((target, slot))]
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
        status.no_surge = status.no_surge or self._facts.alone
        beside = [slot for slot in old if self._find((target, slot)) is not None]
        unplaced = next((one for slot in beside if (one := self._find((target, slot))) and one.unplaced), None)
        if unplaced is not None and self._spec.adopt and not self._frees_capacity():
            return self._fail_full(unplaced)
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

    def _fail_full(self, taker: Instance) -> None:
        """No node takes the VM that is to replace another one: that one keeps its place while it is stopped, so nothing changes."""
        why = f"no node has capacity for {taker.name} beside the VM that it replaces, which keeps its place"
        self._fail(f"{why}: {taker.unplaced}", reverts=True)

    def _change_in_place(self, fits: Sequence[int]) -> None:
        """Let running instances take the new template."""
        status, target = self._status, self._status.revision
        most = max(1, self._spec.strategy.max_surge, self._spec.strategy.max_unavailable)
        busy = sum(
            not self._has_taken_over((target, slot))
            for slot in range(len(status.slots))
            if status.slots[slot] == target
        )
        for slot in fits[: max(0, min(most - busy, _MOST_CHANGED))]:
            one = self._find((status.slots[slot], slot))
            assert one is not None
            self._out.change.append((one, target))
            self._taken.add((target, slot))
            status.restarts = {**status.restarts, one.name: one.restarts}
            status.slots[slot] = target
            if one.kept:
                self._keep_instance(target, one.name)

    def _take_down(self, old: Sequence[int]) -> None:
        """Free slots for the new revision: those that serve nobody first, then as many as may be missing."""
        status, target = self._status, self._status.revision
        slots = range(len(status.slots))
        busy = sum(not self._has_taken_over((target, slot)) for slot in slots if status.slots[slot] == target)
        free = max(1, self._spec.strategy.max_unavailable) - busy
        taken = self._list_leaving()
        spare = self._serving() - self._floor - len(taken)
        for slot in sorted(old, key=lambda slot: self._is_served((status.slots[slot], slot))):
            one = self._find((status.slots[slot], slot))
            if free <= 0:
                return
            if one is not None and one.serves:
                if spare <= 0 or not self._may_spare(one, taken) or not self._may_go(one):
                    continue
                taken.append(one.name)
                spare -= 1
            status.slots[slot] = target
            free -= 1

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
