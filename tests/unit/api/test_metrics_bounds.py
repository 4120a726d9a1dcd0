"""Bounds on queries of metrics: what is passed on, and what isn't."""

from __future__ import annotations

import pytest

from weft.api.metrics.bounds import MOST_POINTS, check_parameters, read_seconds, read_time
from weft.kinds.fields.alert.promql import check_query
from weft.objects.errors import InvalidInput, NotFound, WeftError

NOW = 1_795_471_245.0


def test_only_known_parameters_are_passed_on() -> None:
    given = [
        ("query", "up"),
        ("time", "2026-11-24T00:00:00Z"),
        ("stats", "all"),
        ("lookback_delta", "9y"),
        ("nocache", "0"),
    ]
    assert check_parameters("query", given, NOW) == [
        ("query", "up"),
        ("timeout", "10000ms"),
        ("time", "1795478400.000"),
        ("nocache", "1"),
    ]


@pytest.mark.parametrize("name", ["extra_label", "extra_filters[]", "extra_filters", "match", "Query", "step"])
def test_an_unknown_parameter_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_parameters("query", [("query", "up"), (name, "1")], NOW)
    assert refused.value.field == name


def test_a_range_may_have_so_many_points_and_no_more() -> None:
    end = MOST_POINTS - 1
    given = [("query", "up"), ("start", "0"), ("end", str(end)), ("step", "1s")]
    assert ("step", "1.000") in check_parameters("query_range", given, NOW)
    given[2] = ("end", str(end + 1))
    with pytest.raises(InvalidInput) as refused:
        check_parameters("query_range", given, NOW)
    assert refused.value.hint is not None and "step of 2s" in refused.value.hint


def test_a_longer_timeout_than_ours_becomes_ours() -> None:
    assert ("timeout", "10000ms") in check_parameters("query", [("query", "1"), ("timeout", "1h")], NOW)
    assert ("timeout", "1500ms") in check_parameters("query", [("query", "1"), ("timeout", "1.5")], NOW)


@pytest.mark.parametrize(
    "text",
    [
        'label_replace(up, "a", "with (x)", "b", "label_join(label_join(label_join(label_join(")',
        "sum(rate(x[5m])) by (with)  # with (label_join( \\",
        "a{b=`\\x`}",
        'up{node=~"(n[0-9]{1,3}|m{2,}){4}", path="/v1/{name}", b=~"\\\\{9000\\\\}x"}  # "{9000}"',
        "x" * 4096,
    ],
)
def test_what_only_looks_like_a_bomb_passes(text: str) -> None:
    assert check_query(text, "query") == text


@pytest.mark.parametrize(
    "text",
    [
        "wItH (a = b) a",
        "with#comment\n(a = b) a",
        'with"" (a = b) a',
        "LABEL_REPLACE(" * 4,
        "label_set (" * 4,
        "alias(" * 4,
        "l\\abel_join(x)",
        "\n\t ",
        '# "\nwith (a=b) a',
        '{__name__=~"x{1,800}y"}',
        '{__name__!~"x{101}"}',
        "{__name__=~'(x{1,60}){41,}'}",
        "{__name__=~`x{ 101 }`}",
        '{__name__=~"x\\x7b1,800}"}',
        '{__name__=~"x\\u007b1,8\\60\\x30\\175"}',
        'label_replace(up, "a", "b", "c", "x{1,800}")',
        "up{a=~`" + "(" * 51 + "x" + ")?" * 51 + "`}",
        'up{a=~"\\x28' + "(" * 50 + '"}',
    ],
)
def test_a_bomb_is_found_however_it_is_written(text: str) -> None:
    with pytest.raises(InvalidInput):
        check_query(text, "query")


@pytest.mark.parametrize("text", ["", "x", "inf", "nan", "-1", "1e99", "2026", "9" * 400])
def test_what_is_no_time_is_refused(text: str) -> None:
    if text == "2026":
        assert read_time(text, "time") == 2026
        return
    with pytest.raises(InvalidInput):
        read_time(text, "time")


def test_durations_are_added_up() -> None:
    assert read_seconds("1h30m", "step") == 5400
    assert read_seconds("0.2", "step") == 0.2
    for text in ("0", "-5s", "1x", "s", "1.5h", "NaN", ""):
        with pytest.raises(InvalidInput):
            read_seconds(text, "step")


@pytest.mark.parametrize(
    "path", ["label/../values", "label//values", "label/a-b/values", "label/a\n/values", f"label/{'a' * 200}/values"]
)
def test_a_label_s_path_leads_nowhere_else(path: str) -> None:
    with pytest.raises(NotFound):
        check_parameters(path, [], NOW)


def test_too_many_selectors_are_refused() -> None:
    with pytest.raises(WeftError):
        check_parameters("labels", [("match[]", "up")] * 21, NOW)


@pytest.mark.parametrize(
    "query",
    [
        'quantiles_over_time("a", .1, .9, x[5m])',
        'aggr_over_time(("min_over_time", "max_over_time"), x[5m])',
        "ROLLUP_rate (x[5m])",
        "sum(buckets_limit(3, x))",
        'count_values("a", x)',
        'alias(x, "a")',
        "histogram_quantiles# a comment\n('a', .1, x)",
        "union(x, y)",
        "x default (y)",
    ],
)
def test_a_function_that_prometheus_does_not_have_or_that_makes_series_is_refused_by_name(query: str) -> None:
    with pytest.raises(InvalidInput, match="is not a function that queries may use"):
        check_query(query, "query")


@pytest.mark.parametrize(
    "query",
    [
        'sum by (name) (rate(x{a="b (c)"}[5m])) / on(name) group_left (zone) y',
        "histogram_quantile(0.9, sum(rate(x[5m])) by (le)) > bool (1)",
        "topk(3, max_over_time(x[1h:1m] offset 5m)) or (absent(y) unless (z)) and 2 * (3)",
        'label_replace(x @ start(), "a", "$1", "b", "(.*)")',
    ],
)
def test_a_query_of_prometheus_passes(query: str) -> None:
    assert check_query(query, "query") == query
