"""What the history says of requests, and what follows from it: verdicts, and the number of instances."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from weft.contracts.history import Floats, Labels, Span
from weft.controllers.deployment.requests import (
    REQUESTS,
    SECONDS,
    Watched,
    ask_figure,
    ask_verdict,
    judge_requests,
    plan_scale,
    plan_span,
)
from weft.kinds.deployment import DeploymentSpec, check_deployment
from weft.kinds.fields.deployment.scaling import Autoscale
from weft.objects.errors import InvalidInput
from weft.telemetry.metrics.history import SampleHistory
from weft.telemetry.metrics.sample import Sample

NEW, OLD = "container/web-2-0", "container/web-1-0"
WATCHED = Watched(project="default", since=1000.0, new=frozenset({NEW}), old=frozenset({OLD}), threshold=0.999)
SPAN = Span(1000.0, 1.0, 3)
Rows = Mapping[tuple[str, str], list[float]]


def series(rows: Rows, project: str = "default") -> dict[Labels, Floats]:
    return {
        Labels.of({"project": project, "workload": workload, "code_class": code}): np.array(row)
        for (workload, code), row in rows.items()
    }


def test_no_service_that_counts_means_that_nobody_judged() -> None:
    verdict, judged = judge_requests(WATCHED, SPAN, series({("container/other", "2xx"): [0.0, 9.0]}), {})
    assert (verdict.word, judged) == ("wait", False)
    assert judge_requests(WATCHED, SPAN, series({(NEW, "2xx"): [0.0, 9.0]}, project="theirs"), {})[1] is False


def test_a_new_revision_that_fails_is_bad_and_one_that_does_not_is_good() -> None:
    bad = series(
        {(NEW, "2xx"): [math.nan, 20.0, 40.0], (NEW, "5xx"): [math.nan, 1.0, 3.0], (OLD, "2xx"): [5.0, 9.0, 900.0]}
    )
    verdict, judged = judge_requests(WATCHED, SPAN, bad, {})
    assert (verdict.word, verdict.requests, judged) == ("bad", 43, True)
    good = series({(NEW, "2xx"): [math.nan, 200.0, 400.0], (OLD, "2xx"): [5.0, 9.0, 900.0]})
    assert judge_requests(WATCHED, SPAN, good, {})[0].word == "good"


def test_too_few_requests_say_how_long_enough_of_them_take_at_this_rate() -> None:
    few = series({(NEW, "2xx"): [0.0, 5.0, 10.0], (OLD, "2xx"): [5.0, 9.0, 900.0]})
    verdict = judge_requests(WATCHED, Span(1000.0, 10.0, 3), few, {})[0]
    assert verdict.word == "wait" and verdict.why.endswith("without a failure would do, in about 17m3s at this rate")


def test_what_the_old_revision_shows_is_allowed_to_the_new_one() -> None:
    both: dict[tuple[str, str], list[float]] = {
        (NEW, "2xx"): [0.0, 90.0, 190.0],
        (NEW, "5xx"): [0.0, 2.0, 4.0],
        (OLD, "2xx"): [0.0, 500.0, 980.0],
        (OLD, "5xx"): [0.0, 9.0, 20.0],
    }
    assert judge_requests(WATCHED, SPAN, series(both), {})[0].word == "good"
    alone = {key: row for key, row in both.items() if key[0] == NEW}
    assert judge_requests(WATCHED, SPAN, series(alone), {})[0].word == "bad"


def test_what_the_old_revision_fails_counts_only_since_there_is_a_new_one() -> None:
    """A busy minute fails both; the hour before it was quiet."""
    span = Span(1000.0, 1.0, 6)
    quiet: dict[tuple[str, str], list[float]] = {
        (OLD, "2xx"): [0.0, 5000.0, 9000.0, 9000.0, 9090.0, 9180.0],
        (OLD, "5xx"): [0.0, 0.0, 0.0, 0.0, 10.0, 20.0],
        (NEW, "2xx"): [math.nan, math.nan, math.nan, 0.0, 90.0, 180.0],
        (NEW, "5xx"): [math.nan, math.nan, math.nan, 0.0, 10.0, 20.0],
    }
    assert judge_requests(WATCHED, span, series(quiet), {})[0].word == "good"


def test_what_busy_machines_leave_unanswered_is_not_held_against_the_new_revision() -> None:
    span = Span(1000.0, 1.0, 7)

    def judge(new_unanswered: list[float], new_errors: list[float], old_unanswered: list[float]) -> tuple[str, str]:
        rows: dict[tuple[str, str], list[float]] = {
            (OLD, "2xx"): [0.0, 500.0, 1000.0, 1500.0, 2000.0, 2500.0, 3000.0],
            (OLD, "none"): old_unanswered,
            (NEW, "2xx"): [0.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0],
            (NEW, "none"): new_unanswered,
            (NEW, "5xx"): new_errors,
        }
        verdict = judge_requests(WATCHED, span, series(rows), {})[0]
        return verdict.word, verdict.why

    well, busy = [0.0] * 7, [0.0, 10.0, 40.0, 70.0, 100.0, 120.0, 130.0]  # 4 % of the old one's
    word, why = judge([0.0, 0.0, 30.0, 50.0, 57.0, 57.0, 57.0], well, busy)
    assert (word, "these don't count" in why) == ("good", True), "a burst of twice as many"
    assert judge([0.0, 0.0, 30.0, 50.0, 57.0, 57.0, 57.0], well, well)[0] == "bad", "the old one answers all"
    assert judge(well, [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0], busy)[0] == "bad", "it says itself that it fails"
    word, why = judge([0.0, 40.0, 80.0, 120.0, 160.0, 200.0, 240.0], well, busy)
    assert word == "bad" and why == "it leaves 28.6 % of the requests unanswered, the old revision 4.15 %"


def test_a_new_revision_that_leaves_all_unanswered_is_bad_whatever_the_old_one_leaves() -> None:
    span = Span(1000.0, 1.0, 7)

    def judge(new_unanswered: float) -> str:
        rows: dict[tuple[str, str], list[float]] = {
            (OLD, "2xx"): [60.0 * place for place in range(7)],
            (OLD, "none"): [40.0 * place for place in range(7)],
            (NEW, "2xx"): [100.0 * (1.0 - new_unanswered) * place for place in range(7)],
            (NEW, "none"): [100.0 * new_unanswered * place for place in range(7)],
        }
        return judge_requests(WATCHED, span, series(rows), {})[0].word

    assert (judge(1.0), judge(0.75)) == ("bad", "bad")
    assert judge(0.6) != "bad" and judge(0.4) != "bad", "the machines are busy"


def test_the_history_is_asked_for_the_project_s_series_alone() -> None:
    asked = []

    class Asked(SampleHistory):
        async def read(self, query: str, span: Span, project: str = "") -> Mapping[Labels, Floats]:
            asked.append(query)
            return await super().read(query, span, project)

    asyncio.run(ask_verdict(Asked([]), WATCHED, 1030.0))
    assert asked == [f'{name}{{project="default"}}' for name in (REQUESTS, SECONDS)]


def test_a_counter_that_began_again_counts_from_nothing() -> None:
    verdict, _ = judge_requests(WATCHED, SPAN, series({(NEW, "2xx"): [100.0, 150.0, 30.0, 60.0]}), {})
    assert verdict.requests == 110


def test_verdicts_come_from_a_history_that_keeps_samples() -> None:
    span = plan_span(1000.0, 1030.0)
    labels = (("code_class", "2xx"), ("project", "default"), ("workload", NEW))
    moments = [span.start + span.step * place for place in range(span.count)]
    samples = [Sample(REQUESTS, labels, int(at * 1000), 100.0 * place) for place, at in enumerate(moments)]
    verdict, judged = asyncio.run(ask_verdict(SampleHistory(samples), WATCHED, 1030.0))
    assert (verdict.word, judged) == ("good", True)
    assert asyncio.run(ask_figure(SampleHistory(samples), REQUESTS, "default", 1030.0)) == 100.0 * (span.count - 1)
    assert asyncio.run(ask_figure(SampleHistory([]), REQUESTS, "default", 1030.0)) is None


def test_a_figure_is_of_the_deployment_s_project_alone() -> None:
    samples = [Sample("load", (("project", project),), 1_030_000, 7.0) for project in ("theirs", "ours")]
    assert asyncio.run(ask_figure(SampleHistory(samples), "load", "ours", 1030.0)) == 7.0
    assert asyncio.run(ask_figure(SampleHistory(samples), "load", "nobody-s", 1030.0)) is None


@pytest.mark.parametrize(
    ("present", "value", "wanted"),
    [(2, 1.0, 4), (4, 0.25, 2), (4, 0.52, 4), (8, 1.0, 10), (3, 0.0, 2), (1, 0.5, 2), (2, None, 2), (2, math.nan, 2)],
)
def test_a_figure_gives_the_number_of_instances_within_its_bounds(
    present: int, value: float | None, wanted: int
) -> None:
    scale = Autoscale(min=2, max=10, metric="load", target=0.5)
    assert plan_scale(scale, present, value, None, 1000.0)[0] == wanted


def test_a_tiny_target_gives_the_most_instances() -> None:
    scale = Autoscale(min=1, max=10, metric="load", target=1e-308)
    assert plan_scale(scale, 2, 100.0, None, 1000.0)[0] == 10


def test_the_number_changes_no_more_often_than_the_cooldown_says() -> None:
    scale = Autoscale(min=1, max=10, metric="load", target=0.5, cooldown=60.0)
    assert plan_scale(scale, 2, 1.0, 990.0, 1000.0) == (2, "1, target 0.5: 4 after the cooldown")
    assert plan_scale(scale, 2, 1.0, 930.0, 1000.0)[0] == 4
    assert plan_scale(scale, 2, 1.0, 5000.0, 1000.0)[0] == 4, "the clock was set back"


def test_a_span_is_never_longer_than_a_history_answers() -> None:
    for seconds in (0.0, 3.0, 600.0, 86400.0):
        span = plan_span(0.0, seconds)
        assert isinstance(span, Span)
        assert 1 <= span.count <= 210


@pytest.mark.parametrize("metric", ["rate(x[5m]", "x))", "count_values('a', x)", " "])
def test_an_expression_that_could_not_be_bounded_is_refused(metric: str) -> None:
    spec = DeploymentSpec(template={"image": "alpine"}, autoscale=Autoscale(max=2, target=1.0, metric=metric))
    with pytest.raises(InvalidInput, match=r"spec\.autoscale"):
        check_deployment(spec)
    assert spec.autoscale is not None
    spec.autoscale.metric = "avg(rate(weft_x[5m])) # of all"
    check_deployment(spec)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"min": 5, "max": 2}, "spec.autoscale.min: must be at most max"),
        ({"target": 0.0}, "spec.autoscale.target: must be more than 0"),
        ({"target": math.nan}, "spec.autoscale.target: must be more than 0"),
        ({"metric": " "}, "spec.autoscale.metric: must be an expression"),
    ],
)
def test_what_is_wrong_with_a_scale_is_named(given: dict[str, Any], told: str) -> None:
    scale = Autoscale(**{"max": 3, "target": 1.0, "metric": "x", **given})
    with pytest.raises(InvalidInput, match=told):
        check_deployment(DeploymentSpec(template={"image": "alpine"}, autoscale=scale))
