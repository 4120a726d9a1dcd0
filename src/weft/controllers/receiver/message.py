"""Messages to receivers: a notification of a rule's alerts, an event, or a test, in the forms that they take. Pure.

Everything in it may come from strangers (labels, messages of guests): as JSON it is data, and in plain text one line each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from weft.controllers.receiver.outcome import clean
from weft.kinds.fields.alert.notification import RESOLVED, Alert, Notification, to_document
from weft.objects.identity import Ref
from weft.objects.quantity import format_moment, format_time
from weft.telemetry.journal import Record

TEST = "test"
ENDS_SECONDS = 300.0  # so long an Alertmanager takes an alert for firing unless it gets it again
MOST_LISTED = 20  # alerts in an e-mail


class Message(msgspec.Struct, frozen=True):
    id: str  # the same each time it is sent
    type: str
    at: float  # when it happened, unix seconds
    document: dict[str, Any]  # the body of a webhook
    subject: str
    text: str
    alerts: Sequence[dict[str, Any]] = ()  # as an Alertmanager takes them


def render_alerts(notice: Notification, now: float) -> Message:
    word = "RESOLVED" if notice.type == RESOLVED else notice.severity.upper()
    alerts = notice.alerts or [Alert(labels=notice.labels, value=notice.value, since=notice.since)]
    lines = [
        clean(notice.summary, 400),
        "",
        *_table(
            ("Rule", notice.rule),
            ("Project", notice.project or "–"),
            ("Severity", notice.severity),
            ("State", notice.type.removeprefix("alert.")),
            ("Since", format_time(notice.since)),
            ("Alerts", str(notice.count)),
        ),
        "",
        *_list_alerts(alerts[:MOST_LISTED], notice.count),
    ]
    return Message(
        notice.id,
        notice.type,
        notice.time,
        to_document(notice),
        f"[{word}] {notice.rule}: {notice.summary}" + (f" (and {notice.count - 1} more)" if notice.count > 1 else ""),
        "\n".join(lines) + "\n",
        list_postable(
            notice.rule, notice.project, notice.severity, notice.summary, alerts, now, is_over=notice.type == RESOLVED
        ),
    )


def list_postable(
    rule: str, project: str, severity: str, summary: str, alerts: Iterable[Alert], now: float, *, is_over: bool
) -> list[dict[str, Any]]:
    """Alerts as ``POST /api/v2/alerts`` takes them: over now, or firing for ENDS_SECONDS unless it is sent again."""
    ends = format_moment(now if is_over else now + ENDS_SECONDS)
    return [
        {
            "labels": {**alert.labels, "alertname": rule, "project": project, "severity": severity},
            "annotations": {"summary": clean(summary, 400), "value": f"{alert.value:g}"},
            "endsAt": ends,
        }
        | ({} if is_over else {"startsAt": format_moment(alert.since)})
        for alert in alerts
    ]


def render_event(receiver_uid: str, journal: str, record: Record) -> Message:
    """An event that was read from a journal; its id is that event's alone."""
    about, name = record.object, f"{record.object.kind}.{record.reason.lower()}"
    id_ = hashlib.sha256(f"{receiver_uid} {journal} {record.id}".encode()).hexdigest()[:32]
    document = {
        "id": id_,
        "time": format_moment(record.at),
        "type": name,
        "project": about.project or "",
        "severity": "warning" if record.type == "Warning" else "info",
        "summary": clean(record.message, 1000),
        "object": _describe(about),
        "reason": record.reason,
        "since": format_moment(record.first_at),
        "count": record.count,
    }
    return Message(id_, name, record.at, document, f"{name}: {about.name}", clean(record.message, 1000) + "\n")


def render_test(receiver: Ref, asked: int, now: float) -> Message:
    """The test of this number that somebody asked for."""
    id_, words = f"test-{receiver.uid}-{asked}", f"This is a test of receiver {receiver.name}."
    document = {
        "id": id_,
        "time": format_moment(now),
        "type": TEST,
        "project": receiver.project or "",
        "severity": "info",
        "summary": words,
    }
    alert = Alert(labels={"receiver": receiver.name}, value=0.0, since=now)
    postable = list_postable("WeftTest", receiver.project or "", "info", words, [alert], now, is_over=True)
    return Message(id_, TEST, now, document, f"[TEST] weft notifies {receiver.name}", words + "\n", postable)


def _describe(about: Ref) -> dict[str, str]:
    return {"kind": about.kind, "name": about.name, "project": about.project or "", "uid": about.uid}


def _table(*rows: tuple[str, str]) -> list[str]:
    return [f"{name + ':':<10}{clean(value)}" for name, value in rows]


def _list_alerts(alerts: Sequence[Alert], count: int) -> list[str]:
    lines = [
        f"- {clean(', '.join(f'{name}={value}' for name, value in sorted(alert.labels.items())), 300) or 'no labels'}"
        f"  value {alert.value:g}, {alert.state} since {format_time(alert.since)}"
        for alert in alerts
    ]
    return [*lines, *([f"… and {count - len(alerts)} more"] if count > len(alerts) else [])]
