"""Backups in an immutable repository: none without a time, locked for longer when that grows, and not deleted before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from tests.unit.controllers.backup.test_backup_plan import make_facts, make_node, make_report

from weft.controllers.backup.lock import RETRY_SECONDS, is_locked_too_short
from weft.controllers.backup.model import BackupFacts, Repository
from weft.controllers.backup.plan import plan_backup
from weft.controllers.backup.retention import Made, is_over
from weft.kinds.backup import BACKUP, BackupActions, BackupSpec, BackupStatus
from weft.kinds.backup_repository import BackupRepositorySpec, BackupRepositoryStatus
from weft.kinds.fields.backup_work import BackupOrder
from weft.objects.envelope import Envelope
from weft.objects.errors import IllegalTransition

NOW = 1000.0
LOCKED = Repository(
    "safe", "r", BackupRepositorySpec(url="s3://safe", immutable=True), BackupRepositoryStatus(phase="Ready", id="id")
)


def make_locked(keep: float, locked_until: float, **known: Any) -> BackupFacts:
    """It was created at 3."""
    spec = BackupSpec(of="vm/web", to="safe", keep=keep)
    status = BackupStatus(locked_until=locked_until, order=known.pop("order", None))
    return make_facts("Ready", **{"repository": LOCKED, "spec": spec, "status": status, **known})


def read_order(facts: BackupFacts) -> BackupOrder:
    order = plan_backup(facts, NOW).status.order
    assert order is not None
    return order


def test_a_backup_without_a_time_is_refused_by_an_immutable_repository() -> None:
    status = plan_backup(make_facts("Pending", repository=LOCKED), NOW).status
    assert (status.phase, status.reason) == ("Failed", "keepMissing") and "--keep" in status.message


def test_a_longer_time_is_an_order_to_lock_until_then_and_a_shorter_one_is_none() -> None:
    order = read_order(make_locked(5000.5, 2003.0))
    assert (order.act, order.expires_at, order.backup) == ("retain", 5004.0, "b")  # whole seconds, never sooner
    assert read_order(make_locked(5000.5, 2003.0, order=order, asked=make_node())) == order
    done = make_node(report=make_report("done", order, locked_until=5004.0))
    status = plan_backup(make_locked(5000.5, 2003.0, order=order, asked=done), NOW).status
    assert (status.locked_until, status.order) == (5004.0, None)
    assert plan_backup(make_locked(100.0, 2003.0), NOW).status.order is None
    assert plan_backup(replace(make_locked(9000.0, 0.0), repository=None), NOW).status.order is None


def test_a_lock_that_could_not_be_extended_is_told_and_tried_by_the_next_node() -> None:
    order = read_order(make_locked(5000, 2003.0))
    nodes = [make_node("n1"), make_node("n2")]
    failed = make_node(report=make_report("failed", order, finished_at=NOW - 1, reason="bucketDenied", message="no"))
    status = plan_backup(make_locked(5000, 2003.0, order=order, asked=failed, nodes=nodes), NOW).status
    assert (status.phase, status.reason, status.order) == ("Ready", "bucketDenied", order)
    assert status.message == "it could not be locked for longer: no"
    later = plan_backup(make_locked(5000, 2003.0, order=order, asked=failed, nodes=nodes), NOW + RETRY_SECONDS)
    again = later.status.order
    assert again is not None and (again.node_uid, again.generation) == ("u-n2", order.generation + 1)


def test_a_verification_that_is_under_way_ends_first() -> None:
    spec = BackupSpec(of="vm/web", to="safe", keep=5000)
    asked = BackupActions(verify_generation=1)
    verifying = read_order(make_locked(5000, 5003.0, spec=spec, actions=asked))
    assert verifying.act == "verify"
    assert (
        read_order(make_locked(5000, 2003.0, spec=spec, actions=asked, order=verifying, asked=make_node())).act
        == "verify"
    )
    assert is_locked_too_short(spec, BackupStatus(locked_until=2003.0), 3.0)
    assert not is_locked_too_short(spec, BackupStatus(), 3.0)


@pytest.mark.parametrize(("now", "gone"), [(1500.0, False), (2004.0, True)])
def test_nothing_deletes_a_backup_before_its_lock_ends(now: float, gone: bool) -> None:
    spec, status = BackupSpec(of="vm/web", to="safe", keep=100), BackupStatus(phase="Ready", locked_until=2003.0)
    envelope = BACKUP.make("b", spec, 3.0, uid="u", project="default")
    envelope.status = msgspec.Raw(msgspec.json.encode(status))
    guard = BACKUP.admission.delete_guard
    assert guard is not None
    if gone:
        guard(envelope, now)
    else:
        with pytest.raises(IllegalTransition, match="locked until 1970-01-01 00:33 UTC") as refused:
            guard(envelope, now)
        assert refused.value.token == "backupLocked"

    item: Any = SimpleNamespace(envelope=envelope, deleting=False)
    old = Made(item, "safe", 100, "Ready", True, 3.0, 2003.0)
    newer = Made(item, "safe", 0, "Ready", True, 4.0, 0.0)
    assert is_over(old, [newer], now) is gone


def make_envelope(keep: float, locked_until: float) -> Envelope:
    """It was created at 100."""
    spec, status = BackupSpec(of="vm/web", to="safe", keep=keep), BackupStatus(locked_until=locked_until)
    return Envelope(
        kind="backup",
        name="monday",
        uid="u",
        project="default",
        created_at=100.0,
        spec=msgspec.Raw(msgspec.json.encode(spec)),
        status=msgspec.Raw(msgspec.json.encode(status)),
    )


@pytest.mark.parametrize(
    ("locked_until", "keep", "now", "is_refused"),
    [
        (2100.0, 1000.0, NOW, True),
        (2100.0, 2000.0, NOW, False),  # as it is
        (2100.6, 2000.5, NOW, False),  # locks end on whole seconds
        (2100.0, 3000.0, NOW, False),
        (2100.0, 0.0, NOW, False),  # until people delete it
        (0.0, 10.0, NOW, False),  # no lock
        (2100.0, 1000.0, 2200.0, False),  # the lock is over
    ],
)
def test_a_time_that_ends_before_its_lock_is_refused(
    locked_until: float, keep: float, now: float, is_refused: bool
) -> None:
    guard = BACKUP.admission.change_guard
    assert guard is not None
    envelope, new = make_envelope(2000.0, locked_until), BackupSpec(of="vm/web", to="safe", keep=keep)
    if not is_refused:
        return guard(envelope, new, now)
    with pytest.raises(IllegalTransition, match="can't be made shorter") as refused:
        guard(envelope, new, now)
    assert (refused.value.token, refused.value.field) == ("backupLocked", "spec.keep")
    assert "give 2000s or more" in str(refused.value.hint)
