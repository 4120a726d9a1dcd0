"""The audit log's files: chained over files, mended after a crash, forgotten whole, refused in time on a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from weft.contracts.clock import SystemClock
from weft.objects.errors import InUse, InvalidInput, Unavailable
from weft.telemetry.audit.files import list_files, list_torn, read_after, read_newest, verify_files
from weft.telemetry.audit.log import MOST_GATHERED, AuditLog
from weft.telemetry.audit.syslog import MOST_BYTES, SyslogSender
from weft.telemetry.audit.target import read_target
from weft.trust.audit_chain import AuditActor, AuditObject, AuditRecord, read_record

DAY = 86400.0


class SetClock:
    def __init__(self) -> None:
        self.at = 1_700_000_000.25

    def now(self) -> float:
        return self.at

    def elapsed(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += seconds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def log(folder: Path, clock: SetClock) -> Iterator[AuditLog]:
    log = AuditLog(folder, clock)
    log.open()
    yield log
    log.close()


def make_record(name: str = "web", **fields: str) -> AuditRecord:
    actor = AuditActor(kind="person", name="ann")
    return AuditRecord(actor=actor, outcome="allowed", objects=[AuditObject(kind="vm", name=name)], **fields)  # type: ignore[arg-type]


def read(folder: Path, after: int = 0) -> list[AuditRecord]:
    return [read_record(line) for line in read_after(folder, after)]


def assert_whole(folder: Path, records: int, first: int = 1) -> None:
    verdict = verify_files(folder, None)
    assert verdict.broken is None
    assert (verdict.first, verdict.records) == (first, records)


def test_a_record_gets_its_number_and_time_and_is_in_the_kernel_at_once(log: AuditLog, folder: Path) -> None:
    log.append(make_record())
    start, first = read(folder)
    assert (start.verb, start.actor.kind, start.previous) == ("start", "server", "")
    assert (first.sequence, first.at, first.previous) == (2, "2023-11-14T22:13:20.250000Z", start.hash)
    assert log.head is not None and log.head.hash == first.hash
    assert folder.stat().st_mode & 0o777 == 0o700 and list_files(folder)[0].stat().st_mode & 0o777 == 0o600


def test_the_chain_goes_on_over_files_days_and_restarts(folder: Path, clock: SetClock) -> None:
    log = AuditLog(folder, clock, file_bytes=2000)
    log.open()
    for n in range(20):
        log.append(make_record(f"vm-{n}"))
    log.close()
    files = list_files(folder)
    assert len(files) > 3 and all(path.stat().st_size <= 2000 for path in files)
    assert [read_record(path.read_bytes().splitlines()[0]).sequence for path in files] == [int(p.stem) for p in files]
    clock.at += DAY
    log = AuditLog(folder, clock, file_bytes=2000)
    log.open()
    assert len(list_files(folder)) == len(files) + 1  # another day
    log.append(make_record())
    log.close()
    assert [record.verb for record in read(folder)].count("stop") == 2
    assert_whole(folder, 25)
    assert [record.sequence for record in read(folder, after=21)] == [22, 23, 24, 25]
    assert [read_record(line).sequence for line in read_newest(folder)] == list(range(25, 0, -1))


@pytest.mark.parametrize("torn", [b'{"sequence":3,"at":"2023', b"\0" * 300, b'{"sequence":3}\n\0\0', b"\n"])
def test_what_a_crash_left_at_the_end_is_put_aside_and_the_chain_goes_on(
    folder: Path, clock: SetClock, torn: bytes
) -> None:
    log = AuditLog(folder, clock)
    log.open()
    log.append(make_record())
    log.close()
    (file,) = list_files(folder)
    with file.open("ab") as out:
        out.write(torn)
    log = AuditLog(folder, clock)
    log.open()
    log.append(make_record("after"))
    log.close()
    (aside,) = list_torn(folder)
    assert aside.read_bytes() == torn
    assert_whole(folder, 6)
    assert "an unfinished record was put aside in" in read(folder)[3].message and aside.name in read(folder)[3].message


def test_a_file_with_nothing_but_an_unfinished_record_leads_back_to_the_one_before(
    folder: Path, clock: SetClock
) -> None:
    log = AuditLog(folder, clock)
    log.open()
    log.close()
    (folder / "000000000003.jsonl").write_bytes(b'{"seq')
    log = AuditLog(folder, clock)
    log.open()
    log.close()
    assert_whole(folder, 4)
    assert [path.read_bytes() for path in list_torn(folder)] == [b'{"seq']


def test_a_record_that_was_changed_in_the_middle_is_not_cut_off_but_found(folder: Path, clock: SetClock) -> None:
    log = AuditLog(folder, clock)
    log.open()
    for n in range(5):
        log.append(make_record(f"vm-{n}"))
    log.close()
    (file,) = list_files(folder)
    file.write_bytes(file.read_bytes().replace(b"vm-2", b"vm-9"))
    log = AuditLog(folder, clock)
    log.open()
    verdict = log.verify()
    log.close()
    assert verdict.broken is not None and verdict.broken.sequence == 4
    assert list_torn(folder) == set()


def test_newest_records_that_are_gone_or_written_by_another_are_missed_by_the_log_that_wrote_them(
    log: AuditLog, folder: Path
) -> None:
    log.append(make_record())
    assert log.verify().broken is None
    (file,) = list_files(folder)
    whole = file.read_bytes()
    file.write_bytes(whole.splitlines(keepends=True)[0])
    broken = log.verify().broken
    assert broken is not None and (broken.sequence, "is missing" in broken.problem) == (2, True)
    file.write_bytes(whole)


def test_old_files_go_whole_and_the_chain_says_where_it_begins(folder: Path, clock: SetClock) -> None:
    log = AuditLog(folder, clock, file_bytes=2000, keep_seconds=30 * DAY)
    log.open()
    for n in range(20):
        log.append(make_record(f"vm-{n}"))
    files = list_files(folder)
    for path in files[:2]:
        os.utime(path, (0, clock.at - 31 * DAY))
    for path in files[2:]:
        os.utime(path, (0, clock.at))
    log.forget_old()
    log.close()
    assert list_files(folder) == files[2:]
    begins = int(files[2].stem)
    assert_whole(folder, 23 - begins + 1, begins)
    assert [r.message for r in read(folder) if r.verb == "forget"] == [
        f"records before {begins} are older or more than what is kept, and were removed"
    ]


def test_the_oldest_go_when_all_are_too_large_but_never_the_newest_file(folder: Path, clock: SetClock) -> None:
    log = AuditLog(folder, clock, file_bytes=2000, keep_bytes=5000)
    log.open()
    for n in range(40):
        log.append(make_record(f"vm-{n}"))
    log.forget_old()
    log.close()
    assert sum(path.stat().st_size for path in list_files(folder)) <= 7000
    assert verify_files(folder, None).broken is None


def test_two_servers_never_write_one_log(log: AuditLog, folder: Path, clock: SetClock) -> None:
    with pytest.raises(InUse, match="another server writes"):
        AuditLog(folder, clock).open()


FULL = """
import sys
from pathlib import Path
from weft.contracts.clock import SystemClock
from weft.objects.errors import WeftError
from weft.telemetry.audit.log import AuditLog
from weft.trust.audit_chain import AuditActor, AuditRecord
folder = Path(sys.argv[1])
log = AuditLog(folder, SystemClock())
log.open()
def append():
    log.append(AuditRecord(actor=AuditActor(kind="person", name="a" * 500), outcome="allowed"))
append()
ballast = (folder / "ballast").open("wb", buffering=0)
try:
    while True:
        ballast.write(b"x" * 4096)
except OSError:
    pass
while (folder / "reserve").exists():
    append()  # the last space, then what was reserved
for _ in range(100):
    append()
try:
    log.require_space()
    print("room")
except WeftError as problem:
    print(problem.token, problem.message)
ballast.close()
(folder / "ballast").unlink()
log.require_space()
append()
assert log.verify().broken is None
log.close()
"""


@pytest.mark.host
def test_on_a_full_disk_requests_in_hand_are_recorded_and_later_ones_refused_before_they_do_anything(
    tmp_path: Path,
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f"mount -t tmpfs -o size=4m tmpfs {disk} && exec {sys.executable} -c '{FULL}' {disk}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout == f"storeFull the disk of the audit log {disk} is full: nothing was changed\n"


def receive_into(path: Path, count: int, into: list[bytes], kind: int = socket.AF_UNIX) -> threading.Thread:
    sock = socket.socket(kind, socket.SOCK_DGRAM)
    sock.bind(str(path))
    sock.settimeout(10)

    def run() -> None:
        with sock:
            into.extend(sock.recv(65536) for _ in range(count))

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_records_go_to_syslog_by_rfc_5424_and_long_ones_without_their_objects(folder: Path, tmp_path: Path) -> None:
    got: list[bytes] = []
    syslog = receive_into(tmp_path / "log", 3, got)
    sender = SyslogSender(str(tmp_path / "log"), SystemClock())
    log = AuditLog(folder, SystemClock(), on_line=sender.send)
    log.open()
    log.append(make_record())
    long = make_record()
    long.objects = long.objects * 1000
    long.outcome = "refused"
    log.append(long)
    syslog.join(10)
    log.close()
    sender.close()
    _, second, third = read(folder)[:3]
    header = f"<86>1 {second.at} {socket.gethostname()} weft {os.getpid()} audit - ".encode()  # 86: authpriv, info
    assert got[1] == header + next(read_after(folder, 1))
    assert got[2].startswith(b"<84>1 ") and len(got[2]) < MOST_BYTES  # 84: authpriv, warning
    assert third.hash.encode() in got[2] and b'"objects_left_out":1000' in got[2]


def test_a_syslog_that_is_not_there_or_never_reads_holds_nobody_up(folder: Path, tmp_path: Path) -> None:
    for place in ("gone", "deaf"):
        deaf = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        if place == "deaf":
            deaf.bind(str(tmp_path / "deaf"))
        sender = SyslogSender(str(tmp_path / place), SystemClock())
        log = AuditLog(folder, SystemClock(), on_line=sender.send)
        log.open()
        for _ in range(1000):
            log.append(make_record())
        log.close()
        sender.close(patience_seconds=0.1)
        deaf.close()
    assert_whole(folder, 2004)


def test_a_syslog_that_comes_back_gets_what_is_written_then(folder: Path, tmp_path: Path) -> None:
    sender = SyslogSender(str(tmp_path / "log"), SystemClock())
    log = AuditLog(folder, SystemClock(), on_line=sender.send)
    log.open()
    while not sender.unsent:
        threading.Event().wait(0.01)
    got: list[bytes] = []
    syslog = receive_into(tmp_path / "log", 1, got)
    log.append(make_record("seen"))
    syslog.join(10)
    log.close()
    sender.close()
    assert b'"seen"' in got[0]


@pytest.mark.parametrize("text", ["log", "host", "host:", "host:0", "host:70000", ":514"])
def test_a_syslog_that_can_t_be_one_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not a valid syslog address"):
        read_target(text)
    assert read_target("[::1]:514") == ("::1", 514)


def test_a_record_that_can_t_be_written_is_missed_aloud(log: AuditLog, folder: Path) -> None:
    log.append(make_record())
    size = list_files(folder)[0].stat().st_size
    with no_more_bytes_than(size + 100), pytest.raises(Exception, match="the request may have been carried out"):
        log.append(make_record("lost"))
    assert list_files(folder)[0].stat().st_size == size  # nothing half-written
    log.require_space()
    log.append(make_record("next"))
    lost = read(folder)[2]
    assert (lost.verb, lost.outcome, lost.message) == ("lost", "failed", "1 records could not be written")
    assert log.verify().broken is None


@contextlib.contextmanager
def no_more_bytes_than(size: int) -> Iterator[None]:
    """Beyond a process's largest file, a write fails as on a broken disk."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_the_records_of_a_turn_are_in_the_kernel_when_their_futures_are_done(log: AuditLog, folder: Path) -> None:
    async def write() -> None:
        one, two = log.gather([make_record("a"), make_record("b")]), log.gather([make_record("c")])
        assert log.head is not None and log.head.sequence == 1  # the turn isn't over
        two.cancel()  # its request gets no answer: the record is written all the same
        await one
        assert [record.objects[0].name for record in read(folder)[1:]] == ["a", "b", "c"]
        await log.gather([make_record("d")])

    asyncio.run(write())
    log.append(make_record("e"))
    assert [record.sequence for record in read(folder)] == [1, 2, 3, 4, 5, 6]
    assert_whole(folder, 6)


def test_a_turn_with_very_many_records_is_written_in_parts(log: AuditLog, folder: Path) -> None:
    async def write() -> None:
        written = [log.gather([make_record(f"n{number}")]) for number in range(2 * MOST_GATHERED + 1)]
        assert log.head is not None and log.head.sequence == 1 + 2 * MOST_GATHERED
        await asyncio.gather(*written)

    asyncio.run(write())
    assert_whole(folder, 2 + 2 * MOST_GATHERED)


def test_if_a_turn_s_records_can_t_be_written_all_of_its_requests_are_told_and_nothing_of_them_stays(
    log: AuditLog, folder: Path
) -> None:
    log.append(make_record())
    size = list_files(folder)[0].stat().st_size

    async def write() -> list[BaseException | None]:
        written = [log.gather([make_record(name)]) for name in ("a", "b", "c")]
        return await asyncio.gather(*written, return_exceptions=True)

    with no_more_bytes_than(size + 500):  # the first one would fit
        found = asyncio.run(write())
    assert [type(problem) for problem in found] == [Unavailable] * 3
    assert list_files(folder)[0].stat().st_size == size
    log.require_space()
    assert read(folder)[2].message == "3 records could not be written"
    asyncio.run(_gather_one(log))
    assert_whole(folder, 4)


async def _gather_one(log: AuditLog) -> None:
    await log.gather([make_record("next")])
