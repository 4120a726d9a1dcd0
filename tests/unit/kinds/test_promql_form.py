"""Which PromQL expressions are whole, as fields take them that are judged all the time."""

from __future__ import annotations

import pytest

from weft.kinds.alert_rule import AlertRuleSpec, check_rule
from weft.kinds.fields.alert.promql_form import check_form
from weft.kinds.fields.deployment.scaling import Autoscale, check_autoscale
from weft.objects.errors import InvalidInput


@pytest.mark.parametrize(
    "text",
    [
        "weft_guest_cpu_cores / weft_guest_cpu_requested_cores > 0.9",
        "-1 + +x ^ -2 >= bool 3e-4",
        'sum by (name, node) (rate(weft_x{project="a",name=~"b{1,3}|[c]"}[5m])) > on (name) group_left (node) y',
        "sum(rate(x[5m])) without (node) / ignoring(a) group_right() topk(3, y)",
        'max_over_time(x[1h:5m] offset -1d) @ end() or vector(0) unless absent({__name__="x"}) # until (all) is well',
        "time() - x @ 1.5e9 > 86400",
        "histogram_quantile(0.9, sum(rate(a:b:c[5m])) by (le,))",
        "(x) and (y or 0x1F) default 5",
        "by > on + 1",
        "label_replace(x, 'a', \"$1\", `b`, '(.*)')",
        "count(x) by () == Inf",
    ],
)
def test_an_expression_that_is_whole_is_taken(text: str) -> None:
    check_form(text, "spec.expr")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cpu >>", "nothing stands before '>'"),
        ("foo bar baz", "bar follows foo without an operator"),
        ("weft_node_cpu_used_cores >", "nothing stands after '>'"),
        ("x > 0.9 0.8", "0.8 follows 0.9 without an operator"),
        ("x and", "nothing stands after 'and'"),
        ("* 2", "nothing stands before '*'"),
        ("() > 1", "nothing stands in the parentheses"),
        ("(x +) > 1", "nothing stands after '+'"),
        ("x, y", "a comma stands where none may be"),
        ("x = 5", "'=' is not part of PromQL"),
        ("x > 1; y", "';' is not part of PromQL"),
        ("x =~ 'a'", "'=~' compares labels only"),
        ("x[] > 1", "'[]' is not a span of time"),
        ("x{a=}", "'{a=}' doesn't choose labels"),
        ('x "y"', "a string follows x without an operator"),
    ],
)
def test_an_expression_that_lacks_something_is_refused_with_what_it_lacks(text: str, said: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_form(text, "spec.expr")
    assert refused.value.message.startswith(f"spec.expr: {said}") and refused.value.hint


def test_every_field_that_takes_an_expression_refuses_half_of_one() -> None:
    with pytest.raises(InvalidInput, match="nothing stands after"):
        check_rule(AlertRuleSpec(expr="cpu >"))
    with pytest.raises(InvalidInput, match="nothing stands after"):
        check_autoscale(Autoscale(min=1, max=2, metric="cpu +", target=0.5))
