"""Objects made to boot a backup, and removed again: a snapshot that is fetched from it, volumes, a network of its own, and a VM."""

from __future__ import annotations

import msgspec

from weft.controllers.backup.model import Test
from weft.controllers.backup.verification import begin, is_booted_next, name_test
from weft.informer.commit import Draft
from weft.informer.view import Item, View
from weft.kinds.backup import BackupActions, BackupSpec, BackupStatus
from weft.kinds.fields.backup_verification import BackupTest
from weft.kinds.network import NETWORK, NetworkSpec
from weft.kinds.parts.snapshot.restored import (
    LEFT_OUT_OF_TESTS,
    ROOT,
    VmOrigin,
    VolumeOrigin,
    make_restored_vm,
    make_restored_volumes,
    name_volume,
)
from weft.kinds.parts.workload import WorkloadMarks, WorkloadStatus, WorkloadTest
from weft.kinds.record import Kind
from weft.kinds.snapshot import SNAPSHOT, SnapshotMarks, SnapshotSpec
from weft.kinds.vm import VM, VmSpec
from weft.kinds.volume import VOLUME, VolumeMarks, VolumeSpec
from weft.objects.identity import new_uid, object_key

# Nobody else is in the network, so any range will do that no guest expects.
CIDR, DOMAIN = "198.18.255.240/28", "test"
LABEL = "tests-backup"


def make_test(draft: Draft, backup: Item, status: BackupStatus, now: float) -> BackupStatus:
    """All that boots it, in one commit with the status that says so."""
    spec, of, uid = backup.spec(BackupSpec), backup.envelope, new_uid()
    asked = backup.actions(BackupActions)
    name = name_test(of.name, uid)

    def make(kind: Kind, name: str, made: msgspec.Struct, uid: str = "", marks: msgspec.Struct | None = None) -> None:
        labels = {LABEL: of.name}
        draft.make(kind.make(name, made, now, uid=uid, project=of.project, owner=of, labels=labels, marks=marks))

    fetched = SnapshotMarks(automatic="test", backup=of.name, image=status.image)
    make(SNAPSHOT, name, SnapshotSpec(of=spec.of), uid, fetched)
    make(NETWORK, name, NetworkSpec(cidr=CIDR, nat=False, domain=DOMAIN))
    disks = {disk: one.size for disk, one in status.disks.items()}
    for manifest in make_restored_volumes({disk: (size, "local") for disk, size in disks.items()}, name, name):
        marks = VolumeMarks(origin=VolumeOrigin(**manifest["marks"]["origin"], test=True))
        make(VOLUME, manifest["name"], msgspec.convert(manifest["spec"], VolumeSpec), marks=marks)
    test = WorkloadTest(backup=of.name, check=asked.verify_check, within=asked.verify_within)
    make(VM, name, _make_vm(status, name, disks), marks=WorkloadMarks(test=test))
    return begin(status, name, asked.verify_generation, now)


def _make_vm(status: BackupStatus, name: str, disks: dict[str, int]) -> VmSpec:
    made = make_restored_vm(status.workload_spec, name, name, disks, memory=False)["spec"]
    vm = msgspec.convert({key: value for key, value in made.items() if key not in LEFT_OUT_OF_TESTS}, VmSpec)
    vm.origin = VmOrigin(snapshot=name)
    vm.networks, vm.restart, vm.grace, vm.on_node_loss = [name], "never", 1.0, "wait"
    return vm


def _find_workload(view: View, backup: Item, test: BackupTest) -> Item | None:
    return _find(view, backup, object_key(VM.name, backup.envelope.project, test.name))


def _find(view: View, backup: Item, key: str) -> Item | None:
    """An object of its boot, and nothing of people's that got the same name."""
    item = view.get(key)
    owner = item.envelope.owner if item is not None else None
    return item if owner is not None and owner.uid == backup.uid else None


def _list_others(view: View, backup: Item, status: BackupStatus, test: BackupTest) -> list[Item]:
    volumes = [(VOLUME, name_volume(test.name, disk)) for disk in status.disks if disk != ROOT]
    names = [(SNAPSHOT, test.name), (NETWORK, test.name), *volumes]
    found = (_find(view, backup, object_key(kind.name, backup.envelope.project, name)) for kind, name in names)
    return [item for item in found if item is not None]


def find_test(view: View, backup: Item) -> Test | None:
    status = backup.status(BackupStatus)
    if status.test is None:
        return None
    others = len(_list_others(view, backup, status, status.test))
    workload = _find_workload(view, backup, status.test)
    if workload is None:
        return Test(others=others) if others else None
    healthy = workload.envelope.condition("Healthy")
    return Test(workload.status(WorkloadStatus), workload.deleting, healthy, others)


def drop_test(draft: Draft, view: View, backup: Item, now: float) -> None:
    """Have the VM removed, and what it used once it is gone."""
    status = backup.status(BackupStatus)
    if status.test is None:
        return
    workload = _find_workload(view, backup, status.test)
    for item in [workload] if workload is not None else _list_others(view, backup, status, status.test):
        if not item.envelope.finalizers:
            draft.delete(item)
        elif not item.deleting:
            draft.change(item, deleting_since=now)


def find_tested_first(view: View, backup: Item) -> str:
    """PROJECT/NAME of the backup that is booted before this one; "": none. One is booted at a time in the whole fabric."""
    if not is_booted_next(backup.actions(BackupActions), backup.status(BackupStatus)):
        return ""
    others = [item for item in view.of_kind("backup").values() if item.uid != backup.uid]
    first = next((item for item in others if item.status(BackupStatus).test is not None), None)
    if first is None:
        order = (backup.envelope.created_at, backup.uid)
        waiting = [item for item in others if _waits(item) and (item.envelope.created_at, item.uid) < order]
        first = min(waiting, key=lambda item: (item.envelope.created_at, item.uid), default=None)
    return f"{first.envelope.project}/{first.envelope.name}" if first is not None else ""


def _waits(item: Item) -> bool:
    status = item.status(BackupStatus)
    return status.phase == "Ready" and not item.deleting and is_booted_next(item.actions(BackupActions), status)
