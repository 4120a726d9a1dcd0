"""When a policy's backups are due, after its schedule was changed, and after the clock was set."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from weft.contracts.store import Put
from weft.controllers.backup.policy import plan_policy
from weft.informer.view import Item, make_view
from weft.kinds.backup import BACKUP, BackupActions, BackupMarks, BackupSpec, BackupStatus
from weft.kinds.backup_policy import BACKUP_POLICY, BackupPolicySpec, BackupPolicyStatus, PolicySubject
from weft.kinds.vm import VM, VmSpec
from weft.objects.envelope import decode_envelope, decode_part


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


class Policy:
    """A policy for one VM that is planned, and whose backups are gone at once."""

    def __init__(self, last_run: float, **spec: Any) -> None:
        self._view = make_view()
        self._put(VM.make("web", VmSpec(image="tiny"), 1.0, uid="w", project="default"))
        status = BackupPolicyStatus(subjects=[PolicySubject(of="vm/web", last_run=last_run)])
        self.spec = BackupPolicySpec(of=["vm/web"], to="safe", **spec)
        self._item = self._put(BACKUP_POLICY.make("all", self.spec, 1.0, uid="p", project="default", status=status))

    def add(self, name: str, taken_at: float) -> None:
        """A backup that it made."""
        status = BackupStatus(phase="Ready", taken_at=taken_at, workload_spec={"image": "tiny"})
        spec, marks = BackupSpec(of="vm/web", to="safe"), BackupMarks(policy="all")
        self._put(BACKUP.make(name, spec, taken_at, uid=name, project="default", marks=marks, status=status))

    def _put(self, envelope: Any) -> Item:
        item = Item(envelope)
        self._view.put_item(envelope.key, item)
        return item

    def change(self, **changes: Any) -> None:
        self.spec = msgspec.structs.replace(self.spec, **changes)
        spec = msgspec.Raw(msgspec.json.encode(self.spec))
        self._item = self._put(msgspec.structs.replace(self._item.envelope, spec=spec))

    def list_booted(self, now: float) -> list[str]:
        """Backups that are to be booted from ``now`` on."""
        commit, _ = plan_policy(self._view, self._item, now)
        made = [decode_envelope(one.value) for one in (commit.writes if commit else ()) if isinstance(one, Put)]
        return [
            one.name
            for one in made
            if one.kind == "backup" and decode_part(one.actions, BackupActions).verify_generation
        ]

    def backs_up(self, now: float) -> bool:
        """Whether one begins at ``now``."""
        commit, _ = plan_policy(self._view, self._item, now)
        made = [decode_envelope(one.value) for one in (commit.writes if commit else ()) if isinstance(one, Put)]
        for envelope in made:
            if envelope.kind == "backuppolicy":
                self._item = self._put(envelope)
        return any(envelope.kind == "backup" for envelope in made)


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "0 2 * * *"},
        {"schedule": "0 1 1 1 *", "time_zone": "Europe/Berlin"},
        {"schedule": "30 14 * * *", "every": 0.0},
    ],
)
@pytest.mark.parametrize("before", [{"schedule": "0 1 1 1 *"}, {"every": 400 * 86400.0}])
def test_a_backup_begins_at_no_change_of_the_schedule_but_at_the_first_due_time_after_it(
    before: dict[str, Any], changes: dict[str, Any]
) -> None:
    policy, now = Policy(at("2026-01-01 01:00"), **before), at("2026-06-01 15:00")
    assert not policy.backs_up(at("2026-02-01 00:00"))
    policy.change(**changes)
    assert not policy.backs_up(now) and not policy.backs_up(now + 60)
    first = at(
        {"0 2": "2026-06-02 02:00", "0 1": "2027-01-01 00:00", "30 ": "2026-06-02 14:30"}[changes["schedule"][:3]]
    )
    assert not policy.backs_up(first - 60.0)
    assert policy.backs_up(first)


def test_what_was_missed_under_the_schedule_in_force_is_made_up_for() -> None:
    policy = Policy(at("2026-06-01 02:00"), schedule="0 2 * * *")
    policy.change(schedule="0 2 * * *")
    assert policy.backs_up(at("2026-06-04 15:00")) and not policy.backs_up(at("2026-06-04 15:01"))


@pytest.mark.parametrize(
    ("spec", "seconds"), [({"schedule": "0 2 * * *"}, 43200.0), ({"every": 3600.0}, 3600.0), ({}, 86400.0)]
)
def test_a_backup_that_a_clock_ahead_dated_puts_the_next_off_by_no_more_than_one_time(
    spec: dict[str, Any], seconds: float
) -> None:
    now = at("2026-06-01 14:00")
    policy = Policy(now + 400 * 86400.0, **spec)
    begun = [now + second for second in range(0, 200_000, 600) if policy.backs_up(now + second)]
    assert begun and begun[0] == now + seconds


def test_a_backup_of_a_clock_that_was_ahead_keeps_no_later_one_from_being_booted() -> None:
    now = at("2026-06-01 02:30")
    policy = Policy(now, every=86400.0, verify="boot")
    policy.add("ahead", now + 86400.0)
    policy.add("newest", now - 60.0)
    assert policy.list_booted(now) == ["newest"]
