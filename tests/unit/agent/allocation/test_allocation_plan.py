"""The agent's plan: from a wish, what was done and what is true, the steps; and that it converges whatever happens."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.agent.allocation.plan import (
    BRING_UP,
    TAKE_AWAY,
    Plan,
    PlanInput,
    StepName,
    observe,
    pause_after,
    plan_allocation,
)
from weft.agent.state.allocation import Checkpoint, LocalAllocation, MigrationState, StepFailure
from weft.agent.state.lease import find_stage
from weft.contracts.driver.runtime import GuestFacts, GuestShape
from weft.kinds.allocation import (
    AllocatedContainer,
    AllocatedImage,
    AllocatedVolume,
    AllocationPhase,
    AllocationReport,
    AllocationSpec,
    Resources,
    account,
)
from weft.kinds.fields.lease import LEASE_ENDED, LEASE_WAITS, PREEMPTED, AllocatedLease, PlannedPause, Suspension
from weft.objects.identity import Ref

WEB = Ref("container", "web", "c-1", "default")
ALIVE = ("running", "starting", "paused")


def make_spec(**fields: Any) -> AllocationSpec:
    values: dict[str, Any] = {
        "node": "n1",
        "node_uid": "node-1",
        "workload": Ref("vm", "web", "vm-1", "default"),
        "workload_generation": 1,
        "incarnation": 1,
        "resources": Resources(cpu=1, memory=1 << 28),
        "image": AllocatedImage(name="tiny", uid="i", sha256="0" * 64, size=1, url="file:///tiny"),
    }
    return AllocationSpec(**{**values, **fields})


def plan_for(facts: PlanInput, guest: GuestFacts, now: float) -> Plan:
    return plan_allocation(msgspec.structs.replace(facts, guest=guest, now=now))


def known(
    checkpoint: Checkpoint | None = None, *, deleting: bool = False, failure: StepFailure | None = None, **fields: Any
) -> PlanInput:
    local = LocalAllocation("node-1.a", "a", make_spec(**fields), deleting)
    return PlanInput(local=local, checkpoint=checkpoint or Checkpoint(), guest=ABSENT, failure=failure)


def guest(state: str, **fields: Any) -> GuestFacts:
    return GuestFacts("id", "a", "web", 1, state, **fields)  # type: ignore[arg-type]


ABSENT = guest("absent")
UP = Checkpoint(run="up", made=True)


def test_a_new_allocation_is_brought_up_in_order() -> None:
    assert plan_for(known(), ABSENT, 0).steps == BRING_UP


def test_a_running_guest_that_is_as_desired_is_left_alone() -> None:
    plan = plan_for(known(UP), guest("running", ready=True), 0)
    assert plan == Plan((), "running")


def test_a_guest_that_began_without_its_volume_is_starting_until_that_is_plugged_in_and_running_whatever_comes_later() -> (
    None
):
    volumes = [AllocatedVolume(name="data", uid="v", size=1)]

    def shaped(*serials: str) -> GuestFacts:
        shape = GuestShape(1.0, 1, dict.fromkeys(("root", *serials), 1), [], 1.0, 1, has_slots=True)
        return guest("running", ready=True, boot_id="b", shape=shape)

    def state_of(checkpoint: Checkpoint, now: GuestFacts) -> str:
        return plan_for(known(checkpoint, volumes=volumes), now, 0).state

    bare = observe(UP, shaped(), lacks=True)
    assert not bare.answered and state_of(bare, shaped()) == "starting"
    whole = observe(bare, shaped("data"))
    assert whole.answered and state_of(whole, shaped("data")) == "running"
    assert state_of(observe(whole, shaped(), lacks=True), shaped()) == "running", "a volume that people add"


def test_a_guest_whose_agent_never_answered_is_starting_and_one_that_did_is_running() -> None:
    silent = guest("running", ready=False)
    assert plan_for(known(UP), silent, 0).state == "starting"
    answered = msgspec.structs.replace(UP, answered=True)
    assert plan_for(known(answered), silent, 0).state == "running"
    assert plan_for(known(UP), guest("running", ready=None), 0).state == "running"


def test_desired_stop_stops_and_keeps_the_disks() -> None:
    assert plan_for(known(UP, desired="stop"), guest("running"), 0).steps == (StepName.STOP,)
    assert plan_for(known(Checkpoint(run="down"), desired="stop"), guest("stopped"), 0) == Plan((), "stopped")


def test_a_guest_stopped_as_desired_starts_again_when_desired_whatever_its_restart_policy() -> None:
    stopped = guest("stopped", reason="guestPoweredOff")
    plan = plan_for(known(Checkpoint(run="down", made=True), restart="never"), stopped, 0)
    assert plan.steps == BRING_UP


def test_a_higher_start_counter_stops_the_guest_and_starts_it_afresh() -> None:
    plan = plan_for(known(UP, restart_generation=1), guest("running"), 0)
    assert plan.steps == (StepName.STOP, *BRING_UP)
    down = Checkpoint(run="down", restart_generation=0, made=True)
    assert plan_for(known(down, restart_generation=1), guest("stopped"), 0).steps == BRING_UP


def test_a_suspended_guest_resumes_or_boots_afresh_as_the_counter_says() -> None:
    assert plan_for(known(UP), guest("suspended"), 0).steps == BRING_UP
    assert plan_for(known(UP, restart_generation=1), guest("suspended"), 0).steps == (StepName.REMOVE, *BRING_UP)
    assert plan_for(known(UP, desired="stop"), guest("suspended"), 0).steps == (StepName.REMOVE,)
    assert plan_for(known(UP, desired="suspend"), guest("suspended"), 0) == Plan((), "suspended")


def test_suspending_is_not_tried_where_the_runtime_cant() -> None:
    unable = msgspec.structs.replace(known(UP, desired="suspend"), can_suspend=False)
    plan = plan_for(unable, guest("running"), 0)
    assert (plan.steps, plan.state, plan.reason) == ((), "running", "unsupported")


def test_deleting_takes_everything_away_and_forgets_last() -> None:
    plan = plan_for(known(UP, deleting=True), guest("running"), 0)
    assert plan.steps == (StepName.STOP, *TAKE_AWAY)
    assert plan.steps[-1] is StepName.FORGET
    assert plan_for(known(deleting=True), ABSENT, 0).steps == TAKE_AWAY


@pytest.mark.parametrize("wish", ["run", "stop", "suspend"])
@pytest.mark.parametrize("state", ["absent", "running", "paused", "suspended", "stopped", "failed"])
def test_an_orphan_is_neither_begun_nor_ended(wish: str, state: str) -> None:
    orphan = Checkpoint(run="up", made=True, orphan=True)
    assert plan_for(known(orphan, desired=wish, restart_generation=7), guest(state), 0).steps == ()


@pytest.mark.parametrize(
    ("policy", "reason", "starts"),
    [
        ("always", "guestPoweredOff", True),
        ("on-failure", "guestPoweredOff", False),
        ("never", "guestPoweredOff", False),
        ("always", "killed", True),
        ("on-failure", "killed", True),
        ("never", "killed", False),
    ],
)
def test_a_guest_that_ended_by_itself_starts_again_as_its_policy_says(policy: str, reason: str, starts: bool) -> None:
    ended = observe(UP, guest("stopped", reason=reason))
    assert (ended.run, ended.ended) == ("ended", reason)
    plan = plan_for(known(ended, restart=policy), guest("stopped", reason=reason), 0)
    assert bool(plan.steps) is starts
    if not starts:
        assert plan.state == ("stopped" if reason == "guestPoweredOff" else "failed")


def test_a_restart_waits_for_its_pause() -> None:
    ended = msgspec.structs.replace(known(observe(UP, guest("failed", reason="killed"))), restart_at=10.0)
    waiting = plan_for(ended, guest("failed"), 9.0)
    assert (waiting.steps, waiting.reason, waiting.review_at) == ((), "restarting", 10.0)
    assert plan_for(ended, guest("failed"), 10.0).steps == BRING_UP


def test_a_rested_guest_starts_when_a_fresh_boot_is_asked_for() -> None:
    rested = observe(UP, guest("stopped", reason="guestPoweredOff"))
    assert plan_for(known(rested, restart_generation=1), guest("stopped"), 0).steps == BRING_UP


def test_a_guest_found_running_after_a_cut_start_counts_as_started() -> None:
    begun = Checkpoint(run="starting", restart_generation=3, made=True)
    found = observe(begun, guest("running"))
    assert found.run == "up"
    assert plan_for(known(found, restart_generation=3), guest("running"), 0).steps == ()
    assert plan_for(known(begun, restart_generation=3), guest("stopped", reason="guestPoweredOff"), 0).steps == BRING_UP


def test_trouble_waits_its_turn_and_is_told() -> None:
    failure = StepFailure("noSpace", "the disk is full", 1, 5.0)
    waiting = plan_for(known(failure=failure), ABSENT, 4.0)
    assert (waiting.steps, waiting.state, waiting.reason, waiting.review_at) == ((), "failed", "noSpace", 5.0)
    assert plan_for(known(failure=failure), ABSENT, 5.0).steps == BRING_UP
    for_good = StepFailure("invalidInput", "no", 1, None)
    assert plan_for(known(failure=for_good), ABSENT, 1e9).steps == ()


def test_trouble_with_a_running_guest_does_not_call_it_failed() -> None:
    failure = StepFailure("driverFailed", "can't suspend just now", 1, 5.0)
    plan = plan_for(known(UP, failure=failure, desired="suspend"), guest("running", ready=True), 0)
    assert (plan.state, plan.reason) == ("running", "driverFailed")


def test_an_orphan_is_ended_when_a_later_incarnation_of_it_is_known_elsewhere() -> None:
    orphan = msgspec.structs.replace(known(Checkpoint(run="up", made=True, orphan=True)), superseded=True)
    away = (StepName.REMOVE, StepName.UNPLUG, StepName.KEEP_DISK, StepName.REMOVE_DISKS, StepName.FORGET)
    assert plan_for(orphan, guest("running"), 0).steps == (StepName.STOP, *away)
    assert plan_for(orphan, guest("absent"), 0).steps == away


def test_of_an_orphan_that_is_ended_the_root_disk_is_kept_unless_it_is_elsewhere_or_was_never_made() -> None:
    def keeps(checkpoint: Checkpoint, **spec: Any) -> bool:
        facts = msgspec.structs.replace(known(checkpoint, **spec), superseded=True)
        return StepName.KEEP_DISK in plan_for(facts, guest("absent"), 0).steps

    here = Checkpoint(run="up", made=True, orphan=True)
    gone = MigrationState(key="m", role="source", peer="p", taken=True, over=True)
    came = MigrationState(key="m", role="target", peer="p", taken=True)
    assert keeps(here)
    assert keeps(msgspec.structs.replace(here, migration=came))
    assert not keeps(msgspec.structs.replace(here, migration=gone))
    assert not keeps(msgspec.structs.replace(here, made=False))


def test_a_superseded_guest_is_stopped_and_its_successor_waits_for_that() -> None:
    old = msgspec.structs.replace(known(UP), superseded=True)
    assert plan_for(old, guest("running"), 0).steps == (StepName.STOP, StepName.UNPLUG)
    assert plan_for(old, guest("stopped"), 0).steps == ()
    new = msgspec.structs.replace(known(incarnation=2), blocked="an earlier incarnation of it still runs")
    assert (plan_for(new, ABSENT, 0).steps, plan_for(new, ABSENT, 0).state) == ((), "pending")


def test_one_that_has_ended_stays_so_while_another_one_has_its_volume() -> None:
    over = Checkpoint(run="ended", made=True, ended="completed")
    facts = msgspec.structs.replace(known(over, restart="on-failure"), blocked="waits for container/next")
    plan = plan_for(facts, guest("stopped", reason="completed", exit_code=0), 0)
    assert (plan.steps, plan.state, plan.reason) == ((), "stopped", "completed")
    tries = msgspec.structs.replace(facts, checkpoint=msgspec.structs.replace(over, ended="exited"))
    plan = plan_for(tries, guest("stopped", reason="exited", exit_code=1), 0)
    assert (plan.steps, plan.state, plan.reason) == ((), "pending", "blocked")


@pytest.mark.parametrize("fields", [{"held_by": "gate"}, {"waits_for": "other"}, {"role": "reserved"}])
def test_what_must_wait_is_not_begun(fields: dict[str, Any]) -> None:
    plan = plan_for(known(**fields), ABSENT, 0)
    assert (plan.steps, plan.state) == ((), "pending")


def test_a_container_has_no_disks_to_make_or_take_away() -> None:
    container = AllocatedContainer(image="registry.example.org/web:1")
    up = (StepName.IMAGE, StepName.NETWORK, StepName.START)
    assert plan_for(known(workload=WEB, container=container), ABSENT, 0).steps == up
    assert plan_for(known(UP, workload=WEB, container=container, restart_generation=1), guest("running"), 0).steps == (
        StepName.STOP,
        *up,
    )
    gone = plan_for(known(UP, workload=WEB, container=container, deleting=True), guest("running"), 0)
    assert gone.steps == (StepName.STOP, StepName.REMOVE, StepName.UNPLUG, StepName.FORGET)


def test_one_that_has_done_what_it_ran_for_rests_and_the_word_on_how_it_ended_is_passed_on() -> None:
    done = guest("stopped", reason="completed", exit_code=0)
    plan = plan_for(known(observe(UP, done)), done, 0)
    assert (plan.steps, plan.state, plan.reason) == ((), "stopped", "completed")
    failed = guest("failed", reason="exited", message="exit code 3", exit_code=3)
    plan = plan_for(known(observe(UP, failed), restart="never"), failed, 0)
    assert (plan.state, plan.reason) == ("failed", "exited")
    assert "exited: exit code 3" in plan.message


def test_pauses_grow_from_one_second_to_a_minute() -> None:
    assert [pause_after(n) for n in (1, 2, 3, 6, 7, 50)] == [1.0, 2.0, 4.0, 32.0, 60.0, 60.0]


# A small world in which the steps have effects, events come at any time and the agent may be killed between any two.


class World:
    """One allocation on one node: the server's object, the agent's durable memory, the guest. Time is a counter."""

    def __init__(self) -> None:
        self.spec = make_spec()
        self.deleting = False
        self.listed = True
        self.checkpoint = Checkpoint()
        self.copy = False
        self.guest = "absent"
        self.reason = ""
        self.disk = False
        self.port = False
        self.now = 0.0
        self.released = False
        self.without_evidence: list[StepName] = []

    def known(self) -> PlanInput:
        local = LocalAllocation("node-1.a", "a", self.spec, self.deleting)
        return PlanInput(local=local, guest=ABSENT, checkpoint=self.checkpoint, restart_at=self.now - 1)

    def facts(self) -> GuestFacts:
        return guest(self.guest, reason=self.reason or None, ready=True if self.guest == "running" else None)

    def turn(self, cut_after: int | None = None) -> bool:
        """One look and its steps, cut off after ``cut_after`` of them; whether there was anything to do."""
        self.checkpoint = observe(self.checkpoint, self.facts())
        plan = plan_for(self.known(), self.facts(), self.now)
        if self.released:
            return False
        for number, step in enumerate(plan.steps):
            if cut_after is not None and number >= cut_after:
                return True
            self.perform(step)
        return bool(plan.steps)

    def perform(self, step: StepName) -> None:
        replace = msgspec.structs.replace
        if step in BRING_UP:
            self.checkpoint = replace(self.checkpoint, made=True)
            self.copy = True
        wished = self.deleting or (
            self.listed
            and (
                step in BRING_UP
                or self.spec.desired != "run"
                or self.spec.restart_generation > self.checkpoint.restart_generation
            )
        )
        if not wished:
            self.without_evidence.append(step)
        if step is StepName.DISK:
            self.disk = True
        elif step is StepName.NETWORK:
            self.port = True
        elif step is StepName.START:
            assert self.disk and self.port
            self.checkpoint = replace(
                self.checkpoint,
                run="starting",
                restart_generation=max(self.spec.restart_generation, self.checkpoint.restart_generation),
                ended="",
            )
            self.guest, self.reason = "running", ""
            self.checkpoint = replace(self.checkpoint, run="up")
        elif step is StepName.STOP:
            self.checkpoint = replace(self.checkpoint, run="down", ended="")
            self.guest, self.reason = "stopped", "guestPoweredOff"
        elif step is StepName.SUSPEND:
            self.guest = "suspended"
        elif step is StepName.REMOVE:
            assert self.guest not in ALIVE, "a guest that runs was removed"
            self.checkpoint = replace(self.checkpoint, run="down", ended="")
            self.guest = "absent"
        elif step is StepName.UNPLUG:
            self.port = False
        elif step is StepName.REMOVE_DISKS:
            assert self.guest not in ALIVE, "the disk of a guest that runs was removed"
            self.disk = False
        elif step is StepName.FORGET:
            self.copy, self.released = False, True


events = st.one_of(
    st.tuples(st.just("wish"), st.sampled_from(["run", "stop", "suspend"])),
    st.tuples(st.just("restart"), st.just("")),
    st.tuples(st.just("delete"), st.just("")),
    st.tuples(st.just("vanish"), st.just("")),
    st.tuples(st.just("return"), st.just("")),
    st.tuples(st.just("guest"), st.sampled_from(["guestPoweredOff", "killed"])),
)
# After each event the agent does all it wants to, or is killed after so many steps, or doesn't get to it at all.
histories = st.lists(st.tuples(events, st.sampled_from([None, None, 0, 1, 2, 3, 5, 6])), max_size=20)


def happen(world: World, event: str, value: Any) -> None:
    world.now += 100
    replace = msgspec.structs.replace
    if event == "wish" and world.listed:
        world.spec = replace(world.spec, desired=value)
    elif event == "restart" and world.listed:
        world.spec = replace(world.spec, desired="run", restart_generation=world.spec.restart_generation + 1)
    elif event == "delete" and world.listed:
        world.deleting = True
    elif event == "vanish":
        world.listed = world.deleting
        world.checkpoint = replace(world.checkpoint, orphan=not world.deleting)
    elif event == "return":
        world.listed = True
        world.checkpoint = replace(world.checkpoint, orphan=False)
    elif event == "guest" and world.guest in ALIVE:
        world.guest, world.reason = "stopped", value


@settings(max_examples=examples(400), deadline=None)
@given(histories, st.sampled_from(["always", "on-failure", "never"]))
def test_whatever_happens_it_converges_and_ends_nothing_without_evidence(
    history: list[tuple[tuple[str, Any], int | None]], policy: str
) -> None:
    world = World()
    world.spec = msgspec.structs.replace(world.spec, restart=policy)
    for (event, value), cut_after in history:
        happen(world, event, value)
        world.turn(cut_after)
    assert world.without_evidence == []
    happen(world, "return", "")
    for _ in range(5):
        if not world.turn():
            break
    else:
        raise AssertionError("it goes on for ever")
    if world.deleting:
        assert (world.guest, world.disk, world.port, world.copy) == ("absent", False, False, False)
    elif world.spec.desired == "stop":
        assert world.guest in ("absent", "stopped")
    elif world.spec.desired == "suspend":
        assert world.guest in ("absent", "stopped", "suspended")
    else:
        rests = world.checkpoint.run == "ended" and (
            policy == "never" or (policy == "on-failure" and world.checkpoint.ended == "guestPoweredOff")
        )
        assert (world.guest == "running") is not rests
        assert world.checkpoint.restart_generation == world.spec.restart_generation or rests


@pytest.mark.parametrize(("policy", "rests"), [("never", True), ("on-failure", True), ("always", False)])
def test_a_command_that_cant_be_begun_is_not_tried_again_unless_asked_for_always(policy: str, rests: bool) -> None:
    why = "'nosuch' is not in the container's PATH"
    failed = guest("failed", reason="commandNotFound", message=why, exit_code=127)
    memory = observe(UP, failed)
    plan = plan_for(known(memory, restart=policy), failed, 0)
    if rests:
        assert plan == Plan((), "failed", "commandNotFound", why)
    else:
        assert plan.steps == BRING_UP
    assert plan_for(known(memory, restart=policy, restart_generation=1), failed, 0).steps == BRING_UP


def leased(
    checkpoint: Checkpoint | None = None, *, stage: str = "active", deleting: bool = False, **fields: Any
) -> PlanInput:
    lease = AllocatedLease(mode="reservation", start=2000.0, end=3000.0, prepare_at=1940.0)
    spec = make_spec(lease=lease, **fields)
    local = LocalAllocation("node-1.a", "a", spec, deleting)
    return PlanInput(local=local, checkpoint=checkpoint or Checkpoint(), guest=ABSENT, stage=stage, can_hold=True)  # type: ignore[arg-type]


def test_before_its_lease_a_machine_boots_and_is_held_and_goes_on_with_the_start() -> None:
    assert plan_allocation(leased(stage="waits")).steps == ()
    assert plan_allocation(leased(stage="waits")).reason == LEASE_WAITS
    ahead = leased(stage="ahead")
    assert plan_allocation(ahead).steps == BRING_UP
    assert plan_for(ahead, guest("running", ready=False), 0.0).steps == ()
    assert plan_for(ahead, guest("running", ready=True), 0.0).steps == (), "it may not have booted all of it"
    imminent = leased(stage="imminent")
    assert plan_for(imminent, guest("running", ready=True), 0.0).steps == (StepName.HOLD,)
    held = plan_for(imminent, guest("running", ready=True, held=True), 0.0)
    assert (held.steps, held.state, held.reason) == ((), "preparing", LEASE_WAITS)
    active = leased(stage="active")
    assert plan_for(active, guest("running", ready=True, held=True), 0.0).steps == (StepName.GO,)
    assert plan_for(active, guest("running", ready=True), 0.0).state == "running"


def test_a_lease_that_waits_for_the_server_s_word_says_so_only_while_the_server_doesn_t_hear_the_node() -> None:
    postponed = msgspec.structs.replace(leased(stage="waits"), postponed=True)
    plan = plan_allocation(postponed)  # the server's answer is on its way
    assert (plan.steps, plan.state, plan.reason, plan.message) == ((), "pending", "", "")
    lost = plan_allocation(msgspec.structs.replace(postponed, in_contact=False))
    assert (lost.state, lost.reason) == ("pending", LEASE_WAITS) and "hears this node again" in lost.message


def test_the_image_is_fetched_before_the_preparation_begins_and_a_failure_is_none_of_the_lease() -> None:
    waits = msgspec.structs.replace(leased(stage="waits"), soon=True)
    plan = plan_allocation(waits)
    assert (plan.steps, plan.state, plan.reason) == ((StepName.FETCH,), "pending", LEASE_WAITS)
    assert plan_allocation(msgspec.structs.replace(waits, fetched=True)).steps == ()
    assert plan_allocation(msgspec.structs.replace(waits, in_contact=False)).steps == ()
    assert plan_for(waits, guest("running"), 0.0).steps == ()
    failed = msgspec.structs.replace(waits, failure=StepFailure("imageGone", "no blob", 1, 5.0))
    plan = plan_allocation(failed)
    assert (plan.steps, plan.state, plan.reason, plan.review_at) == ((), "pending", LEASE_WAITS, 5.0)
    assert "no blob" in plan.message
    assert plan_for(failed, ABSENT, 5.0).steps == (StepName.FETCH,)


def test_what_can_t_be_held_is_made_but_for_its_start() -> None:
    ahead = msgspec.structs.replace(leased(stage="ahead"), can_hold=False)
    assert plan_allocation(ahead).steps == BRING_UP[:-1]
    assert plan_allocation(msgspec.structs.replace(ahead, prepared=True)).steps == ()
    assert plan_allocation(msgspec.structs.replace(ahead, prepared=True, stage="active")).steps == BRING_UP


def test_when_its_lease_is_over_the_guest_shuts_down_whatever_else_it_was_to_do() -> None:
    over = leased(Checkpoint(run="up"), stage="over", restart_generation=7)
    assert plan_for(over, guest("running"), 0.0).steps == (StepName.STOP,)
    assert plan_for(over, guest("running", held=True), 0.0).steps == (StepName.STOP,)
    assert plan_for(over, guest("suspended"), 0.0).steps == (StepName.REMOVE,)
    rest = plan_for(over, guest("stopped"), 0.0)
    assert (rest.steps, rest.state, rest.reason) == ((), "stopped", LEASE_ENDED)


def test_what_is_deleted_after_its_lease_s_end_takes_no_capacity_again() -> None:
    over = leased(Checkpoint(run="up"), stage="over", deleting=True)
    assert plan_for(over, guest("running"), 0.0).reason == ""
    gone = plan_for(over, guest("stopped"), 0.0)
    assert (gone.steps[-1], gone.state, gone.reason) == (StepName.FORGET, "stopping", LEASE_ENDED)
    assert plan_for(leased(stage="active", deleting=True), guest("stopped"), 0.0).reason == ""
    spec = leased().local.spec
    states: tuple[AllocationPhase, ...] = ("stopped", "stopping", "released")
    for state in states:
        taken = account(spec, AllocationReport(incarnation=spec.incarnation, state=state, reason=LEASE_ENDED))
        assert taken == Resources(disk=spec.resources.disk)


def test_what_is_deleted_while_it_is_suspended_for_another_takes_no_capacity_again() -> None:
    given = leased(Checkpoint(run="up"), stage="suspended", deleting=True)
    assert plan_for(given, guest("running"), 0.0).reason == ""
    gone = plan_for(given, guest("suspended"), 0.0)
    assert (gone.steps[-1], gone.state, gone.reason) == (StepName.FORGET, "stopping", PREEMPTED)
    spec = leased().local.spec
    assert spec.lease is not None
    spec = msgspec.structs.replace(spec, lease=msgspec.structs.replace(spec.lease, suspension=Suspension("vm/x", 0.0)))
    for state in ("suspended", "stopped", "stopping", "released", "running"):
        report = AllocationReport(incarnation=spec.incarnation, state=state, reason=PREEMPTED)
        assert (account(spec, report) == Resources(disk=spec.resources.disk)) == (state != "running")


def test_a_guest_that_stops_while_it_is_another_s_turn_has_its_capacity_until_it_has_stopped() -> None:
    lease = AllocatedLease(mode="best-effort", start=0.0, end=9e9, prepare_at=0.0, suspension=Suspension("vm/x", 0.0))
    stops = msgspec.structs.replace(known(UP, desired="stop", lease=lease), stage="suspended")
    for state, reason in (("running", ""), ("suspended", PREEMPTED), ("stopped", PREEMPTED)):
        plan = plan_for(stops, guest(state), 0.0)
        assert (plan.state, plan.reason) == ("stopped" if state == "stopped" else "stopping", reason)


@pytest.mark.parametrize(
    ("now", "stage", "seconds"),
    [
        (0.0, "waits", 1940.0),
        (1940.0, "ahead", 50.0),
        (1990.0, "imminent", 10.0),
        (2000.0, "active", 1000.0),
        (2999.5, "active", 0.5),
        (3000.0, "over", math.inf),
    ],
)
def test_the_stages_of_a_lease(now: float, stage: str, seconds: float) -> None:
    lease = AllocatedLease(mode="reservation", start=2000.0, end=3000.0, prepare_at=1940.0)
    assert find_stage(lease, now) == (stage, seconds)
    assert find_stage(msgspec.structs.replace(lease, cancelled=True), now) == ("over", math.inf)
    assert find_stage(None, now) == ("active", math.inf)
    assert find_stage(msgspec.structs.replace(lease, end=None), 5000.0) == ("active", math.inf)


@pytest.mark.parametrize(
    ("desired", "state", "steps", "then"),
    [
        ("run", "running", (StepName.SUSPEND,), "running"),
        ("run", "suspended", (), "suspended"),
        ("run", "absent", (), "stopped"),
        ("suspend", "suspended", (), "suspended"),
        ("stop", "suspended", (StepName.REMOVE,), "stopping"),
        ("stop", "absent", (), "stopped"),
    ],
)
def test_one_whose_capacity_is_another_s_is_suspended_and_not_started(
    desired: str, state: str, steps: tuple[StepName, ...], then: str
) -> None:
    lease = AllocatedLease(mode="best-effort", start=0.0, suspension=Suspension("vm/x", 50.0))
    facts = known(Checkpoint(run="up"), desired=desired, restart_generation=3, lease=lease)
    plan = plan_for(msgspec.structs.replace(facts, stage="suspended"), guest(state), 100.0)
    assert (plan.steps, plan.state) == (steps, then)
    assert (plan.reason, plan.message) == ("preempted", "suspended for vm/x")


def test_a_lease_is_suspended_from_its_time_on_but_for_one_that_is_cancelled() -> None:
    lease = AllocatedLease(
        mode="best-effort", start=10.0, prepare_at=10.0, end=90.0, suspension=Suspension("vm/x", 50.0)
    )
    assert find_stage(lease, 40.0) == ("active", 10.0)
    assert find_stage(lease, 50.0) == ("suspended", math.inf)
    assert find_stage(lease, 95.0)[0] == "suspended"  # its end is later by then
    assert find_stage(msgspec.structs.replace(lease, cancelled=True), 60.0)[0] == "over"


@pytest.mark.parametrize(
    ("now", "stage", "seconds"),
    [
        (20.0, "active", 10.0),
        (30.0, "suspended", 20.0),
        (50.0, "active", 10.0),
        (65.0, "suspended", 5.0),
        (70.0, "active", 20.0),
        (90.0, "over", math.inf),
    ],
)
def test_a_node_keeps_the_pauses_of_a_lease_by_its_own_clock(now: float, stage: str, seconds: float) -> None:
    pauses = (PlannedPause(30.0, 35.0, 50.0), PlannedPause(60.0, 61.0, 70.0))
    lease = AllocatedLease(mode="deadline", start=10.0, prepare_at=10.0, end=90.0, pauses=pauses)
    assert find_stage(lease, now) == (stage, seconds)
    assert find_stage(msgspec.structs.replace(lease, end=65.0), 65.0)[0] == "over"
    facts = msgspec.structs.replace(known(Checkpoint(run="up"), lease=lease), stage="suspended")
    plan = plan_for(facts, guest("running"), now)
    assert (plan.steps, plan.reason) == ((StepName.SUSPEND,), "preempted") and plan.message.startswith(
        "suspended as planned"
    )
