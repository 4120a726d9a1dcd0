"""Notifications of a rule's alerts to a receiver: one message for all that began together, or that all are over. Pure.

It is made once, kept in the rule's status, and sent from there; so the same message has the same id, however often it is sent."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from weft.objects.quantity import format_moment

FIRING, RESOLVED = "alert.firing", "alert.resolved"
AlertState = Literal["pending", "firing", "resolved"]


class Alert(msgspec.Struct, kw_only=True, frozen=True):
    """One series for which a rule's condition holds, or no longer holds."""

    labels: dict[str, str]
    value: float  # of the expression, when the alert got its state
    since: float  # of the state: seconds since 1970
    state: AlertState = "firing"


class Notification(msgspec.Struct, kw_only=True, frozen=True):
    """``labels``, ``value`` and ``since`` are those of the first of ``alerts``. Times are seconds since 1970."""

    id: str  # RULE_UID.EPISODE.STEP; the same each time it is sent
    time: float
    type: str  # alert.firing, alert.resolved
    project: str
    rule: str  # its name
    severity: str
    summary: str  # for people, one line
    labels: dict[str, str]
    value: float
    since: float
    count: int  # alerts that it is about
    alerts: list[Alert] = []  # the first of them
    more: int = 0  # those of them that aren't in ``alerts``


def to_document(notification: Notification) -> dict[str, Any]:
    """It as plain data for JSON, with times of RFC 3339."""
    document: dict[str, Any] = msgspec.to_builtins(notification)
    for part in (document, *document["alerts"]):
        part["since"] = format_moment(part["since"])
    document["time"] = format_moment(notification.time)
    return document
