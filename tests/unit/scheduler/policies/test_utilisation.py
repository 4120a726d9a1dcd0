"""A mixed load on nodes of five types fills the scarcest resource, as the benchmark measures it with more seeds."""

from __future__ import annotations

from benchmarks.utilisation import ASKED, GOAL, fill


def test_nearly_all_of_a_load_that_asks_for_nearly_everything_finds_a_place() -> None:
    _, asked, given, _ = fill(2, "fragmentation")
    assert asked > ASKED - 0.002 and given >= GOAL
    assert fill(2, "least_loaded")[2] < GOAL  # it is not the load that makes it easy
