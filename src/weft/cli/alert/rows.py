"""Alerts of rules, one by one, from the rules' statuses. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from weft.cli.output.table import make_columns
from weft.kinds.alert_rule import EVALUATED
from weft.kinds.fields.alert.summary import format_value, render_summary
from weft.kinds.fields.cells import dig
from weft.kinds.record import Object
from weft.objects.quantity import format_age, parse_moment

COLUMNS = make_columns("PROJECT", "RULE!", "STATE!", "SEVERITY", "SINCE>", "VALUE>", "LABELS~", "SUMMARY~", "SILENCED~")
_RANK = {"firing": 0, "pending": 1}
_URGENT = {"critical": 0, "warning": 1, "info": 2}


def list_alerts(rules: Iterable[Object], silences: Sequence[Object], now: float) -> list[dict[str, Any]]:
    """Those that fire or are pending, the most urgent first. ``silenced`` names the silence that keeps it quiet, or is ""."""
    found = []
    for rule in rules:
        severity = dig(rule, "spec.severity", "warning")
        for alert in dig(rule, "status.alerts") or []:
            labels, value = alert["labels"], alert["value"]
            found.append(
                {
                    "rule": rule["name"],
                    "project": rule.get("project"),
                    "state": alert["state"],
                    "since": alert["since"],
                    "severity": severity,
                    "labels": labels,
                    "value": value,
                    "summary": render_summary(dig(rule, "spec.summary", ""), labels, value),
                    "silenced": find_silence(rule, labels, silences, now),
                }
            )
    return sorted(found, key=lambda one: (_RANK[one["state"]], _URGENT[one["severity"]], one["since"], one["rule"]))


def find_silence(rule: Object, labels: Mapping[str, str], silences: Iterable[Object], now: float) -> str:
    """The name of a silence that holds for this alert now; "": there is none."""
    for silence in silences:
        spec = silence.get("spec", {})
        if (
            silence.get("project") == rule.get("project")
            and parse_moment(spec.get("until", 0)) > now
            and spec.get("rule", "") in ("", rule["name"])
            and all(labels.get(name) == value for name, value in (spec.get("labels") or {}).items())
        ):
            return str(silence["name"])
    return ""


def draw_alerts(alerts: Iterable[Mapping[str, Any]], now: float) -> list[list[str]]:
    """Draw alerts as rows of ``COLUMNS``."""
    return [
        [
            one["project"],
            one["rule"],
            one["state"],
            one["severity"],
            format_age(now - one["since"]),
            format_value(one["value"]),
            " ".join(f"{name}={value}" for name, value in sorted(one["labels"].items())),
            one["summary"],
            one["silenced"],
        ]
        for one in alerts
    ]


def describe_gaps(rules: Sequence[Object]) -> list[str]:
    """Describe what the list doesn't show: alerts beyond those that rules keep, and rules that nothing evaluates, with the
    reason."""
    lines, unevaluated = [], dict[str, int]()
    for rule in rules:
        if more := dig(rule, "status.more", 0):
            lines.append(f"{rule['name']}: {more} more alerts, {dig(rule, 'status.firing', 0)} firing in all")
        if error := dig(rule, "status.error", ""):
            lines.append(f"{rule['name']}: the expression has no result: {error}")
        for condition in dig(rule, "conditions") or []:
            if condition["type"] == EVALUATED and condition["status"] == "False":
                why = condition["message"]
                unevaluated[why] = unevaluated.get(why, 0) + 1
    counted = [
        f"{count} {'rule is' if count == 1 else 'rules are'} not evaluated: {why}" for why, count in unevaluated.items()
    ]
    return counted + lines
