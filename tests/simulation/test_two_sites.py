"""Two clusters and a witness: at no moment do guests run at both, and only a primary that is cut off from both others stops its
own."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from tests.simulation import two_sites
from tests.simulation.two_sites import NODE, PRIMARY, STANDBY, WITNESS, World, run_seeds
from weft.controllers.failover import arming
from weft.controllers.failover.arming import ArmingFacts, ArmingPlan, plan_arming
from weft.failover.standby import find_taken
from weft.failover.timing import CLUSTERS, find_least_promise
from weft.failover.witness import Vote, receive_question
from weft.protocol.failover.claim import ClaimAnswer, Promised
from weft.protocol.failover.witness import MOST_TURN

SECONDS = 400.0
LINK = ((PRIMARY, STANDBY), (STANDBY, PRIMARY))
TO_WITNESS = ((PRIMARY, WITNESS), (WITNESS, PRIMARY))
FROM_STANDBY = ((STANDBY, WITNESS), (WITNESS, STANDBY))


def forget_turn(*given: Any) -> tuple[Vote, ClaimAnswer]:
    """The witness's answer to a question, as if it were of the newest turn."""
    vote, site, named, seconds, now, fresh, _ = given
    return receive_question(vote, site, named, seconds, now, fresh, MOST_TURN)


def test_guests_never_run_at_both_clusters_in_a_hundred_runs() -> None:
    split, taken = run_seeds(range(100), CLUSTERS, SECONDS)
    assert (split, taken > 15) == ([], True), taken


def test_promises_as_short_as_leases_are_found_out() -> None:
    """The faults that are drawn are bad enough: without the margin guests do run at both."""
    split, _ = run_seeds(range(11, 12), replace(CLUSTERS, promise=CLUSTERS.lease - 10.0), SECONDS)
    assert split


def test_a_witness_that_lost_its_file_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a promise that counts before both have spoken, as no promise does, guests do run at both."""
    monkeypatch.setattr(two_sites, "is_confirmed", lambda claim, said: said.answer == Promised(claim))
    assert run_seeds(range(291, 292), CLUSTERS, SECONDS)[0] == [291]


def test_a_take_over_beside_a_renewal_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a grant that counts though the primary renewed its hold since the question, guests do run at both."""
    monkeypatch.setattr(two_sites, "find_taken", lambda asked, _, *more: find_taken(asked, asked.renewals, *more))
    assert run_seeds(range(26, 27), CLUSTERS, SECONDS)[0] == [26]


def test_nodes_that_let_go_without_the_answer_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def let_go(facts: ArmingFacts) -> ArmingPlan:
        plan = plan_arming(facts)
        return replace(plan, step="end") if plan.step == "off" else plan

    monkeypatch.setattr(two_sites, "plan_arming", let_go)
    assert run_seeds(range(11, 12), CLUSTERS, SECONDS)[0] == [11]


def test_a_replica_that_is_told_before_nodes_hold_the_vm_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arming, "_find_unready", lambda facts, word: None)
    assert run_seeds(range(158, 159), CLUSTERS, SECONDS)[0] == [158]


def test_a_store_that_goes_back_without_holding_its_vm_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was put back to before its VM was held, and is cut off from both others: it would run the VM that was taken over."""
    monkeypatch.setattr(two_sites, "change_replication", lambda *_: {})
    assert run_seeds(range(45, 46), CLUSTERS, SECONDS)[0] == [45]


def test_a_replica_that_goes_back_and_still_takes_over_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its source had turned that off, and its nodes hold the VM no more."""
    monkeypatch.setattr(two_sites, "FAULTS", ("restore", "people", "isolate"))
    assert run_seeds(range(47, 48), CLUSTERS, SECONDS)[0] == []
    monkeypatch.setattr(two_sites, "mark_replica", lambda renewals: {"restored": True, "renewals": renewals + 1})
    assert run_seeds(range(47, 48), CLUSTERS, SECONDS)[0] == [47]


def test_a_replica_that_goes_back_and_promises_something_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It had taken over, which its store doesn't know any more."""
    monkeypatch.setattr(two_sites, "mark_replica", lambda renewals: {"automatic": False, "renewals": renewals + 1})
    assert run_seeds(range(94, 95), CLUSTERS, SECONDS)[0] == [94]


def test_a_grant_to_a_copy_of_an_earlier_turn_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The witness has said that nothing is granted to it any more, and the nodes have let the VM go."""
    monkeypatch.setattr(two_sites, "receive_question", forget_turn)
    assert run_seeds(range(52, 53), CLUSTERS, SECONDS)[0] == [52]


def test_a_grant_that_was_not_used_leaves_a_witness_that_works() -> None:
    """The primary comes back after the grant and before the take-over: the witness promises to it again, and when it is gone for
    good, the standby takes over."""
    world = World(1, CLUSTERS, faults=False)
    world.refuses_take_over_until = 250.0
    world.cut_from(PRIMARY, 100.0, 200.0)
    world.cut_from(PRIMARY, 300.0, 600.0)
    assert world.run(600.0) == 0
    assert world.given_back == 1
    (_, first), (again, second) = world.node.ran
    assert 100.0 < first < 140.0 and 200.0 < again < 230.0 and 300.0 < second < 340.0
    assert world.taken_at is not None and second < world.taken_at < 300.0 + CLUSTERS.promise + 4 * CLUSTERS.renew


def test_a_late_word_that_counts_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The witness refuses a grant to a copy that counts such a word, too: here it doesn't."""
    monkeypatch.setattr(two_sites, "FAULTS", ("people", "people", "people", "isolate"))
    monkeypatch.setattr(two_sites, "SLOW_SHARE", 0.3)
    monkeypatch.setattr(two_sites, "MOST_DELAY_SECONDS", 20.0)
    monkeypatch.setattr(two_sites, "receive_question", forget_turn)
    assert run_seeds(range(61, 62), CLUSTERS, SECONDS)[0] == []
    monkeypatch.setattr(two_sites, "is_late", lambda *_: False)
    assert run_seeds(range(61, 62), CLUSTERS, SECONDS)[0] == [61]


@pytest.mark.parametrize(
    "cuts",
    [(), LINK, TO_WITNESS, FROM_STANDBY, LINK[:1], TO_WITNESS[1:]],
    ids=["none", "link", "W", "B-W", "A-B", "W-A"],
)
def test_one_line_that_is_cut_stops_no_guest_and_nobody_takes_over(cuts: tuple[tuple[str, str], ...]) -> None:
    world = World(1, CLUSTERS, cuts, faults=False)
    world.run(600.0)
    assert world.taken_at is None
    ((began, ended),) = world.node.ran
    assert (began < 60.0, ended) == (True, 600.0)


def test_a_primary_that_is_cut_off_from_both_stops_before_the_standby_takes_over() -> None:
    world = World(1, CLUSTERS, (*LINK, *TO_WITNESS), faults=False, from_=100.0)
    world.run(600.0)
    ((_, ended),) = world.node.ran
    assert world.taken_at is not None
    assert 100.0 < ended < world.taken_at < 100.0 + CLUSTERS.promise + 4 * CLUSTERS.renew


def test_a_node_that_is_cut_off_from_its_own_server_stops_its_guest() -> None:
    """Its server is primary all the same, and starts the guest on another node: no take-over."""
    world = World(1, CLUSTERS, ((NODE, PRIMARY), (PRIMARY, NODE)), faults=False, from_=100.0)
    world.run(600.0)
    ((_, ended),) = world.node.ran
    assert world.taken_at is None
    assert ended < 100.0 + find_least_promise(CLUSTERS)


@pytest.mark.long
def test_guests_never_run_at_both_clusters_in_thousands_of_runs() -> None:
    split, taken = run_seeds(range(1000, 6000), CLUSTERS, SECONDS)
    assert (split, taken > 1000) == ([], True), taken
