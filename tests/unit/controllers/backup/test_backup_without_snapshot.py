"""Backups without a snapshot: the objects of a project, and what a repository has already."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.controllers.backup.model import BackupFacts, Node, Repository
from weft.controllers.backup.plan import plan_backup
from weft.kinds.backup import BackupSpec, BackupStatus, check_backup
from weft.kinds.backup_repository import BackupRepositorySpec, BackupRepositoryStatus
from weft.kinds.fields.backup_work import BackupReport
from weft.objects.errors import InvalidInput

NOW = 1000.0
SAFE = Repository("safe", "r", BackupRepositorySpec(url="dir:///safe"), BackupRepositoryStatus(phase="Ready", id="i"))
SAID = {
    "of": "vm/web",
    "taken_at": 900.0,
    "workload_spec": {"cpu": 1},
    "image": "tiny",
    "disks": {"root": {"key": "u", "size": 7}},
}


def facts(status: BackupStatus | None = None, report: BackupReport | None = None, **spec: Any) -> BackupFacts:
    node = Node("n1", "u1", report)
    return BackupFacts(
        name="shop/all", uid="b", deleting=False, spec=BackupSpec(**{"of": "project/shop", "to": "safe"} | spec),
        status=status or BackupStatus(), created_at=900.0, repository=SAFE, nodes=[node], asked=node if status else None,
    )  # fmt: skip


def report(act: Any, **told: Any) -> BackupReport:
    return BackupReport(**{"uid": "b", "act": act, "phase": "done", "repository_id": "i", "bytes": 9} | told)


def test_a_project_is_copied_by_any_node_without_a_snapshot() -> None:
    begun = plan_backup(facts(), NOW)
    order = begun.status.order
    assert order is not None and (order.act, order.backup, order.disks, begun.snapshot) == ("copy", "b", {}, "")
    assert begun.status.phase == "Copying" and order.manifest["of"] == "project/shop"
    done = plan_backup(facts(begun.status, report("copy")), NOW + 1)
    assert (done.status.phase, done.status.state, done.status.taken_at, done.status.bytes) == (
        "Ready",
        "unproven",
        NOW,
        9,
    )
    other = plan_backup(facts(of="project/other"), NOW)
    assert other.status.phase == "Failed" and "not in project/shop" in other.status.message


def test_one_that_is_adopted_is_what_the_repository_says_of_it() -> None:
    begun = plan_backup(facts(of="vm/web", adopts="0123abcd"), NOW)
    order = begun.status.order
    assert order is not None and (order.act, order.backup, order.manifest) == ("adopt", "0123abcd", {})
    done = plan_backup(facts(begun.status, report("adopt", manifest=SAID), of="vm/web", adopts="0123abcd"), NOW)
    status = done.status
    assert (status.phase, status.taken_at, status.image, status.disks["root"].size) == ("Ready", 900.0, "tiny", 7)
    for wrong, why in (
        ({**SAID, "of": "vm/db"}, "otherBackup"),
        ({"of": "vm/web"}, "notReadable"),
        ({}, "notReadable"),
    ):
        failed = plan_backup(facts(begun.status, report("adopt", manifest=wrong), of="vm/web", adopts="0123abcd"), NOW)
        assert (failed.status.phase, failed.status.reason) == ("Failed", why)


@pytest.mark.parametrize("shared", [True, False])
def test_what_another_backup_stands_for_stays_in_the_repository(shared: bool) -> None:
    ready = BackupStatus(phase="Ready", repository_id="i")
    deleting = msgspec.structs.replace(facts(ready, of="vm/web", adopts="0123abcd"), deleting=True, shared=shared)
    plan = plan_backup(deleting, NOW)
    assert plan.release is shared
    assert shared or (plan.status.order is not None and plan.status.order.backup == "0123abcd")


def test_an_id_that_none_can_have_is_refused() -> None:
    with pytest.raises(InvalidInput, match="not the id of a backup"):
        check_backup(BackupSpec(of="vm/web", to="safe", adopts="../../x"))
