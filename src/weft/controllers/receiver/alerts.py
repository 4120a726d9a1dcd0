"""Find the alerts of rules that are due to receivers, from the rules' statuses. Reads rules and silences; decides nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from weft.controllers.alert.due import Addressee, list_due
from weft.controllers.receiver.message import Message, list_postable, render_alerts
from weft.controllers.receiver.outbox import Waiting
from weft.informer.view import Item, View
from weft.kinds.alert_rule import ALERT_RULE, AlertRuleSpec, AlertRuleStatus
from weft.kinds.receiver import ALERTS, ReceiverSpec
from weft.kinds.silence import SILENCE, SilenceSpec, is_silenced

REPEAT_SECONDS = 60.0  # after which an Alertmanager gets again what still fires
_MOST_REPEATED = 1000  # alerts


def is_addressed(receiver: Item, rule: Item) -> bool:
    """Whether this rule's alerts concern it at all."""
    spec = receiver.spec(ReceiverSpec)
    if ALERTS not in spec.on or spec.all_projects:
        return ALERTS in spec.on
    wanted = rule.spec(AlertRuleSpec).receivers
    is_own = rule.envelope.project == receiver.envelope.project
    return is_own and (not wanted or receiver.envelope.name in wanted)


def address(receiver: Item) -> Addressee:
    """The receiver as rules' statuses call it: one of all projects by its project, too."""
    of = receiver.envelope
    name = f"{of.project}/{of.name}" if receiver.spec(ReceiverSpec).all_projects else of.name
    return Addressee(name, of.created_at)


def list_notices(view: View, receiver: Item, now: float) -> list[Waiting]:
    """Oldest first."""
    found = []
    for rule in _rules(view, receiver):
        for _, notice in list_due(rule, [address(receiver)], _silences(view, rule), now):
            found.append(Waiting(render_alerts(notice, now), rule=rule.key))
    return sorted(found, key=lambda one: one.message.at)


def make_repeat(view: View, receiver: Item, now: float) -> Message | None:
    """All that fires now and isn't silenced, for an Alertmanager; None: nothing does."""
    postable = []
    for rule in _rules(view, receiver):
        status, silences = rule.status(AlertRuleStatus), _silences(view, rule)
        if status.state != "firing" or rule.spec(AlertRuleSpec).paused or not status.notices:
            continue
        notice = status.notices[-1]
        loud = [
            alert
            for alert in status.alerts
            if alert.state == "firing" and not any(is_silenced(one, notice.rule, alert.labels, now) for one in silences)
        ]
        postable += list_postable(
            notice.rule, notice.project, notice.severity, notice.summary, loud, now, is_over=False
        )
    if not postable:
        return None
    return Message("repeat", "alert.firing", now, {}, "", "", postable[:_MOST_REPEATED])


def find_silence_end(view: View, receiver: Item, now: float) -> float | None:
    """Seconds until the next silence ends: what it held back may be due then. None: there is none."""
    ends = [silence.until - now for rule in _rules(view, receiver) for silence in _silences(view, rule)]
    return min((left for left in ends if left > 0), default=None)


def _rules(view: View, receiver: Item) -> Iterator[Item]:
    for rule in view.of_kind(ALERT_RULE.name).values():
        if rule.status(AlertRuleStatus).notices and not rule.deleting and is_addressed(receiver, rule):
            yield rule


def _silences(view: View, rule: Item) -> Sequence[SilenceSpec]:
    project = rule.envelope.project
    return [
        item.spec(SilenceSpec)
        for item in view.of_kind(SILENCE.name).values()
        if item.envelope.project == project and not item.deleting
    ]
