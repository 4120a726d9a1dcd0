"""Rules that an evaluator says things of."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from weft.controllers.alert.controller import plan_rule
from weft.controllers.alert.due import Addressee, list_due, note_sent
from weft.controllers.alert.rules import bound_expr
from weft.informer.commit import Commit
from weft.informer.view import Item
from weft.kinds.alert_rule import ALERT_RULE, AlertRuleSpec, AlertRuleStatus, check_rule
from weft.kinds.fields.alert.notification import Notification
from weft.kinds.silence import SilenceSpec
from weft.objects.envelope import decode_envelope
from weft.telemetry.metrics.evaluator import Evaluated, FoundSeries

NOW = 1_800_000_000.0


def rule(name: str = "full", project: str = "a", **spec: Any) -> Item:
    made = AlertRuleSpec(**{"expr": "weft_x > 0", "summary": "{{ $labels.vm }} has {{ $value }}", **spec})
    check_rule(made)
    return Item(ALERT_RULE.make(name, made, NOW - 100, uid=f"uid-{name}-{project}", project=project))


def found(vm: str, *, firing: bool = True, value: float = 1.0, begun: float = NOW) -> FoundSeries:
    return FoundSeries({"vm": vm}, value, firing, begun)


class Played:
    """One rule, whose commits are written at once."""

    def __init__(self, item: Item) -> None:
        self.item, self.writes = item, 0
        self.events: list[str] = []
        self.silences: list[SilenceSpec] = []

    def see(self, now: float, *seen: FoundSeries, error: str = "", at: float = math.inf) -> AlertRuleStatus:
        """The evaluator has found these, ``at`` that time."""
        spec = self.item.spec(AlertRuleSpec)
        evaluated = {self.item.uid: Evaluated(bound_expr(spec), spec.for_, error, list(seen), at)}
        self.write(plan_rule(self.item, True, evaluated, self.silences, now))
        return self.status

    def write(self, commit: Commit | None) -> None:
        if commit is not None:
            self.writes += 1
            self.events += [event.reason for event in commit.events]
            (put,) = commit.writes
            self.item = Item(decode_envelope(put.value))  # type: ignore[union-attr]

    @property
    def status(self) -> AlertRuleStatus:
        return self.item.status(AlertRuleStatus)

    def due(self, now: float, *names: str, since: float = NOW - 1000) -> list[tuple[str, Notification]]:
        return list(list_due(self.item, [Addressee(name, since) for name in names or ("ops",)], self.silences, now))

    def send(self, now: float, name: str = "ops") -> list[Notification]:
        """Have the receiver take all that is due."""
        due = [notice for _, notice in self.due(now, name)]
        for notice in due:
            self.write(note_sent(self.item, {name: notice.id}))
        return due

    def rewrite(self, **spec: Any) -> None:
        self.item = Item(
            msgspec.structs.replace(
                self.item.envelope,
                spec=msgspec.Raw(msgspec.json.encode(msgspec.structs.replace(self.item.spec(AlertRuleSpec), **spec))),
                generation=self.item.envelope.generation + 1,
            )
        )
