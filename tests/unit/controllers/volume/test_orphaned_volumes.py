"""Root disks that returned nodes kept: they go after seven days, and only if a backup has what they have."""

from __future__ import annotations

import msgspec
import pytest

from weft.controllers.volume.orphans import OrphanedVolumes
from weft.informer.view import Item, make_view
from weft.kinds.backup import BACKUP, BackupSpec, BackupStatus
from weft.kinds.snapshot import SnapshotDisk
from weft.kinds.volume import VOLUME, VolumeMarks, VolumeOrphan, VolumeSpec

LOST, DAY = 1_000_000.0, 86400.0


def is_deleted(age: float, **backup: object) -> bool:
    """Whether the disk goes ``age`` seconds after its node came back, a day after it was lost."""
    view = make_view()
    about = VolumeOrphan(of="vm/web", workload_uid="w", node="n1", since=LOST + DAY, lost_at=LOST)
    volume = Item(
        VOLUME.make("kept", VolumeSpec(size=1 << 30), LOST, project="default", marks=VolumeMarks(orphan=about))
    )
    view.put_item(volume.key, volume)
    if backup:
        made = BACKUP.make("nightly", BackupSpec(of="vm/web", to="store"), LOST, project="default")
        disks = {"root": SnapshotDisk(key="root", size=1 << 30)}
        status = BackupStatus(**{"phase": "Ready", "workload_uid": "w", "disks": disks, **backup})  # type: ignore[arg-type]
        made.status = msgspec.Raw(msgspec.json.encode(status))
        view.put_item(made.key, Item(made))
    plan = OrphanedVolumes().plan(view, [volume.key], LOST + DAY + age)
    assert bool(plan.commits) != bool(plan.later), "it is looked at again"
    return bool(plan.commits)


def test_one_that_a_backup_has_goes_after_seven_days() -> None:
    assert not is_deleted(6 * DAY, taken_at=LOST - 60)
    assert is_deleted(8 * DAY, taken_at=LOST - 60)


@pytest.mark.parametrize(
    "backup",
    [
        {},
        {"taken_at": LOST + 60},  # of the disk that the VM got after it
        {"taken_at": LOST - 60, "workload_uid": "another"},
        {"taken_at": LOST - 60, "phase": "Failed"},
        {"taken_at": LOST - 60, "disks": {"data": SnapshotDisk(key="d", size=1)}},
    ],
)
def test_the_last_copy_never_goes_by_itself(backup: dict[str, object]) -> None:
    assert not is_deleted(400 * DAY, **backup)
