"""A decision in words: where, why there, why nowhere."""

from __future__ import annotations

from typing import Any

import pytest

from weft.cli.output.terminal import Paint
from weft.cli.placement.answer import explain_node
from weft.cli.placement.decision import describe_choice, explain_absence, explain_decision, explain_refusal
from weft.objects.errors import Unplaceable

GIB = 2**30
TERMS = [{"name": "cpu", "weight": 0.4, "value": 96.0}, {"name": "memory", "weight": 0.4, "value": 99.0}]


def decision(**spec: Any) -> dict[str, Any]:
    base = {"policy": "least_loaded", "at": 0.0, "took_ms": 0.3, "nodes": 3, "verdicts": [], "refused_by": {}}
    return {"spec": {**base, **spec}}


PLACED = decision(
    verdicts=[
        {"node": "n3", "outcome": "refused", "filter": "cordon", "reason": 'cordoned ("disk swap")'},
        {"node": "n1", "outcome": "fits", "score": 88.4, "terms": TERMS},
        {"node": "n2", "outcome": "chosen", "score": 97.1, "terms": TERMS},
    ]
)
REFUSED = decision(
    error="insufficientResources",
    nearest="n2, if you ask for at most --cpu 7 --memory 21G",
    nearest_node="n2",
    verdicts=[
        {"node": "n1", "outcome": "refused",
         "shortfalls": [{"resource": "memory", "wanted": 900 * GIB, "free": 20.7 * GIB},
                        {"resource": "cpu", "wanted": 64, "free": 6}]},
        {"node": "n3", "outcome": "refused", "reason": "cordoned"},
    ],
)  # fmt: skip


def test_the_choice_names_policy_score_and_runner_up() -> None:
    assert describe_choice(PLACED, "n2") == "placed on n2 (least_loaded: score 97.1; runner-up n1)"
    assert describe_choice(PLACED, "n9") == "placed on n9"
    assert describe_choice(None, "n2") == "placed on n2"


def test_a_refusal_says_what_each_node_lacks_and_what_would_fit() -> None:
    error = explain_refusal(Unplaceable("x", reason="insufficientResources"), REFUSED, "vm/big")
    assert error.message.splitlines() == [
        "vm/big fits on no node: insufficientResources",
        "  n1  memory 900.0 GiB wanted, 20.7 GiB free     cpu 64 wanted, 6 free",
        "  n3  cordoned",
    ]
    assert (error.hint or "").splitlines()[0] == "nearest: n2, if you ask for at most --cpu 7 --memory 21G"
    assert error.details["nearest_node"] == "n2"


def test_a_refusal_without_a_decision_still_says_how_to_go_on() -> None:
    error = explain_refusal(Unplaceable("x", reason="noAvailableAgents"), None, "vm/big")
    assert error.message == "vm/big fits on no node: noAvailableAgents"
    assert "weft wait vm/big" in (error.hint or "")


def test_why_not_tells_of_the_one_node_that_is_asked_for() -> None:
    assert explain_absence(PLACED, "vm/web", "n3", "21:14:03").startswith(
        'n3 couldn\'t take vm/web at 21:14:03: cordoned ("disk swap")'
    )
    assert explain_absence(PLACED, "vm/web", "n1", "21:14:03").endswith("least_loaded: n2 scored 97.1, n1 88.4")
    assert explain_absence(PLACED, "vm/web", "n2", "21:14:03") == "n2 was chosen for vm/web at 21:14:03"
    assert "memory 900.0 GiB wanted" in explain_absence(REFUSED, "vm/big", "n1", "21:14:03")


def test_a_node_as_good_as_the_chosen_one_and_one_better_for_a_member_of_a_gang_are_told_apart() -> None:
    told = {**PLACED, "spec": {**PLACED["spec"], "verdicts": [dict(each) for each in PLACED["spec"]["verdicts"]]}}
    other = next(each for each in told["spec"]["verdicts"] if each["node"] == "n1")
    other["score"] = next(each for each in told["spec"]["verdicts"] if each["outcome"] == "chosen")["score"]
    assert explain_absence(told, "vm/web", "n1", "21:14:03").endswith(
        "both scored 97.1, and the first of equals is chosen"
    )
    other["score"], told["spec"]["gang"] = 99.0, "shop"
    assert explain_absence(told, "vm/web", "n1", "21:14:03").endswith(
        "so that all of gang shop fit: n2 scored 97.1, n1 99.0"
    )


def test_of_many_nodes_only_some_are_listed() -> None:
    many = decision(verdicts=[{"node": f"n{i}", "outcome": "refused", "reason": "cordoned"} for i in range(64)])
    lines = explain_refusal(Unplaceable("x"), many, "vm/big").message.splitlines()
    assert len(lines) == 14
    assert lines[-1] == "  and 52 more nodes"


def test_an_explanation_ranks_the_nodes_and_shows_the_parts_of_the_score() -> None:
    lines = explain_decision(PLACED, "vm/web", "10:41:07", None, Paint(False)).splitlines()
    assert lines[0] == (
        "vm/web was placed on n2 at 10:41:07 by strategy least_loaded (0.4 cpu, 0.4 memory), 0.3 ms, 3 nodes"
    )
    assert [line.split()[0] for line in lines[1:]] == ["NODE", "n2", "n1", "n3"]
    assert lines[2].split()[1:] == ["chosen", "97.1", "0.4·96", "0.4·99"]
    assert lines[3].endswith("runner-up")
    assert lines[4].endswith('cordoned ("disk swap")')


def test_an_explanation_of_a_refusal_names_the_error_and_the_nearest_fit() -> None:
    text = explain_decision(REFUSED, "vm/big", "10:41:07", None, Paint(False))
    assert text.startswith("vm/big fits on no node: insufficientResources (at 10:41:07")
    assert text.endswith("nearest: n2, if you ask for at most --cpu 7 --memory 21G")


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [("cordoned (swap)", "weft node uncordon n3"), ("cordoned (drained: fans)", "weft node uncordon n3")],
)
def test_what_keeps_a_node_from_taking_it_now_is_told_with_what_ends_that(reason: str, remedy: str) -> None:
    verdict = {"node": "n3", "outcome": "refused", "filter": "cordon", "reason": reason}
    told = explain_node({"status": {"verdicts": [verdict], "best": "n1"}}, "vm/web", "n3")
    assert told == f"n3 can't take vm/web now: {reason}     {remedy}"


def test_declared_amounts_that_are_sizes_are_written_as_sizes() -> None:
    short = [{"resource": "hugepages", "wanted": 4 * GIB, "free": 0}, {"resource": "sriov", "wanted": 2, "free": 1}]
    lacking = decision(verdicts=[{"node": "n1", "outcome": "refused", "filter": "room", "shortfalls": short}])
    told = explain_absence(lacking, "vm/big", "n1", "21:14:03")
    assert "hugepages 4.0 GiB wanted, 0 free" in told and "sriov 2 wanted, 1 free" in told
