"""A VM that people take back from another cluster, after a restore lost the migration: when it goes on here."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from weft.contracts.store import Put
from weft.controllers.departure.reclaim import (
    ASKING,
    CANT_ASK,
    FORCED,
    NEVER_RAN,
    NOT_ASKED,
    NOT_KNOWN_THERE,
    RUNS_THERE,
    ReclaimFacts,
    ReclaimPlan,
    list_reclaims,
    plan_commit,
    plan_reclaim,
)
from weft.controllers.departure.seen import ArrivalAct, SeenArrival
from weft.informer.view import Item, View, make_view
from weft.kinds.allocation import AllocationReport, AllocationSpec, Resources
from weft.kinds.cluster import CLUSTER, ClusterSpec, ClusterStatus
from weft.kinds.fields.allocated_migration import MigrationReport
from weft.kinds.parts.migration.departing import RECLAIMED, VmReclaim, find_not_reclaimed, is_reclaimed
from weft.kinds.parts.workload import WorkloadMarks
from weft.kinds.vm import VM, VmActions, VmSpec
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.errors import Forbidden, Unavailable
from weft.objects.identity import Ref

FOUND = MigrationReport(key="k", phase="handedOver", peer="west/n7", peer_allocation="t")
FACTS = ReclaimFacts(what="vm/web", found=FOUND, cluster="west", project="lab")
NEVER = SeenArrival("a", "Cancelled", "n7", "x", "t", never_ran=True, name="web-m")


def plan(seen: Any = None, **more: Any) -> ReclaimPlan:
    return plan_reclaim(replace(FACTS, seen=seen, **more))


def test_it_goes_on_here_once_the_other_cluster_says_that_it_never_ran_there() -> None:
    back = plan(NEVER)
    assert (back.goes_on, back.reason, back.message) == (True, NEVER_RAN, "west says that it never ran there")
    assert back.act == ArrivalAct("settle", "web-m", "lab", "")


@pytest.mark.parametrize(
    ("seen", "reason", "said"),
    [
        (SeenArrival("a", "Arrived", "n7", "x", "t", name="web-m"), RUNS_THERE, "arrived there on n7"),
        (replace(NEVER, phase="Arrived"), RUNS_THERE, "runs there, or has run"),
        (None, NOT_KNOWN_THERE, "it may run there, or have run"),
        (replace(NEVER, allocation="another"), NOT_KNOWN_THERE, "not of the place that west/n7 had for it"),
        (replace(NEVER, never_ran=False), NOT_KNOWN_THERE, "it may run there"),
        (Forbidden("no grant"), CANT_ASK, "no grant"),
    ],
)
def test_it_stays_as_it_is_if_that_cluster_says_anything_else(seen: Any, reason: str, said: str) -> None:
    refused = plan(seen)
    assert (refused.goes_on, refused.waits, refused.reason) == (False, False, reason)
    assert said in refused.message


def test_a_place_that_its_node_does_not_name_proves_nothing() -> None:
    of_an_older_agent = plan(replace(NEVER, allocation=""), found=replace(FOUND, peer_allocation=""))
    assert not of_an_older_agent.goes_on


def test_an_arrival_that_is_still_open_is_cancelled_there_first() -> None:
    for phase in ("Pending", "Waiting", "Switching"):
        asked = plan(SeenArrival("a", phase, "n7", "x", "t", name="web-m"))
        assert (asked.goes_on, asked.waits, asked.reason) == (False, True, ASKING)
        assert asked.act == ArrivalAct("cancel", "web-m", "lab", "")


def test_no_answer_over_a_line_that_works_is_waited_for() -> None:
    asked = plan(Unavailable("no answer in time"))
    assert (asked.goes_on, asked.waits, asked.act) == (False, True, None) and "no answer in time" in asked.message


def test_people_may_force_it_and_their_word_is_all_there_is_while_the_line_is_cut() -> None:
    forced = plan(SeenArrival("a", "Arrived", "n7", name="web-m"), forced=True)
    assert (forced.goes_on, forced.reason, forced.act) == (True, FORCED, None)
    cut = plan(cut="cluster west is Unreachable")
    assert (cut.goes_on, cut.reason) == (True, NOT_ASKED) and "west was not asked" in cut.message
    barred = plan(barred="cluster west is Refused")
    assert (barred.goes_on, barred.waits, barred.reason) == (False, False, CANT_ASK)
    assert not any(replace(FACTS, **one).asks for one in ({"forced": True}, {"cut": "x"}, {"barred": "x"}))


ASKED = VmReclaim(key="k")


def make_world(phase: str = "Linked", reason: str = "illegalTransition", reclaim: VmReclaim | None = ASKED) -> View:
    view = make_view()
    asked = VmActions(reclaim=reclaim)
    vm = VM.make("web", VmSpec(image="tiny"), 1.0, uid="vm-1", project="default", actions=asked)
    allocation = AllocationSpec(
        node="n1",
        node_uid="node-1",
        workload=Ref("vm", "web", "vm-1", "default"),
        workload_generation=1,
        incarnation=1,
        desired="run",
        resources=Resources(cpu=1, memory=1 << 28),
    )
    report = AllocationReport(
        incarnation=1, state="stopped" if reason == "leftCluster" else "running", reason=reason, migration=FOUND
    )
    parts = [msgspec.Raw(msgspec.json.encode(part)) for part in (allocation, report)]
    place = Envelope(kind="allocation", name="node-1.a", uid="a", spec=parts[0], report=parts[1])
    link = ClusterSpec(url="https://x", ca="", projects={"default": "lab"})
    made = [vm, place]
    if phase:
        made.append(CLUSTER.make("west", link, 1.0, uid="w", status=ClusterStatus(phase=phase)))
    for envelope in made:
        view.put_item(envelope.key, Item(envelope))
    return view


@pytest.mark.parametrize(
    ("phase", "cut", "barred"),
    [
        ("Linked", "", ""),
        ("Unreachable", "is Unreachable", ""),
        ("", "isn't linked", ""),
        ("Refused", "", "is Refused"),
    ],
)
def test_the_link_says_whether_it_can_be_asked(phase: str, cut: str, barred: str) -> None:
    (read,) = list_reclaims(make_world(phase))
    assert (read.facts.cluster, read.facts.what, read.facts.found) == ("west", "vm/web", FOUND)
    assert cut in read.facts.cut and barred in read.facts.barred
    assert (bool(read.facts.cut), bool(read.facts.barred)) == (bool(cut), bool(barred))
    assert read.facts.asks == (phase == "Linked")


def test_only_the_hand_over_that_people_meant_is_taken_back_and_nothing_that_was_taken_over() -> None:
    assert list(list_reclaims(make_world(reclaim=VmReclaim(key="an earlier one")))) == []
    assert list(list_reclaims(make_world(reclaim=None))) == []
    assert list(list_reclaims(make_world(reason="leftCluster"))) == []


def write(view: View, planned: ReclaimPlan) -> dict[str, Envelope]:
    (read,) = list_reclaims(view)
    commit = plan_commit(read, planned, 5.0)
    written = [decode_envelope(one.value) for one in (commit.writes if commit else ()) if isinstance(one, Put)]
    for one in written:
        view.put_item(one.key, Item(one))
    return {one.kind: one for one in written}


def show(envelope: Envelope, handed_over: str = "k") -> dict[str, Any]:
    """As people see it, once the workload controller has seen to its status."""
    obj: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(envelope))
    return {**obj, "status": {"handed_over": handed_over, "observed_generation": obj["generation"]}}


def test_what_comes_of_it_is_written_with_its_reason_and_ends_the_request() -> None:
    view = make_world()
    asking = write(view, plan(Unavailable("no answer")))
    assert decode_part(asking["vm"].actions, VmActions).reclaim == ASKED and "allocation" not in asking
    assert find_not_reclaimed(show(asking["vm"]), "vm/web") is None
    assert write(view, plan(Unavailable("no answer"))) == {}, "nothing new"

    refused = write(view, plan(None))
    assert decode_part(refused["vm"].actions, VmActions).reclaim is None and "allocation" not in refused
    problem = find_not_reclaimed(show(refused["vm"]), "vm/web")
    assert problem is not None and "no arrival of it" in problem.message
    assert "weft vm reclaim web --force" in (problem.hint or "")
    assert not is_reclaimed(show(refused["vm"]))

    view = make_world(reclaim=VmReclaim(key="k", force=True))
    back = write(view, plan(None, forced=True))
    place, vm = decode_part(back["allocation"].spec, AllocationSpec), decode_part(back["vm"].actions, VmActions)
    assert (place.back_from, place.role, place.desired) == (["k"], "active", "run")
    assert vm.reclaim is None
    told = back["vm"].condition(RECLAIMED)
    assert told is not None and (told.status, told.reason) == ("True", FORCED)
    assert is_reclaimed(show(back["vm"], "")) and not is_reclaimed(show(back["vm"]))


def test_a_vm_that_turns_out_to_have_left_is_not_taken_back() -> None:
    view = make_world()
    (read,) = list_reclaims(view)
    left = replace(read.workload.envelope)
    left.actions = msgspec.Raw(msgspec.json.encode(VmActions()))
    left.marks = msgspec.Raw(msgspec.json.encode(WorkloadMarks(departed="west/lab/web")))
    shown = show(left, "")
    assert not is_reclaimed(shown)
    problem = find_not_reclaimed(shown, "vm/web")
    assert problem is not None and "migrated to west/lab/web" in problem.message
