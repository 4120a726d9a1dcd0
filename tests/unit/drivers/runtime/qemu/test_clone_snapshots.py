"""Which templates a node says it has: those on its disk that fit it, whoever made them, and none that had to go."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import pytest

from weft.contracts.clock import SystemClock
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.runtime.qemu.function import snapshots as module
from weft.drivers.runtime.qemu.function.fingerprint import identify_node
from weft.drivers.runtime.qemu.function.record import Template
from weft.drivers.runtime.qemu.function.snapshots import SnapshotStore
from weft.drivers.runtime.qemu.function.translate import plan_machine
from weft.drivers.runtime.qemu.translate import QemuHostFacts

FACTS = QemuHostFacts(sys.executable, "tcg", (10, 0, 2), 2_600_000, (70_000, 30_000))


class Kept:
    def __init__(self, folder: Path, facts: QemuHostFacts = FACTS) -> None:
        self.told: list[list[str]] = []
        self.templates = SnapshotStore(folder, facts, ControlGroups("nowhere"), SystemClock(), "fn-", self._hear)

    def _hear(self) -> None:
        self.told.append(sorted(self.templates.there))


def write(folder: Path, recipe: str, used_at: int, facts: QemuHostFacts = FACTS) -> Path:
    place = folder / "templates" / recipe
    place.mkdir(parents=True)
    machine = plan_machine(facts, 1 << 27, 1.0, 1)
    template = Template("key", recipe, machine, "/kernel", [], [], 1.0, identify_node(facts))
    (place / "template.json").write_bytes(msgspec.json.encode(template))
    os.utime(place / "template.json", (used_at, used_at))
    return place


async def test_what_an_agent_before_has_made_is_there_if_it_fits_this_node(tmp_path: Path) -> None:
    write(tmp_path, "fits", 1)
    write(tmp_path, "older-qemu", 2, msgspec.structs.replace(FACTS, version=(9, 2, 0)))
    broken = write(tmp_path, "broken", 3)
    (broken / "template.json").write_bytes(b"{")
    unfinished = tmp_path / "templates" / ".half.77"
    unfinished.mkdir()
    kept = Kept(tmp_path)
    await kept.templates.take_over()
    assert kept.told == [["fits"]]
    assert not unfinished.exists()
    await kept.templates.forget("fits")
    assert kept.told[1:] == [[]] and not (tmp_path / "templates" / "fits").exists()


async def test_the_one_unused_for_longest_gives_way_and_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_TEMPLATES", 3)
    for used_at, name in ((3, "c"), (1, "a"), (2, "b")):
        write(tmp_path, name, used_at)
    kept = Kept(tmp_path)
    await kept.templates.take_over()
    await kept.templates._drop_oldest()  # for a fourth
    assert kept.told == [["a", "b", "c"], ["b", "c"]]
    assert sorted(path.name for path in (tmp_path / "templates").iterdir()) == ["b", "c"]
