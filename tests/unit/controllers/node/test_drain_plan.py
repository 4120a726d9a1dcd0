"""A node that is drained is emptied a few moves at a time, and what can't leave is told by name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.contracts.store import Put
from weft.controllers.node.drain_controller import plan_condition
from weft.controllers.node.drain_plan import (
    AHEAD_SECONDS,
    AT_ONCE,
    DrainWindow,
    Evictee,
    choose_next,
    describe_drain,
    find_end,
)
from weft.informer.view import Item
from weft.kinds.migration import MigrationProgress, MigrationStatus
from weft.kinds.node import NODE, NodeActions, NodeSpec
from weft.objects.envelope import decode_envelope, merge_part

MIB = 1 << 20
ANY = Evictee(key="/vm/default/a", name="vm/a", uid="a", project="default", way="live", phase="Running", cost=128 * MIB)


def leaver(name: str, **changes: Any) -> Evictee:
    return msgspec.structs.replace(ANY, key=f"/vm/default/{name}", name=f"vm/{name}", uid=name, **changes)


def names(leavers: list[Evictee]) -> list[str]:
    return [one.name for one in leavers]


def test_the_cheapest_goes_first_and_never_more_than_a_few_at_once() -> None:
    waiting = [leaver(f"vm-{cost}", cost=cost * MIB) for cost in (512, 128, 1024, 256)]
    assert names(choose_next(waiting, 10)) == ["vm/vm-128", "vm/vm-256"]
    assert len(choose_next(waiting, 10)) == AT_ONCE
    assert len(choose_next(waiting, 1)) == 1  # the other nodes can take no more
    moving = [msgspec.structs.replace(waiting[0], migration="m", target="n2"), *waiting[1:]]
    assert names(choose_next(moving, 10)) == ["vm/vm-128"]


def test_the_next_one_begins_when_one_will_soon_need_the_link_no_more() -> None:
    def moving(*seconds: float | None) -> list[Evictee]:
        return [leaver(f"m{at}", migration=f"m{at}", target="n2", link_free_in=s) for at, s in enumerate(seconds)]

    waiting = [leaver(f"vm-{number}") for number in range(9)]
    for under_way, begin in (
        (moving(None, None), 0),
        (moving(60.0, 60.0), 0),
        (moving(60.0, AHEAD_SECONDS), 1),
        (moving(0.0, 1.0), 2),
        (moving(0.0, 0.0, 0.0), 1),
        (moving(0.0, 0.0, 0.0, 0.0), 0),
        (moving(0.0, 0.0, None, None), 0),
    ):
        assert len(choose_next([*under_way, *waiting], 10)) == begin, under_way


@pytest.mark.parametrize(
    ("phase", "progress", "seconds"),
    [
        ("Preparing", {}, None),
        ("Migrating", {}, None),
        ("Migrating", {"sent_bytes": 1, "remaining_bytes": 100, "bytes_per_second": 50}, 2.0),
        (
            "Migrating",
            {"sent_bytes": 1, "remaining_bytes": 100, "bytes_per_second": 50, "dirty_bytes_per_second": 40},
            10.0,
        ),
        (
            "Migrating",
            {"sent_bytes": 1, "remaining_bytes": 100, "bytes_per_second": 50, "dirty_bytes_per_second": 60},
            None,
        ),
        ("Migrating", {"remaining_bytes": 0, "bytes_per_second": 50}, None),
        ("Switching", {"sent_bytes": 1, "remaining_bytes": 100, "bytes_per_second": 50}, 0.0),
        ("Finishing", {}, 0.0),
    ],
)
def test_when_a_move_needs_the_link_no_more(phase: Any, progress: dict[str, int], seconds: float | None) -> None:
    told = MigrationProgress(**progress) if progress else None
    assert find_end(MigrationStatus(phase=phase, progress=told)) == seconds


def test_those_that_talk_to_each_other_go_one_after_the_other() -> None:
    front = [leaver("web", networks=("a", "b"), cost=600 * MIB), leaver("db", networks=("b",), cost=100 * MIB)]
    back = [leaver("x", networks=("c",), cost=200 * MIB), leaver("y", networks=("c",), cost=300 * MIB)]
    order: list[str] = []
    left = [front[0], back[0], front[1], back[1]]
    while left:
        begun = choose_next(left, 1)
        order += names(begun)
        left = [one for one in left if one not in begun]
    assert order == ["vm/x", "vm/y", "vm/db", "vm/web"]


def test_what_finds_no_target_holds_up_nobody() -> None:
    stuck = [
        leaver(f"big-{number}", migration=f"m{number}", verdict="insufficientResources: no room") for number in range(4)
    ]
    assert names(choose_next([*stuck, leaver("small")], 10)) == ["vm/small"]
    tried = leaver("tried", verdict="driverFailed: cut off", retry_seconds=5.0)
    assert choose_next([tried], 10) == []
    assert names(choose_next([msgspec.structs.replace(tried, retry_seconds=0.0, verdict="")], 10)) == ["vm/tried"]


def test_what_is_suspended_or_on_its_way_is_not_touched() -> None:
    assert (
        choose_next([leaver("s", way="never", phase="Suspended"), leaver("w", way="notYet", phase="Shutdown")], 10)
        == []
    )
    assert names(choose_next([leaver("off", way="cold", phase="Stopped")], 10)) == ["vm/off"]


def test_how_far_it_is_names_what_moves_and_what_cant() -> None:
    assert describe_drain([], set()) == ("Drained", "nothing is left on the node")
    reason, message = describe_drain(
        [
            leaver("a", migration="m", target="n2"),
            leaver("b"),
            leaver("c"),
            leaver("big", migration="m2", verdict="insufficientResources: needs 64 GiB"),
        ],
        {"/vm/default/b"},
    )
    assert reason == "Draining"
    assert message == (
        "4 left; migrating: vm/a → n2, vm/b; 1 waits for its turn; vm/big can't leave: insufficientResources: needs 64 GiB"
    )
    reason, message = describe_drain([leaver("s", way="never", phase="Suspended")], set())
    assert reason == "Blocked"
    assert message == "1 left; vm/s can't leave: phase Suspended; it can migrate once it runs or is stopped"


def test_many_that_cant_leave_are_told_by_what_keeps_them_each_reason_once() -> None:
    stuck = [leaver(f"{reason}{at}", verdict=f"{reason}: why") for reason in "abcde" for at in range(7)]
    _, message = describe_drain(stuck, set())
    assert message == (
        "35 left; vm/a0, vm/a1, vm/a2, vm/a3, vm/a4 and 2 more can't leave: a: why; "
        "vm/b0, vm/b1, vm/b2, vm/b3, vm/b4 and 2 more can't leave: b: why; "
        "vm/c0, vm/c1, vm/c2, vm/c3, vm/c4 and 2 more can't leave: c: why; and 14 more can't"
    )


@pytest.mark.parametrize("phase", ["Ready", "Autonomous", "NotReady"])
def test_a_drain_of_a_silent_node_says_that_it_is_silent(phase: str) -> None:
    envelope = NODE.make("n3", NodeSpec(), 1.0, uid="u3", actions=NodeActions(drain=True))
    envelope.status = merge_part(envelope.status, {"phase": phase})
    node = Item(envelope)

    def describe(*left: Evictee) -> str:
        commit = plan_condition(node, left, [], DrainWindow(), 2.0)
        assert commit is not None and isinstance(commit.writes[0], Put)
        told = decode_envelope(commit.writes[0].value).condition("Drained")
        assert told is not None
        return told.message

    told = describe(leaver("a", migration="m"))
    silence = "the node sends no heartbeat, so nothing migrates before it is back; "
    assert told == f"{'' if phase == 'Ready' else silence}1 left; migrating: vm/a"
    stuck = leaver("a", way="never", phase="Unknown"), leaver("b", verdict="notRunning: start it")
    assert (describe(*stuck) == f"{silence}2 left") is (phase != "Ready"), (
        "whatever else is true of them isn't the reason"
    )
    both = describe(*stuck, leaver("c", migration="m", target="n2"))
    assert (both == f"{silence}3 left; migrating: vm/c → n2") is (phase != "Ready")
    assert describe() == "nothing is left on the node"


def test_budgets_hold_some_back_and_delay_nobody_else() -> None:
    web = [leaver(f"web-{number}", way="cold", cost=1, budgets=("web",)) for number in range(3)]
    other = leaver("other", way="cold")
    assert names(choose_next([*web, other], 10, {"web": 1})) == ["vm/web-0", "vm/other"]
    assert names(choose_next([*web, other], 10, {"web": 0})) == ["vm/other"]
    both = msgspec.structs.replace(web[0], budgets=("web", "strict"))
    assert names(choose_next([both, *web[1:]], 10, {"web": 2, "strict": 0})) == ["vm/web-1", "vm/web-2"]
    left = {"web": 1}
    choose_next(web, 10, left)
    assert left == {"web": 1}
    held = [msgspec.structs.replace(one, held="1 of 3 is down") for one in web[1:]]
    moving = msgspec.structs.replace(web[0], migration="m", target="n2")
    assert describe_drain([moving, *held], set()) == (
        "Draining",
        "3 left; migrating: vm/web-0 → n2; vm/web-1, vm/web-2 wait: 1 of 3 is down",
    )
    assert describe_drain(held[:1], set()) == ("Draining", "1 left; vm/web-1 waits: 1 of 3 is down")
