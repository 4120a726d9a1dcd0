"""What a policy for a whole project is for."""

from __future__ import annotations

import msgspec

from weft.controllers.backup.subjects import list_subjects
from weft.informer.view import Item, View
from weft.kinds.backup import BACKUP, BackupSpec
from weft.kinds.backup_policy import BACKUP_POLICY, BackupPolicySpec
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.vm import VM, VmSpec
from weft.objects.envelope import Envelope


def test_what_boots_a_backup_for_a_verification_is_not_backed_up() -> None:
    policy = BACKUP_POLICY.make("all", BackupPolicySpec(whole_project=True, to="safe"), 0.0, uid="p", project="default")
    of = BACKUP.make("hb", BackupSpec(of="vm/shop", to="safe"), 0.0, uid="b", project="default")
    view = View(["vm", "container", "volume", "backup", "backuppolicy"])
    for envelope in (policy, of, make_vm("shop"), make_vm("test-hb-8941ed34", of), make_vm("copy", policy)):
        view.put_item(envelope.key, Item(envelope))
    assert list_subjects(view, Item(policy)) == (["vm/shop", "vm/copy", "project/default"], [])


def make_vm(name: str, owner: Envelope | None = None) -> Envelope:
    status = WorkloadStatus(incarnation=1)
    return VM.make(
        name, msgspec.convert({"image": "tiny"}, VmSpec), 0.0, uid=name, project="default", owner=owner, status=status
    )
