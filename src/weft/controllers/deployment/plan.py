"""Plan the next step of a deployment: facts in, the instances to make, change, drain and delete out. Pure.

Each slot has a revision, and the slots stand in the status: whichever process dies when, an instance that is missing is made again
in its slot's revision, under a name that follows from both. Three rules hold in every phase: no healthy instance goes if fewer than
``replicas - max_unavailable`` would be left; a rollback needs nothing of what is broken; and whatever waits has a deadline, after
which the rollout ends with a verdict.
"""

from __future__ import annotations

from collections import Counter

from weft.controllers.deployment.beside import Beside
from weft.controllers.deployment.facts import DeploymentFacts, DeploymentOutcome, Instance
from weft.controllers.deployment.instances import LOOK_SECONDS, MOST_DELETED
from weft.controllers.deployment.rolling import Rolling
from weft.kinds.fields.deployment.status import DeploymentStatus, Revision, mark_template
from weft.kinds.quota import REASON as OVER_QUOTA
from weft.objects.errors import shorten
from weft.objects.quantity import format_duration

REPLACE_SECONDS = 10.0  # after which an instance that failed is replaced; twice as long for each one before it that did
MOST_REPLACE_SECONDS = 300.0
CALM_SECONDS = 300.0  # for which an instance must be healthy before the ones before it are forgotten
LOST_SECONDS = 60.0  # after which one on a silent node is
PORT_SECONDS = 2.0  # in which nodes lead a published port to the VM that has it now
DEPART_SECONDS = 15.0  # after which an instance gets no new connections, though a node hasn't said so: it may be older


def plan_deployment(facts: DeploymentFacts) -> DeploymentOutcome:
    """Plan what to do now."""
    return _Planner(facts).plan()


class _Planner(Rolling, Beside):
    def plan(self) -> DeploymentOutcome:
        status = self._status
        self._demand_ports()
        queued = self._take_spec()
        if self._retries:
            self._forget_failures()
        self._fit_slots()
        self._set_pause()
        if self._has_begun:
            self._demand_ports()  # of another version, maybe
            self._requeue(0.1)  # what can be had in place is known by then
        elif status.stage == "keep":
            self._keep()
        elif status.stage in ("test", "roll") and status.phase == "Progressing" and self._learns():
            pass
        elif status.stage == "test" and (status.phase == "Progressing" or status.awaits):
            self._test()
        elif status.stage == "roll" and status.phase == "Progressing":
            self._roll()
        self._replace()
        self._remove()
        self._end_split()
        self._fill()
        if not status.stage:
            self._note_missing()
        if self._has_deadline and status.phase == "Progressing":
            self._check_deadline()
        self._finish()
        self._keep_serving()
        self._count()
        self._out.delete, self._out.drain = self._out.delete[:MOST_DELETED], self._out.drain[:MOST_DELETED]
        if queued:
            self._waits.insert(0, queued)
        if not status.message:
            status.message = shorten("; ".join(dict.fromkeys(self._waits)), 400)
        return self._out

    def _take_spec(self) -> str:
        """Begin a rollout if the template asks for one; a sentence if that waits for another rollout to end."""
        status, spec, asked = self._status, self._spec, self._asked
        mark = mark_template(spec.template, spec.labels)
        if asked.resumes > status.resumes:
            self._resume()
        if (mark, asked.rollout) == (status.template, status.rollout):
            status.observed_generation = self._facts.generation
            return ""
        known = self._find_known(mark)
        number = known.number if known is not None else max((one.number for one in status.revisions), default=0) + 1
        is_undo = known is not None and asked.undos > status.undos
        is_busy = status.phase in ("Progressing", "Paused") and status.stage in ("test", "roll")
        if is_busy and status.stable and number != status.stable and not is_undo:
            return f"a change of the template waits for the end of the rollout of revision {status.revision}"
        if known is None:
            new = Revision(
                number=number,
                template=spec.template,
                labels=spec.labels,
                created_at=self._now,
                author=self._facts.author,
            )
            new.instance = spec.instance or (spec.adopt if number == 1 else "")
            status.revisions.append(new)
        status.template, status.rollout, status.observed_generation = mark, asked.rollout, self._facts.generation
        status.undos = asked.undos
        # People asked for it, or it is what ran before the rollout that this one ends.
        back = (is_undo and number <= status.stable) or status.revision != number == status.stable
        self._begin(number, back=back)
        return ""

    def _find_known(self, mark: str) -> Revision | None:
        """The revision with that template; None if there must be another one, as a further instance shall run."""
        status, spec, asked = self._status, self._spec, self._asked
        same = [one for one in status.revisions if mark_template(one.template, one.labels) == mark]
        if asked.undos > status.undos:
            same = [one for one in same if one.number != status.revision] or same
        elif asked.rollout > status.rollout and spec.instance:
            same = [one for one in same if one.instance == spec.instance]
        elif asked.rollout > status.rollout and spec.adopt and spec.strategy.type != "rolling":
            # The VM has changed since: it can't run beside itself as it was.
            busy = {one.instance for one in status.revisions if one.number in status.slots}
            same = [one for one in same if one.instance not in busy or one.number in status.slots]
        return max(same, key=lambda one: (one.number == status.stable, one.number), default=None)

    def _resume(self) -> None:
        status = self._status
        status.resumes = self._asked.resumes
        self._granted, status.awaits = status.awaits, False
        if status.phase == "Undecided" and status.stage and not self._granted:
            status.verdict, status.no_surge, self._retries, status.step_since = "", "", True, None
        if status.phase in ("Undecided", "Paused"):
            status.phase, status.ended_at, status.progressed_at = "Progressing", None, self._now

    def _fit_slots(self) -> None:
        status = self._status
        proven = status.stable if status.stage and status.stable and not status.back else status.revision
        status.replicas = self._spec.replicas
        status.slots = status.slots[: status.replicas] + [proven] * (status.replicas - len(status.slots))

    def _replace(self) -> None:
        """Replace what failed or was lost, unless it is what a rollout is judged by."""
        status, now = self._status, self._now
        is_judged = status.stage in ("test", "roll") and bool(status.stable) and not status.back
        waiting: list[tuple[str, int, float]] = []  # name, how many in a row, after how many seconds
        self._forget_calm()
        for key in self._wanted():
            one = self._find(key)
            if one is None or one.kept or (is_judged and key[0] == status.revision and one.state == "failed"):
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

    def _note_missing(self) -> None:
        """Say what keeps wanted instances from serving while there is no rollout, which would say so itself."""
        missing = [key for key in self._wanted() if not self._is_served(key)]
        self._await(key for key in missing if (one := self._find(key)) is not None and (one.unplaced or one.trouble))
        there = [one.node for one in self._live if one.serves and one.node]
        if len(set(there)) < min(len(there), self._facts.nodes):
            node, most = Counter(there).most_common(1)[0]
            self._waits.append(
                f"not spread: {most} of {len(there)} are on {node}, and {self._facts.nodes} nodes are ready"
            )

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
            elif self._is_led_to(one):
                self._waits.append(f"{one.name} stays until nodes lead its ports elsewhere")
                self._requeue(PORT_SECONDS)
                continue
            elif one.serves and one.slot < len(self._status.slots):
                if spare <= 0 or not self._may_go(one):
                    continue
                if not self._may_spare(one, [drained.name for drained in self._out.drain]):
                    self._waits.append(f"{one.name} stays until enough others answer their checks")
                    continue
                self._use_budgets(one)
                spare -= 1
                self._status.progressed_at = self._now
                if facts.drain_seconds > 0:
                    self._out.drain.append(one)
                    self._requeue(facts.drain_seconds)
                    continue
            elif one.serves and (self._serving() < self._floor or not self._may_spare(one)):
                self._waits.append(f"{one.name} stays until enough others are healthy")
                continue
            elif (one.serves or one.silent) and facts.drain_seconds > 0:
                self._out.drain.append(one)
                self._requeue(facts.drain_seconds)
                continue
            self._delete(one)

    def _is_led_to(self, one: Instance) -> bool:
        """Whether connections to published ports may still come to a VM whose place another one takes."""
        status, adopt = self._status, self._spec.adopt
        if not (adopt and one.serves) or self._facts.alone or not status.slots:
            return False
        taker = self._find((status.slots[0], 0))
        if taker is None or not taker.serves or taker.name == one.name:
            return False
        if one.name == (status.holder or adopt):  # the commit of this plan hands over
            return status.progressed_at is not None and 0 <= self._now - status.progressed_at < LOOK_SECONDS
        return status.held_since is not None and 0 <= self._now - status.held_since < PORT_SECONDS

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


def list_numbers(status: DeploymentStatus) -> list[int]:
    """The revisions that are kept, newest first."""
    return sorted((one.number for one in status.revisions), reverse=True)
