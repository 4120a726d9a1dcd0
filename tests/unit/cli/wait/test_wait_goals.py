"""How objects are named, and when what was asked for is so."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import msgspec
import pytest

from weft.cli.command.exit_codes import UNPLACEABLE, exit_code
from weft.cli.command.target import Target, read_targets
from weft.cli.session import Session, in_project_of
from weft.cli.wait.finish import _report, describe_parting, plan_wait
from weft.cli.wait.goal import read_goal
from weft.cli.wait.watch import Result, Wait, describe_wait, judge
from weft.contracts.clock import SystemClock
from weft.kinds.operation import find_cancel, find_failure, kinds_with_operations, list_running, plan_goal
from weft.kinds.parts.goal import find_failed
from weft.kinds.record import Goal
from weft.kinds.registry import BY_NAME
from weft.objects.errors import InvalidInput, NotFound, Unplaceable

VM = BY_NAME["vm"]


def names(*args: Any, **more: Any) -> list[str]:
    return [target.what for target in read_targets(*args, **more)]


def test_every_way_to_name_a_vm_means_the_same() -> None:
    for kind, words in ((VM, ["web"]), (VM, ["vm/web"]), (VM, ["vms/web"]), (None, ["vm", "web"]), (None, ["VM/web"])):
        assert names(kind, words) == ["vm/web"]


def test_several_objects_of_several_kinds_may_be_named() -> None:
    assert names(None, ["vm/a", "network/b", "vm/a"]) == ["vm/a", "network/b"]
    assert names(None, ["vm", "a", "b"]) == ["vm/a", "vm/b"]


def test_where_a_verb_is_for_one_kind_a_bare_name_is_enough() -> None:
    assert names(None, ["web"], able=["vm"]) == ["vm/web"]
    assert names(None, ["node"], able=["vm"]) == ["vm/node"]
    assert names(None, ["vm", "web"], able=["vm"]) == ["vm/web"]


@pytest.mark.parametrize("words", [[], ["vm"], ["vm/"], ["vm/a/b"], ["vm/a", "b"]])
def test_what_names_no_object_is_a_usage_error(words: list[str]) -> None:
    with pytest.raises(click.UsageError):
        read_targets(None, words)


def test_a_kind_that_is_none_is_refused_with_a_suggestion() -> None:
    with pytest.raises(NotFound) as caught:
        read_targets(None, ["vmm/web"])
    assert caught.value.hint == "did you mean vm?"


def vm(phase: str, observed: int = 2, **more: Any) -> dict[str, Any]:
    status = {"phase": phase, "observed_generation": observed, **more.pop("status", {})}
    return {"kind": "vm", "name": "web", "generation": 2, "spec": {"run": "run"}, "status": status, **more}


@pytest.mark.parametrize(
    ("kind", "verb", "words"),
    [
        ("vm", "create", "weft wait vm/y"),
        ("vm", "stop", "weft wait vm/y --for=phase=Stopped"),
        ("vm", "start", "weft wait vm/y --for=phase=Running"),
        ("container", "suspend", "weft wait container/y --for=phase=Suspended"),
        ("vm", "hold", "weft wait vm/y --for=phase=Hold"),
        ("vm", "delete", "weft wait vm/y --for=delete"),
        ("job", "cancel", "weft wait job/y --for=phase=Cancelled"),
        ("migration", "cancel", "weft wait migration/y --for=phase=Cancelled"),
        ("conversion", "undo", "weft wait conversion/y --for=phase=Undone"),
    ],
)
def test_who_gives_up_waiting_is_told_the_command_that_waits_for_the_same(kind: str, verb: str, words: str) -> None:
    goal = plan_goal(kind, verb)
    assert goal is not None
    assert describe_wait(Wait(Target(BY_NAME[kind], "y"), goal)) == words
    if goal.asked:
        assert read_goal(goal.asked, BY_NAME[kind]).wants_gone == goal.wants_gone


@pytest.mark.parametrize(
    ("strategy", "seconds"),
    [
        ({"type": "rolling", "health_check_timeout": 30.0}, 30.0),
        ({"type": "canary", "canary_steps": [0.05, 0.2], "monitor_duration": 600.0}, 1500.0),
    ],
)
def test_a_rollout_is_waited_for_as_long_as_it_watches_at_least(strategy: dict[str, Any], seconds: float) -> None:
    deployment = {"kind": "deployment", "name": "web", "uid": "u", "spec": {"strategy": strategy}, "status": {}}
    wait = plan_wait(deployment, Target(BY_NAME["deployment"], "web"), "update")
    assert wait is not None and wait.takes == seconds


def test_created_means_running_and_only_once_status_speaks_of_this_spec() -> None:
    goal = plan_goal("vm", "create")
    assert goal is not None
    assert goal.reached(vm("Running"))
    assert not goal.reached(vm("Running", observed=1))
    assert not goal.reached(vm("Boot"))
    assert not goal.reached(None)


@pytest.mark.parametrize("kind", ["vm", "container"])
def test_a_lease_that_begins_now_is_waited_for_until_it_runs_and_one_that_begins_later_is_not(kind: str) -> None:
    goal = plan_goal(kind, "create")
    assert goal is not None
    placed = [{"type": "Placed", "status": "True", "reason": "Placed", "since": 100.0, "generation": 2}]
    for start, begins_later in ((60.0, False), (100.0, False), (100.5, True), (None, False)):  # 60: its reservation's
        lease = {"state": "Scheduled", "start": start, "end": 4000.0}
        waits = vm("Prolog", status={"lease": lease}, kind=kind, conditions=placed)
        assert goal.reached(waits) is begins_later, start
        assert goal.reached(vm("Running", status={"lease": lease | {"state": "Active"}}, conditions=placed))
    failed = {"lease": lease | {"state": "Active"}, "reason": "driverFailed", "message": "QEMU ended"}
    assert find_failure(vm("Failed", status=failed, conditions=placed), "vm/web", goal) is not None


def test_what_was_made_to_run_to_an_end_and_has_come_to_it_is_made() -> None:
    goal = plan_goal("container", "create")
    assert goal is not None
    done = {"kind": "container", "generation": 1, "spec": {"run": "run"}}
    status = {"phase": "Stopped", "observed_generation": 1}
    assert goal.reached(done | {"status": status | {"reason": "completed"}})
    assert goal.reached(done | {"status": status | {"reason": "leaseEnded"}})
    assert not goal.reached(done | {"status": status | {"reason": "guestPoweredOff"}})


def test_what_an_automatic_replication_lacks_is_said_once_it_is_known() -> None:
    goal = plan_goal("replication", "update")
    assert goal is not None and goal.answer is not None

    def seen(reason: str | None, message: str = "", automatic: bool = True) -> dict[str, Any]:
        conditions = [] if reason is None else [{"type": "Automatic", "reason": reason, "message": message}]
        return {"spec": {"automatic": automatic}, "status": {"phase": "Replicating"}, "conditions": conditions}

    assert goal.reached(seen(None, automatic=False)) and goal.answer(seen(None, automatic=False)) == "Replicating"
    assert not goal.reached(seen(None)) and not goal.reached(seen("Off", "turned off: weft replication set"))
    lacks = seen("Off", "the link has no witness")
    assert goal.reached(lacks)
    assert goal.answer(lacks) == "Replicating; nothing takes over (Off): the link has no witness"
    assert "before it is Armed" in goal.answer(seen("Preparing")) and goal.answer(seen("Armed")) == "Replicating"


def test_a_volume_that_a_vm_of_the_same_file_took_at_once_is_there() -> None:
    goal = plan_goal("volume", "create")
    assert goal is not None
    for phase, reached in (("Available", True), ("Attached", True), ("Deleting", False)):
        assert goal.reached({"kind": "volume", "name": "data", "status": {"phase": phase}}) is reached


def test_a_vm_that_is_created_held_or_stopped_need_not_run() -> None:
    goal = plan_goal("vm", "create")
    assert goal is not None
    assert goal.reached(vm("Hold", spec={"hold": True, "run": "run"}))
    assert goal.reached(vm("Stopped", spec={"run": "stop"}))
    assert not goal.reached(vm("Running", spec={"run": "stop"}))
    never = {"reason": "stopped"}  # one that was restored, or made with run: stop
    assert goal.reached(vm("Pending", status=never, spec={"run": "stop"}))
    assert not goal.reached(vm("Pending", status=never, spec={"run": "run"}))
    assert not goal.reached(vm("Pending", spec={"run": "stop"}))
    stop = plan_goal("vm", "stop")
    assert stop is not None
    assert stop.reached(vm("Pending", status=never, spec={"run": "stop"}))
    assert not stop.reached(vm("Pending", spec={"run": "stop"})) and not stop.reached(vm("Stopped", observed=1))


def test_a_restart_is_done_only_when_the_boot_is_another() -> None:
    before = vm("Running", status={"boot_id": "a"})
    goal = plan_goal("vm", "restart", before)
    assert goal is not None
    assert not goal.reached(before)
    assert goal.reached(vm("Running", status={"boot_id": "b"}))


def test_a_refused_placement_ends_the_waiting_only_if_it_is_about_this_spec() -> None:
    goal = plan_goal("vm", "create")
    assert goal is not None
    refused = {"type": "Placed", "status": "False", "reason": "insufficientResources", "generation": 2}
    assert isinstance(find_failure(vm("Pending", conditions=[refused]), "vm/web", goal), Unplaceable)
    assert find_failure(vm("Pending", conditions=[{**refused, "generation": 1}]), "vm/web", goal) is None
    assert find_failure(vm("Pending", conditions=[{**refused, "reason": "imageNotReady"}]), "vm/web", goal) is None


def test_what_no_node_could_mend_ends_the_waiting_too() -> None:
    goal = plan_goal("vm", "create")
    assert goal is not None
    stuck = {"type": "Placed", "status": "False", "reason": "volumeInUse", "message": "volume d is attached to vm/a"}
    error = find_failure(vm("Pending", conditions=[stuck]), "vm/web", goal)
    assert isinstance(error, Unplaceable)
    assert error.message == "vm/web can't be placed yet: volumeInUse: volume d is attached to vm/a"
    assert exit_code(error) == UNPLACEABLE


def test_what_begins_from_a_snapshot_that_failed_is_not_said_to_start_some_day() -> None:
    goal = plan_goal("vm", "create")
    assert goal is not None
    failed = {"type": "Placed", "status": "False", "reason": "snapshotFailed", "message": "snapshot/a failed"}
    error = find_failure(vm("Pending", conditions=[failed]), "vm/web", goal)
    assert isinstance(error, Unplaceable) and error.message == "vm/web can't begin: snapshot/a failed"
    assert error.hint == "delete it, and restore it again once that is resolved: weft delete vm/web"


def test_a_restore_that_the_quota_bars_names_what_does_without() -> None:
    goal = plan_goal("vm", "restore")
    assert goal is not None
    told = {"type": "Restored", "status": "False", "reason": "QuotaExceeded", "message": "too much", "generation": 2}
    asked = {"restore": {"snapshot": "a", "generation": 2}}
    error = find_failure({**vm("Running", conditions=[told]), "actions": asked}, "vm/web", goal)
    assert (
        error is not None
        and error.hint is not None
        and error.hint.endswith("weft restore vm/web --snapshot a, which asks")
    )


def test_a_machine_that_shut_itself_down_is_not_waited_for() -> None:
    goal = plan_goal("vm", "create")
    assert goal is not None
    rests = {"phase": "Stopped", "reason": "guestPoweredOff", "observed_generation": 2}
    ended = {"kind": "vm", "name": "web", "generation": 2, "spec": {"run": "run"}, "status": rests}
    error = find_failure(ended, "vm/web", goal)
    assert error is not None and error.message == "vm/web shut itself down"
    assert error.hint == "weft logs vm/web shows why; weft start vm/web"
    once = find_failure({**ended, "spec": {"run": "run", "once": True}}, "vm/web", goal)
    assert once is not None and once.hint == "weft logs vm/web shows why", "what runs once can't be started again"
    assert find_failure({**ended, "generation": 3}, "vm/web", goal) is None, "it was asked to start since"
    assert find_failure({**ended, "spec": {"run": "stop"}}, "vm/web", goal) is None


def test_an_attached_orphan_is_not_waited_for() -> None:
    goal = plan_goal("vm", "update")
    assert goal is not None
    told = {
        "type": "Current",
        "status": "False",
        "reason": "volumeOrphaned",
        "message": "volume d is an orphan",
        "generation": 2,
    }
    error = find_failure(vm("Running", spec={"run": "run"}, conditions=[told]), "vm/web", goal)
    assert error is not None and error.message == "vm/web is not changed for now: volume d is an orphan"


def test_a_stop_is_not_answered_with_a_change_that_the_guest_still_holds() -> None:
    for reason in ("guestHolds", "insufficientResources"):
        held = {"type": "Current", "status": "False", "reason": reason, "message": "for now", "generation": 2}
        for verb in ("stop", "suspend"):
            goal = plan_goal("vm", verb)
            assert goal is not None
            assert find_failure(vm("Running", spec={"run": verb}, conditions=[held]), "vm/web", goal) is None
        assert find_failure(vm("Running", spec={"run": "run"}, conditions=[held]), "vm/web", goal) is not None


def test_a_start_is_not_answered_with_how_the_run_before_it_ended() -> None:
    for verb in ("create", "start", "restart"):
        goal = plan_goal("vm", verb)
        assert goal is not None
        for phase, reason in (("Stopped", "starting"), ("Failed", "starting"), ("Failed", "restarting")):
            assert find_failure(vm(phase, status={"reason": reason}), "vm/web", goal) is None
        error = find_failure(vm("Failed", status={"reason": "noSpace", "message": "full"}), "vm/web", goal)
        assert error is not None and error.message == "vm/web failed: noSpace: full", "it has taken up the start"


UNCHANGED = {
    "type": "Current",
    "status": "False",
    "reason": "insufficientResources",
    "message": "on n1, unchanged: not enough capacity on n1 for the new size",
    "generation": 2,
}


def test_a_restart_that_could_not_give_the_new_size_fails_with_the_reason_once_it_runs_again() -> None:
    goal = plan_goal("vm", "restart", vm("Running", status={"boot_id": "a"}))
    assert goal is not None
    for phase, reason in (("Running", "restarting"), ("Boot", "")):
        on_its_way = vm(phase, status={"boot_id": "a", "reason": reason}, conditions=[UNCHANGED])
        assert not goal.reached(on_its_way) and find_failure(on_its_way, "vm/web", goal) is None
    runs = vm("Running", status={"boot_id": "b"}, conditions=[UNCHANGED])
    error = find_failure(runs, "vm/web", goal)
    assert not goal.reached(runs) and isinstance(error, Unplaceable)
    assert "not enough capacity on n1 for the new size" in error.message and exit_code(error) == UNPLACEABLE
    assert goal.reached(vm("Running", status={"boot_id": "b"}, conditions=[{**UNCHANGED, "reason": "RestartNeeded"}]))


def test_a_start_that_could_not_give_a_new_size_is_done_and_says_so() -> None:
    goal = plan_goal("vm", "start")
    assert goal is not None and goal.remark is not None
    runs = vm("Running", conditions=[UNCHANGED])
    assert goal.reached(runs) and goal.remark(runs) == UNCHANGED["message"]
    assert find_failure(vm("Boot", conditions=[UNCHANGED]), "vm/web", goal) is None
    assert goal.remark(vm("Running")) == ""


def test_what_kept_an_earlier_size_from_a_vm_is_not_said_of_a_new_one() -> None:
    goal = plan_goal("vm", "create")
    assert goal is not None
    for reason in ("insufficientResources", "guestHolds", "driverFailed"):
        told = {**UNCHANGED, "reason": reason}
        assert find_failure(vm("Running", conditions=[told]), "vm/web", goal) is not None
        assert find_failure(vm("Running", conditions=[{**told, "generation": 1}]), "vm/web", goal) is None


def test_a_volume_is_waited_for_until_it_is_as_large_or_its_pool_refuses_this_very_growth() -> None:
    goal = plan_goal("volume", "update")
    assert goal is not None

    def volume(size: int, **refused: Any) -> dict[str, Any]:
        conditions = (
            [{"type": "Grown", "status": "False", "reason": "insufficientResources", **refused}] if refused else []
        )
        spec, status = {"size": 9 << 20}, {"phase": "Attached", "size": size << 20}
        return {
            "kind": "volume", "name": "v", "generation": 2, "spec": spec, "status": status, "conditions": conditions,
        }  # fmt: skip

    assert goal.reached(volume(9)) and not goal.reached(volume(8))
    assert find_failure(volume(8), "volume/v", goal) is None
    assert find_failure(volume(8, generation=1, message="of another size"), "volume/v", goal) is None
    error = find_failure(volume(8, generation=2, message="1 MiB more are too much"), "volume/v", goal)
    assert isinstance(error, Unplaceable) and exit_code(error) == UNPLACEABLE
    assert "1 MiB more are too much" in error.message
    assert error.hint is not None and error.hint.endswith("weft volume resize v 8MiB")


def test_one_of_a_gang_is_not_waited_for_unless_the_others_are_too() -> None:
    goal = plan_goal("vm", "create")
    assert goal is not None
    alone = {"type": "Placed", "status": "False", "reason": "gangIncomplete", "message": "gang web: 1 of 3 are there"}
    assert isinstance(find_failure(vm("Pending", conditions=[alone]), "vm/web", goal), Unplaceable)
    together = msgspec.structs.replace(goal, ends_alone=False)
    assert find_failure(vm("Pending", conditions=[alone]), "vm/web", together) is None


def test_a_failure_is_told_with_its_reason() -> None:
    goal = plan_goal("image", "create")
    assert goal is not None
    status = {"phase": "Failed", "reason": "sha256Mismatch", "message": "got aa, wanted bb"}
    error = find_failure({"kind": "image", "name": "x", "status": status}, "image/x", goal)
    assert error is not None
    assert error.message == "image/x failed: sha256Mismatch: got aa, wanted bb"
    assert error.token == "sha256Mismatch"


@pytest.mark.parametrize(
    ("kind", "verb", "phase", "reason"),
    [
        ("replication", "create", "Interrupted", "nameTaken"),
        ("replication", "hand-over", "HandingOver", "replicaGone"),
        ("replication", "resume", "Interrupted", "linkRefused"),
        ("replication", "create", "Pending", "projectNotLinked"),
        ("cluster", "create", "Refused", "suspectedThere"),
        ("cluster", "update", "Suspect", "restored"),
        ("deployment", "create", "Pending", "isReplicated"),
        ("job", "run", "Pending", "nameTaken"),
        ("replica", "promote", "Standby", "restoreFailed"),
        ("volume", "update", "Unavailable", "nodeDeleted"),
    ],
)
def test_what_only_people_can_mend_ends_the_wait_of_a_command_but_not_that_of_weft_wait(
    kind: str, verb: str, phase: str, reason: str
) -> None:
    goal = plan_goal(kind, verb)
    assert goal is not None
    status = {"phase": phase, "reason": reason, "message": "taken there", "observed_generation": 1}
    obj = {
        "kind": kind,
        "name": "x",
        "generation": 1,
        "spec": {"role": "primary"},
        "marks": {"role": "primary"},
        "status": status,
    }
    error = find_failure(obj, f"{kind}/x", goal)
    assert error is not None and error.token == reason and "taken there" in error.message
    assert find_failure(obj, f"{kind}/x", msgspec.structs.replace(goal, ends_refused=False)) is None
    if verb == "resume":
        assert find_failure({**obj, "spec": {"paused": True}}, f"{kind}/x", goal) is None, "it was paused since"


def test_a_replication_whose_vm_has_not_run_yet_is_made_and_weft_wait_waits_for_its_first_point() -> None:
    made, wait = plan_goal("replication", "create"), plan_goal("replication", "wait")
    assert made is not None and made.answer is not None and wait is not None
    waits = {"spec": {}, "status": {"phase": "Pending", "reason": "neverRan", "message": "vm/x has not run yet"}}
    assert made.reached(waits) and made.answer(waits) == "waits: vm/x has not run yet" and not wait.reached(waits)


def test_a_migration_that_ended_otherwise_says_why() -> None:
    goal = plan_goal("migration", "create")
    assert goal is not None
    moved = {"kind": "migration", "name": "m", "status": {"phase": "Cancelled", "message": "cancelled on request"}}
    error = find_failure(moved, "migration/m", goal)
    assert error is not None and error.message == "migration/m has ended: Cancelled: cancelled on request"


@pytest.mark.parametrize(
    "text",
    ["phase=Running", "state=running", "status.phase=Running", "jsonpath={.status.phase}=Running", "condition=Ready",
     "condition=Ready=True", "name=web", "memory=64M", "spec.cpu=1", "labels.tier=db", "ready=True"],
)  # fmt: skip
def test_every_way_to_say_what_to_wait_for(text: str) -> None:
    ready = [{"type": "Ready", "status": "True"}]
    wanted = vm("Running", conditions=ready, spec={"memory": 64 * 2**20, "cpu": 1.0}, labels={"tier": "db"})
    wanted["status"]["ready"] = True
    assert read_goal(text, VM).reached(wanted)
    assert not read_goal(text, VM).reached({**vm("Boot"), "name": "other"})


@pytest.mark.parametrize(
    ("text", "says", "suggests"),
    [
        (
            "phase=",
            "invalid --for expression 'phase='",
            "write ready, phase=Running, condition=Ready, status.node=n2 or delete",
        ),
        ("phase=Runing", "phase can't be 'Runing': it is one of Pending, Hold, ", "did you mean phase=Running?"),
        ("state=Up", "status.phase can't be 'Up'", None),
        ("phaze=Running", "'phaze' is not a field of vms", "did you mean phase?"),
        ("status.nodee=n1", "'status.nodee' is not a field of vms", "did you mean node?"),
        ("jsonpath={.status.addresses[0]}=x", "'status.addresses[0]' is not a field of vms", None),
        ("condition=Redy", "'Redy' is not a condition of vms: ", "did you mean Ready?"),
        ("condition=Ready=Flase", "'Flase' is not a status of a condition", "did you mean False?"),
        ("memory=64X", "not a unit of size", None),
        ("ready=yes", "ready can't be 'yes': it is one of true, false", None),
    ],
)
def test_what_can_never_be_is_refused_and_not_waited_for(text: str, says: str, suggests: str | None) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_goal(text, VM)
    assert says in caught.value.message
    assert suggests is None or caught.value.hint == suggests


@pytest.mark.parametrize(
    ("text", "kind", "status", "more", "ends"),
    [
        ("condition=ready", "vm", {"phase": "Failed", "reason": "noSpace"}, {}, True),
        ("phase=Running", "vm", {"phase": "Failed", "reason": "noSpace"}, {}, True),
        ("phase=Running", "vm", {"phase": "Failed", "reason": "restarting"}, {}, False),
        ("phase=Running", "vm", {"phase": "Failed", "observed_generation": 1}, {}, False),  # it was changed since
        ("condition=Healthy", "container", {"phase": "Failed", "reason": "startFailed"}, {}, True),
        ("condition=Ready", "vm", {"phase": "Stopped", "reason": "guestPoweredOff"}, {}, True),
        ("condition=Ready=False", "vm", {"phase": "Failed"}, {}, False),
        ("condition=Ready", "vm", {"phase": "Pending"}, {"Ready": "False"}, False),
        ("condition=Placed", "vm", {"phase": "Pending"}, {"Placed": "False"}, False),
        ("condition=SetUp", "vm", {"phase": "Running"}, {"SetUp": "False"}, True),
        ("condition=SetUp", "vm", {"phase": "Running"}, {"SetUp": "Unknown"}, False),
        ("memory=64M", "vm", {"phase": "Failed"}, {}, False),
        ("phase=Succeeded", "job", {"phase": "Cancelled"}, {}, True),
        ("phase=Running", "container", {"phase": "Stopped", "reason": "completed"}, {}, True),
        ("phase=Running", "container", {"phase": "Stopped", "reason": "leaseEnded"}, {}, True),
        ("phase=Running", "container", {"phase": "Stopped", "reason": "starting"}, {}, False),
        ("phase=Taking", "snapshot", {"phase": "Ready"}, {}, True),
        ("phase=Taking", "snapshot", {"phase": "Pending"}, {}, False),
        ("phase=Unavailable", "snapshot", {"phase": "Ready"}, {}, False),
        ("phase=Running", "job", {"phase": "Succeeded"}, {}, True),
        ("phase=Running", "job", {"phase": "Scheduled"}, {}, False),  # its next run comes
        ("phase=Promoted", "deployment", {"phase": "RolledBack"}, {}, False),  # until its next update
        ("phase=Linked", "cluster", {"phase": "Failed"}, {}, False),  # it is asked again
    ],
)
def test_a_wait_for_a_state_ends_with_what_keeps_it_from_ever_coming(
    text: str, kind: str, status: dict[str, Any], more: dict[str, str], ends: bool
) -> None:
    told = [{"type": type_, "status": word, "reason": "x", "generation": 2} for type_, word in more.items()]
    obj = vm("", status=status, conditions=told) | {"kind": kind}
    goal = read_goal(text, BY_NAME[kind])
    result = judge(Wait(Target(BY_NAME[kind], "web"), goal), obj)
    assert (result is not None and result.error is not None) == ends


def test_a_wait_for_a_phase_that_is_over_says_what_the_object_says() -> None:
    obj = vm("", status={"phase": "Ready", "message": "2 disks"}) | {"kind": "snapshot"}
    result = judge(Wait(Target(BY_NAME["snapshot"], "web"), read_goal("phase=Taking", BY_NAME["snapshot"])), obj)
    assert result is not None and result.error is not None
    assert result.error.message == "snapshot/web is Ready (2 disks), so phase=Taking won't come any more"


def test_weft_wait_ends_with_a_lease_that_was_refused_for_good() -> None:
    refused = {"type": "Placed", "status": "False", "reason": "leaseConflict", "generation": 2}
    for kind in ("vm", "reservation"):
        goal = plan_goal(kind, "wait")
        assert goal is not None
        obj = vm("Rejected", status={"state": "Rejected"}, conditions=[refused]) | {"kind": kind}
        assert find_failure(obj, f"{kind}/web", msgspec.structs.replace(goal, ends_refused=False)) is not None


def test_every_kind_knows_its_phases_and_paths() -> None:
    for kind, phase in (("node", "Ready"), ("volume", "Attached"), ("image", "Available"), ("job", "Succeeded")):
        for word in ("phase", "status.phase", "state"):
            read_goal(f"{word}={phase}", BY_NAME[kind])
    read_goal("report.cpu=4", BY_NAME["node"])
    with pytest.raises(InvalidInput):
        read_goal("report.cpu=4", VM)


def test_waiting_for_nothing_is_refused() -> None:
    for text, meant in (("running", "phase=Running"), ("placed", "condition=Placed"), ("=x", None), ("", None)):
        with pytest.raises(InvalidInput) as caught:
            read_goal(text, VM)
        assert meant is None or f"did you mean {meant}?" == caught.value.hint
    assert read_goal("delete", VM).reached(None)


@pytest.mark.parametrize(
    ("verb", "undo"),
    [("create", "delete"), ("stop", "start"), ("start", "stop"), ("suspend", "resume"), ("resume", "suspend")],
)
def test_whoever_stops_watching_is_told_how_to_go_on_and_how_to_undo(verb: str, undo: str) -> None:
    goal = plan_goal("vm", verb)
    assert goal is not None
    wait = Wait(Target(BY_NAME["vm"], "web"), goal)
    told = describe_parting([wait], {"vm/web": verb})
    assert told == f"the work goes on; watch: {describe_wait(wait)}   undo: weft {undo} vm/web"


def test_of_several_that_are_let_go_on_the_commands_name_those_that_they_are_for() -> None:
    """What is printed can be typed as it is: an apply makes one and changes another, which nobody wants deleted."""
    waits = [
        Wait(Target(BY_NAME["vm"], name), goal) for name in "abc" if (goal := plan_goal("vm", "create")) is not None
    ]
    told = describe_parting(waits, {"vm/a": "create", "vm/b": "create", "vm/c": "update"})
    assert told == "the work goes on, and 1 more; watch: weft wait vm/a vm/b   undo: weft delete vm/a vm/b"
    gone = [Wait(Target(BY_NAME["vm"], f"v{n}"), plan_goal("vm", "delete") or waits[0].goal) for n in range(12)]
    told = describe_parting(gone, {wait.target.what: "delete" for wait in gone})
    assert told.startswith("still being deleted, and 2 more; watch: weft wait vm/v0 vm/v1 ")
    assert told.endswith(" vm/v9 --for=delete")


def test_what_is_let_go_on_in_another_project_is_named_there_so_that_an_undo_deletes_no_namesake(
    tmp_path: Path,
) -> None:
    context = tmp_path / "context.json"
    context.write_text(json.dumps({"server": "https://127.0.0.1:1", "project": "default"}))
    goal = plan_goal("vm", "create")
    assert goal is not None
    waits = [Wait(Target(VM, name), goal, project=project) for name, project in (("a", "trial"), ("b", "other"))]
    for given, projects in ((None, ("trial", "default")), ("trial", ("trial", "default"))):
        session = Session(SystemClock, {"HOME": str(tmp_path)})
        session.context_file, session.given_project = str(context), given
        for project in projects:
            wait = waits[0]._replace(project=project)
            told = describe_parting(
                [wait, waits[1]], {"vm/a": "create", "vm/b": "create"}, partial(in_project_of, session)
            )
            where = "" if (given, project) == (None, "default") else f" -p {project}"
            assert told == f"the work goes on, and 1 more; watch: weft wait vm/a{where}   undo: weft delete vm/a{where}"


def test_what_has_no_way_back_is_not_told_as_if_it_had() -> None:
    goal = plan_goal("vm", "restart")
    assert goal is not None
    wait = Wait(Target(BY_NAME["vm"], "web"), goal)
    assert describe_parting([wait], {"vm/web": "restart"}) == f"the work goes on; watch: {describe_wait(wait)}"


def job(phase: str) -> dict[str, Any]:
    return {"kind": "job", "name": phase.lower(), "spec": {}, "status": {"phase": phase, "started_at": 7.0}}


def test_a_job_that_runs_is_an_operation_and_one_that_has_ended_only_on_request() -> None:
    jobs = [job("Running"), job("Failed"), job("Scheduled")]
    assert "job" in kinds_with_operations()
    assert [(one.act, one.object, one.state, one.since) for one in list_running("job", jobs)] == [
        ("run", "job/running", "running", 7.0)
    ]
    assert [one.state for one in list_running("job", jobs, ended=True)] == ["running", "failed", "done"]
    assert find_cancel(jobs[0]) == "cancel"


def test_a_drain_is_a_nodes_operation_until_its_condition_says_that_it_is_over() -> None:
    told = {"type": "Drained", "status": "False", "message": "2 workloads left", "since": 5.0}
    node = {
        "kind": "node",
        "name": "n1",
        "actions": {"drain": True},
        "status": {"phase": "Ready"},
        "conditions": [told],
    }
    (drain,) = list_running("node", [node, {**node, "actions": {"drain": False}}])
    assert (drain.act, drain.since, drain.message, find_cancel(node)) == ("drain", 5.0, "2 workloads left", "uncordon")
    assert not list_running("node", [{**node, "conditions": [{**told, "status": "True"}]}])


def test_a_creation_that_was_refused_is_a_failed_operation_and_no_running_one() -> None:
    refused = {"type": "Placed", "status": "False", "reason": "leaseConflict", "message": "no node has 9 cores"}
    lease = {"state": "Rejected", "message": "no node has 9 cores"}
    machine = vm("Rejected", status={"lease": lease}, conditions=[{**refused, "generation": 2}])
    slots = {
        "kind": "reservation",
        "name": "class",
        "generation": 1,
        "spec": {},
        "status": lease,
        "conditions": [refused],
    }
    for obj in (machine, slots):
        [one] = list_running(obj["kind"], [obj])
        assert (one.state, one.phase, one.message) == ("failed", "Rejected", "no node has 9 cores"), one


def test_a_function_whose_node_is_away_is_ready_and_the_end_of_the_wait_says_that(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kind = BY_NAME["function"]
    target, goal = Target(kind, "price"), plan_goal("function", "create", None)
    assert goal is not None
    obj = {"kind": "function", "name": "price", "generation": 1}
    session: Any = SimpleNamespace(is_data=False)
    for away, ends in (
        ([], "Ready after 0.0 s"),
        (["n3"], "Ready after 0.0 s; node n3 sends no heartbeat: it serves this as it is now once it is back"),
        (["a", "b"], "nodes a, b send no heartbeat: they serve this as it is now once they are back"),
    ):
        obj["status"] = {"phase": "Ready", "observed_generation": 1, "away_nodes": away}
        assert goal.reached(obj)
        _report(session, Result(Wait(target, goal, "u", "default"), obj), "create")
        assert capsys.readouterr().out.rstrip("\n").endswith(ends)


def test_a_service_without_endpoints_is_set_up_and_the_end_of_the_wait_says_what_comes_next(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kind = BY_NAME["service"]
    target, goal = Target(kind, "page"), plan_goal("service", "create", None)
    assert goal is not None
    obj: dict[str, Any] = {"kind": "service", "name": "page", "generation": 1, "spec": {"selector": {"app": "page"}}}
    session: Any = SimpleNamespace(is_data=False)
    for phase, reason, message, ends in (
        ("Ready", "", "", "service/page  Ready after 0.0 s"),
        ("NoEndpoints", "noWorkloads", "", "no VM or container has the labels app=page yet, so nothing answers"),
        ("NoEndpoints", "noneReady", "vm/a: not checked yet", "its endpoints are asked now whether they are ready"),
        ("NoEndpoints", "noneReady", "vm/a: it is stopped", "(vm/a: it is stopped): what is ready becomes an endpoint"),
    ):
        obj["status"] = {"phase": phase, "reason": reason, "message": message, "observed_generation": 1}
        _report(session, Result(Wait(target, goal, "u", "default"), obj), "create")
        said = capsys.readouterr().out
        assert ends in said and "NoEndpoints" not in said, said


def test_an_old_state_is_no_answer_to_a_new_spec() -> None:
    """Each pair: what is waited for, and the state of generation 1 that generation 2 was asked for in."""
    for kind, status in (
        ("service", {"phase": "Ready"}),
        ("cluster", {"phase": "Linked"}),
        ("cluster", {"phase": "Failed", "reason": "wrongCa"}),
        ("backuprepository", {"phase": "Ready"}),
        ("backuprepository", {"phase": "Failed", "reason": "repositoryKey"}),
        ("function", {"phase": "Pending", "reason": "imageFailed", "waiting_generation": 1}),
        ("function", {"phase": "Failed", "reason": "Runtime.ExitError", "waiting_generation": 1}),
    ):
        goal = plan_goal(kind, "update")
        assert goal is not None
        obj = {"kind": kind, "name": "x", "generation": 2, "spec": {}, "status": {**status, "observed_generation": 1}}
        assert not goal.reached(obj) and find_failure(obj, f"{kind}/x", goal) is None
    drain = plan_goal("node", "drain")
    assert drain is not None
    node = {"kind": "node", "name": "n1", "generation": 4, "actions": {"drain": True}, "status": {}}
    for generation, is_done in ((2, False), (4, True)):
        drained = {"type": "Drained", "status": "True", "reason": "Drained", "generation": generation}
        assert drain.reached({**node, "conditions": [drained]}) == is_done


def test_a_single_word_like_a_kind_is_taken_for_a_name_by_a_verb_that_takes_names() -> None:
    with pytest.raises(NotFound) as unknown:
        read_targets(None, ["nope"], ["vm", "container", "node"], lambda name, kinds: None)
    assert unknown.value.message == 'no VM, container or node named "nope", nor a kind of that name'
    assert (unknown.value.hint or "").endswith("did you mean node?")
    with pytest.raises(NotFound, match="no such kind"):
        read_targets(None, ["nope", "web"], ["vm", "container", "node"], lambda name, kinds: None)


@pytest.mark.parametrize(
    ("status", "next_"),
    [
        (
            {"phase": "Failed", "reason": "noCloudInit", "message": "m"},
            "it never starts so: weft delete vm/web, and create it again",
        ),
        ({"phase": "Failed", "reason": "driverFailed", "message": "m"}, "weft describe vm/web"),
    ],
)
def test_what_never_starts_is_told_with_the_way_out(status: dict[str, str], next_: str) -> None:
    failed = find_failed({"status": status}, "vm/web", Goal(lambda obj: False, "Running"))
    assert failed is not None and failed.hint == next_
