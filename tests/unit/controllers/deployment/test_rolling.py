"""A rolling update, and the way back: what is made, what goes, and how it ends."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.unit.controllers.deployment.rollout_world import World

from weft.controllers.deployment.facts import Verdict
from weft.controllers.deployment.plan import CALM_SECONDS, LOST_SECONDS


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
    world.author = "ann"
    world.begin()
    world.update("shop:2")
    world.author = "bea"
    world.until("Promoted")
    assert world.revisions() == [2, 2, 2]
    assert [one.author for one in world.status.revisions] == ["ann", "bea"]
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
    assert world.status.verdict == (
        "no further instance is possible (insufficientResources: no node has memory left), and max_unavailable is 0"
    )
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
    world.undo("shop:1")
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


def test_what_drains_stays_until_no_node_sends_it_anything_new_and_its_time_is_over() -> None:
    world = World(2, drain=1.0)
    world.begin()
    world.departs = False
    world.update("shop:2")
    while not any(one.draining_since for one in world.guests.values()):
        world.pass_time(1)
    drained = next(one for one in world.guests.values() if one.draining_since)
    world.pass_time(10)
    assert drained.deleting_since is None and "until nodes stop sending it" in world.status.message
    drained.draining_since = world.now  # when the nodes have said so
    world.departs = True
    world.pass_time(2)
    assert drained.deleting_since is not None
    world.departs = False
    world.until("Promoted")  # a node that never says so holds nothing up for long


def test_a_rollback_takes_no_instance_for_broken_that_is_only_silent() -> None:
    world = World(4, drain=1.0, max_unavailable=1)
    world.begin()
    world.update("shop:2")
    while world.revisions().count(2) < 3:
        world.pass_time(1)
    world.undo("shop:1")
    world.pass_time(1)
    kept = [
        one for one in world.guests.values() if one.revision == 2 and not one.deleting_since and not one.draining_since
    ]
    assert len(kept) >= 2
    world.silent = {one.name for one in kept}
    world.pass_time(2)
    assert all(one.deleting_since is None and one.draining_since is None for one in kept)
    world.until("RolledBack")  # though they stay silent
    assert world.revisions() == [1, 1, 1, 1]


@pytest.mark.parametrize("busy", [False, True])
def test_a_rollback_replaces_at_once_what_hangs_and_one_by_one_what_may_be_busy(busy: bool) -> None:
    world = World(6, drain=1.0, max_surge=1, max_unavailable=1)
    world.begin()
    world.update("shop:2")
    world.until("Promoted")
    world.pass_time(10)
    hung = {one.name for one in world.guests.values() if one.slot < 4}
    world.silent, world.keeps_silent = hung, busy  # where hardly any answers, those that don't keep their connections
    world.undo("shop:1")
    world.plan()
    world.plan()
    made = [one for one in world.guests.values() if one.revision == 1]
    # One comes for the surge in any case. What hangs isn't deleted for that: it goes when its slot is taken over.
    assert len(made) == (1 if busy else 5)
    assert not any(world.guests[name].deleting_since or world.guests[name].draining_since for name in hung)
    world.until("RolledBack")
    assert world.revisions() == [1] * 6


@pytest.mark.parametrize("strategy", ["rolling", "blue-green"])
def test_a_version_that_falls_silent_with_all_others_is_promoted_only_once_it_answers(strategy: str) -> None:
    """They keep their connections, as the machines may be busy: but it may be that the new one hangs."""
    world = World(2, drain=1.0, max_unavailable=1, auto_promote=True, health_check_timeout=60.0)
    world.begin()
    world.keeps_silent = True
    world.update("shop:2", type=strategy)
    for _ in range(30):
        world.pass_time(1)
        world.silent = set(world.guests)
    assert world.status.phase == "Progressing"
    assert "doesn't answer its check" in world.status.message
    assert 1 in world.status.slots
    world.silent, world.keeps_silent = set(), False
    world.until("Promoted")


@pytest.mark.parametrize("surge", [0, 1])
def test_an_instance_that_answers_stays_while_too_few_others_do(surge: int) -> None:
    """The world fails a plan that takes down more than may be missing of those that answer."""
    world = World(4, drain=1.0, max_surge=surge, max_unavailable=1, health_check_timeout=300.0)
    world.begin()
    world.keeps_silent, world.silent = True, {"web-1-2", "web-1-3"}
    world.update("shop:2")
    world.pass_time(60)
    assert len(world.serving()) >= 2
    world.silent = set()
    world.until("Promoted")


def test_a_version_that_stays_silent_is_given_up() -> None:
    world = World(2, drain=1.0, max_unavailable=1, rollback_on_failure=True, health_check_timeout=30.0)
    world.begin()
    world.keeps_silent, world.silent = True, {f"web-2-{slot}" for slot in range(2)}
    world.update("shop:2")
    world.until("RolledBack")
    assert "doesn't answer its check" in world.status.verdict


def test_instances_without_a_place_are_named_while_there_is_no_rollout() -> None:
    world = World(3, capacity=3)
    world.begin()
    world.change(replicas=5)
    world.pass_time(10)
    assert world.status.phase == "Promoted" and len(world.serving()) == 3
    assert "web-1-3: insufficientResources" in world.status.message
    world.capacity = 5
    world.pass_time(30)
    assert (len(world.serving()), world.status.message) == (5, "")


def test_a_rollback_of_what_hangs_takes_no_more_than_fits() -> None:
    world = World(6, drain=1.0, max_surge=1, max_unavailable=1)
    world.begin()
    world.update("shop:2")
    world.until("Promoted")
    world.pass_time(10)
    world.capacity, world.silent = 8, {one.name for one in world.guests.values() if one.slot < 4}
    world.undo("shop:1")
    world.until("RolledBack", "Undecided")
    assert (world.status.phase, world.revisions()) == ("RolledBack", [1] * 6)


@pytest.mark.parametrize("keeps", [False, True], ids=["out", "kept"])
@pytest.mark.parametrize("surge", [0, 1])
def test_a_rollback_without_room_replaces_instances_that_hang(surge: int, keeps: bool) -> None:
    world = World(3, drain=1.0, max_surge=1, max_unavailable=0)
    world.begin()
    world.update("shop:2")
    world.until("Promoted")
    world.pass_time(10)
    world.capacity, world.silent, world.keeps_silent = 3, set(world.guests), keeps
    world.change(strategy=msgspec.structs.replace(world.spec.strategy, max_surge=surge))
    world.undo("shop:1")
    world.until("RolledBack", "Undecided")
    assert (world.status.phase, world.revisions()) == ("RolledBack", [1, 1, 1])


@pytest.mark.parametrize("strategy", ["canary", "rolling"])
def test_an_update_waits_for_the_capacity_that_an_instance_on_its_way_out_leaves(strategy: str) -> None:
    world = World(4, capacity=4, max_unavailable=0, canary_steps=[0.3], auto_promote=True, monitor_duration=5.0)
    world.begin()
    world.change(replicas=3)
    world.plan()
    world.update("shop:2", type=strategy)
    world.until("Promoted", "RolledBack", "Undecided")
    assert world.status.phase == "Promoted" and "NoSurge" not in world.events


def test_a_bad_version_gets_no_requests_also_where_the_old_instances_are_busy() -> None:
    world = World(4, drain=1.0, max_unavailable=1, rollback_on_failure=True)
    world.begin()
    world.judged = True
    world.update("shop:2")
    while not world.status.step_since:
        world.pass_time(1)
    world.silent = {one.name for one in world.guests.values() if one.revision == 1 and one.slot < 3}
    world.verdict = Verdict("bad", "3 of 40 requests failed")
    world.pass_time(1)
    assert {one.revision: one.per_mille for one in world.status.split} == {1: 1000, 2: 0}
    world.silent.clear()
    world.until("RolledBack")


def test_drained_instances_go_after_their_time_and_one_that_is_wanted_again_stays() -> None:
    world = World(2, drain=20.0)
    world.begin()
    world.update("shop:2")
    while not any(one.draining_since for one in world.guests.values()):
        world.pass_time(1)
    drained = next(one for one in world.guests.values() if one.draining_since)
    world.pass_time(10)
    assert drained.deleting_since is None
    world.undo("shop:1")
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


def test_a_scale_in_keeps_healthy_ones_until_those_that_stay_are_healthy() -> None:
    world = World(10)
    world.begin()
    for slot in range(5):
        world.guests[f"web-1-{slot}"].lost_since = world.now
    world.change(replicas=5)
    world.pass_time(10)
    assert len(world.serving()) == 5
    world.pass_time(LOST_SECONDS + 10)
    assert sorted(one.slot for one in world.serving()) == [0, 1, 2, 3, 4]


def test_restarts_before_a_change_in_place_say_nothing_of_the_new_revision() -> None:
    world = World(3)
    world.begin()
    for one in world.guests.values():
        one.restarts = 5
    names, world.can_change_in_place = set(world.guests), True
    world.update("shop:2")
    world.until("Promoted")
    assert set(world.guests) == names


def test_restarts_since_a_change_in_place_show_that_it_fails() -> None:
    world = World(3, max_surge=0)
    world.begin()
    world.guests["web-1-0"].restarts, world.can_change_in_place = 5, True
    world.update("shop:2")
    world.plan()
    while not any(one.revision == 2 for one in world.guests.values()):
        world.plan()
    changed = next(one for one in world.guests.values() if one.revision == 2)
    changed.restarts += 2
    world.until("Undecided")
    assert f"{changed.name} restarted 2 times" in world.status.verdict


def test_at_a_full_quota_max_unavailable_counts_instead_and_it_says_so() -> None:
    world = World(3)
    world.begin()
    world.quota = 3
    world.update("shop:2")
    world.until("Promoted", seconds=60.0)
    assert (world.revisions(), world.least_served) == ([2, 2, 2], 2)
    assert "NoSurge" in world.events


def test_a_quota_that_an_old_instance_frees_soon_gives_up_no_surge() -> None:
    world = World(3, max_unavailable=0)
    world.begin()
    world.quota = 4
    world.update("shop:2")
    world.until("Promoted")
    assert (world.revisions(), world.least_served) == ([2, 2, 2], 3)


def test_instances_that_are_healthy_by_turns_are_no_progress() -> None:
    world = World(2, type="blue-green")
    world.begin()
    world.manners[2] = "flaps"
    world.update("shop:2")
    world.until("Undecided", seconds=90.0)
    assert world.status.verdict.startswith("no progress for 30s")


def test_an_update_whose_template_is_an_older_ones_is_a_rollout_like_others() -> None:
    world = World(2)
    world.begin()
    world.update("shop:2")
    world.until("Promoted")
    world.update("shop:1", type="canary", auto_promote=True, monitor_duration=5.0)
    world.settle()
    assert (world.status.stage, world.status.back) == ("test", False)
    world.until("Promoted")
    assert (world.status.stable, world.revisions()) == (1, [1, 1])


def test_an_undo_to_an_older_revision_than_the_stable_one_waits_for_no_rollout() -> None:
    world = World(3)
    world.begin()
    world.update("shop:2")
    world.until("Promoted")
    world.update("shop:3")
    world.pass_time(3)
    world.undo("shop:1")
    world.settle()
    assert (world.status.revision, world.status.back) == (1, True)
    world.until("RolledBack")
    assert world.revisions() == [1, 1, 1]
    assert "shop:3" not in str([one.template for one in world.status.revisions if one.outcome == "Promoted"])


def test_the_same_update_tried_again_forgets_what_failed_the_first_time() -> None:
    world = World(3)
    world.begin()
    world.manners[2] = "crashes"
    world.update("shop:2")
    world.until("Undecided")
    world.manners[2] = "good"
    world.update("shop:2")
    world.until("Promoted", seconds=120.0)
    assert world.revisions() == [2, 2, 2]


def test_a_canary_is_judged_by_an_answer_of_the_history_and_not_by_its_silence() -> None:
    world = World(2, monitor_duration=5.0, auto_promote=True)
    world.begin()
    world.answered = False
    world.update("shop:2", type="canary")
    world.pass_time(25)
    assert (world.status.phase, world.status.stage) == ("Progressing", "test")
    world.until("Undecided")
    assert "the history of metrics doesn't answer" in world.status.verdict


def test_old_instances_get_no_requests_until_all_of_them_are_gone() -> None:
    world = World(45, drain=0.0, type="blue-green", auto_promote=True, keep_old=5.0, max_unavailable=0)
    world.begin()
    world.update("shop:2")
    world.until("Paused", "Promoted")
    world.resume()
    world.until("Promoted")
    world.now += 10.0
    for _ in range(10):
        world.plan()
        if any(one.revision == 1 and one.deleting_since is None for one in world.guests.values()):
            assert world.status.split
    assert world.status.split == []


def make_judged(**strategy: Any) -> World:
    """In mid-rollout, with one new instance beside three old ones, while requests are counted and say nothing yet."""
    world = World(3, **strategy)
    world.begin()
    world.judged, world.verdict = True, Verdict("wait", "0 of 9 requests failed")
    world.update("shop:2")
    world.pass_time(20)
    assert world.revisions() == [1, 1, 1, 2]
    return world


def test_the_first_new_instance_stays_alone_until_its_requests_are_judged() -> None:
    world = make_judged()
    assert "the first new instance is watched for up to 30s: 0 of 9 requests failed" in world.status.message
    world.verdict = Verdict("good", "0 of 400 requests failed")
    world.until("Promoted", seconds=25.0)
    assert world.revisions() == [2, 2, 2]


def test_an_update_goes_on_when_too_few_requests_come_and_its_deadline_begins_then() -> None:
    world = make_judged(health_check_timeout=8.0)
    world.until("Promoted", seconds=60.0)


def test_a_first_new_instance_that_fails_requests_goes_immediately() -> None:
    world = make_judged(rollback_on_failure=True)
    world.verdict = Verdict("bad", "9 of 90 requests failed")
    world.plan()
    assert (world.status.phase, world.revisions(), world.least_served) == ("RolledBack", [1, 1, 1], 3)


@pytest.mark.parametrize(("replaced", "split"), [(1, {1: 1000, 2: 0}), (2, {})])
def test_a_version_that_fails_requests_later_gets_none_if_enough_old_ones_are_left(
    replaced: int, split: dict[int, int]
) -> None:
    world = World(3, rollback_on_failure=True)
    world.begin()
    world.update("shop:2")
    while world.status.slots.count(2) < replaced:
        world.pass_time(1)
    world.judged, world.verdict = True, Verdict("bad", "9 of 90 requests failed")
    world.plan()
    assert world.status.back and {one.revision: one.per_mille for one in world.status.split} == split
    world.until("RolledBack")
    world.pass_time(5)
    assert (world.revisions(), world.status.split) == ([1, 1, 1], [])


def test_a_canary_waits_for_the_last_counts_before_it_is_undecided() -> None:
    world = World(2, monitor_duration=5.0, auto_promote=True)
    world.begin()
    world.judged, world.verdict = True, Verdict("wait", "0 of 9 requests failed")
    world.update("shop:2", type="canary")
    world.pass_time(25)
    assert (world.status.phase, world.status.stage) == ("Progressing", "test")
    world.verdict = Verdict("good", "0 of 400 requests failed")
    world.until("Promoted")


def test_a_template_that_never_starts_is_tried_less_and_less_often_and_it_says_so() -> None:
    world = World(3)
    world.manners[1] = "crashes"
    world.pass_time(600)
    assert world.events.count("InstanceReplaced") <= 3 * 7, "10 s, 20 s, 40 s … instead of sixty times each"
    assert "failed, 6 in a row: replaced after 5m" in world.status.message
    assert "(and 2 more)" in world.status.message
    world.events.clear()
    world.pass_time(3600)
    assert 3 * 10 <= world.events.count("InstanceReplaced") <= 3 * 12, "every five minutes it is tried for ever"
    world.update("shop:2")
    world.until("Promoted", seconds=30)
    assert world.revisions() == [2, 2, 2]


def test_an_instance_that_was_healthy_for_long_is_replaced_soon() -> None:
    world = World(1)
    world.begin()
    for tries in (1, 2, 3):
        failed = world.serving()[0]
        failed.failed, failed.made_at = True, world.now
        world.pass_time(80)
        assert world.status.failures == {"0": tries}
        assert len(world.serving()) == 1
    world.pass_time(CALM_SECONDS)
    assert world.status.failures == {}
    (failed,) = world.serving()
    failed.failed, failed.made_at = True, world.now
    world.pass_time(20)
    assert len(world.serving()) == 1
