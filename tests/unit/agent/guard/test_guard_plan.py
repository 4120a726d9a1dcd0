"""Until when guarded guests may run, and the stamps that say so."""

from __future__ import annotations

from typing import Literal

import pytest
from msgspec.structs import replace

from weft.agent.guard.plan import (
    REVIEW_SECONDS,
    START_SECONDS,
    UNHEARD,
    GuardedGuest,
    describe_guard,
    explain_end,
    explain_wait,
    find_pause,
    find_until,
    plan_guard,
)
from weft.agent.server.contact import CONTACT_SECONDS
from weft.agent.server.reporter import HEARTBEAT_SECONDS
from weft.contracts.guard import MOST_GUESTS, Held
from weft.drivers.guard.holds import MOST_HOLDS, Hold, HoldRequest, apply_request
from weft.failover.timing import CLUSTERS, NODES, check_timing
from weft.protocol.failover.stamp import read_stamp, write_stamp

HELD_ONE, BEGUN = GuardedGuest("g1", "w1", "hold", was_held=True), GuardedGuest("g2", "w2", "begin")
NEVER_HELD = GuardedGuest("g1", "w1", "hold")
BOOT = "9c0a7f3e-5b6d-4c55-8a55-0d9f1f3b8f10"


def test_clusters_use_a_timing_that_keeps_the_rule() -> None:
    check_timing(CLUSTERS)


def test_a_node_and_its_servers_use_a_timing_that_keeps_the_rule() -> None:
    """A guest's time never ends unnoticed: the node has a new token before."""
    check_timing(NODES)
    assert NODES.renew < HEARTBEAT_SECONDS < CONTACT_SECONDS < NODES.lease


def test_a_guest_runs_for_a_lease_from_the_stamp_on() -> None:
    stamp = write_stamp(BOOT, 1000.0)
    assert find_until(stamp, BOOT, 1005.0) == 1000.0 + CLUSTERS.lease


@pytest.mark.parametrize(
    "stamp",
    [
        "",
        "/",
        f"{BOOT}/",
        f"{BOOT}/-1",
        f"{BOOT}/1.5",
        f"{BOOT}/²",
        f"{BOOT}/{'9' * 16}",
        write_stamp("another-start", 1000.0),
        write_stamp(BOOT, 1000.1),  # of a moment that hasn't come
    ],
)
def test_a_stamp_that_this_start_of_the_machine_did_not_make_means_nothing(stamp: str) -> None:
    assert read_stamp(stamp, BOOT, 1000.0) is None


def test_what_is_to_be_held_is_renewed_when_its_time_grows_only() -> None:
    guests = {"g1": HELD_ONE}
    assert plan_guard(guests, {"g1": 50.0}, {}).renew == {"g1": 50.0}
    assert plan_guard(guests, {"g1": 50.0}, {"g1": Held(50.0)}).renew == {}
    assert plan_guard(guests, {"g1": 40.0}, {"g1": Held(50.0)}).renew == {}
    assert plan_guard(guests, {"g1": 51.0}, {"g1": Held(50.0, 49.0)}).renew == {"g1": 51.0}


def test_an_agent_that_starts_without_a_stamp_leaves_what_the_guard_holds() -> None:
    assert plan_guard({"g1": HELD_ONE}, {}, {"g1": Held(50.0)}).renew == {}


def test_a_guest_that_nobody_holds_any_more_ends_until_it_is_confirmed() -> None:
    assert plan_guard({"g1": HELD_ONE}, {}, {}).renew == {"g1": 0.0}


def test_a_guest_that_was_never_held_waits_for_its_first_stamp() -> None:
    """As after a restart of the agent between ``begin`` and ``hold``: its replica isn't told to take over before it is held."""
    assert plan_guard({"g1": NEVER_HELD}, {}, {}).renew == {}
    assert plan_guard({"g1": NEVER_HELD}, {"g1": 50.0}, {}).renew == {"g1": 50.0}
    assert describe_guard(NEVER_HELD, 50.0, None, 10.0, "") == "ready"
    # Until that it was held is on disk, nobody reads of it.
    assert describe_guard(NEVER_HELD, 50.0, Held(50.0), 10.0, "") == "ready"


def test_a_guest_that_is_not_to_be_held_yet_is_left_alone_and_one_that_is_gone_is_dropped() -> None:
    plan = plan_guard({"g2": BEGUN}, {"g2": 50.0}, {"gone": Held(9.0)})
    assert (plan.renew, plan.drop) == ({}, ("gone",))


def test_nothing_starts_in_the_last_seconds_of_a_lease() -> None:
    assert explain_wait(HELD_ONE, None, Held(100.0), 100.0 - START_SECONDS - 0.1) == ""
    assert "has confirmed" in explain_wait(HELD_ONE, None, Held(100.0), 100.0 - START_SECONDS)
    assert "weft replication run-alone NAME" in explain_wait(HELD_ONE, None, None, 1.0)
    assert explain_wait(BEGUN, None, None, 1.0) == ""


def test_a_node_says_that_it_can_hold_a_guest_once_it_was_confirmed() -> None:
    assert describe_guard(BEGUN, None, None, 10.0, "") == ""
    assert describe_guard(BEGUN, 9.0, None, 10.0, "") == ""
    assert describe_guard(BEGUN, 11.0, None, 10.0, "") == "ready"
    assert describe_guard(HELD_ONE, 11.0, None, 10.0, "") == "ready"
    assert describe_guard(HELD_ONE, None, Held(5.0), 10.0, "") == "held"
    assert describe_guard(HELD_ONE, 11.0, Held(11.0), 10.0, "no control groups") == "no control groups"


def test_it_looks_again_before_a_lease_ends() -> None:
    assert find_pause({}, 0.0) == REVIEW_SECONDS
    assert find_pause({"g1": Held(5.0)}, 0.0) == 5.0 - START_SECONDS
    assert find_pause({"g1": Held(5.0)}, 3.0) == 2.0
    assert find_pause({"g1": Held(5.0)}, 6.0) == REVIEW_SECONDS


def make_lost(heard: float | None, *, mode: Literal["", "begin", "hold"] = "", **fields: bool) -> GuardedGuest:
    return GuardedGuest("g1", "w1", mode, ends_if_lost=True, answered_until=heard, **fields)


def test_a_guest_that_ends_with_its_node_waits_for_the_first_answer_that_counts() -> None:
    new = make_lost(None)
    assert plan_guard({"g1": new}, {}, {}).renew == {}
    assert explain_wait(new, None, None, 10.0) == UNHEARD
    assert plan_guard({"g1": make_lost(50.0)}, {}, {}).renew == {"g1": 50.0}
    assert explain_wait(make_lost(50.0), None, None, 10.0) == UNHEARD  # before the guard has it
    assert explain_wait(make_lost(50.0), None, Held(50.0), 10.0) == ""
    assert explain_wait(make_lost(50.0), None, Held(50.0), 50.0 - START_SECONDS) == UNHEARD
    assert plan_guard({"g1": GuardedGuest("g1", "w1", "")}, {}, {"g1": Held(50.0)}).drop == ("g1",)


def test_what_an_earlier_agent_had_held_stays_and_what_was_lost_ends() -> None:
    """An answer that doesn't count puts nothing off; a machine that starts again while it is cut off starts nothing."""
    known = make_lost(None, was_guarded=True)
    assert plan_guard({"g1": known}, {}, {"g1": Held(50.0)}) == plan_guard({}, {}, {})
    assert explain_wait(known, None, Held(50.0), 10.0) == ""
    assert plan_guard({"g1": known}, {}, {}).renew == {"g1": 0.0}
    assert explain_wait(known, None, Held(0.0), 10.0) == UNHEARD
    # An agent that was killed between both: the guard has it, and its checkpoint doesn't say so.
    assert plan_guard({"g1": make_lost(None)}, {}, {"g1": Held(50.0)}) == plan_guard({}, {}, {})
    assert explain_wait(make_lost(None), None, Held(50.0), 10.0) == UNHEARD


def test_of_two_reasons_the_earlier_end_counts() -> None:
    both = make_lost(60.0, mode="hold", was_held=True, was_guarded=True)
    assert plan_guard({"g1": both}, {"g1": 50.0}, {"g1": Held(40.0)}).renew == {"g1": 50.0}
    assert plan_guard({"g1": both}, {"g1": 70.0}, {"g1": Held(40.0)}).renew == {"g1": 60.0}
    assert plan_guard({"g1": both}, {}, {"g1": Held(40.0)}).renew == {}  # no stamp since this agent began
    # The second one begins while the first one holds it for longer.
    begins = make_lost(45.0, mode="hold", was_held=True)
    assert plan_guard({"g1": begins}, {"g1": 50.0}, {"g1": Held(50.0)}).renew == {"g1": 45.0}
    # Neither stands for the other.
    unheard, unconfirmed = make_lost(None, mode="hold", was_held=True), make_lost(60.0, mode="hold", was_guarded=True)
    assert explain_wait(unheard, 50.0, Held(50.0), 10.0) == UNHEARD
    assert "has confirmed" in explain_wait(unconfirmed, None, Held(60.0), 10.0)
    assert plan_guard({"g1": unconfirmed}, {}, {"g1": Held(60.0)}).renew == {}
    assert explain_wait(both, 50.0, Held(50.0), 10.0) == ""


def test_where_no_guard_is_only_the_servers_word_lets_it_start() -> None:
    assert explain_wait(make_lost(50.0), None, None, 10.0, can_hold=False) == ""
    assert explain_wait(make_lost(None, was_guarded=True), None, None, 10.0, can_hold=False) == UNHEARD
    assert "has confirmed" in explain_wait(make_lost(50.0, mode="hold"), None, None, 10.0, can_hold=False)


def test_people_read_which_reason_ended_it() -> None:
    assert explain_end(make_lost(50.0), None) == "the servers had not confirmed this node's heartbeats for 45s"
    assert "heartbeats" in explain_end(make_lost(50.0, mode="hold"), 60.0)
    assert "witness" in explain_end(make_lost(50.0, mode="hold"), 40.0)
    assert "witness" in explain_end(HELD_ONE, 40.0)


def test_one_guest_too_many_is_left_out_and_those_that_are_held_are_renewed() -> None:
    held = {f"g{number}": Held(50.0) for number in range(MOST_GUESTS - 1)}
    guests = {
        name: GuardedGuest(name, "u", "", ends_if_lost=True, answered_until=60.0) for name in (*held, "new", "newer")
    }
    counted = replace(guests["newer"], was_guarded=True)
    assert MOST_GUESTS == MOST_HOLDS
    for more, fits in (({}, "new"), ({"newer": counted}, "newer")):
        plan = plan_guard(guests | more, {}, held)
        assert len(plan.renew) == MOST_GUESTS and held.keys() < plan.renew.keys() and fits in plan.renew
        holds = {name: Hold(50.0, ("/g",)) for name in held}
        for name, at in plan.renew.items():
            holds = apply_request(holds, HoldRequest({name: Hold(at, ("/g",))}, ()))
        assert all(holds[name].until == 60.0 for name in held)
