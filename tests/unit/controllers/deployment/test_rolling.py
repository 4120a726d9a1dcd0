"""A rolling update, and the way back: what is made, what goes, and how it ends."""

from __future__ import annotations

import pytest
from tests.unit.controllers.deployment.rollout_world import World

from weft.controllers.deployment.plan import LOST_SECONDS


def test_a_new_deployment_makes_all_its_instances_and_is_promoted_when_they_are_healthy() -> None:
    world = World(3)
    world.settle()
    assert sorted(world.guests) == ["web-1-0", "web-1-1", "web-1-2"]
    assert (world.status.phase, world.status.revision) == ("Progressing", 1)
    world.until("Promoted")
    assert (world.status.ready, world.status.updated, world.status.stable) == (3, 3, 1)
    assert world.status.verdict == "revision 1 is healthy on all 3 instances; no requests were judged"


def test_an_update_replaces_one_after_another_and_never_has_fewer() -> None:
    world = World(3)
    world.begin()
    world.update("shop:2")
    world.until("Promoted")
    assert world.revisions() == [2, 2, 2]
    assert world.least_served == 3
    assert world.most_there == 4


def test_without_surge_as_many_go_first_as_may_be_missing() -> None:
    world = World(3, max_surge=0, max_unavailable=1)
    world.begin()
    world.update("shop:2")
    world.until("Promoted")
    assert world.revisions() == [2, 2, 2]
    assert (world.least_served, world.most_there) == (2, 3)


def test_in_a_full_cluster_max_unavailable_counts_instead_and_it_says_so() -> None:
    world = World(3, capacity=3)
    world.begin()
    world.update("shop:2")
    world.until("Promoted")
    assert world.revisions() == [2, 2, 2]
    assert world.least_served == 2
    assert "NoSurge" in world.events


def test_in_a_full_cluster_that_may_miss_none_the_rollout_ends_undecided() -> None:
    world = World(3, capacity=3, max_unavailable=0)
    world.begin()
    world.update("shop:2")
    world.until("Undecided")
    assert world.status.verdict == "no node has capacity for a further instance, and max_unavailable is 0"
    world.pass_time(5)
    assert world.least_served == 3


@pytest.mark.parametrize("manner", ["never", "crashes"])
@pytest.mark.parametrize("surge", [0, 1])
def test_a_version_that_fails_is_rolled_back(manner: str, surge: int) -> None:
    world = World(3, rollback_on_failure=True, max_surge=surge)
    world.begin()
    world.manners[2] = manner  # type: ignore[assignment]
    world.update("shop:2")
    world.until("RolledBack")
    world.pass_time(5)
    assert world.revisions() == [1, 1, 1]
    assert (world.status.revision, world.status.stable) == (1, 1)
    assert "revision 1 is healthy on all 3 instances again" in world.status.verdict
    assert world.least_served == 3 - (surge == 0)
    world.pass_time(100)
    assert world.status.phase == "RolledBack", "the same template isn't tried again by itself"


def test_without_rollback_on_failure_a_failed_one_waits_for_people() -> None:
    world = World(3)
    world.begin()
    world.manners[2] = "crashes"
    world.update("shop:2")
    world.until("Undecided")
    assert "web-2-0: exit code 1" in world.status.verdict
    world.pass_time(100)
    assert world.revisions() == [1, 1, 1]
    world.manners[2] = "good"
    world.resume()
    world.until("Promoted")
    assert world.revisions() == [2, 2, 2]


def test_a_version_that_never_answers_ends_within_its_deadline() -> None:
    world = World(3)
    world.begin()
    world.manners[2] = "never"
    world.update("shop:2")
    began = world.now
    world.until("Undecided")
    assert 30 <= world.now - began <= 32
    assert "no progress for 30s: waits for web-2-0" in world.status.verdict


def test_undo_goes_straight_back_in_mid_rollout() -> None:
    world = World(4)
    world.begin()
    world.update("shop:2")
    while world.status.revision == 1 or world.status.updated < 2:
        world.pass_time(1)
    world.manners[2] = "crashes"
    world.update("shop:1")
    world.until("RolledBack")
    assert world.revisions() == [1, 1, 1, 1]
    assert world.status.revision == 1


def test_a_change_of_the_template_waits_for_the_rollout_under_way() -> None:
    world = World(3)
    world.begin()
    world.update("shop:2")
    world.pass_time(1)
    world.change(template={"image": "shop:3"})
    world.settle()
    assert world.status.message.startswith("a change of the template waits for the end of the rollout of revision 2")
    assert world.status.observed_generation < world.generation
    world.until("Promoted")
    world.pass_time(2)
    assert world.status.revision == 3
    world.until("Promoted")
    assert world.revisions() == [3, 3, 3]


def test_the_same_template_changes_nothing() -> None:
    world = World(3)
    world.begin()
    before = set(world.guests)
    world.update("shop:1")
    world.until("Promoted")
    world.pass_time(5)
    assert set(world.guests) == before
    assert world.status.verdict == "revision 1 is what runs already: nothing changes"


def test_a_paused_rollout_goes_no_further_and_still_replaces_what_is_lost() -> None:
    world = World(3)
    world.begin()
    world.update("shop:2")
    world.pass_time(2)
    world.change(paused=True)
    world.pass_time(100)
    assert (world.status.phase, world.revisions().count(1)) == ("Paused", 3)
    del world.guests["web-1-2"]
    world.pass_time(10)
    assert world.revisions().count(1) == 3
    world.resume()
    world.until("Promoted")
    assert world.revisions() == [2, 2, 2]


def test_scaling_in_mid_rollout_uses_the_proven_revision() -> None:
    world = World(2)
    world.begin()
    world.manners[2] = "never"
    world.update("shop:2", health_check_timeout=600.0)
    world.pass_time(2)
    world.change(replicas=4)
    world.pass_time(8)
    assert world.revisions() == [1, 1, 1, 1]
    world.change(replicas=1)
    world.pass_time(8)
    assert world.revisions() == [1]


def test_an_instance_on_a_silent_node_is_replaced_by_one_of_its_revision() -> None:
    world = World(3)
    world.begin()
    world.guests["web-1-1"].lost_since = world.now
    world.pass_time(LOST_SECONDS - 2)
    assert len(world.guests) == 3
    world.pass_time(10)
    assert "web-1-1-2" in world.guests
    assert world.revisions() == [1, 1, 1]
    world.guests["web-1-1"].lost_since = None
    world.pass_time(10)
    assert "web-1-1" not in world.guests


def test_drained_instances_go_after_their_time_and_one_that_is_wanted_again_stays() -> None:
    world = World(2, drain=20.0)
    world.begin()
    world.update("shop:2")
    while not any(one.draining_since for one in world.guests.values()):
        world.pass_time(1)
    drained = next(one for one in world.guests.values() if one.draining_since)
    world.pass_time(10)
    assert drained.deleting_since is None
    world.update("shop:1")
    world.until("RolledBack")
    assert drained.draining_since is None
    assert world.revisions() == [1, 1]


def test_a_budget_that_lets_none_go_ends_the_rollout_with_its_words() -> None:
    world = World(3, max_surge=0)
    world.begin()
    world.left = {"/disruptionbudget/default/web": 0}
    world.update("shop:2")
    world.until("Undecided")
    assert world.revisions() == [1, 1, 1]
    assert "waits for its turn" in world.status.verdict


def test_a_change_that_running_instances_can_take_replaces_none() -> None:
    world = World(3)
    world.begin()
    names = set(world.guests)
    world.can_change_in_place = True
    world.update("shop:2")
    world.until("Promoted")
    assert set(world.guests) == names
    assert world.revisions() == [2, 2, 2]


def test_old_revisions_are_dropped_beyond_the_limit_but_never_the_one_to_go_back_to() -> None:
    world = World(1)
    world.change(revision_limit=2)
    world.begin()
    for number in range(2, 7):
        world.update(f"shop:{number}")
        world.until("Promoted")
        world.pass_time(5)
    assert [one.number for one in world.status.revisions] == [4, 5, 6]


def test_no_instances_are_promoted_without_any() -> None:
    world = World(0)
    world.until("Promoted")
    world.update("shop:2")
    world.until("Promoted")
    assert world.status.verdict.startswith("no instances are wanted")
