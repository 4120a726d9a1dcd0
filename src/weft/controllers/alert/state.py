"""A rule's next status: what the evaluator found, and the notifications that follow from it. Pure.

A firing alert fires until its condition no longer holds: an evaluator that was started again, and counts ``for`` from the
beginning, ends nothing. All alerts of a rule that fire within half a minute are one notification, so a storm of them is few."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import msgspec

from weft.informer.view import Item
from weft.kinds.alert_rule import MOST_ALERTS, AlertRuleSpec, AlertRuleStatus
from weft.kinds.fields.alert.notification import FIRING, RESOLVED, Alert, Notification
from weft.kinds.fields.alert.summary import render_summary
from weft.kinds.silence import SilenceSpec, is_silenced
from weft.telemetry.metrics.evaluator import Evaluated

GATHER_SECONDS = 30.0  # between two notifications that more alerts fire
MOST_NOTICES = 4
MOST_IN_NOTICE = 10
MOST_ALERT_BYTES = 64 << 10  # of all labels in a status
_MOST_LABELS, _MOST_VALUE = 30, 200
_RANK = {"firing": 0, "pending": 1}


def next_status(
    rule: Item, evaluated: Evaluated | None, silences: Sequence[SilenceSpec], now: float
) -> AlertRuleStatus:
    """The status after ``evaluated``; None: the rule isn't evaluated any more, so its alerts are over. The same status if nothing
    has changed. ``silences`` are those of its project."""
    spec, old = rule.spec(AlertRuleSpec), rule.status(AlertRuleStatus)
    if evaluated is not None and evaluated.error:
        return msgspec.structs.replace(old, error=evaluated.error)
    alerts = _list_alerts(spec, old.alerts, evaluated, now)
    firing = sum(alert.state == "firing" for alert in alerts)
    kept = _fit(alerts)
    state = "firing" if firing else "pending" if alerts else "inactive"
    status = msgspec.structs.replace(
        old,
        state=state,
        since=old.since if state == old.state else now,
        firing=firing,
        pending=len(alerts) - firing,
        alerts=kept,
        more=len(alerts) - len(kept),
        error="",
    )
    _notify(rule, old, status, silences, now)
    return status


def _list_alerts(spec: AlertRuleSpec, old: Sequence[Alert], evaluated: Evaluated | None, now: float) -> list[Alert]:
    """All alerts, firing ones first, then by age; each is the same as before unless its state has changed. An evaluation of
    before an alert began, as another server's may be, doesn't end it."""
    before = {_identify(alert.labels): alert for alert in old}
    alerts = []
    for one in evaluated.found if evaluated is not None else []:
        labels = _bound_labels(spec.labels, one.labels)
        known = before.get(_identify(labels))
        if known is not None and (known.state == "firing" or not one.firing):
            alerts.append(known)
            continue
        since = min(now, one.begun + (spec.for_ if one.firing else 0.0))
        alerts.append(Alert(labels=labels, value=one.value, since=since, state="firing" if one.firing else "pending"))
    if evaluated is not None:
        there = {_identify(alert.labels) for alert in alerts}
        alerts += [alert for key, alert in before.items() if key not in there and evaluated.at <= alert.since <= now]
    return sorted(alerts, key=lambda alert: (_RANK[alert.state], alert.since, _identify(alert.labels)))


def _bound_labels(own: Mapping[str, str], of_series: Mapping[str, str]) -> dict[str, str]:
    """Labels of an alert; what series say is data, and may be long."""
    cut = {
        name[:_MOST_VALUE]: "".join(char if char.isprintable() else " " for char in value[:_MOST_VALUE])
        for name, value in itertools.islice(sorted(of_series.items()), _MOST_LABELS)
    }
    return {**cut, **own}


def _identify(labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


def _fit(alerts: Sequence[Alert]) -> list[Alert]:
    """The first of them: so many, and so large."""
    kept, left = list[Alert](), MOST_ALERT_BYTES
    for alert in alerts[:MOST_ALERTS]:
        left -= sum(len(name) + len(value) for name, value in alert.labels.items())
        if left < 0:
            break
        kept.append(alert)
    return kept


def _notify(
    rule: Item, old: AlertRuleStatus, status: AlertRuleStatus, silences: Sequence[SilenceSpec], now: float
) -> None:
    """Add to ``status`` the notification that is due with it."""
    if status.firing:
        status.gained = old.gained or _has_gained(old, status)
        last = old.notices[-1].time if old.notices else 0.0
        begins = old.state != "firing"
        if begins:
            status.episode, status.step = old.episode + 1, 0
        elif not status.gained or 0 <= now - last < GATHER_SECONDS:  # a clock that was set back holds nothing up
            return
        shown = sorted(
            (alert for alert in status.alerts if alert.state == "firing"), key=lambda one: one.since, reverse=not begins
        )
        status.gained = False
        _add_notice(rule, status, FIRING, shown, status.firing, now)
    elif old.state == "firing":
        was = [alert for alert in old.alerts if alert.state == "firing"]
        over = [msgspec.structs.replace(alert, state="resolved", since=now) for alert in was]
        status.notices = [
            notice for notice in old.notices if notice.type != FIRING or not _is_silent(notice, silences, now)
        ]
        status.gained = False
        _add_notice(rule, status, RESOLVED, over, old.firing, now)


def _has_gained(old: AlertRuleStatus, status: AlertRuleStatus) -> bool:
    """Whether an alert has begun to fire. Of those that aren't kept only the number is known."""
    before = {_identify(alert.labels) for alert in old.alerts if alert.state == "firing"}
    new = [alert for alert in status.alerts if alert.state == "firing" and _identify(alert.labels) not in before]
    return status.firing > old.firing or (bool(new) and not old.more)


def _is_silent(notice: Notification, silences: Sequence[SilenceSpec], now: float) -> bool:
    return all(
        any(is_silenced(silence, notice.rule, alert.labels, now) for silence in silences) for alert in notice.alerts
    )


def _add_notice(
    rule: Item, status: AlertRuleStatus, type_: str, alerts: Sequence[Alert], count: int, now: float
) -> None:
    spec, envelope, first = rule.spec(AlertRuleSpec), rule.envelope, alerts[0]
    status.step += 1
    shown = list(alerts[:MOST_IN_NOTICE])
    notice = Notification(
        id=f"{rule.uid}.{status.episode}.{status.step}",
        time=now,
        type=type_,
        project=envelope.project or "",
        rule=envelope.name,
        severity=spec.severity,
        summary=render_summary(spec.summary, first.labels, first.value) or envelope.name,
        labels=first.labels,
        value=first.value,
        since=first.since,
        count=count,
        alerts=shown,
        more=count - len(shown),
    )
    status.notices = [*status.notices, notice][-MOST_NOTICES:]
