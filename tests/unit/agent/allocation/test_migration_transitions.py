"""What an agent does for an allocation that is a side of a move: pure, one row of the order and of its breaking off each."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.agent.allocation.plan import RECEIVE, TAKE_AWAY, Plan, PlanInput, StepName, observe, plan_allocation
from weft.agent.allocation.steps.disks import _has_left
from weft.agent.allocation.steps.record import Moment
from weft.agent.allocation.transitions import before_step, choose_migration
from weft.agent.migration.executor import MigrationExecutor
from weft.agent.state.allocation import Checkpoint, LocalAllocation, MigrationState, StepFailure
from weft.contracts.driver.runtime import GuestFacts
from weft.kinds.allocation import ROOT, AllocatedImage, AllocationSpec, Resources
from weft.kinds.fields.allocated_migration import AllocatedMigration
from weft.kinds.fields.lease import AllocatedLease, Suspension
from weft.objects.identity import Ref

MOVE = AllocatedMigration(key="m", peer="n2", peer_uid="node-2", peer_allocation="b")
TOLD = msgspec.structs.replace(MOVE, address="10.0.0.2:4000")
SOURCE, TARGET = MigrationState("m", "source", "b"), MigrationState("m", "target", "b")
WITH_VOLUMES = (*TAKE_AWAY[:-1], StepName.REMOVE_VOLUMES, StepName.FORGET)


def change(migration: MigrationState, **fields: Any) -> MigrationState:
    return msgspec.structs.replace(migration, **fields)


def plan_for(facts: PlanInput, guest: GuestFacts, now: float) -> Plan:
    return plan_allocation(msgspec.structs.replace(facts, guest=guest, now=now))


def known(part: MigrationState | None, *, deleting: bool = False, made: bool = True, **fields: Any) -> PlanInput:
    migrating, unconfirmed = fields.pop("migrating", False), fields.pop("unconfirmed", False)
    spec = AllocationSpec(
        node="n1",
        node_uid="node-1",
        workload=Ref("vm", "web", "vm-1", "default"),
        workload_generation=1,
        incarnation=1,
        resources=Resources(cpu=1, memory=1 << 28),
        image=AllocatedImage(name="tiny", uid="i", sha256="0" * 64, size=1, url="file:///tiny"),
        **fields,
    )
    return PlanInput(
        local=LocalAllocation("node-1.a", "a", spec, deleting),
        checkpoint=Checkpoint(run="up", made=made, migration=part),
        guest=GuestFacts("id", "a", "web", 1, "absent"),
        migrating=migrating,
        unconfirmed=unconfirmed,
    )


def steps(known: PlanInput, state: str = "running") -> tuple[StepName, ...]:
    return plan_for(known, GuestFacts("id", "a", "web", 1, state), 0).steps  # type: ignore[arg-type]


def test_a_target_makes_all_ready_but_the_start_and_opens_its_listener() -> None:
    coming = known(None, made=False, role="target", migration=MOVE)
    assert steps(coming, "absent") == (StepName.CHECK_VOLUMES, *RECEIVE)
    assert steps(known(TARGET, role="target", migration=MOVE), "absent") == RECEIVE, "an agent made anew opens it again"
    assert steps(known(TARGET, role="target", migration=MOVE, migrating=True), "starting") == ()
    assert steps(known(None, made=False, role="target", migration=MOVE, unconfirmed=True), "absent") == ()


def test_a_source_that_said_it_failed_sends_no_more_by_that_migration_also_after_a_crash() -> None:
    failed = change(SOURCE, failed=True)
    assert steps(known(failed, role="source", migration=TOLD)) == ()
    assert steps(known(SOURCE, role="source", migration=TOLD)) == (StepName.SEND,)
    told = msgspec.structs.replace(TOLD, never_ran=True)
    assert steps(known(failed, role="source", migration=told)) == (StepName.CANCEL,)


def test_a_source_sends_once_it_knows_where_to_and_goes_on_after_a_crash() -> None:
    assert steps(known(None, role="source", migration=MOVE)) == ()
    assert steps(known(None, role="source", migration=TOLD)) == (StepName.SEND,)
    assert steps(known(SOURCE, role="source", migration=TOLD, migrating=True)) == ()
    assert steps(known(SOURCE, role="source", migration=TOLD, unconfirmed=True)) == (StepName.SEND,)
    assert steps(known(None, role="source", migration=TOLD, unconfirmed=True)) == ()


@pytest.mark.parametrize("state", ["absent", "stopped", "failed", "paused", "running"])
@pytest.mark.parametrize("role", ["source", "target"])
@pytest.mark.parametrize("restart_generation", [0, 3])
def test_neither_side_ever_starts_a_guest(state: str, role: str, restart_generation: int) -> None:
    for migration in (None, SOURCE if role == "source" else TARGET):
        for fields in ({}, {"desired": "stop"}, {"deleting": True}, {"migrating": True}):
            side = known(migration, role=role, migration=TOLD, restart_generation=restart_generation, **fields)  # type: ignore[arg-type]
            assert StepName.START not in steps(side, state)


def test_a_target_that_is_to_stop_gives_up_and_is_taken_away_with_its_half_made_volumes() -> None:
    assert steps(known(TARGET, role="target", migration=MOVE, desired="stop", migrating=True), "starting") == (
        StepName.GIVE_UP,
    )
    assert steps(known(None, made=False, role="target", migration=MOVE, desired="stop"), "absent") == (
        StepName.GIVE_UP,
    )
    given_up = change(TARGET, over=True)
    assert steps(known(given_up, role="target", migration=MOVE, desired="stop"), "absent") == ()
    assert steps(known(given_up, role="target", migration=MOVE, deleting=True), "absent") == WITH_VOLUMES
    for migration in (None, TARGET):
        assert steps(known(migration, role="target", migration=MOVE, deleting=True), "starting") == (StepName.GIVE_UP,)


def test_data_that_was_here_before_a_target_came_is_left_alone() -> None:
    given_up = known(change(TARGET, over=True), made=False, role="target", migration=MOVE, deleting=True)
    assert steps(given_up, "absent") == TAKE_AWAY


def test_a_target_that_has_taken_over_is_not_given_up_any_more() -> None:
    taken = change(TARGET, taken=True)
    assert steps(known(taken, role="target", migration=MOVE, desired="stop")) == ()
    assert steps(known(taken)) == (StepName.SETTLE,)
    assert steps(known(taken, deleting=True)) == (StepName.STOP, *TAKE_AWAY), "then its volumes are nobody else's"


def test_a_source_that_was_left_goes_with_its_volumes_only_by_the_targets_word() -> None:
    assert steps(known(SOURCE, role="source", migration=TOLD, desired="stop", deleting=True), "paused") == (
        StepName.LEAVE,
    )
    left = change(SOURCE, over=True)
    assert steps(known(left, role="source", migration=TOLD, deleting=True), "stopped") == TAKE_AWAY
    heard = change(left, taken=True)
    assert steps(known(heard, role="source", migration=TOLD, deleting=True), "stopped") == WITH_VOLUMES


def test_a_source_whose_move_is_no_more_takes_its_guest_back_before_all_else() -> None:
    for state in ("running", "paused", "stopped"):
        assert steps(known(SOURCE), state) == (StepName.CANCEL,)
    never_ran = msgspec.structs.replace(TOLD, never_ran=True)
    assert steps(known(SOURCE, role="source", migration=never_ran), "paused") == (StepName.CANCEL,)
    assert steps(known(None, role="source", migration=never_ran)) == (), "and doesn't send it anew"
    assert steps(known(SOURCE, role="source", migration=msgspec.structs.replace(TOLD, key="later"))) == (
        StepName.CANCEL,
    )


def test_a_guest_that_has_not_begun_to_run_here_cannot_have_ended_here() -> None:
    checkpoint = Checkpoint(made=True, migration=TARGET)
    for state in ("starting", "absent", "failed"):
        checkpoint = observe(checkpoint, GuestFacts("id", "a", "web", 1, state))  # type: ignore[arg-type]
    assert checkpoint.run == "new"


@given(
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["active", "source", "target"]),
    st.sampled_from(["absent", "starting", "running", "paused", "stopped", "failed"]),
)
def test_data_of_volumes_is_removed_only_where_the_other_node_has_it(
    taken: bool, over: bool, deleting: bool, role: str, state: str
) -> None:
    for migration in (None, change(SOURCE, taken=taken, over=over), change(TARGET, taken=taken, over=over)):
        allocated = TOLD if role != "active" else None
        planned = steps(known(migration, role=role, migration=allocated, deleting=deleting), state)
        if StepName.REMOVE_VOLUMES in planned:
            assert deleting and migration is not None and over
            assert taken if migration.role == "source" else not taken


SENT = change(SOURCE, node="n2")
GONE = change(SENT, taken=True, over=True)


def orphan(
    part: MigrationState | None, state: str = "running", *, superseded: bool = False, **fields: Any
) -> tuple[StepName, ...]:
    stale = fields.pop("stale_volumes", False)
    it = known(part, **fields)
    checkpoint = msgspec.structs.replace(it.checkpoint, orphan=True)
    it = msgspec.structs.replace(it, checkpoint=checkpoint, superseded=superseded, stale_volumes=stale)
    return steps(it, state)


def test_a_guest_that_was_taken_over_elsewhere_is_not_begun_here_for_an_older_stores_sake() -> None:
    for state in ("absent", "stopped", "paused"):
        plan = plan_for(known(GONE, made=False), GuestFacts("id", "a", "web", 1, state), 0)  # type: ignore[arg-type]
        assert (plan.steps, plan.state, plan.reason) == ((), "stopped", "migrated")
    assert steps(known(GONE, back_from=["m"]), "absent") == (StepName.CANCEL,), (
        "but on the word that it never ran there"
    )
    assert steps(known(GONE, back_from=["another"]), "absent") == ()
    assert steps(known(GONE, role="source", migration=TOLD), "absent") == ()
    assert steps(known(GONE, role="target", migration=MOVE), "absent") == (), (
        "one that came and went on waits for nobody"
    )


def test_a_side_that_the_server_does_not_know_breaks_its_move_off_as_far_as_that_is_its_own_to_do() -> None:
    assert orphan(SENT, role="source", migration=TOLD) == (StepName.CANCEL,)
    assert orphan(TARGET, "starting", role="target", migration=MOVE) == (StepName.GIVE_UP,)
    assert orphan(None, "absent", role="target", migration=MOVE) == (StepName.GIVE_UP,)
    for settled in (change(SENT, taken=True), GONE, change(TARGET, taken=True), change(TARGET, over=True), None):
        assert orphan(settled) == ()


def test_a_side_that_does_not_count_any_more_lets_go_first_and_keeps_data_that_no_other_node_has() -> None:
    assert orphan(SENT, "paused", superseded=True) == (StepName.LEAVE,)
    assert orphan(TARGET, "starting", superseded=True) == (StepName.GIVE_UP,)
    for migration in (GONE, change(TARGET, over=True)):
        assert orphan(migration, "absent", superseded=True) == TAKE_AWAY
        assert orphan(migration, "absent", superseded=True, stale_volumes=True) == WITH_VOLUMES


def test_what_came_by_a_move_and_was_taken_away_since_neither_waits_nor_says_that_it_never_ran() -> None:
    gone = change(TARGET, taken=True, over=True)
    plan = plan_for(
        known(gone, made=False, role="target", migration=MOVE), GuestFacts("id", "a", "web", 1, "absent"), 0
    )
    assert (plan.steps, plan.state, plan.reason) == ((), "stopped", "migrated")
    assert steps(known(gone, made=False, role="target", migration=MOVE, desired="stop"), "absent") == ()
    assert steps(known(gone, made=False, deleting=True, role="target", migration=MOVE), "absent") == TAKE_AWAY


def test_only_between_clusters_a_departed_guest_leaves_its_snapshots_on_its_node() -> None:
    for peer_ca, goes in (("", True), ("PEM", False)):
        allocated = msgspec.structs.replace(TOLD, peer_ca=peer_ca)
        here = known(None, role="source", migration=allocated)
        begun = choose_migration(here.checkpoint, here.local.spec)
        assert begun is not None
        assert _has_left(change(begun, taken=True), ROOT) is goes


def test_what_an_older_store_lists_again_stays_stopped_and_says_that_another_cluster_has_it() -> None:
    gone = MigrationState("m", "source", "b", taken=True, over=True, node="west/n1", between_clusters=True)
    listed_again = known(gone, made=False, role="active")
    plan = plan_for(listed_again, GuestFacts("id", "a", "web", 1, "absent"), 0)
    assert (plan.steps, plan.state, plan.reason) == ((), "stopped", "leftCluster")
    assert "node west/n1" in plan.message, "and not `migrated`, for which a server looks among its own nodes"


def test_a_hand_over_that_an_older_store_does_not_have_is_reported_with_its_other_end() -> None:
    sent = MigrationState("m", "source", "b", node="west/n1", between_clusters=True)
    here = known(sent, role="active")
    executor = MigrationExecutor.__new__(MigrationExecutor)  # of what it leads: nothing
    executor._led, executor._relocating = {}, {}
    report = executor.report(here.local, here.checkpoint)
    assert report is not None
    assert (report.key, report.phase, report.peer) == ("m", "handedOver", "west/n1")


def test_what_has_ended_by_itself_before_its_move_rests_where_it_comes_to() -> None:
    coming = msgspec.structs.replace(MOVE, mode="cold", rests="guestPoweredOff")
    here = known(None, made=False, role="target", migration=coming)
    for migration, begun in ((coming, False), (msgspec.structs.replace(coming, rests=""), True)):
        checkpoint = before_step(
            StepName.OPEN,
            Checkpoint(),
            Moment(msgspec.structs.replace(here.local.spec, migration=migration), TARGET),
        )
        settled = msgspec.structs.replace(checkpoint, migration=None, arrived_by="m")
        now = msgspec.structs.replace(known(None, role="active"), checkpoint=settled)
        assert bool(steps(now, "absent")) == begun


def test_what_goes_on_elsewhere_is_saved_in_place_of_a_stop_and_stopped_only_if_it_may_be() -> None:
    may, must = (msgspec.structs.replace(TOLD, mode="cold", saves=saves) for saves in ("may", "must"))
    for migration in (may, must):
        assert steps(known(None, role="source", migration=migration)) == (StepName.SAVE, StepName.SEND)
        assert steps(known(None, role="source", migration=migration), "suspended") == (StepName.SEND,)
    assert steps(known(None, role="source", migration=msgspec.structs.replace(TOLD, mode="cold"))) == (
        StepName.STOP,
        StepName.SEND,
    )
    refused = StepFailure("notSaved", "criu: it holds a device", 1, 0.0)
    assert steps(msgspec.structs.replace(known(None, role="source", migration=may), failure=refused)) == (
        StepName.STOP,
        StepName.SEND,
    )
    assert steps(msgspec.structs.replace(known(None, role="source", migration=must), failure=refused)) == (
        StepName.SAVE,
        StepName.SEND,
    )
    stays = known(SOURCE, role="active")
    assert steps(stays, "suspended") == (StepName.CANCEL,)
    assert steps(known(None), "suspended")[-1] is StepName.START, "one that came, or stays, goes on"


def test_one_that_is_saved_for_its_move_has_not_ended() -> None:
    checkpoint = observe(Checkpoint(run="up", made=True), GuestFacts("id", "a", "web", 1, "suspended"))
    assert (checkpoint.run, checkpoint.ended) == ("up", "")


def test_a_preempted_guest_that_migrates_still_says_that_its_capacity_is_free() -> None:
    lease = AllocatedLease(mode="best-effort", start=0.0, suspension=Suspension("vm/winner", 5.0))
    told = msgspec.structs.replace(TOLD, mode="cold", saves="must")
    for migration, running in ((msgspec.structs.replace(told, address=""), False), (told, True)):
        facts = known(SOURCE if running else None, role="source", migration=migration, migrating=running, lease=lease)
        facts = msgspec.structs.replace(facts, stage="suspended")
        plan = plan_for(facts, GuestFacts("id", "a", "web", 1, "suspended"), 0)
        assert (plan.steps, plan.state, plan.reason) == ((), "suspended", "preempted")
        assert plan.message == "suspended for vm/winner"


def test_what_rests_since_its_lease_ended_says_so_at_both_ends_of_its_move_and_has_not_failed() -> None:
    lease = AllocatedLease(mode="immediate", start=0.0, end=5.0)
    cold = msgspec.structs.replace(TOLD, mode="cold", rests="leaseEnded")
    coming = known(None, made=False, role="target", migration=cold, lease=lease)
    opened = before_step(StepName.OPEN, Checkpoint(), Moment(coming.local.spec, TARGET))
    arrived = msgspec.structs.replace(opened, migration=change(TARGET, taken=True))
    settled = msgspec.structs.replace(opened, migration=None, arrived_by="m")
    older = msgspec.structs.replace(settled, run="ended", ended="leaseEnded", made=True)
    for role, checkpoint in (("target", arrived), ("active", arrived), ("source", settled), ("source", older)):
        facts = known(None, role=role, migration=None if role == "active" else cold, lease=lease)
        facts = msgspec.structs.replace(facts, checkpoint=checkpoint, stage="over")
        plan = plan_for(facts, GuestFacts("id", "a", "web", 1, "absent"), 6.0)
        assert (plan.state, plan.reason) == ("stopped", "leaseEnded"), (role, plan)
        assert plan.message.startswith("its lease ended at ")
