"""A migration to another cluster, decided from this cluster's facts and from what the other one shows: never two guests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from weft.controllers.departure.facts import _is_directory, read_departure
from weft.controllers.departure.plan import DepartureFacts, DeparturePlan, plan_departure, plan_refused
from weft.controllers.departure.seen import SeenArrival, read_absence, read_seen
from weft.controllers.migration.facts import MigrationEndpoint
from weft.informer.view import Item, View, make_view
from weft.kinds.allocation import AllocationReport, AllocationSpec, Resources
from weft.kinds.cluster import CLUSTER, ClusterMarks, ClusterSpec, ClusterStatus
from weft.kinds.fields.allocated_migration import AllocatedMigration, MigrationReport
from weft.kinds.migration import (
    MIGRATION,
    MigrationActions,
    MigrationArrival,
    MigrationSpec,
    MigrationStatus,
    is_settled,
)
from weft.kinds.node import NodePool, NodeReport
from weft.kinds.vm import VmSpec
from weft.objects.envelope import merge_part
from weft.objects.errors import Forbidden, IllegalTransition, InvalidInput, NotFound, Unavailable
from weft.objects.identity import Ref

NOW = 1000.0
SPEC = MigrationSpec(workload="vm/web", cluster="west")
NOTED = MigrationArrival(name="web-1-u", project="lab")
BEGUN = MigrationStatus(started_at=NOW - 5, tries=1, arrival=NOTED)
UNDER_WAY = replace(BEGUN, phase="Migrating", source="n1", target="west/w1", arrival=replace(NOTED, uid="a"))
WAITING = SeenArrival(uid="a", phase="Waiting", node="w1", node_uid="x", allocation="t", address="h:1")
SILENT = Unavailable("no answer in time")


def place(says: str = "", **more: Any) -> MigrationEndpoint:
    """The VM's allocation: its source once something is said of it, or ``role`` says so."""
    role = more.get("role", "source" if says else "active")
    migration = AllocatedMigration(
        key="u",
        peer="west/w1",
        peer_uid="x",
        peer_allocation=more.get("peer", "t"),
        peer_ca="their CA",
        address="h:1",
        never_ran=more.get("never_ran", False),
    )
    spec = AllocationSpec(
        node="n1",
        node_uid="n",
        workload=Ref("vm", "web", "w", "default"),
        workload_generation=1,
        incarnation=1,
        role=role,
        resources=Resources(),
        migration=migration if role == "source" else None,
    )
    told = MigrationReport(key="u", phase=says) if says else None  # type: ignore[arg-type]
    state, reason = more.get("state", "running"), more.get("reason", "")
    report = AllocationReport(incarnation=1, state=state, reason=reason, migration=told)
    return MigrationEndpoint(spec, report, more.get("node", "Ready"))


def plan(seen: Any, at: MigrationEndpoint | None = None, status: MigrationStatus = BEGUN, **more: Any) -> DeparturePlan:
    return plan_departure(facts(seen, at, status, **more))


def facts(seen: Any, at: MigrationEndpoint | None, status: MigrationStatus, **more: Any) -> DepartureFacts:
    at = at or place()
    is_source = at.spec.role == "source"
    given = {"workload": VmSpec(image="i"), "project": "lab", "peer_ca": "their CA", "key": "u", "now": NOW, **more}
    return DepartureFacts(
        **{
            "name": "web-1",
            "spec": SPEC,
            "actions": MigrationActions(),
            "status": status,
            "place": at,
            "source": at if is_source else None,
            "arrival": "web-1-u",
            "seen": seen,
            **given,
        }
    )


def test_it_is_noted_before_anything_is_asked_and_then_asked_for_until_it_is_there() -> None:
    noted = plan(None, status=MigrationStatus())
    assert noted.act is None and noted.status.arrival == NOTED and noted.status.started_at == NOW
    asked = plan(None)
    assert asked.act is not None and (asked.act.what, asked.act.project) == ("create", "lab")
    again = plan(SILENT)
    assert again.act is None and "west can't be asked: no answer" in again.status.message
    assert plan(replace(WAITING, phase="Pending", address="")).source is None


def test_the_source_trusts_the_other_clusters_ca_and_the_node_that_was_named() -> None:
    made = plan(WAITING)
    assert made.source is not None and made.source.role == "source"
    migration = made.source.migration
    assert migration is not None
    assert (migration.peer, migration.peer_uid, migration.peer_allocation) == ("west/w1", "x", "t")
    assert (migration.peer_ca, migration.address, migration.shared) == ("their CA", "h:1", ())


@pytest.mark.parametrize(
    ("more", "phase", "reason", "said"),
    [
        ({"actions": MigrationActions(cancel=True)}, "Cancelled", "cancelled", "on request"),
        ({"workload": None}, "Cancelled", "workloadDeleted", "was deleted"),
        ({"workload": VmSpec(image="i", run="stop")}, "Failed", "notRunning", "start it first"),
        ({"lacks": ("volume a is encrypted", "b")}, "Failed", "cantLeave", "volume a is encrypted; b"),
        ({"now": NOW + 3600}, "Failed", "timedOut", "not begun within 600 s"),
        ({"gone": True, "unlinked": "there is no link"}, "Failed", "notLinked", "no link"),
        ({"project": "", "status": replace(BEGUN, arrival=None)}, "Failed", "noProject", "--projects HERE=THERE"),
        ({"seen": Forbidden("no", details={"permission": "arrival:get"})}, "Failed", "notGranted", "grants migrate"),
        ({"seen": read_absence(NotFound("no such kind"))}, "Failed", "olderRelease", "update it"),
        ({"seen": replace(WAITING, phase="Failed", message="disk full")}, "Failed", "failed", "west: disk full"),
    ],
)
def test_what_keeps_it_from_beginning_ends_it_and_the_vm_runs_on(
    more: dict[str, Any], phase: str, reason: str, said: str
) -> None:
    seen = more.pop("seen", None)
    ended = plan(seen, **more)
    assert (ended.status.phase, ended.status.reason) == (phase, reason) and said in ended.status.message
    assert ended.source is None and not ended.leaves


def test_what_the_other_cluster_refuses_is_said_with_all_its_reasons() -> None:
    given = facts(None, None, BEGUN)
    why = IllegalTransition(
        "vm/web can't migrate here: vm/web exists here already; network/blue doesn't exist", reason="cantTake"
    )
    ended = plan_refused(given, plan_departure(given), why).status
    assert (ended.phase, ended.reason) == ("Failed", "cantTake") and "network/blue doesn't exist" in ended.message
    older = plan_refused(given, plan_departure(given), NotFound("no such kind", reason="unknownKind")).status
    assert older.reason == "olderRelease"


def test_the_vm_leaves_only_once_the_other_cluster_says_that_this_very_guest_runs_there() -> None:
    arrived = replace(WAITING, phase="Arrived", pause_ms=31)
    left = plan(arrived, place("handedOver"), UNDER_WAY)
    assert left.leaves and left.status.phase == "Finishing" and left.source is not None
    assert left.status.actual is not None and left.status.actual.pause_ms == 31
    assert left.source.migration is not None and left.source.migration.taken_over and left.source.desired == "stop"
    other = plan(replace(arrived, allocation="another"), place("handedOver"), UNDER_WAY)
    assert not other.leaves and other.status.reason == "arrivalMissing"


@pytest.mark.parametrize(
    "seen", [SILENT, None, WAITING, replace(WAITING, phase="Failed"), replace(WAITING, allocation="y")]
)
@pytest.mark.parametrize(
    "more", [{}, {"actions": MigrationActions(cancel=True)}, {"workload": None}, {"now": NOW + 9999}]
)
def test_a_guest_that_was_handed_over_goes_on_here_by_no_other_word_than_that_it_never_ran(
    seen: Any, more: dict[str, Any]
) -> None:
    waits = plan(seen, place("handedOver"), UNDER_WAY, **more)
    missing = seen is None or (isinstance(seen, SeenArrival) and seen.allocation == "y")
    if more == {"workload": None} and missing:  # people found it there, and have deleted it here
        assert waits.leaves and waits.source is not None and waits.source.desired == "stop"
        return
    assert not waits.leaves and waits.status.phase not in ("Failed", "Cancelled", "Succeeded")
    assert waits.source is None or (waits.source.migration is not None and not waits.source.migration.never_ran)


def test_a_missing_arrival_says_what_people_can_do_and_they_can() -> None:
    missing = plan(None, place("handedOver"), UNDER_WAY)
    assert missing.status.reason == "arrivalMissing" and "weft migration reclaim web-1" in missing.status.message
    reclaimed = plan(None, place("handedOver"), missing.status, actions=MigrationActions(reclaim=True))
    assert reclaimed.source is not None and reclaimed.source.migration is not None
    assert reclaimed.source.migration.never_ran and reclaimed.status.ending == "Failed"


def test_a_cluster_that_is_lost_for_good_is_no_end_either_but_people_who_know_are() -> None:
    handed = replace(UNDER_WAY, handed_over_at=NOW - 3600)
    waits = plan(SILENT, place("handedOver"), handed)
    assert waits.source is None and "weft migration reclaim web-1" in waits.status.message
    reclaims = {"actions": MigrationActions(reclaim=True), "gone": True, "unlinked": "cluster west isn't linked"}
    told = plan(SILENT, place("handedOver"), handed, **reclaims)
    assert told.source is not None and told.source.migration is not None and told.source.migration.never_ran
    assert plan(SILENT, place("handedOver"), replace(handed, handed_over_at=NOW), **reclaims).source is None
    assert plan(WAITING, place("handedOver"), handed, actions=MigrationActions(reclaim=True)).source is None


def test_an_arrival_that_is_over_without_this_very_guest_is_a_missing_one() -> None:
    adopted = replace(WAITING, phase="Arrived", allocation="")
    assert plan(adopted, place("handedOver"), UNDER_WAY).status.reason == "arrivalMissing"
    assert (
        "it says Failed"
        in plan(
            replace(WAITING, phase="Failed"), place("migrating"), UNDER_WAY, actions=MigrationActions(cancel=True)
        ).status.message
    )


def test_a_guest_that_runs_here_by_its_own_nodes_word_goes_on_whatever_the_other_cluster_says() -> None:
    arrived = replace(WAITING, phase="Arrived")
    waits = plan(arrived, place("migrating"), UNDER_WAY)
    assert not waits.leaves and "waits for the word of n1" in waits.status.message
    for at in (place("migrating", node="Lost"), place("failed", state="stopped"), place("handedOver")):
        assert plan(arrived, at, UNDER_WAY).leaves


def test_a_failover_that_is_prepared_meanwhile_calls_it_off_before_the_hand_over() -> None:
    guarded = {"guarded": True}
    assert plan(WAITING, place("migrating"), UNDER_WAY, **guarded).status.ending == "Failed"
    assert plan(WAITING, place("handedOver"), UNDER_WAY, **guarded).status.ending == ""


def test_once_it_never_ran_there_the_source_hears_it_first_and_then_is_the_place_again() -> None:
    never = replace(WAITING, phase="Failed", never_ran=True, reason="timedOut", message="too slow")
    told = plan(never, place("handedOver"), UNDER_WAY)
    assert told.source is not None and told.source.migration is not None and told.source.migration.never_ran
    waits = plan(never, place("handedOver", never_ran=True), told.status)
    assert waits.source is None and waits.status.phase not in ("Failed", "Succeeded")
    back = plan(never, place("failed", never_ran=True), told.status)
    assert back.source is not None and (back.source.role, back.source.back_from) == ("active", ["u"])
    assert (back.status.phase, back.status.reason, back.status.message) == ("Failed", "timedOut", "west: too slow")


def test_a_cancellation_before_the_hand_over_asks_there_and_ends_with_its_word() -> None:
    asked = plan(WAITING, place("migrating"), UNDER_WAY, actions=MigrationActions(cancel=True))
    assert asked.act is not None and asked.act.what == "cancel" and asked.status.ending == "Cancelled"
    cancelled = replace(WAITING, phase="Cancelled", never_ran=True)
    told = plan(cancelled, place("migrating"), asked.status, actions=MigrationActions(cancel=True))
    ended = plan(cancelled, place("migrating", never_ran=True), told.status, actions=MigrationActions(cancel=True))
    assert ended.status.phase == "Cancelled" and ended.source is not None and ended.source.role == "active"


def test_what_ended_it_there_is_said_and_not_that_the_line_broke_off_then() -> None:
    stopped = replace(WAITING, phase="Migrating", reason="cancelled", message="cancelled on request")
    status = plan(stopped, place("failed"), UNDER_WAY).status
    assert (status.ending, status.reason, status.message) == ("Cancelled", "cancelled", "west: cancelled on request")
    broke = plan(WAITING, place("failed"), UNDER_WAY).status.message
    assert broke.startswith("source n1 couldn't send it to west: ") and "doesn't answer" not in broke
    assert plan(SILENT, place("failed"), UNDER_WAY).status.message.endswith("; west doesn't answer")


def test_while_the_line_is_cut_a_migration_under_way_says_whose_answer_it_waits_for() -> None:
    for says in ("migrating", "switching"):
        waits = plan(SILENT, place(says), UNDER_WAY).status
        assert waits.phase in ("Migrating", "Switching") and waits.handed_over_at is None
        assert (waits.reason, waits.message) == (
            "clusterUnreachable",
            "waits for the answer of west: no answer in time",
        )
        assert plan(WAITING, place(says), waits).status.message == ""
    # It was handed over: that its node says something else now is no reason to take it back.
    handed = replace(UNDER_WAY, handed_over_at=NOW)
    assert plan(SILENT, place("migrating"), handed).status.reason == ""


@pytest.mark.parametrize("seen", [SILENT, None])
def test_while_the_line_is_cut_a_source_that_failed_by_itself_is_the_place_again(seen: Any) -> None:
    ended = plan(seen, place("failed"), UNDER_WAY)
    assert ended.status.phase == "Failed" and ended.source is not None and ended.source.role == "active"
    waits = plan(seen, place("migrating"), UNDER_WAY, actions=MigrationActions(cancel=True))
    assert waits.source is None and "waits for west to say" in waits.status.message
    assert waits.status.message.endswith("the guest runs on here, unless it is handed over before")
    assert plan(seen, place("migrating"), waits.status, actions=MigrationActions(cancel=True)).status == waits.status


def test_after_its_end_the_other_cluster_may_forget_it_and_only_then_is_it_settled() -> None:
    over = replace(UNDER_WAY, phase="Succeeded")
    arrived = replace(WAITING, phase="Arrived")
    settles = plan(arrived, status=over, deleting=True)
    assert settles.act is not None and settles.act.what == "settle" and not is_settled(settles.status)
    settled = plan(None, status=over, deleting=True)
    assert is_settled(settled.status) and plan(None, status=settled.status).act is None
    waits = plan(SILENT, status=replace(BEGUN, phase="Failed"), deleting=True)
    assert not is_settled(waits.status) and not is_settled(plan(None, status=waits.status, sure=False).status)


def test_what_another_cluster_says_is_bounded() -> None:
    seen = read_seen(
        {"uid": 7, "status": {"phase": "x" * 999, "pause_ms": -1, "never_ran": "yes", "message": "a\x1b" * 999}}
    )
    assert (seen.uid, len(seen.phase), seen.pause_ms, seen.never_ran, len(seen.message)) == ("", 80, 0, False, 600)
    assert "\x1b" not in seen.message
    for text, taken in (
        ("10.0.0.9:7000", True),
        ("[fd00::9]:7000", True),
        ("nonsense", False),
        ("h:1", False),
        ("1.2.3.4:0", False),
    ):
        assert (read_seen({"status": {"address": text}}).address == text) is taken
    assert read_absence(NotFound("", details={"kind": "arrival"})) is None
    assert isinstance(read_absence(NotFound("", details={"kind": "project"})), InvalidInput)


def test_a_node_whose_guest_the_other_cluster_took_over_is_believed_though_that_cluster_is_silent() -> None:
    gone = place("handedOver", state="stopped", reason="leftCluster")
    assert plan(SILENT, gone, UNDER_WAY).leaves
    assert not plan(SILENT, place("handedOver", state="stopped", reason="migrated"), UNDER_WAY).leaves


def test_another_cluster_that_has_the_name_since_is_not_asked() -> None:
    noted = plan(None, status=replace(BEGUN, arrival=None), peer_uid="ca-1").status.arrival
    assert noted is not None and noted.cluster_uid == "ca-1"
    item = Item(
        MIGRATION.make("web-1", SPEC, NOW, uid="u", status=replace(UNDER_WAY, arrival=noted), project="default")
    )
    view = make_view()
    for uid, gone in (("ca-1", False), ("ca-2", True)):
        link = CLUSTER.make("west", ClusterSpec(url="https://x", ca=""), NOW, uid="w", marks=ClusterMarks(peer_uid=uid))
        link.status = merge_part(link.status, ClusterStatus(phase="Linked"))
        view.put_item(link.key, Item(link))
        facts = read_departure(view, item, NOW).facts
        assert (facts.gone, bool(facts.unlinked)) == (gone, gone)


@pytest.mark.parametrize(
    ("phase", "reason", "said"),
    [
        ("Refused", "linkRefused", "is Refused: why; link it again: weft cluster link west https://x --token TOKEN"),
        ("Refused", "suspectedThere", "cluster west is Refused: why"),
        ("Suspect", "restored", "cluster west is Suspect: why"),
        ("Unreachable", "unreachable", ""),
        ("Pending", "", ""),
        ("Linked", "oneWay", ""),
    ],
)
def test_over_a_link_that_only_people_mend_nothing_begins_and_the_remedy_is_said(
    phase: str, reason: str, said: str
) -> None:
    item = Item(MIGRATION.make("web-1", SPEC, NOW, uid="u", project="default"))
    link = CLUSTER.make("west", ClusterSpec(url="https://x", ca=""), NOW, uid="w")
    link.status = merge_part(link.status, ClusterStatus(phase=phase, reason=reason, message="why"))
    view = make_view()
    view.put_item(link.key, Item(link))
    given = read_departure(view, item, NOW).facts
    new = plan(SILENT, status=MigrationStatus(), barred=given.barred, unlinked=given.unlinked).status
    assert (new.phase, new.reason) == (("Failed", reason) if said else ("Pending", "")) and said in new.message
    noted = plan(SILENT, barred=given.barred, unlinked=given.unlinked).status
    assert noted.phase == "Pending", "the other cluster may know of it already"


@pytest.mark.parametrize(("driver", "copied"), [("directory", True), ("rbd", False)])
def test_disks_in_a_folder_are_copied_though_their_pool_has_an_id(driver: str, copied: bool) -> None:
    report = NodeReport(pools=[NodePool("local", "id-of-local", driver=driver)])
    view = SimpleNamespace(find=lambda index, uid: [SimpleNamespace(report=lambda kind: report)])
    spec = replace(place().spec, pool="local", pool_id="id-of-local")
    assert _is_directory(cast(View, view), spec, "local") is copied
