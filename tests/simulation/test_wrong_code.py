"""The simulation finds out wrong code: of each mistake here, some history shows a broken promise."""

from __future__ import annotations

from unittest import mock

import pytest
from msgspec.structs import replace

from tests.long import mark_long
from tests.simulation.fate import BEHIND, MISFORTUNES, MOVING
from tests.simulation.mutations import MUTATIONS, WRONG_MOVES, find_violation
from tests.simulation.simulation import run_simulation
from weft.client.view import Item
from weft.controllers import conversions, tasks
from weft.controllers.converted import Place

POWER_CUTS = {**MOVING, "node loses power": 40}
WEATHER = {  # in which a mistake shows sooner
    "adopt_without_checking_the_start_time": {"node loses power": 100, "older store restored": 0, "node removed": 0},
    "count_no_room_that_is_taken": {"older store restored": 0, "node loses power": 0},
    "ignore_incarnation": {"node removed": 20},
    "place_before_nodes_have_spoken": {"older store restored": 40, "node removed": 0, "node loses power": 0},
}
SEEDS = range(30)  # any change of the code draws other histories: a mistake must show in one of them
WORST = {"believe_an_older_store": (150, {**BEHIND, "older store restored": 60})}


# Those that take many histories, or long ones, until they show.
LONG = (
    *("adopt_without_checking_the_start_time", "believe_an_older_store", "ignore_incarnation"),
    *("leave_the_data_behind", "place_before_nodes_have_spoken", "count_no_room_that_is_taken"),
)


def test_a_lost_try_that_counts_as_a_failure_is_found_out() -> None:
    with mock.patch.object(tasks, "LOST", ()):
        trace = find_violation(lambda seed: run_simulation(seed, 60, weather=POWER_CUTS, jobs=True), SEEDS)
    assert trace is not None, "it was not noticed"
    print(trace.seed, trace.violations[0])


def test_a_conversion_that_does_not_wait_for_the_other_side_is_found_out() -> None:
    real = conversions._read_place

    def hasty(allocation: Item) -> Place:
        return replace(real(allocation), rests=True, holds=False)

    with mock.patch.object(conversions, "_read_place", hasty):
        trace = find_violation(lambda seed: run_simulation(seed, 60, weather=MOVING, converts=True), SEEDS)
    assert trace is not None, "it was not noticed"
    print(trace.seed, trace.violations[0])


@pytest.mark.parametrize("name", mark_long(sorted(MUTATIONS), *LONG))
def test_wrong_code_is_found_out(name: str) -> None:
    with MUTATIONS[name]():
        weather = {**MISFORTUNES, **WEATHER.get(name, {})}
        trace = find_violation(lambda seed: run_simulation(seed, 120, weather=weather), SEEDS)
    assert trace is not None, f"{name} was not noticed"
    print(trace.seed, trace.violations[0])


@pytest.mark.parametrize("name", mark_long(sorted(WRONG_MOVES), *LONG))
def test_wrong_moves_are_found_out(name: str) -> None:
    with WRONG_MOVES[name]():
        faults, weather = WORST.get(name, (60, MOVING))
        trace = find_violation(lambda seed: run_simulation(seed, faults, weather=weather, moves=True), SEEDS)
    assert trace is not None, f"{name} was not noticed"
    print(trace.seed, trace.violations[0])
