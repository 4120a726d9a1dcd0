"""Which guests are held, what confirms them, and which stamps their nodes get back."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from weft.client.cluster.hold import Hold, arm_replica, read_arming, renew_holds
from weft.client.cluster.peer import PeerLink
from weft.controllers.failover import controller
from weft.controllers.failover.facts import Group
from weft.controllers.failover.hold import (
    HeldGuest,
    list_held,
    list_unconfirmed,
    merge_stamps,
    note_asked,
    read_hold,
    sort_by_turn,
)
from weft.informer.view import Item
from weft.kinds.cluster import CLUSTER, ClusterSpec
from weft.kinds.replication import REPLICATION, ReplicationSpec
from weft.objects.errors import Unavailable
from weft.protocol.failover.claim import Claim, Generation, Promised
from weft.protocol.failover.confirmed import read_confirmed, write_confirmed
from weft.protocol.failover.witness import WitnessAnswer

FIRST = Claim(Generation(1, "a"), "east")
WEB = HeldGuest("g-web", "vm-web", Hold("default", "web", "g-web", "shop"), {"n1": "boot/1", "n2": "boot/2"})
DB = HeldGuest("g-db", "vm-db", Hold("default", "db", "g-db", "shop"), {"n1": "boot/1"})


def make_group(name: str, replica: str = "", project_there: str = "") -> Group:
    given = ReplicationSpec(of=f"vm/{name}", cluster="west", replica=replica, project_there=project_there)
    item = Item(REPLICATION.make(name, given, 1.0, uid=f"g-{name}", project="shop"))
    return Group(item, f"g-{name}", FIRST, is_standby=False, is_source=True)


def test_a_guest_is_held_at_its_nodes_that_have_sent_a_stamp() -> None:
    cluster = Item(CLUSTER.make("west", ClusterSpec(url="https://x", ca="", projects={"shop": "mall"}), 1.0, uid="c"))
    guarded = [
        (make_group("web"), "vm-web", ["n1", "n2"]),
        (make_group("db", replica="copy", project_there="mall"), "vm-db", ["n1"]),
        (make_group("app", project_there="other"), "vm-app", ["n1"]),
        (make_group("new"), "vm-new", ["n3"]),
    ]
    found = list_held(cluster, guarded, {"n1": "boot/1", "n9": "boot/9"})
    assert [(one.workload, one.hold, one.stamps) for one in found] == [
        ("vm-web", Hold("mall", "web", "g-web", "shop"), {"n1": "boot/1"}),
        ("vm-db", Hold("mall", "copy", "g-db", "shop"), {"n1": "boot/1"}),
        ("vm-app", Hold("", "app", "g-app", "shop"), {"n1": "boot/1"}),
    ]


def test_a_hold_of_a_project_that_the_link_is_not_for_asks_nobody() -> None:
    """Neither by its own name, nor by a name that people gave."""
    cluster = Item(CLUSTER.make("west", ClusterSpec(url="https://x", ca="", projects={"lab": "lab"}), 1.0, uid="c"))
    holds = [read_hold(cluster, make_group("web", project_there=there).item) for there in ("", "lab", "shop")]
    assert {one.project for one in holds} == {""}
    link = PeerLink("west", "https://127.0.0.1:1", "", "")
    assert renew_holds(link, holds) == [False] * 3
    assert read_arming(link, holds[0]).outcome == "refused"
    told = arm_replica(link, holds[0], automatic=True, arming=1)
    assert told.outcome == "refused" and "not for project shop" in told.message


def test_what_an_armed_witness_does_not_promise_is_asked_for_at_the_other_cluster() -> None:
    groups = [make_group("web"), make_group("db")]
    armed, empty = (WitnessAnswer(answer=Promised(FIRST), epoch="e", is_armed=one) for one in (True, False))
    assert list_unconfirmed([WEB, DB], groups, [armed, empty]) == [DB]
    assert list_unconfirmed([WEB, DB], groups, [armed, Unavailable("no route")]) == [DB]
    assert list_unconfirmed([WEB, DB], groups, [armed, armed]) == []


def test_a_node_keeps_the_older_stamp_of_what_was_not_confirmed_now() -> None:
    before = {"n1": {"vm-web": "boot/0", "vm-db": "boot/0"}, "n3": {"vm-x": "boot/0"}}
    assert merge_stamps(before, [WEB]) == {
        "n1": {"vm-web": "boot/1", "vm-db": "boot/0"},
        "n2": {"vm-web": "boot/2"},
    }
    assert merge_stamps(before, []) == {}


def test_whom_one_round_does_not_reach_the_next_one_begins_with_also_past_refusals() -> None:
    """390 requests in a round, of 1,000 VMs, and the first 400 are refused again and again."""
    held = [HeldGuest(f"g{number:04}", "vm", WEB.hold, {}) for number in range(1000)]
    asked, renewed = dict[str, float](), set[str]()
    for now in (1.0, 2.0, 3.0):
        turns = sort_by_turn(held, asked)
        answers = [None if place >= 390 else one.group >= "g0400" for place, one in enumerate(turns)]
        asked = note_asked(turns, answers, asked, now)
        renewed |= {one.group for one, said in zip(turns, answers, strict=True) if said}
    assert len(renewed) == 600
    assert note_asked([WEB], [None], asked, 4.0) == {"g-web": 0.0}  # of what is held now only


async def test_many_holds_are_renewed_by_several_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(8)

    def renew(link: PeerLink, holds: Sequence[Hold]) -> list[bool | None]:
        together.wait(60.0)
        return [int(one.replica) % 3 == 0 for one in holds]

    monkeypatch.setattr(controller, "renew_holds", renew)
    holds = [Hold("default", str(number), "o", "default") for number in range(1001)]
    link = PeerLink("west", "https://x", "", "")
    assert await controller.renew_in_thread(link, holds) == [number % 3 == 0 for number in range(1001)]
    assert await controller.renew_in_thread(link, []) == []


def test_stamps_come_through_as_they_were_and_junk_is_none() -> None:
    assert read_confirmed(write_confirmed({"vm-web": "boot/1"})) == {"vm-web": "boot/1"}
    assert read_confirmed(b"") == read_confirmed(b"\xc1") == read_confirmed(b"\x81\xa1a\x01") == {}
