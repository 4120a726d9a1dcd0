"""The simulation finds out wrong code: of each mistake here, some history shows a broken promise."""

from __future__ import annotations

from unittest import mock

import pytest
from msgspec.structs import replace

from tests.long import mark_long
from tests.simulation import scenes
from tests.simulation.fate import MISFORTUNES, MOVING, TENANTS
from tests.simulation.mutations import MUTATIONS, WRONG_MOVES, WRONG_SHARES, find_violation
from tests.simulation.simulation import run_simulation
from weft.controllers.conversion import controller
from weft.controllers.conversion.facts import HandoverFacts
from weft.controllers.job import plan
from weft.informer.view import Item

POWER_CUTS = {**MOVING, "node loses power": 40}
SEEDS = range(30)  # any change of the code draws other histories: a mistake must show in one of them
SHARED = range(5, 35)
# Mistakes that drawn histories rarely come by, each with one that it can't live through.
SCENES = {
    "adopt_without_checking_the_start_time": scenes.the_power_goes_and_another_process_has_the_guest_s_pid,
    "believe_an_older_store": scenes.a_store_comes_back_from_before_a_move,
    "count_no_room_that_is_taken": scenes.four_want_the_room_of_three,
    "forget_a_watch_event": scenes.a_vm_is_stopped_and_started_until_that_is_not_seen,
    "ignore_incarnation": scenes.a_vm_is_placed_anew_after_its_node_was_given_up,
    "leave_the_data_behind": scenes.a_vm_moves_with_its_volume,
    "place_before_nodes_have_spoken": scenes.a_store_comes_back_that_knows_of_no_place_and_its_node_is_silent,
    "take_what_is_not_listed_for_deleted": scenes.a_store_comes_back_from_before_a_guest_was_placed,
}


def test_a_lost_try_that_counts_as_a_failure_is_found_out() -> None:
    with mock.patch.object(plan, "LOST", ()):
        trace = find_violation(lambda seed: run_simulation(seed, 60, weather=POWER_CUTS, jobs=True), SEEDS)
    assert trace is not None, "it was not noticed"
    print(trace.seed, trace.violations[0])


@pytest.mark.long
def test_a_conversion_that_does_not_wait_for_the_other_side_is_found_out() -> None:
    real = controller.read_place

    def hasty(allocation: Item) -> HandoverFacts:
        return replace(real(allocation), rests=True, holds=False)

    with mock.patch.object(controller, "read_place", hasty):
        trace = find_violation(lambda seed: run_simulation(seed, 60, weather=MOVING, converts=True), SEEDS)
    assert trace is not None, "it was not noticed"
    print(trace.seed, trace.violations[0])


@pytest.mark.parametrize("name", sorted(MUTATIONS.keys() - SCENES.keys()))
def test_wrong_code_is_found_out(name: str) -> None:
    with MUTATIONS[name]():
        trace = find_violation(lambda seed: run_simulation(seed, 120, weather=MISFORTUNES), SEEDS)
    assert trace is not None, f"{name} was not noticed"
    print(trace.seed, trace.violations[0])


@pytest.mark.parametrize(
    "name", mark_long(sorted(WRONG_MOVES.keys() - SCENES.keys()), "run_while_the_guest_is_on_its_way")
)
def test_wrong_moves_are_found_out(name: str) -> None:
    with WRONG_MOVES[name]():
        trace = find_violation(lambda seed: run_simulation(seed, 60, weather=MOVING, moves=True), SEEDS)
    assert trace is not None, f"{name} was not noticed"
    print(trace.seed, trace.violations[0])


@pytest.mark.parametrize("name", mark_long(sorted(WRONG_SHARES), "forget_that_it_is_not_shared"))
def test_wrong_shares_are_found_out(name: str) -> None:
    with WRONG_SHARES[name]():
        trace = find_violation(lambda seed: run_simulation(seed, 60, weather=TENANTS, tenants=True), SHARED)
    assert trace is not None, f"{name} was not noticed"
    print(trace.seed, trace.violations[0])


@pytest.mark.parametrize("name", SCENES)
def test_a_scene_that_the_code_lives_through_finds_out_the_wrong_one(name: str) -> None:
    assert scenes.play(SCENES[name]) == []
    with (MUTATIONS | WRONG_MOVES)[name]():
        broken = scenes.play(SCENES[name])
    assert broken, f"{name} was not noticed"
    print(broken[0])
