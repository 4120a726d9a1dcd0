"""Two clusters and a witness: at no moment do guests run at both, and only a primary that is cut off from both others stops its
own."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.simulation import two_sites
from tests.simulation.two_sites import NODE, PRIMARY, STANDBY, WITNESS, World, run_seeds
from weft.failover.standby import find_taken
from weft.failover.timing import CLUSTERS, find_least_promise
from weft.protocol.failover.claim import Promised

SECONDS = 400.0
LINK = ((PRIMARY, STANDBY), (STANDBY, PRIMARY))
TO_WITNESS = ((PRIMARY, WITNESS), (WITNESS, PRIMARY))
FROM_STANDBY = ((STANDBY, WITNESS), (WITNESS, STANDBY))


def test_guests_never_run_at_both_clusters_in_a_hundred_runs() -> None:
    split, taken = run_seeds(range(100), CLUSTERS, SECONDS)
    assert (split, taken > 30) == ([], True), taken


def test_promises_as_short_as_leases_are_found_out() -> None:
    """The faults that are drawn are bad enough: without the margin guests do run at both."""
    split, _ = run_seeds(range(60), replace(CLUSTERS, promise=CLUSTERS.lease - 10.0), SECONDS)
    assert split


def test_a_witness_that_lost_its_file_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a promise that counts before both have spoken, as no promise does, guests do run at both."""
    monkeypatch.setattr(two_sites, "is_confirmed", lambda claim, said: said.answer == Promised(claim))
    assert run_seeds(range(48, 49), CLUSTERS, SECONDS)[0] == [48]


def test_a_take_over_beside_a_renewal_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a grant that counts though the primary renewed its hold since the question, guests do run at both."""
    monkeypatch.setattr(two_sites, "find_taken", lambda asked, _, answer: find_taken(asked, asked.renewals, answer))
    assert run_seeds(range(89, 90), CLUSTERS, SECONDS)[0] == [89]


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
