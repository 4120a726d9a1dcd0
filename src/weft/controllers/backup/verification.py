"""How a backup is verified: a node reads all of it; then, if that is asked, a VM is booted from it. Pure.

The boot is made of objects like people's: a snapshot that is fetched from the backup, volumes, a network that nobody else is in,
and a VM with a health check. ``status.test`` is written in the commit that makes them and cleared once they are gone, so a process
that dies at any moment leaves nothing that isn't found again. The verdict is written first, then they are removed.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from weft.controllers.backup.model import BackupFacts, BackupPlan, make_order
from weft.kinds.backup import BackupActions, BackupStatus
from weft.kinds.fields.backup_verification import (
    DAMAGED,
    FAILED,
    VERIFY_FAILED,
    BackupTest,
    BackupVerification,
    How,
)
from weft.kinds.fields.backup_work import BackupReport
from weft.objects.identity import cut_name
from weft.objects.lifecycle import Phase, describe_phase
from weft.objects.quantity import format_duration

READ, BOOTED = "read", "booted"
TEST_SECONDS = 5.0  # a boot that is under way is looked at as often
PLACE_SECONDS = 900.0  # a VM that has no place after so long isn't booted
LATE_SECONDS = 30.0  # what a node's verdict may take to arrive
_ENDED = (Phase.STOPPED, Phase.SUSPENDED)


def plan_verification(facts: BackupFacts, now: float) -> BackupPlan:
    """Plan the verification of a backup that is Ready."""
    status, asked = facts.status, facts.actions
    if status.test is not None and status.test.has_ended:
        return end_test(facts, status)
    if status.verify.generation >= asked.verify_generation:
        return end_test(facts, status) if status.test is not None else BackupPlan(replace(status, order=None))
    if status.read_generation < asked.verify_generation:
        return _plan_reading(facts, now)
    if status.test is None:
        return _begin_test(facts, now)
    return _plan_test(facts, status.test, now)


def _plan_reading(facts: BackupFacts, now: float) -> BackupPlan:
    status, asked = facts.status, facts.actions.verify_generation
    report = facts.asked.report if facts.asked is not None else None
    if report is not None and (report.phase == "done" or (report.phase == "failed" and report.damaged)):
        return BackupPlan(_note_read(facts, report, now))
    if facts.repository is None or not facts.nodes:
        message = "waits for a node that is ready to verify it"
        return BackupPlan(replace(status, order=None, reason="nodeNotReady", message=message))
    if report is not None and report.phase == "failed":
        return BackupPlan(_end(facts, "undone", "read", now, reason=report.reason, message=report.message))
    order = status.order
    if order is None or order.generation != asked or facts.asked is None:
        order = make_order(facts, facts.nodes[0], "verify", asked)
    progress = f"verified {round(100 * report.progress)} %" if report is not None and report.progress else ""
    return BackupPlan(replace(status, order=order, reason="", message=progress))


def _note_read(facts: BackupFacts, report: BackupReport, now: float) -> BackupStatus:
    at = report.finished_at or now
    status = replace(facts.status, unique_bytes=report.unique_bytes or facts.status.unique_bytes)
    facts = replace(facts, status=status)
    if report.damaged:
        message = ", ".join(report.damaged[:3])
        return _end(facts, "damaged", "read", at, reason=DAMAGED, message=message, damaged=report.damaged)
    if facts.actions.verify_how == "read":
        return _end(facts, "passed", "read", at, message=report.message)
    read = facts.actions.verify_generation
    return replace(
        status, state=_keep_boot(status.state), verified_at=at, read_generation=read, order=None, reason="", message=""
    )


def _end(facts: BackupFacts, result: Any, how: How, at: float, **more: Any) -> BackupStatus:
    """The status once a verification is over. One that could not be made changes no verdict."""
    status, asked = facts.status, facts.actions.verify_generation
    verify = BackupVerification(generation=asked, how=how, at=at, result=result, **more)
    test = replace(status.test, has_ended=True) if status.test is not None else None
    status = replace(status, verify=verify, order=None, test=test)
    match result:
        case "undone":
            return replace(status, reason=VERIFY_FAILED, message=f"not verified: {verify.message}")
        case "damaged":
            return replace(status, state=DAMAGED, verified_at=at, reason=DAMAGED, message=verify.message)
        case "failed":
            return replace(status, state=FAILED, verified_at=at, reason=verify.reason, message=verify.message)
    state = BOOTED if how == "boot" else _keep_boot(status.state)
    return replace(status, state=state, verified_at=at, read_generation=asked, reason="", message="")


def _keep_boot(state: str) -> str:
    """The state once all was read: that changes nothing of what a boot has shown."""
    return state if state in (BOOTED, FAILED) else READ


def name_test(name: str, uid: str) -> str:
    """Name for the VM, the snapshot and the network that test the backup ``name``; ``uid`` is a new one."""
    return cut_name(f"test-{name}", f"-{uid[:8]}")


def _begin_test(facts: BackupFacts, now: float) -> BackupPlan:
    status = facts.status
    if facts.tested_first:
        message = f"waits until backup/{facts.tested_first} was booted"
        return BackupPlan(replace(status, reason="isBusy", message=message))
    if not status.workload_spec:
        return BackupPlan(
            _end(facts, "undone", "boot", now, reason="notBootable", message=f"{facts.spec.of} can't be booted")
        )
    return BackupPlan(status, test="make")


def begin(status: BackupStatus, name: str, generation: int, now: float) -> BackupStatus:
    """The status once what tests it is made."""
    test = BackupTest(name=name, generation=generation, began_at=now)
    return replace(status, test=test, reason="", message=f"boots vm/{name}")


def _plan_test(facts: BackupFacts, test: BackupTest, now: float) -> BackupPlan:
    """Judge by the VM. It is removed once there is a verdict, or once another verification is asked."""
    found = facts.test
    if test.generation != facts.actions.verify_generation:
        return BackupPlan(replace(facts.status, test=replace(test, has_ended=True)))
    verdict = _judge(facts, now)
    if verdict is None:
        workload = found.workload if found is not None else None
        phase = f" is {describe_phase(workload.phase)}" if workload is not None else ""
        why = f": {workload.message}" if workload is not None and workload.message else ""
        return BackupPlan(replace(facts.status, order=None, message=f"vm/{test.name}{phase}{why}"))
    return BackupPlan(_end(facts, verdict.pop("result"), "boot", now, **verdict))


def _judge(facts: BackupFacts, now: float) -> dict[str, Any] | None:
    """The verdict as fields of a BackupVerification; None: there is none yet."""
    found, asked, test = facts.test, facts.actions, facts.status.test
    workload = found.workload if found is not None and not found.deleting else None
    if found is None or workload is None or test is None:
        return {"result": "undone", "reason": "testGone", "message": "the VM that booted it was deleted"}
    healthy = found.healthy
    if workload.phase == Phase.RUNNING and healthy is not None and healthy.status == "True":
        return {
            "result": "passed",
            "boot_seconds": round(max(0.0, healthy.since - (workload.started_at or healthy.since)), 1),
        }
    why = workload.message or workload.reason
    if workload.phase == Phase.RUNNING and healthy is not None and healthy.status == "False":
        what = "its check failed" if asked.verify_check else "the guest does not answer"
        reason = "checkFailed" if asked.verify_check else "guestSilent"
        return {"result": "failed", "reason": reason, "message": f"{what}: {healthy.message}"}
    if (
        workload.phase in (Phase.BOOT, Phase.RUNNING)
        and workload.started_at
        and now - workload.started_at > asked.verify_within + LATE_SECONDS
    ):
        what = "its check could not run" if asked.verify_check else "the guest did not answer"
        message = f"{what} within {format_duration(asked.verify_within)}"
        return {"result": "failed", "reason": "guestSilent", "message": message}
    if workload.phase in _ENDED or (workload.phase == Phase.FAILED and workload.started_at):
        return {"result": "failed", "reason": "guestEnded", "message": f"the guest ended{': ' if why else ''}{why}"}
    if workload.phase == Phase.FAILED or workload.reason in ("snapshotFailed", "snapshotMissing"):
        return {"result": "undone", "reason": workload.reason or "vmFailed", "message": why}
    if (
        workload.phase == Phase.PENDING
        and now - test.began_at > PLACE_SECONDS
        and workload.reason != "snapshotNotReady"
    ):
        return {
            "result": "undone",
            "reason": workload.reason or "noPlace",
            "message": why or "no node has the capacity for the VM",
        }
    return None


def end_test(facts: BackupFacts, status: BackupStatus) -> BackupPlan:
    """Remove what tests it, the VM before the others; then it is over."""
    if facts.test is None:
        return BackupPlan(replace(status, test=None))
    test = replace(status.test, has_ended=True) if status.test is not None else None
    return BackupPlan(replace(status, test=test), test="drop")


def is_booted_next(asked: BackupActions, status: BackupStatus) -> bool:
    """Whether a backup that is Ready was read, and is booted or waits for that."""
    return asked.verify_how == "boot" and status.verify.generation < asked.verify_generation <= status.read_generation
