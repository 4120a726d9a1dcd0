"""What a repository holds is told with each copy and removal, not only by the hourly check."""

from __future__ import annotations

from weft.controllers.backup.repository import count
from weft.kinds.backup_repository import BackupRepositoryStatus
from weft.kinds.fields.backup_work import BackupAct, BackupReport


def report(at: float, backups: int, act: BackupAct = "copy", id_: str = "r", kept: int = 70) -> BackupReport:
    return BackupReport(
        uid=f"b{at}", act=act, phase="done", repository_id=id_, backups=backups, kept_bytes=kept, finished_at=at
    )


def test_the_last_copy_or_removal_says_how_many_backups_there_are() -> None:
    status = BackupRepositoryStatus(phase="Ready", id="r", backups=0, free=5, counted_at=10.0)
    told = count(status, [report(11, 1), report(12, 2), report(13, 9, id_="another's"), report(14, 9, "verify")])
    assert (told.backups, told.bytes, told.free, told.counted_at) == (2, 70, 5, 12)
    assert count(told, [report(13, 1, "forget")]).backups == 1
    assert count(told, [report(11, 1)]) == told  # it was counted already
    assert count(told, [report(15, 7, kept=-1)]) == told  # of an older agent, which doesn't count
