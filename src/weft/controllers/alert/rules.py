"""The rules as their evaluator reads them. Pure.

A group is a project's rules, one after the other; the database adds the group's selector to every selector of its expressions, so a
rule sees no other project's series, whatever it says. No text of people's but the expression is in it: the evaluator's templates
could ask for other series. How many series an expression may give is bounded by the database, before the evaluator has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from weft.informer.view import Item
from weft.kinds.alert_rule import AlertRuleSpec

MOST_RULES = 100  # of a project that are evaluated, in the order of their names
MOST_SERIES, MOST_FABRIC_SERIES = 1_000, 10_000  # alerts of a rule
NAMES = "weft_.*"  # what a project's rules see of a database that holds more


def choose_rules(rules: Iterable[Item]) -> dict[str, Item]:
    """Those that are evaluated, by uid, of all rules."""
    of_project: dict[str, list[Item]] = {}
    for rule in rules:
        if not rule.deleting and not rule.spec(AlertRuleSpec).paused:
            of_project.setdefault(rule.envelope.project or "", []).append(rule)
    return {
        rule.uid: rule
        for project in sorted(of_project)
        for rule in sorted(of_project[project], key=lambda one: one.envelope.name)[:MOST_RULES]
    }


def write_rules(chosen: Iterable[Item], interval: float) -> bytes:
    """The evaluator's file: JSON, which is YAML. ``interval`` in seconds."""
    groups: dict[str, dict[str, Any]] = {}
    for rule in chosen:
        project, spec = rule.envelope.project or "", rule.spec(AlertRuleSpec)
        name = f"{project}/fabric" if spec.fabric else project
        group = groups.setdefault(name, {"name": name, "interval": f"{interval:g}s", "rules": []})
        entry: dict[str, Any] = {"alert": rule.uid, "expr": bound_expr(spec), "for": f"{spec.for_:g}s"}
        if not spec.fabric:
            group["params"] = {"extra_filters[]": [f'{{__name__=~"{NAMES}",project="{project}"}}']}
            entry["labels"] = {"project": project}
        group["rules"].append(entry)
    return msgspec.json.encode({"groups": [groups[name] for name in sorted(groups)]})


def bound_expr(spec: AlertRuleSpec) -> str:
    """Its expression, of so many series at most. The parenthesis is on a line of its own, for a comment may stand before it."""
    return f"limitk({MOST_FABRIC_SERIES if spec.fabric else MOST_SERIES}, (\n{spec.expr}\n))"
