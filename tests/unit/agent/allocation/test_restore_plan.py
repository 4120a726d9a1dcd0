"""When an agent takes a VM back to a snapshot, from which snapshot a start begins, and which snapshots an allocation needs."""

from __future__ import annotations

from typing import Any

import msgspec
from tests.unit.agent.allocation.test_allocation_plan import UP, guest, known

from weft.agent.allocation.plan import BRING_UP, PlanInput, StepName, plan_allocation
from weft.agent.allocation.report import make_report
from weft.agent.allocation.steps.record import Moment
from weft.agent.allocation.transitions import before_step
from weft.agent.state.allocation import Checkpoint
from weft.agent.state.snapshots import find_beginning, find_snapshots, note_beginning
from weft.kinds.fields.allocated_snapshot import AllocatedOrigin, AllocatedSnapshot

KEEPS = AllocatedSnapshot(uid="before", name="web-before-1")
BACK = AllocatedOrigin(snapshot="s1", name="s1", generation=7, disks={"root": "root"}, memory=True, keeps=KEEPS)
FIRST = AllocatedOrigin(snapshot="s1", name="s1", disks={"root": "root"}, memory=True, identity=True)
RUNS, GONE = guest("running", ready=True), guest("absent")


def facts(checkpoint: Checkpoint = UP, at: Any = RUNS, more: dict[str, Any] | None = None, **spec: Any) -> PlanInput:
    found = known(checkpoint, **{"origin": BACK, **spec})
    return msgspec.structs.replace(found, guest=at, **(more or {}))


def steps(*given: Any, **more: Any) -> tuple[StepName, ...]:
    return plan_allocation(facts(*given, **more)).steps


def test_the_snapshot_is_looked_for_before_the_guest_ends() -> None:
    assert steps() == (StepName.CHECK_ORIGIN, StepName.STOP, StepName.REMOVE, StepName.RESTORE)
    assert steps(at=guest("suspended"), desired="suspend") == (StepName.CHECK_ORIGIN, StepName.REMOVE, StepName.RESTORE)
    assert plan_allocation(facts()).message == "its disks go back to snapshot/s1"


def test_a_restore_waits_for_what_is_under_way_and_for_the_server() -> None:
    assert StepName.RESTORE not in steps(more={"relocating": True})
    assert StepName.RESTORE not in steps(more={"unconfirmed": True})
    assert StepName.RESTORE not in steps(at=GONE, more={"blocked": "waits for vm/other"})
    assert StepName.RESTORE not in steps(role="source")


def test_one_that_has_begun_is_finished_whatever_the_spec_says() -> None:
    begun = before_step(StepName.RESTORE, UP, Moment(facts().local.spec))
    assert begun.restoring == BACK
    for spec in ({"origin": None}, {"role": "source"}, {"desired": "stop"}):
        assert steps(begun, GONE, **spec) == (StepName.REMOVE, StepName.RESTORE), spec
    assert find_snapshots(facts(origin=None).local, begun) == {"s1", "before"}


def test_what_its_spec_desires_comes_after_it() -> None:
    done = msgspec.structs.replace(UP, run="down", restored=7)
    assert steps(done, GONE) == BRING_UP
    assert steps(done, GONE, desired="stop") == ()
    assert steps(done, GONE, origin=msgspec.structs.replace(BACK, generation=5))[-1] is StepName.RESTORE, (
        "an older store"
    )


def test_only_the_first_guest_of_an_origin_begins_from_it() -> None:
    for origin, checkpoint in ((FIRST, Checkpoint()), (BACK, msgspec.structs.replace(UP, run="down", restored=7))):
        spec = facts(origin=origin).local.spec
        assert find_beginning(spec, checkpoint) == origin
        starting = before_step(StepName.START, checkpoint, Moment(spec))
        assert find_beginning(spec, note_beginning(starting, spec, GONE)) == origin, "a start that was cut off"
        for state in ("starting", "running", "stopped", "failed", "suspended"):
            assert find_beginning(spec, note_beginning(starting, spec, guest(state))) is None, state
    assert find_beginning(facts().local.spec, UP) is None, "its disks are not those of the snapshot yet"
    begun = note_beginning(UP, facts().local.spec, RUNS)
    assert begun == UP, "this guest runs on what stood there before"


def test_a_snapshot_is_needed_until_a_guest_has_begun_from_it() -> None:
    first = facts(origin=FIRST).local
    assert find_snapshots(first, Checkpoint()) == {"s1"}
    assert find_snapshots(first, Checkpoint(run="starting", begun_from=0)) == {"s1"}, "it loads the memory"
    assert find_snapshots(first, msgspec.structs.replace(UP, begun_from=0)) == set()
    assert find_snapshots(facts().local, UP) == {"s1", "before"}
    restored = msgspec.structs.replace(UP, run="down", restored=7)
    assert find_snapshots(facts().local, restored) == {"s1"}
    assert find_snapshots(facts().local, msgspec.structs.replace(restored, begun_from=7, run="up")) == set()


def test_the_server_is_told_of_a_vm_that_no_guest_of_has_begun_from_its_snapshot() -> None:
    def is_to_begin(checkpoint: Checkpoint, at: Any = GONE, **spec: Any) -> bool:
        found = facts(checkpoint, at, **spec)
        return make_report(found, plan_allocation(found), "stopped", [], None).to_begin

    never = Checkpoint(run="down", made=True)
    assert is_to_begin(never, origin=FIRST, desired="stop")
    assert not is_to_begin(msgspec.structs.replace(never, begun_from=0), origin=FIRST, desired="stop")
    assert not is_to_begin(never, origin=None)
    assert not is_to_begin(never), "its disks are its own before it goes back"
