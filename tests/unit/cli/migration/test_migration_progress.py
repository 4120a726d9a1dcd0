"""What a person sees of a migration while its disks are copied, and then its memory."""

from __future__ import annotations

import io
from typing import Any

from weft.cli.command.target import Target
from weft.cli.migration.progress import MigrationProgress
from weft.kinds.registry import BY_NAME

MIB = 1 << 20
SEEN = [  # (sent, total, left, passes), as a VM with 160 MiB on its disks reported them
    (1, 128, 0, 0),
    (20, 160, 145, 0),
    (91, 160, 75, 0),
    (152, 160, 17, 0),
    (169, 128, 125, 1),
    (190, 128, 99, 1),
    (230, 128, 22, 1),
]


def test_the_shares_of_its_disks_and_then_of_its_memory_only_grow() -> None:
    stream = io.StringIO()
    progress = MigrationProgress(lambda: 0.0, stream=stream)
    target = Target(BY_NAME["migration"], "web-1")
    shown: list[tuple[str, int]] = []
    progress.draw = lambda target, live, key: shown.append((live.split()[0], int(live.split()[1].rstrip("%"))))  # type: ignore[method-assign]
    for sent, total, left, passes in SEEN:
        figures: dict[str, Any] = {
            "sent_bytes": sent * MIB,
            "total_bytes": total * MIB,
            "remaining_bytes": left * MIB,
            "passes": passes,
        }
        progress.show(target, {"kind": "migration", "status": {"phase": "Migrating", "progress": figures}})
    assert [what for what, _ in shown] == ["disks"] * 4 + ["memory"] * 3
    disks, memory = [share for _, share in shown[:4]], [share for _, share in shown[4:]]
    assert disks == sorted(disks) and disks[0] <= 1 and disks[-1] >= 88
    assert memory == sorted(memory) and memory[0] <= 15 and memory[-1] >= 70


def test_a_disk_that_is_copied_whole_ends_at_all_of_it() -> None:
    shown: list[str] = []
    progress = MigrationProgress(lambda: 0.0, stream=io.StringIO())
    progress.draw = lambda target, live, key: shown.append(live)  # type: ignore[method-assign]
    figures = {"sent_bytes": 64 * MIB, "total_bytes": 64 * MIB, "remaining_bytes": 0}
    progress.show(Target(BY_NAME["migration"], "m"), {"status": {"phase": "Migrating", "progress": figures}})
    assert "100%" in shown[0]


def test_a_migration_that_waits_for_the_other_cluster_says_so_once() -> None:
    stream = io.StringIO()
    progress = MigrationProgress(lambda: 0.0, stream=stream)
    figures = {"sent_bytes": 20 * MIB, "total_bytes": 160 * MIB, "remaining_bytes": 140 * MIB}
    waits = {"reason": "clusterUnreachable", "message": "waits for the answer of west: no answer in time"}
    for told in ({}, waits, waits, {"reason": "slow down", "message": "slowed down"}):
        status = {"phase": "Migrating", "progress": figures, **told}
        progress.show(Target(BY_NAME["migration"], "m"), {"kind": "migration", "status": status})
    first, second = stream.getvalue().splitlines()
    assert "waits for" not in first and second.endswith("waits for the answer of west: no answer in time")
