"""AlertRule: a PromQL condition that is checked all the time, and who is notified of its alerts.

It sees its project's series only, or with ``fabric`` those of the whole fabric, which takes the right to read all of them. Its
status is what the evaluator says, bounded; the notifications in it are the outbox of its receivers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.fields.alert.notification import Alert, Notification
from weft.kinds.fields.alert.promql import check_query
from weft.kinds.fields.alert.promql_form import check_form
from weft.kinds.fields.alert.summary import MOST_SUMMARY, check_summary, format_value, render_summary
from weft.kinds.fields.cells import AGE, NAME, dig, text
from weft.kinds.record import Access, Admission, Column, Display, Kind, Object, Reference
from weft.objects.errors import InvalidInput
from weft.objects.quantity import format_duration
from weft.objects.schema import field, words

MOST_LABELS = 16
MOST_RECEIVERS = 20
MOST_FOR_SECONDS = 7 * 86400.0
MOST_ALERTS = 100  # kept in the status; the rest is counted
EVALUATED = "Evaluated"
METRICS = "metric:list"
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_OWN_LABELS = ("project", "rule", "severity", "alertname", "alertstate", "alertgroup")


class AlertRuleSpec(msgspec.Struct, kw_only=True, rename={"for_": "for"}):
    expr: Annotated[str, field("Condition, in PromQL: each series that it gives is an alert")]
    for_: Annotated[float, field("How long it must hold before the alert fires", quantity="duration")] = 0.0
    severity: Annotated[Literal["info", "warning", "critical"], field("How urgent its alerts are")] = "warning"
    labels: Annotated[dict[str, str], field("Labels that its alerts get beside those of their series")] = {}
    summary: Annotated[
        str,
        field(
            "Sentence for people, with {{ $labels.NAME }} and {{ $value }} in place of an alert's own",
            max_length=MOST_SUMMARY,
        ),
    ] = ""
    receivers: Annotated[list[str], field("Receivers that are notified; none: all of the project", name=True)] = []
    fabric: Annotated[bool, field("It sees the series of nodes and of all projects")] = False
    paused: Annotated[bool, field("Don't evaluate it for now")] = False


class AlertRuleStatus(msgspec.Struct, kw_only=True):
    """Changes only when an alert begins, changes its state or ends. Times are seconds since 1970."""

    state: Annotated[str, words("inactive", "pending", "firing")] = "inactive"
    since: float = 0.0  # of the state
    firing: int = 0  # alerts
    pending: int = 0
    alerts: list[Alert] = []  # the oldest of them, firing ones first
    more: int = 0  # those that aren't in ``alerts``
    error: str = ""  # why the expression has no result
    gained: bool = False  # alerts have begun to fire that are in no notification yet
    episode: int = 0  # grows whenever the rule begins to fire
    step: int = 0  # grows with each notification of the episode
    notices: list[Notification] = []  # the newest ones, oldest first
    sent: dict[str, str] = {}  # by receiver, the id of the last one that it got


def check_rule(spec: AlertRuleSpec) -> None:
    """Raises InvalidInput."""
    check_form(check_query(spec.expr, "spec.expr", "spec.expr"), "spec.expr")
    check_summary(spec.summary, "spec.summary")
    if not 0 <= spec.for_ <= MOST_FOR_SECONDS:
        raise InvalidInput(
            f"spec.for: {format_duration(spec.for_)} is out of range", field="spec.for", hint="give 0s to 7d"
        )
    if len(spec.labels) > MOST_LABELS:
        raise InvalidInput(
            f"spec.labels: {len(spec.labels)} labels", field="spec.labels", hint=f"give at most {MOST_LABELS}"
        )
    for name, value in spec.labels.items():
        if not _LABEL.fullmatch(name):
            raise InvalidInput(
                f"spec.labels: {name[:40]!r} is not a label's name",
                field="spec.labels",
                hint="names have letters, digits and _, like team: storage",
            )
        if len(value) > 200 or not value.isprintable():
            raise InvalidInput(
                f"spec.labels: the value of {name} must be text of at most 200 characters on one line",
                field="spec.labels",
                hint=f"shorten it, or remove its control characters: {name}: storage",
            )
        if name in _OWN_LABELS or name.startswith("__"):
            raise InvalidInput(
                f"spec.labels: {name} is set by weft", field="spec.labels", hint="choose another name for the label"
            )
    if len(spec.receivers) > MOST_RECEIVERS or len(set(spec.receivers)) < len(spec.receivers):
        raise InvalidInput(
            f"spec.receivers: {len(spec.receivers)} entries",
            field="spec.receivers",
            hint=f"give at most {MOST_RECEIVERS}, each once",
        )


def find_rule_rights(old: AlertRuleSpec | None, new: AlertRuleSpec) -> Iterable[tuple[str, str]]:
    """Rights that a rule of all projects takes: whose rule sees all series must be allowed to see them."""
    return [(METRICS, "let a rule see the metrics of the whole fabric")] if new.fabric else []


def _state(obj: Object) -> str:
    if dig(obj, "spec.paused", False):
        return "paused"
    return "error" if dig(obj, "status.error", "") else str(dig(obj, "status.state", "inactive"))


def _since(obj: Object) -> str:
    return str(dig(obj, "status.since") or dig(obj, "created_at", 0.0))


def _note(obj: Object) -> str:
    found: list[dict[str, Any]] = dig(obj, "conditions") or []
    bad = [str(one.get("message", "")) for one in found if one.get("type") == EVALUATED and one["status"] == "False"]
    return "; ".join(dict.fromkeys([*filter(None, [_summarize(obj), dig(obj, "status.error", "")]), *bad]))


def _summarize(obj: Object) -> str:
    """The summary that its receivers get: the oldest alert, and how many others there are."""
    firing = [one for one in dig(obj, "status.alerts") or [] if one["state"] == "firing"]
    if not firing:
        return ""
    labels, value = firing[0]["labels"], firing[0]["value"]
    said = render_summary(dig(obj, "spec.summary", ""), labels, value)
    said = said or " ".join(f"{name}={text}" for name, text in labels.items()) or f"value {format_value(value)}"
    others = dig(obj, "status.firing", 1) - 1
    return said + (f" (and {others} more)" if others > 0 else "")


ALERT_RULE = Kind(
    name="alertrule",
    plural="alertrules",
    title="alert rule",
    summary="A condition over metrics, and who is notified when it holds",
    spec=AlertRuleSpec,
    status=AlertRuleStatus,
    in_backups="kept",
    access=Access(
        readers="project",
        status_writer="alerts",
        condition_writers={EVALUATED: "alerts"},
        further_rights=find_rule_rights,
    ),
    references=(Reference("receiver", "spec.receivers", lambda spec: spec.receivers, blocks=False),),
    admission=Admission(check=check_rule),
    display=Display(
        topic="Metrics, logs and alerts",
        columns=(
            NAME,
            Column("STATE", _state, keep=True),
            Column("FIRING", text("status.firing", "0"), align="right"),
            Column("SEVERITY", text("spec.severity")),
            Column("FOR", lambda obj: format_duration(dig(obj, "spec.for", 0.0)), align="right", wide=True),
            Column("EXPR", text("spec.expr"), flexible=True),
            AGE,
            Column("NOTE", _note, flexible=True),
        ),
    ),
)
