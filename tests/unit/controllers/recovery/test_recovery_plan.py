"""How a recovery plan goes: one group after the other, measured, over at its deadline, and nothing left of a rehearsal."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from weft.controllers.recovery.facts import Candidate, RecoveryFacts, ServiceReadiness, VmFacts
from weft.controllers.recovery.plan import RecoveryStep, list_order, note_refusal, plan_recovery
from weft.kinds.fields.recovery.run import RecoveryRun, RunCheck, RunMember
from weft.kinds.recovery_plan import RecoveryPlanActions, RecoveryPlanSpec, RecoveryPlanStatus

NOW = 1000.0


def make_member(replica: str, group: int, *, age: float = 5.0, port: int = 0) -> RunMember:
    """Of a VM that is checked at ``port``, too, unless that is 0."""
    asked = [RunCheck(type="tcp", target=str(port), service=f"{replica}-check")] if port else []
    return RunMember(
        replica=replica,
        group=group,
        vm=f"run-{replica}",
        snapshot="s",
        snapshot_uid=replica,
        age_seconds=age,
        checks=[RunCheck(type="running"), *asked],
    )


def ask(mode: Any = "rehearse", **changes: Any) -> RecoveryFacts:
    """A run of db, then web, was asked for."""
    facts = RecoveryFacts(
        name="shop",
        deleting=False,
        spec=RecoveryPlanSpec(groups=["db", "web"], deadline=60.0),
        actions=RecoveryPlanActions(run_generation=1, run_mode=mode),
        status=RecoveryPlanStatus(),
        candidates=[Candidate(make_member("db", 0)), Candidate(make_member("web", 1, age=9.0, port=80))],
        fresh_name="run",
    )
    return replace(facts, **changes)


class World:
    """Does what each step says, and lets the VMs run."""

    def __init__(self, facts: RecoveryFacts) -> None:
        self.facts, self.now = facts, NOW
        self.acts: list[str] = []
        self.nodes_are_there = True  # so that what is dropped goes

    def step(self, seconds: float = 1.0) -> RecoveryStep:
        step = plan_recovery(self.facts, self.now)
        status, run = step.status, step.status.run
        label = step.act
        if step.act == "make" and run is not None:
            made = replace(run.members[step.member], begun_at=self.now)
            run = replace(run, members=[*run.members[: step.member], made, *run.members[step.member + 1 :]])
            status, label = replace(status, run=run), f"make {made.replica}"
            vms = {**self.facts.vms, made.vm: VmFacts("Boot")}
            self.facts = replace(self.facts, vms=vms, leftovers=True)
        if step.act == "drop" and self.nodes_are_there:
            self.facts = replace(self.facts, leftovers=False, vms={})
        if label:
            self.acts.append(label)
        self.facts = replace(self.facts, status=status)
        self.now += seconds
        return step

    def let_run(self, vm: str, phase: str = "Running") -> None:
        self.facts = replace(self.facts, vms={**self.facts.vms, vm: VmFacts(phase)})

    def answer(self, service: str, ready: bool, message: str = "") -> None:
        self.facts = replace(self.facts, ready={**self.facts.ready, service: ServiceReadiness(ready, message)})

    @property
    def run(self) -> RecoveryRun:
        assert self.facts.status.run is not None
        return self.facts.status.run

    @property
    def status(self) -> RecoveryPlanStatus:
        return self.facts.status


def test_a_group_begins_once_the_checks_of_the_one_before_have_passed() -> None:
    world = World(ask())
    world.step()
    world.step()
    assert world.acts == ["begin", "make db"]
    world.step()
    assert world.acts == ["begin", "make db"] and world.status.message == "vm/run-db: it is booting"
    world.let_run("run-db")
    world.step()
    assert world.acts[-1] == "make web"


def test_a_rehearsal_measures_and_ends_once_nothing_is_left_of_it() -> None:
    world = World(ask())
    world.step()
    world.step()
    world.let_run("run-db")
    world.step()
    world.let_run("run-web")
    world.answer("web-check", False, "connection refused")
    world.step()
    assert "check tcp 80 of vm/run-web: connection refused" in world.status.message
    world.answer("web-check", True)
    world.step()
    result = world.status.rehearsal
    assert result is not None and (result.phase, result.rpo_seconds, result.rto_seconds) == ("Passed", 9.0, 4.0)
    assert [(one.vm, one.type, one.passed, one.seconds) for one in result.checks] == [
        ("run-db", "running", True, 2.0),
        ("run-web", "running", True, 3.0),
        ("run-web", "tcp", True, 4.0),
    ]
    assert world.acts[-1] == "drop" and world.status.ended_generation == 0
    world.step()
    assert world.status.run is None and world.status.ended_generation == 1
    assert world.status.phase == "Ready" and world.status.rehearsal == result


def test_the_deadline_ends_a_run_and_names_what_was_waited_for() -> None:
    world = World(ask())
    world.step()
    world.step()
    world.step(seconds=120.0)
    world.step()
    result = world.status.rehearsal
    assert result is not None and (result.phase, result.reason, result.rto_seconds) == ("Failed", "deadline", None)
    assert result.message == "not done within 1m: vm/run-db: it is booting"
    assert [one.message for one in result.checks] == ["it is booting", "the VM was not made", "the VM was not made"]
    assert world.acts[-1] == "drop"


def test_a_vm_that_can_not_be_made_says_why_until_the_deadline() -> None:
    world = World(ask())
    world.step()
    refused = note_refusal(world.status, world.run, 0, "the point is gone")
    world.facts = replace(world.facts, status=refused)
    step = plan_recovery(world.facts, world.now)
    assert step.act == "make" and step.status.message == "vm/run-db can't be made: the point is gone"
    world.now += 120.0
    world.step()
    result = world.status.rehearsal
    assert result is not None and result.message.endswith("vm/run-db can't be made: the point is gone")
    assert [one.message for one in result.checks] == ["the point is gone", "the VM was not made", "the VM was not made"]


def test_a_vm_that_ends_or_is_deleted_ends_the_run() -> None:
    for phase in ("Failed", "Stopped"):
        world = World(ask())
        world.step()
        world.step()
        world.let_run("run-db", phase)
        world.step()
        assert world.status.rehearsal is not None and world.status.rehearsal.message == f"vm/run-db is {phase}"
    world = World(ask())
    world.step()
    world.step()
    world.facts = replace(world.facts, vms={})
    world.step()
    assert world.status.rehearsal is not None and world.status.rehearsal.message == "vm/run-db was deleted"


def test_networks_that_somebody_opened_end_a_rehearsal() -> None:
    world = World(ask())
    world.step()
    world.step()
    world.facts = replace(world.facts, isolated=False)
    world.step()
    assert world.status.rehearsal is not None and world.status.rehearsal.reason == "notIsolated"


def test_what_cannot_be_recovered_is_refused_with_nothing_made() -> None:
    missing = Candidate(make_member("db", 0), "replica/db has no point that can be used yet")
    world = World(ask(candidates=[missing]))
    step = world.step()
    assert step.act == "" and world.status.run is None and world.status.ended_generation == 1
    assert world.status.rehearsal is not None and world.status.rehearsal.phase == "Refused"
    assert (world.status.phase, world.status.message) == ("Pending", missing.problem)
    empty = plan_recovery(ask(candidates=[]), NOW).status.rehearsal
    assert empty is not None and empty.message == "there are no replicas to recover"


def test_a_failover_is_refused_while_the_cluster_answers_unless_it_is_forced() -> None:
    world = World(ask("failover", answering=["cluster/east answers"]))
    assert world.step().act == ""
    failover = world.status.failover
    assert failover is not None and (failover.phase, failover.reason) == ("Refused", "primaryAnswers")
    assert "cluster/east answers" in failover.message and failover.rpo_seconds is None
    facts = ask("failover", answering=["cluster/east answers"])
    assert plan_recovery(replace(facts, actions=replace(facts.actions, force=True)), NOW).act == "begin"


def test_a_failover_ends_a_rehearsal_and_its_time_counts_from_when_it_was_asked_for() -> None:
    world = World(ask())
    world.step()
    world.step()
    world.facts = replace(world.facts, actions=RecoveryPlanActions(run_generation=2, run_mode="failover"))
    world.nodes_are_there = False  # which a failover doesn't wait for
    world.step()
    assert world.acts[-1] == "drop" and world.status.run is None
    assert world.status.rehearsal is not None and world.status.rehearsal.reason == "superseded"
    world.facts = replace(world.facts, leftovers=False, stale=True)
    step = world.step()
    assert world.acts[-1] == "begin" and step.sweep and world.status.phase == "FailingOver"
    assert world.run.generation == 2 and world.run.began_at == world.status.asked_at


def test_one_plan_is_rehearsed_at_a_time_and_a_failover_waits_for_none() -> None:
    step = plan_recovery(ask(busy="another rehearsal"), NOW)
    assert (step.act, step.status.reason) == ("", "isBusy") and "until another rehearsal is over" in step.status.message
    assert step.status.ended_generation == 0
    assert plan_recovery(ask("failover", busy="another rehearsal"), NOW).act == "begin"


def test_a_deleted_plan_goes_once_nothing_is_left() -> None:
    assert plan_recovery(ask(deleting=True, leftovers=True), NOW).act == "drop"
    assert plan_recovery(ask(deleting=True), NOW).act == "release"


def test_a_plan_whose_replicas_are_all_promoted_says_so() -> None:
    facts = ask(candidates=[Candidate(make_member("db", 0), is_promoted=True)])
    assert plan_recovery(replace(facts, actions=RecoveryPlanActions()), NOW).status.phase == "Promoted"


def test_all_other_replicas_are_the_last_group() -> None:
    assert list_order([["db"], ["web", "app"]], ["db", "mail", "app", "a"]) == [
        (0, "db"),
        (1, "web"),
        (1, "app"),
        (2, "a"),
        (2, "mail"),
    ]
