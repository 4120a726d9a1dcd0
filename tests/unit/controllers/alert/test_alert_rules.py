"""What a rule may say, and what its evaluator reads of it."""

from __future__ import annotations

import msgspec
import pytest
from tests.unit.controllers.alert.alert_lab import NOW, rule

from weft.controllers.alert.rules import MOST_RULES, choose_rules, write_rules
from weft.informer.view import Item
from weft.kinds.alert_rule import AlertRuleSpec, check_rule, find_rule_rights
from weft.kinds.fields.alert.summary import MOST_SUMMARY, render_summary
from weft.kinds.silence import SilenceSpec, check_silence, check_until
from weft.objects.errors import InvalidInput


def read(*rules: Item) -> list[dict[str, object]]:
    groups: list[dict[str, object]] = msgspec.json.decode(write_rules(choose_rules(rules).values(), 10.0))["groups"]
    return groups


def test_a_project_is_a_group_that_the_database_narrows_to_its_series() -> None:
    ours, theirs, whole = rule(expr='weft_x{project="b"} > 0'), rule(project="b"), rule("all", fabric=True)
    groups = {group["name"]: group for group in read(ours, theirs, whole)}
    assert groups["a"]["params"] == {"extra_filters[]": ['{__name__=~"weft_.*",project="a"}']}
    assert groups["b"]["params"] == {"extra_filters[]": ['{__name__=~"weft_.*",project="b"}']}
    assert "params" not in groups["a/fabric"]


def test_nothing_that_people_write_but_the_expression_reaches_the_evaluators_templates() -> None:
    evil = '{{ query "weft_node_up" }}'
    with pytest.raises(InvalidInput):
        check_rule(AlertRuleSpec(expr="weft_x > 0", summary=evil))
    written = write_rules([rule(labels={"team": evil})], 10.0)
    assert b"{{" not in written
    assert [group["rules"] for group in read(rule())] == [
        [
            {
                "alert": "uid-full-a",
                "expr": "limitk(1000, (\nweft_x > 0\n))",
                "for": "0s",
                "labels": {"project": "a"},
            }
        ]
    ]


def test_rules_beyond_the_bound_of_a_project_are_left_out() -> None:
    rules = [rule(f"r{number:04}") for number in range(MOST_RULES + 5)] + [rule("z", project="b")]
    chosen = [item.envelope.name for item in choose_rules(rules).values()]
    assert (len(chosen), chosen[-1]) == (MOST_RULES + 1, "z")
    assert read(rule(paused=True)) == []


@pytest.mark.parametrize(
    "expr",
    [
        "",
        "x" * 5000,
        "weft_x)) or ((other",
        "(weft_x",
        "weft_x > 0 # a comment)\n)",
        'weft_x{a="b',
        "weft_x]",
        'count_values("v", weft_x)',
        'label_replace(label_replace(label_replace(label_replace(a,"a","","",""),"a","","",""),"a","","",""),"a","","","")',
        "WITH (x = 1) x",
        "range_quantile(0.5, weft_x)",
    ],
)
def test_a_bomb_and_what_would_leave_its_parentheses_is_refused(expr: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_rule(AlertRuleSpec(expr=expr))
    assert refused.value.field == "spec.expr"


@pytest.mark.parametrize(
    "expr", ["weft_x > 0", 'sum by (a) (rate(weft_x{b=")(", c=~"["}[5m])) > 1 # )', "weft_x['5m']"[:6]]
)
def test_an_ordinary_expression_is_taken(expr: str) -> None:
    check_rule(AlertRuleSpec(expr=expr))


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("spec.for", {"for_": -1.0}),
        ("spec.for", {"for_": 8 * 86400.0}),
        ("spec.labels", {"labels": {"project": "b"}}),
        ("spec.labels", {"labels": {"a-b": "c"}}),
        ("spec.labels", {"labels": {"a": "b\nc"}}),
        ("spec.labels", {"labels": {f"l{number}": "" for number in range(17)}}),
        ("spec.receivers", {"receivers": ["ops", "ops"]}),
        ("spec.summary", {"summary": "{{ $labels }}"}),
        ("spec.summary", {"summary": "two\nlines"}),
    ],
)
def test_what_a_rule_may_not_say_is_refused_by_its_field(field: str, given: dict[str, object]) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_rule(msgspec.structs.replace(AlertRuleSpec(expr="weft_x > 0"), **given))
    assert refused.value.field == field
    assert refused.value.hint


def test_a_rule_of_the_whole_fabric_takes_the_right_to_read_all_metrics() -> None:
    assert list(find_rule_rights(None, AlertRuleSpec(expr="a"))) == []
    assert [name for name, _ in find_rule_rights(None, AlertRuleSpec(expr="a", fabric=True))] == ["metric:list"]


def test_a_summary_is_one_bounded_line_whatever_series_say() -> None:
    text = render_summary("{{ $labels.vm }} is at {{$value}}", {"vm": "a\x1b[2J\nb{{ $value }}"}, 0.81234)
    assert text == "a�[2J�b{{ $value }} is at 0.8123"
    assert len(render_summary("{{ $labels.vm }}" * 20, {"vm": "x" * 200}, 1.0)) == MOST_SUMMARY


def test_a_silence_says_of_what_and_until_when() -> None:
    for wrong in (
        SilenceSpec(until=NOW + 1),
        SilenceSpec(labels={"a": "b" * 201}, until=NOW + 1),
        SilenceSpec(labels={"": "b"}, until=NOW + 1),
    ):
        with pytest.raises(InvalidInput):
            check_silence(wrong)
    for until in (NOW, NOW - 1, NOW + 400 * 86400):
        with pytest.raises(InvalidInput):
            check_until(SilenceSpec(rule="x", until=until), NOW)
    check_silence(SilenceSpec(rule="x", until=NOW + 1))
    check_until(SilenceSpec(rule="x", until=NOW + 1), NOW)
