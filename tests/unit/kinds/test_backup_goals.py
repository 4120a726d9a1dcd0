"""When a backup counts as verified, as commands that wait for it see it."""

from __future__ import annotations

from typing import Any

import pytest

from weft.kinds.operation import find_failure, plan_goal


def make(result: str, *, asked: int = 1, ended: int = 1, message: str = "") -> dict[str, Any]:
    damaged = ["disk root at 4 MiB"] if result == "damaged" else []
    verify = {"generation": ended, "result": result, "damaged": damaged, "reason": "checkFailed", "message": message}
    status = {"phase": "Ready", "verify": verify}
    return {"kind": "backup", "name": "monday", "uid": "u", "actions": {"verify_generation": asked}, "status": status}


def judge(obj: dict[str, Any]) -> str:
    goal = plan_goal("backup", "verify")
    assert goal is not None
    if goal.reached(obj):
        return "reached"
    failure = find_failure(obj, "backup/monday", goal)
    return f"{failure.token}: {failure}" if failure is not None else "waits"


@pytest.mark.parametrize(
    ("obj", "said"),
    [
        (make("passed"), "reached"),
        (make("", ended=0), "waits"),
        (make("damaged", asked=2, ended=1), "waits"),
        (make("damaged"), "backupDamaged: backup/monday is damaged: disk root at 4 MiB"),
        (
            make("failed", message="exit code 1"),
            "checkFailed: backup/monday was booted, and failed: exit code 1",
        ),
        (make("undone", message="no answer"), "verifyFailed: backup/monday is not verified: no answer"),
    ],
)
def test_a_verification_that_finds_damage_or_could_not_be_made_is_a_failure(obj: dict[str, Any], said: str) -> None:
    assert judge(obj) == said


@pytest.mark.parametrize("reason", ["repositoryFailed", "repositoryMissing"])
def test_nobody_waits_for_a_backup_whose_repository_has_failed(reason: str) -> None:
    goal = plan_goal("backup", "create")
    assert goal is not None
    status = {"phase": "Pending", "reason": reason, "message": "it is full"}
    obj = {"kind": "backup", "name": "monday", "uid": "u", "spec": {"of": "vm/web", "to": "safe"}, "status": status}
    failure = find_failure(obj, "backup/monday", goal)
    assert failure is not None and failure.token == reason and "it is full" in str(failure)
    assert "weft backuprepository" in str(failure.hint) and "weft delete backup/monday" in str(failure.hint)
    waits = {**obj, "status": {**status, "reason": "repositoryNotReady"}}
    assert find_failure(waits, "backup/monday", goal) is None
