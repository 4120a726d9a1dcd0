"""Alert rules in a real vmalert over a real VictoriaMetrics: each sees its own project, and a bad one stops no other."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator

import pytest
from tests.scenario.alert_lab import OwnEvaluator, rule, sample

from weft.kinds.fields.alert.defaults import list_default_rules

pytestmark = pytest.mark.skipif(
    shutil.which("vmalert") is None or shutil.which("victoria-metrics") is None, reason="needs victoria-metrics"
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnEvaluator]:
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("TZ", "Asia/Kolkata")  # of a machine there
        made = OwnEvaluator(tmp_path_factory.mktemp("server"))
        yield made
        made.close()


def test_rules_find_their_own_projects_series_and_nothing_else(lab: OwnEvaluator) -> None:
    began = time.time()
    lab.evaluate(
        rule("own", "weft_x > 0 # {{ query }}"),
        rule("names-another", 'weft_x{project="b"} or weft_x{project=~".+"} > 3'),
        rule("by-a-label", 'label_replace(weft_x, "project", "b", "", "") > 0'),
        rule("broken", "weft_x > histogram_quantile(weft_x)"),
        rule("foreign", "other_x > 0"),
        rule("waits", "sum(weft_x) > 2", for_=600.0),
        rule("many", "weft_many > 0"),
        rule("fabric", "weft_x > 0", project="f", fabric=True),
    )
    crowd = [sample("weft_many", 1.0, project="a", vm=f"v{number}") for number in range(1500)]
    lab.own.send(
        [
            sample("weft_x", 3.0, project="a", vm="1"),
            sample("weft_x", 4.0, project="b", vm="2"),
            sample("other_x", 1.0, project="a", vm="3"),
            *crowd,
        ]
    )
    found = lab.until(
        lambda seen: all(
            uid in seen and seen[uid].found for uid in ("u-own", "u-many", "u-waits", "u-fabric", "u-by-a-label")
        )
    )
    assert [one.labels for one in found["u-own"].found] == [{"project": "a", "vm": "1"}]
    assert found["u-own"].found[0].firing
    assert found["u-names-another"].found == []
    assert [one.labels["project"] for one in found["u-by-a-label"].found] == ["a"]
    assert 'cannot evaluate "histogram_quantile(weft_x)": unexpected number of args' in found["u-broken"].error
    assert found["u-foreign"].found == [], "a project sees what weft records, of a database that holds more"
    assert [one.firing for one in found["u-waits"].found] == [False]
    assert began - 1.0 <= found["u-waits"].found[0].begun <= found["u-waits"].at <= time.time()
    assert len(found["u-many"].found) == 1000, "the database bounds what the evaluator gets"
    assert {one.labels["project"] for one in found["u-fabric"].found} == {"a", "b"}


def test_a_killed_evaluator_starts_again_and_knows_since_when_conditions_hold(lab: OwnEvaluator) -> None:
    lab.own.send([sample("weft_x", 3.0, project="a", vm="1")])
    before = lab.until(lambda seen: "u-waits" in seen and seen["u-waits"].found)["u-waits"].found[0]
    pid = lab.pid
    # It has written since when the condition holds once the database shows it.
    lab.own.turn(2.5)
    os.kill(pid, signal.SIGKILL)
    after = lab.until(lambda seen: lab.pid != pid and "u-waits" in seen and seen["u-waits"].found)["u-waits"].found[0]
    assert after.begun <= before.begun + 1.0


def test_a_database_that_ended_is_an_error_of_rules_until_it_is_back_and_no_end_of_alerts(lab: OwnEvaluator) -> None:
    lab.own.send([sample("weft_x", 3.0, project="a", vm="1")])
    lab.until(lambda seen: "u-own" in seen and seen["u-own"].found)
    os.kill(lab.own.pid, signal.SIGSTOP)
    try:
        os.kill(lab.own.pid, signal.SIGKILL)
        seen = lab.until(lambda seen: "u-own" in seen and seen["u-own"].error)
        assert seen["u-own"].error == "the database for metrics doesn't answer"
    finally:
        lab.own.await_health()
    lab.supervisor.restart()  # as the server's supervisor does, for the database's new address
    lab.own.send([sample("weft_x", 3.0, project="a", vm="1")])
    lab.until(lambda seen: "u-own" in seen and seen["u-own"].found and not seen["u-own"].error)


def test_a_silent_node_is_none_to_be_notified_of_while_it_is_autonomous(lab: OwnEvaluator) -> None:
    silent = list_default_rules()["node-silent"]["expr"]
    ups = [sample("weft_node_up", 0.0, node=name) for name in ("edge", "ended", "usual")]
    ends = [sample("weft_node_autonomous", value, node=name) for name, value in (("edge", 1.0), ("ended", 0.0))]
    lab.own.send([*ups, *ends])
    lab.evaluate(rule("silent", silent, project="f", fabric=True))
    found = lab.until(lambda seen: "u-silent" in seen and len(seen["u-silent"].found) >= 2)["u-silent"].found
    assert {one.labels["node"] for one in found} == {"ended", "usual"}
