"""States of alerts as the evaluator finds them: what is kept, what is written, and what is bounded."""

from __future__ import annotations

import msgspec
import pytest
from tests.unit.controllers.alert.alert_lab import NOW, Played, found, rule

from weft.controllers.alert.controller import Unevaluated, plan_rule
from weft.controllers.alert.state import GATHER_SECONDS, MOST_ALERT_BYTES, MOST_IN_NOTICE, MOST_NOTICES
from weft.kinds.alert_rule import MOST_ALERTS
from weft.telemetry.metrics.evaluator import FoundSeries


def test_an_alert_waits_then_fires_then_is_over() -> None:
    one = Played(rule(for_=60.0))
    assert one.see(NOW).state == "inactive"
    status = one.see(NOW + 10, found("web", firing=False, begun=NOW + 9))
    assert (status.state, status.since, status.pending, status.firing) == ("pending", NOW + 10, 1, 0)
    status = one.see(NOW + 70, found("web", value=3.0, begun=NOW + 9))
    assert (status.state, status.since, status.firing) == ("firing", NOW + 70, 1)
    assert [(alert.state, alert.since, alert.value) for alert in status.alerts] == [("firing", NOW + 69, 3.0)]
    status = one.see(NOW + 80)
    assert (status.state, status.since, status.alerts, status.firing) == ("inactive", NOW + 80, [], 0)
    assert one.events == ["AlertFiring", "AlertResolved"]


def test_nothing_is_written_while_nothing_changes() -> None:
    one = Played(rule())
    one.see(NOW, found("web", value=1.0))
    before = one.writes
    for second in range(1, 100):
        one.see(NOW + second, found("web", value=float(second)))
    assert one.writes == before


def test_an_evaluator_that_counts_anew_after_a_restart_ends_no_alert() -> None:
    one = Played(rule(for_=300.0))
    one.see(NOW, found("web", begun=NOW - 300))
    status = one.see(NOW + 10, found("web", firing=False, begun=NOW + 9))
    assert (status.state, status.since) == ("firing", NOW)
    assert one.see(NOW + 20).state == "inactive"


def test_what_another_server_s_evaluator_found_before_an_alert_began_does_not_end_it() -> None:
    one = Played(rule(for_=60.0))
    one.see(NOW + 10, found("web", firing=False, begun=NOW + 9), at=NOW + 9)
    status = one.see(NOW + 11, at=NOW + 5)  # as the next leader reads it
    assert [(alert.state, alert.since) for alert in status.alerts] == [("pending", NOW + 9)]
    assert one.see(NOW + 20, found("web", firing=False, begun=NOW + 15), at=NOW + 15).alerts == status.alerts
    assert one.see(NOW + 25, at=NOW + 25).alerts == []
    one.see(NOW + 30, found("web", firing=False, begun=NOW + 29), at=NOW + 29)
    assert one.see(NOW + 20, at=NOW + 19).alerts == []  # it began by a clock that was ahead


def test_an_error_of_the_expression_is_shown_and_keeps_the_alerts() -> None:
    one = Played(rule())
    one.see(NOW, found("web"))
    status = one.see(NOW + 10, error="unexpected token")
    assert (status.state, status.error, len(status.alerts)) == ("firing", "unexpected token", 1)
    before = one.writes
    one.see(NOW + 20, error="unexpected token")
    assert one.writes == before
    assert (one.see(NOW + 30, found("web")).error, one.events) == ("", ["AlertFiring"])


def test_describe_says_that_an_expression_has_no_result_and_that_it_has_one_again() -> None:
    one = Played(rule())
    one.see(NOW, error="unknown function")
    condition = one.item.envelope.condition("Evaluated")
    assert condition is not None
    assert (condition.status, condition.reason, condition.message) == ("False", "noResult", "unknown function")
    one.see(NOW + 5)
    condition = one.item.envelope.condition("Evaluated")
    assert condition is not None
    assert condition.status == "True"


def test_what_the_evaluator_says_of_an_older_expression_does_not_count() -> None:
    one = Played(rule())
    stale = Played(rule(expr="weft_y > 0"))
    stale.see(NOW, found("web"))
    assert one.status.state == "inactive"
    one.write(plan_rule(one.item, True, {}, [], NOW))
    assert one.writes == 0, "a rule that isn't evaluated yet stays as it is"


def test_a_paused_rule_has_no_alerts_and_says_that_they_are_over() -> None:
    one = Played(rule())
    one.see(NOW, found("web"))
    one.rewrite(paused=True)
    one.write(plan_rule(one.item, False, {}, [], NOW + 5))
    assert (one.status.state, one.events) == ("inactive", ["AlertFiring", "AlertResolved"])
    condition = one.item.envelope.condition("Evaluated")
    assert condition is not None
    assert condition.status == "True"


def test_a_rule_that_nothing_evaluates_says_why_and_keeps_its_alerts() -> None:
    one = Played(rule())
    one.see(NOW, found("web"))
    one.write(plan_rule(one.item, True, Unevaluated("metricsOff", "no history"), [], NOW + 5))
    condition = one.item.envelope.condition("Evaluated")
    assert condition is not None
    assert (condition.status, condition.reason, one.status.state) == ("False", "metricsOff", "firing")
    one.see(NOW + 10, found("web"))
    condition = one.item.envelope.condition("Evaluated")
    assert condition is not None
    assert condition.status == "True"


def test_a_storm_of_ten_thousand_is_bounded_in_status_and_notifications() -> None:
    one = Played(rule())
    storm = [found(f"vm-{number:05}") for number in range(10_000)]
    status = one.see(NOW, *storm)
    assert (status.firing, len(status.alerts), status.more) == (10_000, MOST_ALERTS, 10_000 - MOST_ALERTS)
    (notice,) = status.notices
    assert (notice.count, len(notice.alerts), notice.more) == (10_000, MOST_IN_NOTICE, 10_000 - MOST_IN_NOTICE)
    assert len(one.item.envelope.status) < 40_000
    before = one.writes
    for second in range(1, 5):
        one.see(NOW + second, *storm)
    assert one.writes == before
    # It grows all the time: a notification each half minute, and never more than a few are kept.
    for second in range(5, 300, 5):
        one.see(NOW + second, *storm[: 5_000 + 10 * second])
    assert one.status.step <= 2 + 300 / GATHER_SECONDS
    assert len(one.status.notices) <= MOST_NOTICES


def test_labels_that_series_bring_are_bounded_and_cannot_be_printed_as_commands() -> None:
    one = Played(rule(expr="other > 0"))
    long = {f"l{number}": "x" * 100_000 for number in range(1000)} | {"a": "\x1b[2Jgone\nand more"}
    status = one.see(NOW, *(FoundSeries({**long, "n": str(n)}, 1.0, True, NOW) for n in range(300)))
    assert status.alerts[0].labels["a"] == " [2Jgone and more"
    assert len(one.item.envelope.status) < 4 * MOST_ALERT_BYTES
    assert status.more == 300 - len(status.alerts) or status.firing < 300


@pytest.mark.parametrize("step", [-100_000.0, 100_000.0])
def test_a_clock_that_steps_holds_no_notification_up(step: float) -> None:
    one = Played(rule())
    one.see(NOW, found("a"))
    status = one.see(NOW + step, found("a"), found("b", begun=NOW + step))
    assert [notice.count for notice in status.notices] == [1, 2]
    assert all(alert.since <= max(NOW, NOW + step) for alert in status.alerts)


def test_a_status_of_a_newer_weft_is_read_as_one_without_what_is_new() -> None:
    one = Played(rule())
    one.see(NOW, found("web"))
    again = msgspec.json.decode(one.item.envelope.status)
    assert again["alerts"][0]["labels"] == {"vm": "web"}
