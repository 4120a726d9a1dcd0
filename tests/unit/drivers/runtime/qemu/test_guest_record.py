"""What is written down of a guest, and what it says about its end."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from weft.contracts.driver.migration import MigrationSettings
from weft.contracts.driver.runtime import BootDisk, GuestPlan
from weft.drivers.linux.processes import ProcessId
from weft.drivers.runtime.qemu.record import (
    GuestRecord,
    MigrationRecord,
    decide_end,
    mark_taken,
    prepare_mark,
    read_record,
    write_record,
)
from weft.drivers.runtime.qemu.translate import GuestPaths

PLAN = GuestPlan("abcdefghij", "uid-1", "web", 1, "q35", 1.0, 1, 1 << 20, BootDisk(), [], [])
RECORD = GuestRecord(PLAN, "tcg", "this-boot", 0.0, process=ProcessId(17, 4))


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    paths = GuestPaths(tmp_path / "run", tmp_path / "state")
    assert read_record(paths) is None
    for durable in (True, False):
        write_record(paths, RECORD, durable=durable)
        assert read_record(paths) == RECORD


def test_a_mark_says_before_the_record_does_that_the_guest_may_have_run_here(tmp_path: Path) -> None:
    paths = GuestPaths(tmp_path / "run", tmp_path / "state")
    coming = msgspec.structs.replace(RECORD, migration=MigrationRecord("move-1.2", "target", MigrationSettings()))

    def taken(record: GuestRecord = coming) -> bool:
        write_record(paths, record, durable=True)
        found = read_record(paths)
        assert found is not None
        assert found.migration is not None
        return found.migration.taken

    assert not taken()
    with pytest.raises(FileNotFoundError):
        mark_taken(paths, "move-1.2")  # no room was prepared: nothing is pretended
    prepare_mark(paths)
    assert not taken()
    mark_taken(paths, "move-1.1")  # an earlier try's
    assert not taken()
    mark_taken(paths, "move-1.2")
    assert taken()
    assert paths.taken.stat().st_size == 512
    going = msgspec.structs.replace(RECORD, migration=MigrationRecord("move-1.2", "source", MigrationSettings()))
    assert not taken(going)
    prepare_mark(paths)  # it comes once more
    assert not taken()


def test_a_newer_field_does_not_hide_a_guest(tmp_path: Path) -> None:
    paths = GuestPaths(tmp_path / "run", tmp_path / "state")
    paths.state.mkdir()
    paths.record.write_bytes(msgspec.json.encode({**msgspec.to_builtins(RECORD), "field_of_tomorrow": 1}))
    assert read_record(paths) == RECORD


@pytest.mark.parametrize(
    ("circumstances", "state", "reason"),
    [
        ({"stopping": True, "pid_file_left": True}, "stopped", "stopRequested"),
        ({"shutdown": "guest-shutdown"}, "stopped", "guestPoweredOff"),
        ({"shutdown": "guest-panic", "pid_file_left": True}, "failed", "guestPanicked"),
        ({"shutdown": "guest-reset"}, "failed", "guestPanicked"),
        ({"shutdown": "host-signal"}, "failed", "terminated"),
        ({"pid_file_left": True}, "failed", "killed"),
        ({"pid_file_left": True, "out_of_memory": True}, "failed", "outOfMemory"),
        ({"pid_file_left": False}, "stopped", "guestPoweredOff"),
        ({"host_boot_id": "another-boot", "pid_file_left": True}, "failed", "nodeRestarted"),
        ({"process": None, "pid_file_left": False}, "failed", "startInterrupted"),
    ],
)
def test_each_end_has_its_reason(circumstances: dict[str, object], state: str, reason: str) -> None:
    fields = {key: value for key, value in circumstances.items() if key in ("stopping", "process")}
    seen = {"shutdown": None, "pid_file_left": False, "out_of_memory": False, "host_boot_id": "this-boot"}
    seen.update({key: value for key, value in circumstances.items() if key not in fields})
    end = decide_end(msgspec.structs.replace(RECORD, **fields), **seen)  # type: ignore[arg-type]
    assert (end.state, end.reason) == (state, reason)
