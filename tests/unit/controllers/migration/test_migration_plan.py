"""Each row of a move's order, and of its breaking off, as a table: what both sides say in, what is written out."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from weft.controllers.migration.abort import HAND_OVER_PATIENCE_SECONDS, READY_PATIENCE_SECONDS
from weft.controllers.migration.facts import MigrationEndpoint, MigrationOutcome, MigrationPlanFacts
from weft.controllers.migration.plan import plan_migration
from weft.kinds.allocation import AllocatedImage, AllocationReport, AllocationSpec, Resources
from weft.kinds.fields.allocated_migration import AllocatedMigration, MigrationReport
from weft.kinds.migration import (
    MOST_SAMPLES,
    MigrationActions,
    MigrationMarks,
    MigrationSpec,
    MigrationStatus,
    migration_key,
)
from weft.kinds.vm import VmSpec
from weft.objects.identity import Ref

NOW = 1000.0
UNDER_WAY = MigrationStatus(phase="Migrating", source="n1", target="n2", tries=1, started_at=NOW - 5)
BREAKING = replace(UNDER_WAY, ending="Failed", reason="r", message="m")


def side(role: str, says: str = "", *, node: str | None = "Ready", **more: Any) -> MigrationEndpoint:
    migration = AllocatedMigration(
        key="u",
        peer="n2",
        peer_uid="p",
        peer_allocation="a",
        **{k: v for k, v in more.items() if k in ("address", "never_ran")},
    )
    spec = AllocationSpec(
        node="n1" if role == "source" else "n2",
        node_uid="x",
        workload=Ref("vm", "web", "w", "default"),
        workload_generation=1,
        incarnation=1 if role == "source" else 2,
        role=role,  # type: ignore[arg-type]
        desired=more.get("desired", "run"),
        resources=Resources(),
        image=AllocatedImage(name="i", uid="i", sha256="s", size=1, url="u"),
        migration=migration,
    )
    told = MigrationReport(key=more.get("key", "u"), phase=says, address=more.get("door", "")) if says else None  # type: ignore[arg-type]
    report = AllocationReport(incarnation=spec.incarnation, state=more.get("state", "running"), migration=told)
    return MigrationEndpoint(spec, report, node, more.get("deleting", False))


def plan(
    source: MigrationEndpoint | None, target: MigrationEndpoint | None, status: MigrationStatus = UNDER_WAY, **more: Any
) -> MigrationOutcome:
    wish = MigrationSpec(workload="vm/web", **more.pop("wish", {}))
    asked, marks = more.pop("asked", MigrationActions()), more.pop("marks", MigrationMarks())
    facts = {"workload": VmSpec(image="i"), "now": NOW, **more}
    return plan_migration(
        MigrationPlanFacts(spec=wish, actions=asked, marks=marks, status=status, source=source, target=target, **facts)
    )


def writes(outcome: MigrationOutcome) -> dict[str, Any]:
    """What is written of the two places, in short."""
    told: dict[str, Any] = {}
    for name, spec in (("source", outcome.source), ("target", outcome.target)):
        if spec is not None:
            told[name] = (spec.role, spec.desired, spec.migration is not None)
    told |= {"source goes": True} if outcome.source_goes else {}
    told |= {"target goes": True} if outcome.target_goes else {}
    return told


def test_the_source_is_told_where_the_target_waits_and_only_once() -> None:
    outcome = plan(side("source"), side("target", "waiting", door="h:1"))
    assert (
        outcome.source is not None
        and outcome.source.migration is not None
        and outcome.source.migration.address == "h:1"
    )
    assert writes(plan(side("source", address="h:1"), side("target", "waiting", door="h:1"))) == {}


def test_both_sides_are_told_what_both_nodes_may_carry_and_hear_when_that_changes() -> None:
    source, target = (
        replace(side("source", "migrating", address="h:1"), node_limit=5),
        side("target", "waiting", door="h:1"),
    )
    outcome = plan(source, replace(target, node_limit=7))
    moves = [spec.migration for spec in (outcome.source, outcome.target) if spec is not None]
    told = [
        (migration.node_bytes_per_second, migration.peer_bytes_per_second)
        for migration in moves
        if migration is not None
    ]
    assert told == [(5, 7), (7, 5)]
    assert outcome.source is not None and outcome.target is not None
    again = plan(replace(source, spec=outcome.source), replace(target, spec=outcome.target, node_limit=7))
    assert writes(again) == {}


@pytest.mark.parametrize("said", ["", "migrating", "switching", "handedOver", "failed"])
def test_the_targets_word_that_it_took_over_swaps_the_places_whatever_else_is_so(said: str) -> None:
    for status in (UNDER_WAY, BREAKING):
        outcome = plan(side("source", said), side("target", "takenOver", desired="stop"), status, workload=None)
        assert writes(outcome)["source"] == ("source", "stop", True) and outcome.source_goes
        assert outcome.target is not None and (outcome.target.role, outcome.target.migration) == ("active", None)
        assert (outcome.status.phase, outcome.status.ending) == ("Finishing", "")


def test_of_one_that_is_to_stop_it_says_what_can_be_done() -> None:
    stopped = VmSpec(image="i", run="stop")
    outcome = plan(None, None, MigrationStatus(phase="Pending"), place=side("source"), workload=stopped)
    assert (outcome.status.phase, outcome.status.reason) == ("Failed", "notRunning")
    assert outcome.status.message == "vm/web is not running (run: stop); start it, or migrate it with --cold"


@pytest.mark.parametrize(("phase", "reason"), [("NotReady", "nodeLost"), ("Autonomous", "nodeAutonomous")])
@pytest.mark.parametrize("run", ["run", "stop"])
def test_nothing_is_tried_while_its_node_is_silent_unless_it_has_a_window_to_wait_in(
    phase: str, reason: str, run: str
) -> None:
    place, vm = side("source", node=phase), VmSpec(image="i", run=run)  # type: ignore[arg-type]
    outcome = plan(None, None, MigrationStatus(phase="Pending"), place=place, workload=vm)
    assert (outcome.status.phase, outcome.status.reason) == ("Failed", reason)
    assert outcome.status.message == "n1 sends no heartbeat, so vm/web can't leave it before it is back"


def test_one_with_a_window_waits_for_its_node() -> None:
    at = MigrationStatus(phase="Planned")
    outcome = plan(None, None, at, place=side("source", node="NotReady"), wish={"not_before": 0.0, "not_after": 1e12})
    assert outcome.status.phase == "Pending"


def test_it_has_succeeded_when_nothing_is_left_at_the_source() -> None:
    finishing = replace(UNDER_WAY, phase="Finishing")
    assert plan(side("source", "handedOver", deleting=True), None, finishing).status.phase == "Finishing"
    assert plan(None, None, finishing).status.phase == "Succeeded"


@pytest.mark.parametrize(
    ("what", "facts", "ending"),
    [
        ("asked for", {"asked": MigrationActions(cancel=True)}, "Cancelled"),
        ("deleted", {"deleting": True}, "Cancelled"),
        ("the VM goes", {"workload": None}, "Cancelled"),
        ("the VM is to stop", {"workload": VmSpec(image="i", run="stop")}, "Cancelled"),
        ("the VM is to be restarted", {"starts": 1}, "Cancelled"),
        ("too late", {"now": NOW + 1000}, "Failed"),
        ("the source failed", {"source": side("source", "failed")}, "Retry"),
        ("the target failed", {"target": side("target", "failed")}, "Retry"),
        ("the target is lost", {"target": side("target", "waiting", node="NotReady")}, "Retry"),
        ("the source is lost", {"source": side("source", "migrating", node="NotReady")}, "Retry"),
    ],
)
def test_what_breaks_it_off_stops_the_target_first(what: str, facts: dict[str, Any], ending: str) -> None:
    outcome = plan(**{"source": side("source", "migrating"), "target": side("target", "waiting"), **facts})
    assert outcome.status.ending == ending, what
    assert writes(outcome) == {"target": ("target", "stop", True)}, what


def test_a_third_try_that_fails_is_the_last() -> None:
    third = replace(UNDER_WAY, tries=3)
    assert plan(side("source", "failed"), side("target", "waiting"), third).status.ending == "Failed"


@pytest.mark.parametrize(("reason", "ending"), [("illegalTransition", "Retry"), ("unsupported", "Failed")])
def test_a_guest_that_restarts_just_then_is_tried_again_and_what_never_can_is_not(reason: str, ending: str) -> None:
    source = side("source", "failed")
    assert source.report.migration is not None
    told = replace(source, report=replace(source.report, migration=replace(source.report.migration, reason=reason)))
    assert plan(told, side("target", "waiting")).status.ending == ending


def stuck(reason: str) -> MigrationEndpoint:
    """A target whose node can't make ready what the guest needs."""
    target = side("target", "preparing", state="failed")
    return replace(target, report=replace(target.report, reason=reason, message="the image isn't to be had"))


def test_what_keeps_a_target_from_getting_ready_is_told_at_once_and_ends_the_try_a_little_later() -> None:
    first = plan(side("source"), stuck("notFound"))
    assert (first.status.reason, first.status.message) == ("notFound", "target n2: the image isn't to be had")
    assert (first.status.ending, first.requeue_after) == ("", READY_PATIENCE_SECONDS)
    later = plan(side("source"), stuck("notFound"), first.status, now=NOW + READY_PATIENCE_SECONDS)
    assert (later.status.ending, later.status.reason) == ("Retry", "notFound")
    healed = plan(side("source"), side("target", "preparing"), first.status, now=NOW + READY_PATIENCE_SECONDS)
    assert (healed.status.ending, healed.status.message, healed.status.troubled_at) == ("", "", None)
    short = plan(side("source"), stuck("notFound"), wish={"timeout_seconds": 5.0})
    assert short.status.message == "not finished within 5 s: target n2: the image isn't to be had"


@pytest.mark.parametrize(("to", "ending"), [(None, "Retry"), ("n2", "Failed")])
def test_where_a_disk_is_full_it_goes_elsewhere_at_once_if_it_may(to: str | None, ending: str) -> None:
    assert plan(side("source"), stuck("noSpace"), wish={"to": to}).status.ending == ending


def test_the_next_try_avoids_where_this_one_failed() -> None:
    again = replace(BREAKING, ending="Retry", avoid=("n3",))
    assert plan(side("source", "failed"), None, again).status.avoid == ("n3", "n2")


def test_what_was_handed_over_and_not_taken_in_time_is_broken_off() -> None:
    source, target = side("source", "handedOver"), side("target", "waiting")
    first = plan(source, target)
    assert (first.status.phase, first.status.handed_over_at, writes(first)) == ("Switching", NOW, {})
    assert first.requeue_after == HAND_OVER_PATIENCE_SECONDS
    later = plan(source, target, first.status, now=NOW + HAND_OVER_PATIENCE_SECONDS)
    assert (later.status.reason, writes(later)) == ("notTakenOver", {"target": ("target", "stop", True)})


def test_the_targets_word_that_it_gave_up_reaches_the_source_before_its_place_is_gone() -> None:
    outcome = plan(side("source", "handedOver"), side("target", "abandoned", desired="stop"), BREAKING)
    assert outcome.target_goes and outcome.source is not None and outcome.source.migration is not None
    assert (outcome.source.role, outcome.source.migration.never_ran) == ("source", True)


def test_the_source_is_the_place_again_once_it_goes_on_and_the_target_is_gone() -> None:
    assert writes(plan(side("source", "handedOver", never_ran=True), None, BREAKING)) == {}
    outcome = plan(side("source", "preparing", never_ran=True), None, BREAKING)
    assert writes(outcome) == {"source": ("active", "run", False)}
    assert (outcome.status.phase, outcome.status.reason, outcome.status.ended_at) == ("Failed", "r", NOW)


def test_another_try_has_another_key_so_what_the_first_one_said_is_not_heard() -> None:
    again = plan(side("source", "failed"), None, replace(BREAKING, ending="Retry")).status
    assert (again.phase, again.tries, again.ending) == ("Pending", 2, "")
    assert migration_key("u", 1) == "u" and migration_key("u", 2) != "u"
    assert not side("source", "failed", key="another").reports("failed")


@pytest.mark.parametrize("said", ["", "migrating", "switching", "handedOver"])
def test_of_a_lost_target_nothing_is_concluded_unless_the_guest_runs_at_the_source_for_good(said: str) -> None:
    lost = side("target", "waiting", node="NotReady", desired="stop")
    outcome = plan(side("source", said), lost, BREAKING)
    assert writes(outcome) == {} and "waiting for the node" in outcome.status.message
    assert "weft node delete n2 --force" in outcome.status.message, "and what people can do"
    home = plan(side("source", "failed"), lost, BREAKING)
    assert writes(home) == {"source": ("active", "run", False), "target goes": True}
    stopped = plan(side("source", "failed", state="stopped"), lost, BREAKING)
    assert writes(stopped) == {}


def test_what_has_ended_is_left_alone() -> None:
    for phase in ("Succeeded", "Failed", "Cancelled"):
        outcome = plan(side("source", "migrating"), side("target", "waiting"), replace(UNDER_WAY, phase=phase))
        assert writes(outcome) == {} and outcome.status.phase == phase


def test_samples_of_a_move_stay_few_and_evenly_spread_however_long_it_takes() -> None:
    status = UNDER_WAY
    for at in range(200, 600_000, 200):
        source = side("source", "migrating")
        told = MigrationReport(key="u", phase="migrating", elapsed_ms=at, sent_bytes=at * 10)
        source = replace(source, report=replace(source.report, migration=told))
        status = plan(source, side("target", "waiting"), status).status
        assert len(status.samples) <= MOST_SAMPLES
    times = [sample.elapsed_ms for sample in status.samples]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert times == sorted(times) and max(gaps) < 60_000 and times[-1] > 580_000
    said_again = plan(source, side("target", "waiting"), status).status
    assert said_again.samples == status.samples


def test_a_clock_that_is_set_back_makes_no_move_wait_for_ever() -> None:
    ahead = replace(UNDER_WAY, phase="Pending", started_at=NOW + 1e5)
    waiting = plan(None, None, ahead, wish={"timeout_seconds": 30.0})
    assert waiting.status.started_at == NOW and waiting.requeue_after == 30.0
    over = plan(None, None, waiting.status, wish={"timeout_seconds": 30.0}, now=NOW + 31)
    assert over.status.phase == "Failed"


def test_a_side_that_says_for_good_that_its_guest_has_moved_on_ends_what_only_an_older_store_takes_for_a_move() -> None:
    def moved(role: str) -> MigrationEndpoint:
        here = side(role)
        return msgspec.structs.replace(here, report=replace(here.report, state="stopped", reason="migrated"))

    outcome = plan(moved("source"), side("target", "waiting"))
    assert (outcome.status.ending, outcome.status.reason) == ("Failed", "migratedOn")
    assert writes(plan(moved("source"), side("target", "takenOver"))) != {}, "but the target's word comes first"
    outcome = plan(side("source", "handedOver"), moved("target"))
    assert (outcome.status.phase, outcome.status.reason) == ("Failed", "migratedOn")
    assert writes(outcome) == {"source": ("source", "stop", True), "source goes": True, "target goes": True}


def test_a_place_that_is_the_guests_again_carries_the_word_that_the_target_never_ran() -> None:
    outcome = plan(side("source", "migrating", never_ran=True), None, BREAKING)
    assert outcome.source is not None and (outcome.source.role, outcome.source.back_from) == ("active", ["u"])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"deleting": True}, "cancelled"),
        ({"asked": MigrationActions(cancel=True)}, "cancelled"),
        ({"workload": None}, "workloadDeleted"),
    ],
)
def test_what_is_not_wanted_any_more_never_begins(given: dict[str, Any], reason: str) -> None:
    outcome = plan(None, None, MigrationStatus(), **given)
    assert outcome.status is not None and (outcome.status.phase, outcome.status.reason) == ("Cancelled", reason)


def test_a_proposal_says_the_command_that_accepts_it() -> None:
    wish, marks = {"not_before": NOW + 60, "not_after": NOW + 120}, MigrationMarks(proposed=True)
    told = plan(None, None, MigrationStatus(), name="web-1", wish=wish, marks=marks).status
    assert told.phase == "Proposed" and told.message.endswith("weft migration accept web-1")


@pytest.mark.parametrize(
    ("wish", "marks", "node", "ends"),
    [
        ({"to": "n2", "not_before": NOW + 60}, {"ahead": "n1"}, "n1", ""),
        ({"to": "n2", "not_before": NOW + 60}, {"ahead": "n1"}, "n3", "hasLeft"),
        ({"to": "n2", "not_before": NOW + 60}, {"ahead": "n1", "proposed": True}, "n3", "hasLeft"),
        ({"to": "n2", "not_before": NOW + 60}, {}, "n2", ""),  # it may be elsewhere by then
        ({"to": "n2", "not_before": NOW - 1, "not_after": NOW + 60}, {}, "n2", "alreadyThere"),
        ({"to": "n2", "not_before": NOW - 1, "not_after": NOW + 60}, {}, "n1", ""),
    ],
)
def test_one_whose_workload_is_gone_from_there_or_has_arrived_ends_and_holds_nothing(
    wish: dict[str, Any], marks: dict[str, Any], node: str, ends: str
) -> None:
    here = side("source")
    place = replace(here, spec=replace(here.spec, node=node, role="active", migration=None))
    held = side("target", desired="run")
    given = {"wish": wish, "marks": MigrationMarks(**marks), "place": place, "reservation": held}
    outcome = plan(None, None, MigrationStatus(phase="Planned"), **given)
    assert (outcome.status.phase == "Cancelled", outcome.status.reason if ends else "") == (bool(ends), ends)
    assert outcome.reservation_goes or not ends
