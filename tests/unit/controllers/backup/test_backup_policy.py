"""Which backups of a policy are kept long enough."""

from __future__ import annotations

import pytest

from weft.controllers.backup.policy import list_old
from weft.informer.view import Item
from weft.kinds.backup import BACKUP, BackupSpec, BackupStatus
from weft.kinds.backup_policy import BackupPolicySpec

DAY = 86400.0
NOW = 100 * DAY
POLICY = BackupPolicySpec(of=["vm/web"], to="safe", every=DAY, keep=30 * DAY)


def made(days_ago: float, phase: str = "Ready") -> Item:
    name = f"{phase.lower()}-{days_ago:g}"
    status = BackupStatus(phase=phase)
    return Item(BACKUP.make(name, BackupSpec(of="vm/web", to="safe"), NOW - days_ago * DAY, status=status))


@pytest.mark.parametrize(
    ("own", "old"),
    [
        ([made(1), made(29), made(31), made(40)], ["ready-31", "ready-40"]),
        ([made(40)], []),  # the only good one
        ([made(40), made(50), made(1, "Failed")], ["ready-50"]),
        ([made(40, "Failed"), made(1)], ["failed-40"]),
        ([made(40, "Copying"), made(45, "Snapshotting"), made(1)], []),  # they are being made
        ([], []),
    ],
)
def test_old_ones_go_but_never_the_newest_good_one(own: list[Item], old: list[str]) -> None:
    assert [item.envelope.name for item in list_old(own, POLICY, NOW)] == old
