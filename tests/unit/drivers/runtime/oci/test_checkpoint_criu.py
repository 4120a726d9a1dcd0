"""What runc and CRIU are told, what of their images is mended, and what a saved container is to whoever finds it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from weft.contracts.driver.container import ContainerPlan, ContainerProcess
from weft.drivers.runtime.oci.checkpoint.criu import begin_resuming, pack, plan_save, read_log, settle_resuming, unpack
from weft.drivers.runtime.oci.checkpoint.socket_marks import drop_marks
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.record import ContainerRecord, decide_end
from weft.drivers.runtime.oci.runtime import Runtime
from weft.objects.errors import DriverFailed

HEAD = b"\x19\x43\x56\x54\x56\x03\x30\x56"


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protocol buffer; numbers here are short."""
    if isinstance(value, int):
        return (
            bytes([number << 3]) + bytes([value])
            if number < 16
            else bytes([number << 3 & 0x7F | 0x80, number >> 4, value])
        )
    key = bytes([number << 3 | 2]) if number < 16 else bytes([(number << 3 & 0x7F) | 0x82, number >> 4])
    return key + bytes([len(value)]) + value


def image(*entries: bytes) -> bytes:
    return HEAD + b"".join(struct.pack("<I", len(entry)) + entry for entry in entries)


@pytest.mark.parametrize(("kind", "options"), [(4, 14), (6, 7), (7, 12), (16, 10)])
def test_a_mark_that_says_nothing_is_taken_from_sockets_of_every_family(kind: int, options: int) -> None:
    def entry(*rest: bytes) -> bytes:
        socket = field(1, 7) + field(options, field(8, 0) + b"".join(rest) + field(15, b"eth0"))
        return field(1, 3) + field(2, 9) + field(kind, socket)

    regular = field(1, 1) + field(3, field(1, 2) + field(10, 0))  # a file, whose tenth field is another thing
    assert drop_marks(image(entry(field(10, 0)), regular)) == image(entry(), regular)
    marked = image(entry(field(10, 5)))
    assert drop_marks(marked) == marked, "a mark that somebody set is theirs"


def test_what_is_no_list_of_open_files_is_refused() -> None:
    for broken in (image(b"\x0c"), image(b"\x08"), image(b"\x0f\x01")):
        with pytest.raises(ValueError, match="open files"):
            drop_marks(broken)


@pytest.fixture
def paths(tmp_path: Path) -> ContainerPaths:
    paths = ContainerPaths(run=tmp_path / "run", state=tmp_path / "state")
    paths.run.mkdir()
    paths.upper.mkdir(parents=True)
    return paths


def test_saving_is_one_rename_by_a_program_of_its_own(paths: ContainerPaths) -> None:
    words = plan_save("c1", paths, Runtime("/usr/sbin/runc", paths.run / "runtime"))
    assert words[:2] == ["/bin/sh", "-c"] and words[4:6] == [str(paths.saved.begun), str(paths.saved.whole)]
    assert words[-1] == "c1" and words[words.index("--image-path") + 1] == str(paths.saved.begun)


def test_what_ends_by_being_saved_is_suspended_whatever_else_is_known_of_it() -> None:
    plan = ContainerPlan("c", "u", "web", 1, [], ContainerProcess(["sh"]), 1.0, 1 << 26)
    record = ContainerRecord(plan, "runc", "this", 0.0, started=True)
    end = decide_end(record, exit_code=137, out_of_memory=True, host_boot_id="another", saved=True)
    assert (end.state, end.exit_code) == ("suspended", None)


def test_the_first_error_in_the_log_is_why(paths: ContainerPaths) -> None:
    log = paths.run / "dump.log"
    assert read_log(log) == ""
    log.write_text(
        "(00.26) Error (criu/util.c:642): exited, status=1\n(00.751657)      1: Error (criu/files.c:9): no such thing\n"
    )
    assert read_log(log) == "criu: no such thing"


def test_what_runs_by_now_isnt_saved_any_more_and_what_never_ran_is_as_saved_as_before(paths: ContainerPaths) -> None:
    paths.saved.whole.mkdir()
    begin_resuming(paths)
    assert not paths.saved.whole.exists()
    settle_resuming(paths, runs=False)
    assert paths.saved.whole.exists()
    begin_resuming(paths)
    settle_resuming(paths, runs=True)
    assert not paths.saved.whole.exists() and not paths.saved.resuming.exists()


def test_what_comes_must_be_a_saved_container(paths: ContainerPaths, tmp_path: Path) -> None:
    paths.saved.whole.mkdir()
    paths.record.write_text("{}")
    pack(paths)
    there = ContainerPaths(run=tmp_path / "run", state=tmp_path / "there")
    there.state.mkdir()
    paths.saved.carried.rename(there.saved.carried)
    with pytest.raises(DriverFailed, match="not a saved container"):
        unpack(there)
    there.saved.carried.write_bytes(b"no archive")
    with pytest.raises(DriverFailed, match="can't be unpacked"):
        unpack(there)
