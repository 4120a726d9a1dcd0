"""Keeps the status of alert rules as their evaluator finds them, and gives the evaluator the rules.

Reads rules and silences; writes alertrule.status and the condition Evaluated, the evaluator's file, and deletes silences a day
after their end. Woken by time. Only the leader runs it; killed at any moment, the next one reads the evaluator's states and goes
on: what is due is in the statuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import msgspec

from weft.contracts.journal import Event
from weft.controllers.alert.rules import MOST_RULES, bound_expr, choose_rules, write_rules
from weft.controllers.alert.state import next_status
from weft.controllers.asking import Asking, Later
from weft.informer.commit import Commit, delete, edit, put, unchanged
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import Item, View
from weft.kinds.alert_rule import AlertRuleSpec, AlertRuleStatus
from weft.kinds.fields.alert.notification import FIRING
from weft.kinds.silence import SilenceSpec
from weft.objects.envelope import Condition, merge_part, set_condition
from weft.objects.errors import WeftError
from weft.telemetry.metrics.evaluator import Evaluated

SOURCE = "alerts"
KEEP_SILENCE_SECONDS = 86_400.0
NO_RESULT = "noResult"
AWAY_SECONDS = 30.0  # that it may be away, as when it is started again, before rules say so
_BATCH = 100
_MOST_PAUSE_SECONDS = 5.0


class Evaluates(Protocol):
    """``interval`` in seconds."""

    interval: float

    def write_rules(self, document: bytes) -> None:
        """Raises OSError."""

    async def read(self) -> dict[str, Evaluated]:
        """The evaluator's answers by uid of the rule. Raises WeftError."""


class Unevaluated(msgspec.Struct, frozen=True):
    """Why nothing evaluates rules on this server."""

    reason: str
    message: str


class Alerts(Asking):
    name = "alerts"
    always = ("alerts",)

    def __init__(self, leadership: LeaderLease, evaluator: Evaluates | Unevaluated) -> None:
        self._leadership, self._evaluator = leadership, evaluator
        self._written = b""
        self._read_at = leadership.clock.elapsed()
        self._unwritten: Unevaluated | None = None

    async def take_turn(self, key: str) -> Later:
        await self.step()
        if isinstance(self._evaluator, Unevaluated):
            return {key: 1.0}
        return {key: min(_MOST_PAUSE_SECONDS, max(0.2, self._evaluator.interval / 4))}

    async def step(self) -> None:
        """One round."""
        view = self._leadership.cache.view
        rules = view.of_kind("alertrule").values()
        chosen = choose_rules(rules)
        evaluated = await self._read(chosen)
        now = self._leadership.clock.now()
        commits = list(list_commits(view, chosen, evaluated, now, self._unwritten))
        for start in range(0, len(commits), _BATCH):
            await self._leadership.perform(commits[start : start + _BATCH])

    async def _read(self, chosen: Mapping[str, Item]) -> dict[str, Evaluated] | Unevaluated | None:
        """The evaluator's findings; None: it says nothing at present."""
        evaluator, clock = self._evaluator, self._leadership.clock
        if isinstance(evaluator, Unevaluated):
            return evaluator
        document = write_rules(chosen.values(), evaluator.interval)
        if document != self._written:
            try:
                evaluator.write_rules(document)
                self._written, self._unwritten = document, None
            except OSError as problem:
                why = f"the rules can't be written: {problem.strerror}; those from before are evaluated"
                self._unwritten = Unevaluated("rulesNotWritten", why)
        try:
            found = await evaluator.read()
            self._read_at = clock.elapsed()
        except WeftError as problem:
            if clock.elapsed() - self._read_at < AWAY_SECONDS:
                return None
            return Unevaluated("evaluatorAway", f"{problem.message}; alerts stay as they were")
        return found


def list_commits(
    view: View,
    chosen: Mapping[str, Item],
    evaluated: Mapping[str, Evaluated] | Unevaluated | None,
    now: float,
    unwritten: Unevaluated | None = None,
) -> Iterator[Commit]:
    """Yield the changes that follow; ``unwritten``: why the evaluator has no rules newer than those that it speaks of. Pure."""
    silences: dict[str, list[SilenceSpec]] = {}
    for silence in view.of_kind("silence").values():
        silences.setdefault(silence.envelope.project or "", []).append(spec := silence.spec(SilenceSpec))
        if spec.until < now - KEEP_SILENCE_SECONDS and not silence.deleting:
            yield Commit(silence.key, [delete(silence)], [unchanged(silence)])
    for rule in view.of_kind("alertrule").values():
        if not rule.deleting and evaluated is not None:
            own = silences.get(rule.envelope.project or "", [])
            commit = plan_rule(rule, rule.uid in chosen, evaluated, own, now, unwritten)
            if commit is not None:
                yield commit


def plan_rule(
    rule: Item,
    is_chosen: bool,
    evaluated: Mapping[str, Evaluated] | Unevaluated,
    silences: Sequence[SilenceSpec],
    now: float,
    unwritten: Unevaluated | None = None,
) -> Commit | None:
    """The commit of a rule's next status, its condition and its events; None: nothing changes."""
    spec, old = rule.spec(AlertRuleSpec), rule.status(AlertRuleStatus)
    if isinstance(evaluated, Unevaluated):
        return _change(rule, old, evaluated, now)
    if not is_chosen:
        why = None if spec.paused else Unevaluated("tooManyRules", f"the project has more than {MOST_RULES} rules")
        return _change(rule, next_status(rule, None, silences, now), why, now)
    found = evaluated.get(rule.uid)
    if found is None or (found.expr, found.for_) != (bound_expr(spec), spec.for_):
        # Not yet, or as it was before its last change.
        return None if unwritten is None else _change(rule, old, unwritten, now)
    return _change(rule, next_status(rule, found, silences, now), None, now)


def _change(rule: Item, status: AlertRuleStatus, why: Unevaluated | None, now: float) -> Commit | None:
    old, generation = rule.status(AlertRuleStatus), rule.envelope.generation
    condition = Condition("Evaluated", "True", "Evaluated", "", now, generation)
    if why is None and status.error:
        why = Unevaluated(NO_RESULT, status.error)
    if why is not None:
        condition = Condition("Evaluated", "False", why.reason, why.message, now, generation)
    envelope = edit(rule)
    if not set_condition(envelope, condition) and status == old:
        return None
    envelope.status = merge_part(envelope.status, status)
    return Commit(rule.key, [put(envelope)], [unchanged(rule)], list(_list_events(rule, old, status)))


def _list_events(rule: Item, old: AlertRuleStatus, status: AlertRuleStatus) -> Iterator[Event]:
    known = {notice.id for notice in old.notices}
    for notice in status.notices:
        if notice.id not in known:
            fires = notice.type == FIRING
            more = f" ({notice.count} alerts)" if notice.count > 1 else ""
            words = f"{notice.summary}{more}" if fires else f"over: {notice.summary}{more}"
            type_, reason = ("Warning", "AlertFiring") if fires else ("Normal", "AlertResolved")
            yield Event(type_, reason, words, rule.envelope.ref, SOURCE)  # type: ignore[arg-type]
