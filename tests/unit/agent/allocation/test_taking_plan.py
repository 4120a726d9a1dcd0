"""When an agent takes a snapshot of an allocation, what waits for it, and what it waits for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.unit.agent.allocation.test_allocation_plan import UP, guest, known

from weft.agent.allocation.plan import BRING_UP, TAKE_AWAY, PlanInput, StepName, plan_allocation
from weft.agent.allocation.report import make_report
from weft.agent.allocation.steps.record import Moment
from weft.agent.allocation.transitions import before_step
from weft.agent.state.allocation import Checkpoint, DiskRelocation, MigrationState
from weft.agent.state.snapshots import begin_taking, find_snapshots
from weft.kinds.allocation import ROOT, AllocatedVolume
from weft.kinds.fields.allocated_snapshot import AllocatedSnapshot, SnapshotReport

S1, S2 = (AllocatedSnapshot(uid=uid, name=uid, memory=True) for uid in ("s1", "s2"))
RUNS = guest("running", ready=True)


def facts(checkpoint: Checkpoint = UP, at: Any = RUNS, more: dict[str, Any] | None = None, **spec: Any) -> PlanInput:
    found = known(checkpoint, **{"snapshots": [S1], **spec})
    return msgspec.structs.replace(found, guest=at, **(more or {}))


def steps(*given: Any, **more: Any) -> tuple[StepName, ...]:
    return plan_allocation(facts(*given, **more)).steps


def taking(**fields: Any) -> Checkpoint:
    state = begin_taking(known().local.spec, S1, live=True)
    return msgspec.structs.replace(UP, taking=msgspec.structs.replace(state, **fields))


@pytest.mark.parametrize("state", ["running", "paused"])
def test_it_is_taken_of_a_guest_that_runs(state: str) -> None:
    assert steps(at=guest(state)) == (StepName.SNAPSHOT,)


def test_it_is_taken_of_an_allocation_at_rest() -> None:
    down = Checkpoint(run="down", made=True)
    assert steps(down, guest("stopped"), desired="stop") == (StepName.SNAPSHOT,)
    assert steps(UP, guest("suspended"), desired="suspend") == (StepName.SNAPSHOT,)
    failed = Checkpoint(run="ended", ended="crashed", made=True)
    assert steps(failed, guest("failed"), restart="never") == (StepName.SNAPSHOT,)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"checkpoint": Checkpoint()}, "it begins once the VM has started or stopped"),
        ({"at": guest("starting")}, "it begins once the VM runs"),
        ({"at": guest("running", held=True)}, "it begins once the VM runs"),
        ({"role": "source"}, "it begins once the VM has migrated"),
        ({"checkpoint": msgspec.structs.replace(UP, migration=MigrationState("k", "source", "p"))}, "it begins once"),
        ({"more": {"relocating": True}}, "it begins once the VM's disk is relocated"),
        (
            {
                "checkpoint": msgspec.structs.replace(
                    UP, relocation=DiskRelocation("k", ROOT, "a", "", "b", "", "there")
                )
            },
            "it begins once the VM's disk is relocated",
        ),
    ],
)
def test_else_it_waits_and_says_for_what(given: dict[str, Any], why: str) -> None:
    if given.get("checkpoint") == Checkpoint():
        given = {**given, "at": guest("absent")}
    found = facts(**given)
    plan = plan_allocation(found)
    assert StepName.SNAPSHOT not in plan.steps
    (report,) = make_report(found, plan, plan.state, [], None).snapshots
    assert (report.phase, report.reason) == ("taking", "waits") and report.message.startswith(why)


def test_what_starts_moves_or_changes_the_guest_waits_for_it_and_a_stop_does_not() -> None:
    off = guest("stopped")
    assert steps(msgspec.structs.replace(taking(), run="down"), off) == (StepName.SNAPSHOT, *BRING_UP)
    assert steps(taking(), RUNS, role="source") == (StepName.SNAPSHOT,)
    assert steps(taking(), RUNS, desired="suspend") == (StepName.SNAPSHOT,)
    assert steps(taking(), RUNS, desired="stop") == (StepName.STOP, StepName.SNAPSHOT)
    assert steps(taking(), RUNS, restart_generation=1) == (StepName.STOP, StepName.SNAPSHOT, *BRING_UP)
    deleting = msgspec.structs.replace(known(taking(), deleting=True), guest=RUNS)
    assert plan_allocation(deleting).steps == (StepName.STOP, StepName.SNAPSHOT, *TAKE_AWAY)


def test_a_runtime_that_saves_memory_is_asked_when_it_is_due() -> None:
    plan = plan_allocation(facts(taking(finished=True), more={"now": 10.0, "snapshot_at": 10.5}))
    assert (plan.steps, plan.review_at, plan.state) == ((), 10.5, "running")
    assert steps(taking(finished=True), more={"now": 10.5, "snapshot_at": 10.5}) == (StepName.SNAPSHOT,)
    stop = facts(taking(finished=True), more={"now": 10.0, "snapshot_at": 10.5}, desired="stop")
    assert plan_allocation(stop).steps == (StepName.STOP, StepName.SNAPSHOT)


def test_the_next_one_follows_and_those_that_are_over_are_not_taken_again() -> None:
    over = msgspec.structs.replace(UP, taken=[SnapshotReport(uid="s1", phase="ready")])
    assert steps(over) == ()
    assert steps(over, snapshots=[S1, S2]) == (StepName.SNAPSHOT,)
    begun = before_step(StepName.SNAPSHOT, over, Moment(facts(snapshots=[S1, S2]).local.spec, alive=True))
    assert begun.taking is not None and (begun.taking.snapshot, begun.taking.live) == (S2, True)


def test_the_checkpoint_names_it_and_its_disks_before_it_begins() -> None:
    spec = known(volumes=[AllocatedVolume(name="data", uid="v", size=1)], snapshots=[S1]).local.spec
    begun = before_step(StepName.SNAPSHOT, UP, Moment(spec)).taking
    assert begun is not None and not begun.live and not begun.finished
    assert {disk: place.name for disk, place in begun.disks.items()} == {ROOT: "", "v": "data"}
    later = before_step(StepName.SNAPSHOT, taking(), Moment(spec, alive=False)).taking
    assert later == taking().taking, "one that has begun stays what it is"
    assert find_snapshots(known().local, taking()) == {"s1"}, "also once the spec has it no more"
