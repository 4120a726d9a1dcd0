"""How a backup is booted to verify it: when, how that is judged, and that nothing of it stays."""

from __future__ import annotations

from typing import Any

import pytest

from weft.controllers.backup.model import BackupFacts, Test
from weft.controllers.backup.plan import plan_backup
from weft.controllers.backup.verification import LATE_SECONDS, PLACE_SECONDS, name_test
from weft.kinds.backup import BackupActions, BackupSpec, BackupStatus
from weft.kinds.fields.backup_verification import BackupTest, BackupVerification
from weft.kinds.parts.workload import WorkloadStatus
from weft.objects.envelope import Condition
from weft.objects.identity import MAX_NAME
from weft.objects.lifecycle import Phase

NOW = 1000.0
TEST = BackupTest(name="test-b-01234567", generation=1, began_at=NOW - 20)


def make(test: BackupTest | None = TEST, found: Test | None = None, **known: Any) -> BackupFacts:
    """A backup that was read, and is to be booted."""
    asked = known.pop("asked", 1)
    spec = BackupSpec(of="vm/web", to="safe")
    actions = BackupActions(verify_generation=asked, verify_how="boot", verify_check=known.pop("check", ""))
    more = known.pop("status", {})
    status = BackupStatus(
        **{"phase": "Ready", "state": "read", "read_generation": asked, "workload_spec": {"cpu": 1}, "test": test}
        | more
    )
    return BackupFacts("p/b", "b", known.pop("deleting", False), spec, status, 3.0, actions, test=found, **known)


def vm(phase: Phase = Phase.RUNNING, well: Any = None, message: str = "", **known: Any) -> Test:
    """Its VM, which was started ten seconds ago."""
    healthy = Condition("Healthy", well, message=message, since=NOW - 3) if well is not None else None
    status = WorkloadStatus(phase=phase, **{"started_at": NOW - 10, **known})
    return Test(status, healthy=healthy, others=2)


def test_it_is_booted_once_it_was_read_and_no_other_is() -> None:
    assert plan_backup(make(None), NOW).test == "make"
    waits = plan_backup(make(None, tested_first="p/a"), NOW)
    assert (waits.test, waits.status.message) == ("", "waits until backup/p/a was booted")
    unread = plan_backup(make(None, status={"read_generation": 0}), NOW)
    assert (unread.test, unread.status.reason) == ("", "nodeNotReady")


def test_what_is_no_machine_cannot_be_booted() -> None:
    status = plan_backup(make(None, status={"workload_spec": {}}), NOW).status
    assert (status.state, status.verify.result, status.verify.reason) == ("read", "undone", "notBootable")


@pytest.mark.parametrize(
    ("found", "known", "said"),
    [
        (vm(well="True"), {}, ("booted", "passed", "")),
        (vm(well="False", message="no answer"), {}, ("failed", "failed", "guestSilent")),
        (vm(well="False", message="exit code 1"), {"check": "false"}, ("failed", "failed", "checkFailed")),
        (vm(Phase.STOPPED), {}, ("failed", "failed", "guestEnded")),
        (vm(Phase.FAILED, reason="bootFailed"), {}, ("failed", "failed", "guestEnded")),
        (vm(Phase.FAILED, started_at=None, reason="diskFull"), {}, ("read", "undone", "diskFull")),
        (vm(Phase.PENDING, started_at=None, reason="snapshotFailed"), {}, ("read", "undone", "snapshotFailed")),
        (None, {}, ("read", "undone", "testGone")),
        (Test(vm().workload, deleting=True), {}, ("read", "undone", "testGone")),
    ],
)
def test_its_vm_gives_the_verdict(found: Test | None, known: dict[str, Any], said: tuple[str, str, str]) -> None:
    status = plan_backup(make(found=found, **known), NOW).status
    assert (status.state, status.verify.result, status.verify.reason) == said
    assert (status.verify.how, status.verify.generation, status.test is not None and status.test.has_ended) == (
        "boot",
        1,
        True,
    )


def test_the_seconds_are_those_from_the_guest_s_start_until_it_was_good() -> None:
    assert plan_backup(make(found=vm(well="True")), NOW).status.verify.boot_seconds == 7.0


@pytest.mark.parametrize(
    ("found", "seconds", "result"),
    [
        (vm(Phase.BOOT), 0.0, ""),
        (vm(Phase.BOOT), 300 + LATE_SECONDS, "failed"),
        (vm(Phase.PENDING, started_at=None), 0.0, ""),
        (vm(Phase.PENDING, started_at=None), PLACE_SECONDS, "undone"),
        (vm(Phase.PENDING, started_at=None, reason="snapshotNotReady"), PLACE_SECONDS, ""),  # it is fetched as long
    ],
)
def test_it_is_waited_for_but_not_for_ever(found: Test, seconds: float, result: str) -> None:
    assert plan_backup(make(found=found), NOW + seconds).status.verify.result == result


def test_what_booted_it_is_removed_then_forgotten() -> None:
    ended = BackupTest(name="t", generation=1, began_at=1.0, has_ended=True)
    verified = {"verify": BackupVerification(generation=1, how="boot", result="passed"), "state": "booted"}
    for found in (vm(), Test(others=1)):
        plan = plan_backup(make(ended, found, status=verified), NOW)
        assert (plan.test, plan.status.test) == ("drop", ended)
    assert plan_backup(make(ended, status=verified), NOW).status.test is None


def test_a_newer_verification_ends_the_one_before() -> None:
    status = plan_backup(make(found=vm(), asked=2), NOW).status
    assert status.test is not None and status.test.has_ended


def test_a_deleted_backup_lets_go_of_its_vm_first() -> None:
    plan = plan_backup(make(found=vm(), deleting=True), NOW)
    assert (plan.test, plan.release, plan.status.phase) == ("drop", False, "Deleting")
    assert plan_backup(make(deleting=True, status={"phase": "Deleting", "test": None}), NOW).release


def test_a_later_reading_takes_nothing_back_that_a_boot_has_shown() -> None:
    facts = make(None, status={"state": "failed", "read_generation": 1, "verify": BackupVerification(generation=1)})
    assert plan_backup(facts, NOW).status.state == "failed"


def test_names_fit() -> None:
    assert name_test("monday", "0123456789") == "test-monday-01234567"
    assert len(name_test("m" * MAX_NAME, "0123456789")) <= MAX_NAME
