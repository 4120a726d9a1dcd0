"""A VM's status is a function of its wish and its facts, and walks only the lifecycle's ways."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples
from tests.scenario.controllers_lab import step

from weft.controllers.workload.status import (
    AllocationFacts,
    DesiredWorkload,
    fold_current,
    fold_lease,
    fold_ready,
    fold_set_up,
    fold_status,
    has_been_resized,
)
from weft.kinds.allocation import AllocatedImage, AllocationReport, AllocationSpec, Resources
from weft.kinds.fields.lease import AllocatedLease, LeaseRequest, LeaseStatus, PlannedPause
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Condition
from weft.objects.identity import Ref
from weft.objects.lifecycle import ALLOWED, Phase, may_change

IMAGE = AllocatedImage(name="tiny", uid="i", sha256="0" * 64, size=1, url="/")
STATES = ["pending", "preparing", "starting", "running", "stopping", "suspended", "stopped", "failed", "released"]


def wish(**fields: object) -> VmSpec:
    return VmSpec(image="tiny", **fields)  # type: ignore[arg-type]


def wished(
    spec: VmSpec | None = None, *, deleting: bool = False, placed: Condition | None = None, starts: int = 0
) -> DesiredWorkload:
    return DesiredWorkload(spec or wish(), 3, deleting, placed, None, starts=starts)


def place(
    state: str = "running", *, node: str | None = "Ready", incarnation: int = 1, **report: object
) -> AllocationFacts:
    spec = AllocationSpec(
        node="n1",
        node_uid="n",
        workload=Ref("vm", "web", "v", "default"),
        workload_generation=1,
        incarnation=incarnation,
        resources=Resources(),
        image=IMAGE,
    )
    return AllocationFacts(spec, AllocationReport(incarnation=incarnation, state=state, **report), node)  # type: ignore[arg-type]


def fold(want: DesiredWorkload, *places: AllocationFacts, former: WorkloadStatus | None = None) -> WorkloadStatus:
    return fold_status(want, places, {"default": "10.0.0.2"}, former or WorkloadStatus())


@settings(max_examples=examples(300), deadline=None)
@given(
    st.builds(
        wish,
        run=st.sampled_from(["run", "stop", "suspend"]),
        hold=st.booleans(),
        on_node_loss=st.sampled_from(["wait", "restart"]),
    ),
    st.booleans(),
    st.lists(
        st.tuples(st.sampled_from(STATES), st.sampled_from(["Ready", "NotReady", "Joining", None]), st.integers(1, 9))
    ),
    st.sampled_from(list(Phase)),
)
def test_any_facts_give_a_status_and_folding_it_again_changes_nothing(
    spec: VmSpec, deleting: bool, facts: list[tuple[str, str | None, int]], phase: Phase
) -> None:
    places = [place(state, node=node, incarnation=n, ready=state == "running") for state, node, n in facts]
    want = wished(spec, deleting=deleting)
    status = fold(want, *places, former=WorkloadStatus(phase=phase, incarnation=4))
    again = fold(want, *places, former=status)
    assert fold(want, *places, former=again) == again
    assert status.phase in set(Phase) and status.observed_generation == 3
    assert status.incarnation == max([4, *(n for _, _, n in facts)])
    assert (status.node is None) == (not places)
    newest = max(places, key=lambda p: p.spec.incarnation, default=None)
    lost = newest is not None and newest.node_phase not in ("Ready", "Joining")
    if deleting:
        assert status.phase in ("Shutdown", "Epilog")
    else:
        assert (status.phase == "Unknown") == lost
        assert status.phase != "Shutdown"
    if status.phase == "Running":
        assert newest is not None and newest.report.state in ("running", "stopping")
    runs = status.phase == "Running" and status.ready is not False
    assert fold_ready(status, 3, 1.0).status == ("Unknown" if status.phase == "Unknown" else str(runs))


moves = st.lists(
    st.one_of(
        st.just(("node works",)),
        st.just(("node works",)),
        st.tuples(st.just("verb"), st.sampled_from(["start", "stop", "restart", "suspend", "resume"])),
        st.just(("guest ends",)),
        st.just(("node is lost",)),
        st.just(("delete",)),
    ),
    max_size=30,
)


@settings(max_examples=examples(300), deadline=None)
@given(moves)
def test_a_life_that_is_watched_closely_takes_only_legal_ways(history: list[tuple[str, ...]]) -> None:
    want, here = wished(wish()), place("pending")
    status = fold(want, here)
    for migration in history:
        spec, report = want.spec, here.report
        match migration:
            case ("node works",):
                here = AllocationFacts(here.spec, step(here.spec, report, want.deleting), "Ready")
            case ("verb", verb) if Phase(status.phase) in ALLOWED[verb] and not want.deleting:
                fields: dict[str, object] = {"stop": {"run": "stop"}, "suspend": {"run": "suspend"}}.get(
                    verb, {"run": "run"}
                )
                afresh = verb == "restart" or (verb == "start" and status.phase in ("Stopped", "Failed"))
                want = wished(msgspec.structs.replace(spec, **fields), starts=want.starts + afresh)
                new = msgspec.structs.replace(here.spec, desired=want.spec.run, restart_generation=want.starts)
                here = AllocationFacts(new, report, here.node_phase)
            case ("guest ends",) if report.state == "running" and here.node_phase == "Ready":
                ended = msgspec.structs.replace(report, state="stopped", reason="guestPoweredOff")
                here = AllocationFacts(here.spec, ended, "Ready")
            case ("node is lost",):
                here = AllocationFacts(here.spec, report, "NotReady")
            case ("delete",):
                want = wished(want.spec, deleting=True, starts=want.starts)
        new_status = fold(want, here, former=status)
        assert may_change(Phase(status.phase), Phase(new_status.phase)), (
            f"{status.phase} → {new_status.phase} by {migration}"
        )
        status = new_status


def test_a_vm_without_a_place_says_why() -> None:
    refused = Condition("Placed", "False", "insufficientResources", "needs 900 GiB memory, largest free is 22 GiB (n1)")
    status = fold(wished(placed=refused))
    assert (status.phase, status.reason, status.message) == ("Pending", "insufficientResources", refused.message)
    assert fold(wished(wish(hold=True), placed=refused)).phase == "Hold"


def test_running_means_that_the_guest_answered_or_cannot() -> None:
    assert fold(wished(), place("starting", ready=False)).phase == "Boot"
    answered, mute = fold(wished(), place("running", ready=True)), fold(wished(), place("running", ready=None))
    assert (answered.phase, answered.ready, mute.phase, mute.ready) == ("Running", True, "Running", None)
    assert fold_ready(answered, 1, 0.0).reason == "Answers" and fold_ready(mute, 1, 0.0).reason == "Runs"


def test_what_is_being_done_stands_in_the_reason_until_it_is_done() -> None:
    running = WorkloadStatus(phase="Running")
    assert fold(wished(wish(run="stop")), place("running"), former=running).reason == "stopping"
    assert fold(wished(wish(run="stop")), place("stopping"), former=running).phase == "Running"
    stopped = fold(wished(wish(run="stop")), place("stopped"), former=running)
    assert (stopped.phase, stopped.reason) == ("Stopped", "")
    assert fold(wished(starts=1), place("running")).reason == "restarting"
    assert fold(wished(wish(run="suspend")), place("running")).reason == "suspending"


def test_a_failure_is_told_in_the_nodes_words() -> None:
    status = fold(wished(), place("failed", reason="noSpace", message="node n1 has 3 MiB left"))
    assert (status.phase, status.reason, status.message) == ("Failed", "noSpace", "node n1 has 3 MiB left")


def test_what_has_run_its_only_time_is_not_unknown_when_its_node_is_lost() -> None:
    ended = place("failed", node="NotReady", ended=True, reason="nodeRestarted", message="it was cut short")
    status = fold(wished(), ended)
    assert (status.phase, status.reason, status.ended) == ("Failed", "nodeRestarted", True)


def test_a_lost_node_makes_unknown() -> None:
    status = fold(wished(), place("running", node="NotReady", ready=True))
    assert (status.phase, status.reason, status.ready) == ("Unknown", "nodeLost", None)
    gone = fold(wished(wish(on_node_loss="restart")), place("running", node=None))
    assert gone.message == "node n1 has left the fabric; the workload may still run there; waiting for the node"


def test_an_autonomous_node_says_that_its_workloads_go_on() -> None:
    status = fold(wished(), place("running", node="Autonomous", ready=True))
    assert (status.phase, status.reason, status.ready) == ("Unknown", "nodeAutonomous", None)
    assert status.message == "node n1 sends no heartbeat; it is autonomous: the workload goes on there"
    for phase, reason in (("Autonomous", "nodeAutonomous"), ("NotReady", "nodeLost")):
        status = fold(msgspec.structs.replace(wished(), deleting=True), place("running", node=phase))
        assert (status.reason, "removed there when the node returns" in status.message) == (reason, True)


def test_of_two_places_the_newer_one_counts() -> None:
    status = fold(wished(), place("stopped", incarnation=1), place("running", incarnation=2))
    assert (status.phase, status.incarnation) == ("Running", 2)


ROOM = {"cpu": 4, "memory": 2**40}


def current(
    want: VmSpec,
    *,
    placed: str = "Placed",
    said: int = 3,
    generation: int = 0,
    report_generation: int | None = None,
    **report: object,
) -> tuple[str, str]:
    has = place(**report)  # type: ignore[arg-type]
    has = msgspec.structs.replace(has, report=msgspec.structs.replace(has.report, generation=report_generation))
    has = msgspec.structs.replace(has, generation=generation)
    told = fold_current(wished(want, placed=Condition("Placed", "True", placed, "why", 0.0, said)), [has], 1.0)
    assert told is not None
    return told.status, told.reason


def test_a_vm_says_whether_it_has_what_it_asks_for_and_what_keeps_it_from_that() -> None:
    same = wish(cpu=0.0, memory=0, networks=[])
    more = wish(cpu=2.0, memory=0, networks=[])
    other = wish(cpu=0.0, memory=0, networks=[], machine="microvm")
    assert current(same, resize_limits=ROOM) == ("True", "Current")
    assert current(more, resize_limits=ROOM) == ("False", "Changing")
    assert current(more, resize_limits=ROOM, placed="insufficientResources") == ("False", "insufficientResources")
    assert current(more, resize_limits=ROOM, placed="insufficientResources", said=2) == (
        "False",
        "Changing",
    )  # of an older wish
    assert current(same, resize_limits=ROOM, generation=2, has=Resources(), fitted=1) == ("False", "Changing")
    assert current(same, resize_limits=ROOM, generation=2, has=Resources(), reason="guestHolds") == (
        "False",
        "guestHolds",
    )
    assert current(other, resize_limits=ROOM) == ("False", "RestartNeeded")
    assert current(other, resize_limits=None) == ("True", "Current")  # it comes with the start
    assert current(msgspec.structs.replace(same, node="n1"), resize_limits=ROOM) == ("True", "Current")
    elsewhere = fold_current(wished(msgspec.structs.replace(same, node="n2")), [place()], 1.0)
    assert elsewhere is not None and (elsewhere.status, elsewhere.reason) == ("True", "OnAnotherNode")
    assert elsewhere.message == "it is on node n1, not on n2: weft vm migrate web --to n2"
    assert current(same, resize_limits=ROOM, outdated=True) == ("True", "Outdated")


def test_what_a_restart_could_not_give_is_said_and_no_other_restart_is_asked_for() -> None:
    larger = wish(cpu=0.0, memory=2**41, networks=[])
    assert current(larger, resize_limits=ROOM, said=2) == ("False", "RestartNeeded")
    assert current(larger, resize_limits=ROOM, placed="insufficientResources") == ("False", "insufficientResources")


def test_of_the_run_before_a_start_nothing_is_said_until_the_node_has_taken_up_the_start() -> None:
    start = wished(starts=1)
    for state, reason in (("stopped", "guestPoweredOff"), ("failed", "exited"), ("failed", "noSpace")):
        ended = place(state, reason=reason, message="as it ended")
        passed_on = msgspec.structs.replace(
            ended, spec=msgspec.structs.replace(ended.spec, restart_generation=1), generation=2
        )
        for before in (ended, passed_on):  # the spec was passed on to its node, or wasn't yet
            report = msgspec.structs.replace(before.report, generation=1)
            status = fold(start, msgspec.structs.replace(before, report=report))
            assert (status.reason, status.message) == ("starting", "")
        report = msgspec.structs.replace(passed_on.report, generation=2)
        status = fold(start, msgspec.structs.replace(passed_on, report=report))
        assert (status.reason, status.message) == (reason, "as it ended"), "a new failure"


def test_trouble_of_the_size_before_is_not_that_of_a_new_one() -> None:
    same = wish(cpu=0.0, memory=0, networks=[])
    here = {"resize_limits": ROOM, "has": Resources(), "reason": "guestHolds", "fitted": 1}
    assert current(same, generation=2, **here, report_generation=1) == ("False", "Changing")
    assert current(same, generation=2, **here, report_generation=2) == ("False", "guestHolds")


def test_a_workload_says_what_its_place_has() -> None:
    assert fold(wished(wish(memory=2**40)), place("running")).resources == place("running").spec.resources
    assert fold(wished(wish(memory=2**40))).resources is None


def test_a_new_size_waits_for_a_node_that_is_away_until_that_has_it_and_then_it_is_resized() -> None:
    same = wish(cpu=0.0, memory=0, networks=[])

    def fold_next(was: str, node: str, **report: object) -> tuple[str, bool]:
        former = Condition("Current", "False", was, "", 0.0, 3) if was else None
        has = msgspec.structs.replace(place(node=node, resize_limits=ROOM, **report), generation=2)  # type: ignore[arg-type]
        told = fold_current(msgspec.structs.replace(wished(same), current=former), [has], 1.0)
        assert told is not None
        return told.reason, has_been_resized(former, told, has)

    old, new = {"has": Resources(), "fitted": 1}, {"has": Resources(), "fitted": 2}
    for phase in ("Autonomous", "NotReady"):
        assert fold_next("", phase, **old) == fold_next("ResizeWaits", phase, **old) == ("ResizeWaits", False)
    assert fold_next("ResizeWaits", "Ready", **old) == ("ResizeWaits", False), "it is back, and hasn't done it"
    assert fold_next("ResizeWaits", "Ready", **new) == ("Current", True)
    assert fold_next("Current", "Ready", **new) == ("Current", False)
    assert fold_next("ResizeWaits", "Ready", fitted=2) == ("Current", False), "nothing runs there"
    for phase in ("Ready", "NotReady"):  # of one that a node was told in time the scheduler has said so
        assert fold_next("Changing", phase, **old) == ("Changing", False)
    assert fold_next("Changing", "Ready", **new) == ("Current", False)


def test_a_vm_that_was_left_to_another_cluster_says_where_it_runs_once_it_is_stopped() -> None:
    want = msgspec.structs.replace(wished(wish(run="stop")), fenced="runs at west")
    assert fold(want, place("running")).reason != "fenced"
    stopped = fold(want, place("stopped"))
    assert (stopped.phase, stopped.reason, stopped.message) == ("Stopped", "fenced", "runs at west")
    free = fold(msgspec.structs.replace(want, fenced=""), place("stopped"), former=stopped)
    assert (free.reason, free.message) == ("", "")


def test_of_a_vm_that_has_left_nothing_waits_for_its_migration_to_end() -> None:
    left = msgspec.structs.replace(wished(wish(run="stop")), departed="west/lab/web")
    has = place("running")
    source = msgspec.structs.replace(has, spec=msgspec.structs.replace(has.spec, role="source"))
    waits = fold_current(wished(), [source], 1.0)
    assert waits is not None and waits.reason == "Migrating"
    told = fold_current(left, [source], 1.0)
    assert told is not None and (told.status, told.message) == ("True", "")
    assert fold_current(left, [], 1.0) == told


def test_what_became_of_a_vm_s_first_boot_is_a_condition_and_a_failure_a_note() -> None:
    report = AllocationReport(state="running", incarnation=1, set_up="failed", set_up_message="cloud-init: no")
    failed = fold_set_up(WorkloadStatus(phase="Running"), report, None, 5.0)
    assert (failed.status, failed.reason, failed.message) == ("False", "Failed", "cloud-init: no")
    done = fold_set_up(WorkloadStatus(phase="Running"), AllocationReport(set_up="done"), failed, 6.0)
    assert (done.status, done.reason) == ("True", "Done")
    asked = fold_set_up(WorkloadStatus(phase="Running"), AllocationReport(set_up="running"), None, 6.0)
    assert (asked.status, asked.reason) == ("Unknown", "Running")
    assert fold_set_up(WorkloadStatus(phase="Stopped"), AllocationReport(), done, 7.0) == done, "it stays done"


def test_a_lease_is_late_only_if_it_began_so_not_where_its_guest_resumes_or_restarts() -> None:
    held = AllocatedLease(mode="deadline", start=100.0, end=900.0, pauses=(PlannedPause(300.0, 320.0, 400.0),))
    want = wished(wish(lease=LeaseRequest(mode="deadline", duration=700.0, deadline_at=1000.0)))
    status: LeaseStatus | None = None
    for state, now, started_at, expected in (
        ("starting", 101.0, None, "Preparing"),
        ("running", 102.0, 102.0, "Active"),
        ("suspended", 320.0, 102.0, "Suspended"),
        ("starting", 401.0, 102.0, "Active"),
        ("running", 403.0, 403.0, "Active"),
        ("starting", 500.0, 403.0, "Active"),  # it has crashed
        ("running", 510.0, 510.0, "Active"),
    ):
        one = place(state, started_at=started_at)
        one = msgspec.structs.replace(one, spec=msgspec.structs.replace(one.spec, lease=held))
        status = fold_lease(want, one, status, now)
        assert status is not None and (status.state, status.late_seconds) == (expected, 0.0), (state, now)
        assert (status.message == "") == (now >= 400.0)
    pauses = tuple(PlannedPause(at, at + 5.0, at + 30.0) for at in (600.0, 700.0, 750.0, 800.0))
    more = msgspec.structs.replace(
        one, spec=msgspec.structs.replace(one.spec, lease=msgspec.structs.replace(held, pauses=pauses))
    )
    told = fold_lease(want, more, status, 610.0)
    assert told is not None and told.message.count(" from ") == 3 and told.message.endswith(" and 1 more")
    late = fold_lease(want, one, None, 510.0)
    assert late is not None and late.late_seconds == 410.0
