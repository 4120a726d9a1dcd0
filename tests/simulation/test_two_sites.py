"""Two clusters and a witness: at no moment do guests run at both, and only a primary that is cut off from both others stops its
own."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.simulation import two_sites
from tests.simulation.two_sites import NODE, PRIMARY, STANDBY, WITNESS, World, run_seeds
from weft.controllers.failover import arming
from weft.controllers.failover.arming import ArmingFacts, ArmingPlan, plan_arming
from weft.failover.standby import find_taken
from weft.failover.timing import CLUSTERS, find_least_promise
from weft.protocol.failover.claim import Promised

SECONDS = 400.0
LINK = ((PRIMARY, STANDBY), (STANDBY, PRIMARY))
TO_WITNESS = ((PRIMARY, WITNESS), (WITNESS, PRIMARY))
FROM_STANDBY = ((STANDBY, WITNESS), (WITNESS, STANDBY))


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
    assert run_seeds(range(43, 44), CLUSTERS, SECONDS)[0] == [43]


def test_a_take_over_beside_a_renewal_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a grant that counts though the primary renewed its hold since the question, guests do run at both."""
    monkeypatch.setattr(two_sites, "find_taken", lambda asked, _, answer: find_taken(asked, asked.renewals, answer))
    assert run_seeds(range(90, 91), CLUSTERS, SECONDS)[0] == [90]


def test_nodes_that_let_go_without_the_answer_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def let_go(facts: ArmingFacts) -> ArmingPlan:
        plan = plan_arming(facts)
        return replace(plan, step="end") if plan.step == "off" else plan

    monkeypatch.setattr(two_sites, "plan_arming", let_go)
    assert run_seeds(range(22, 23), CLUSTERS, SECONDS)[0] == [22]


def test_a_replica_that_is_told_before_nodes_hold_the_vm_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arming, "_find_unready", lambda facts, word: None)
    assert run_seeds(range(104, 105), CLUSTERS, SECONDS)[0] == [104]


def test_a_late_word_that_counts_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_sites, "FAULTS", ("people", "people", "isolate"))
    monkeypatch.setattr(two_sites, "SLOW_SHARE", 0.3)
    monkeypatch.setattr(two_sites, "MOST_DELAY_SECONDS", 20.0)
    assert run_seeds(range(190, 191), CLUSTERS, SECONDS)[0] == []
    monkeypatch.setattr(two_sites, "is_late", lambda *_: False)
    assert run_seeds(range(190, 191), CLUSTERS, SECONDS)[0] == [190]


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
