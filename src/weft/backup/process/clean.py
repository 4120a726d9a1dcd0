"""Takes a machine's identity off a copy of its disk, for an image that others are made from.

A guest wrote the disk, so nothing mounts it: what is to go is found by a process without rights, and e2fsprogs' debugfs and e2fsck
take it away as nobody, without a network, within bounds. Afterwards it is searched for once more. Free blocks and the journal
become holes: nothing of what went can be read. Blocks; the process must have one thread.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import subprocess
import tempfile
from collections.abc import Mapping
from functools import partial

import msgspec

from weft.backup.files.browse import SYSTEM, DiskQuestion
from weft.backup.files.confined import Confined
from weft.backup.files.identity import CANT_CLEAN, REMEDY, Trace
from weft.backup.files.partitions import Partition
from weft.contracts.clock import SystemClock
from weft.contracts.confinement.system_calls import NETWORK, PEERS, refuse_calls
from weft.contracts.confinement.unprivileged import NOBODY, drop_privileges, leave_network
from weft.contracts.disk_program import NO_SPACE, bound_seconds, find_trouble
from weft.objects.errors import DriverFailed, WeftError

SECONDS = 1800.0  # at most, for all that is done to one disk
MOST_ANSWER_BYTES = 64 << 20
MOST_GROWTH_BYTES = 256 << 20  # of one disk: e2fsck copies blocks that several files claim
MOST_PIECES = 1000  # of a journal
_LOOK_SECONDS = 0.2
_PIPE_BYTES = 64 << 10
_ROUNDS = 3  # until a check finds nothing: only then e2fsck has made holes of all free blocks
_MENDED = 3  # e2fsck: the highest code of a file system that is sound now
_BLOCK = 4096
_SWAP_HEAD = 4096  # of a swap area: its label and size
_LIMITS = {
    resource.RLIMIT_AS: 2 << 30,
    resource.RLIMIT_CPU: 1800,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NPROC: 1024,  # of all that is nobody's; e2fsck has threads
}


class _Disk:
    """The copy, and how much time and space all that is done to it may take, however many partitions it has."""

    def __init__(self, place: int) -> None:
        self.place = place  # its descriptor
        self.size = os.fstat(place).st_size
        self.trouble: str | None = None  # of the node, as the last program said
        self._clock = SystemClock()
        self._seconds = bound_seconds(self._count_bytes(), SECONDS)
        self._until = self._clock.elapsed() + self._seconds
        self._most = self._count_bytes() + MOST_GROWTH_BYTES

    def require_bounds(self, doing: str) -> None:
        """Raises DriverFailed."""
        if self._clock.elapsed() > self._until:
            raise _failed(f"{doing} did not end within {self._seconds:g} s")
        if self._count_bytes() > self._most:
            raise _failed("its file system is damaged, and would need much more space if it were mended")

    def _count_bytes(self) -> int:
        return os.fstat(self.place).st_blocks * 512


def clean(path: str, hostname: str = "") -> list[str]:
    """Clean the disk at ``path``, which is raw and for nobody else; ``hostname`` is the machine's: a file with another name stays.
    Returns which rules found something. Raises DriverFailed (``cantClean``), OSError."""
    with open(path, "r+b", buffering=0) as file:
        disk = _Disk(file.fileno())
        if os.geteuid() == 0:
            os.fchown(disk.place, NOBODY, NOBODY)  # its programs, which open it again, are nobody's
        _punch(disk, disk.size, _BLOCK)  # where that can't be done, e2fsck would leave what it frees, and say nothing
        parts = msgspec.json.decode(_ask(disk, DiskQuestion(act="parts", size=disk.size))[1], type=list[Partition])
        what, systems = dict[str, None](), 0
        for part in parts:
            if part.holds == "swap":
                _punch(disk, part.start + _SWAP_HEAD, part.size - _SWAP_HEAD)
            if part.holds == "ext4":
                is_system, found = _clean_part(disk, part, hostname)
                systems += is_system
                what |= found
        if not systems:
            raise DriverFailed(
                "its identity can't be removed: no system is on its disk", reason=CANT_CLEAN, hint=REMEDY
            )
        os.fsync(disk.place)
    return list(what)


def _clean_part(disk: _Disk, part: Partition, hostname: str) -> tuple[bool, dict[str, None]]:
    place = f"/proc/self/fd/{disk.place}" + (f"?offset={part.start}" if part.start else "")
    _check(disk, place)  # what its journal has is written
    question = DiskQuestion(act="identity", partition=part.number, size=disk.size, hostname=hostname)
    is_system, traces = _find(disk, question)
    if traces:
        commands = [line for trace in traces for line in _write_commands(trace)]
        _run(disk, ["debugfs", "-w", "-f", "-", place], "\n".join(commands))
        _check(disk, place)  # names without an inode, and blocks without an owner, go
        if left := _find(disk, question)[1]:
            raise _failed(f"{left[0].what} stayed")
    _clear_journal(disk, part)
    if not any(_check(disk, place, "-E", "discard") == 0 for _ in range(_ROUNDS)):
        raise _failed("its file system is damaged, and can't be mended")
    return is_system, dict.fromkeys(trace.what for trace in traces)


def _clear_journal(disk: _Disk, part: Partition) -> None:
    """Clear the journal of a file system that has been replayed: it may have the content of files, of any that were written with
    data=journal."""
    question = DiskQuestion(act="journal", partition=part.number, size=disk.size)
    pieces = msgspec.json.decode(_ask(disk, question)[1], type=list[tuple[int, int]])
    if len(pieces) > MOST_PIECES:
        raise _failed(f"its journal lies in more than {MOST_PIECES} pieces")
    for start, length in pieces:
        _punch(disk, part.start + start, min(length, part.size - start))


def _write_commands(trace: Trace) -> list[str]:
    """Write the commands by inode number, never by name: names are the guest's."""
    if trace.act == "remove":
        return [f"clri <{trace.inode}>"]
    return [f"punch <{trace.inode}> 0", f"sif <{trace.inode}> size 0"]


def _find(disk: _Disk, question: DiskQuestion) -> tuple[bool, list[Trace]]:
    """Whether it is a system's root, and what of it is to go."""
    said, lines = _ask(disk, question)
    return said == SYSTEM, [msgspec.json.decode(line, type=Trace) for line in lines.splitlines()]


def _ask(disk: _Disk, question: DiskQuestion) -> tuple[str, bytes]:
    """Ask a process without rights about the disk. Returns what it reports, and its answer. Raises DriverFailed."""
    disk.require_bounds("the search")
    confined, pieces, most = Confined(), bytearray(), MOST_ANSWER_BYTES

    def take(piece: bytes) -> None:
        pieces.extend(piece)
        if len(pieces) > most:
            raise _failed("it has too many files to clean")

    try:
        return confined.run(question, lambda offset, length: os.pread(disk.place, length, offset), take), bytes(pieces)
    except WeftError as problem:
        raise problem if problem.token == CANT_CLEAN else _failed(problem.message) from None
    finally:
        confined.end()


def _check(disk: _Disk, place: str, *options: str) -> int:
    """Mend it, whatever is wrong with it; 0: nothing was. Raises DriverFailed."""
    code = _run(disk, ["e2fsck", "-f", "-y", *options, place])
    if not 0 <= code <= _MENDED:
        if disk.trouble is not None:
            reason = "noSpace" if disk.trouble == NO_SPACE else None
            raise DriverFailed("its file system can't be checked", reason=reason, hint=disk.trouble)
        raise _failed("its file system is damaged, or needs too much time or memory")
    return code


def _run(disk: _Disk, argv: list[str], commands: str = "") -> int:
    """Its exit code. The program has one file: the disk. Raises DriverFailed."""
    limits = {**_LIMITS, resource.RLIMIT_FSIZE: disk.size}
    with tempfile.TemporaryFile() as given:
        given.write(commands.encode())
        given.seek(0)
        try:
            process = subprocess.Popen(
                argv,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(disk.place,),
                cwd="/",
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
                preexec_fn=partial(_give_up_rights, os.getpid(), limits),
            )
        except FileNotFoundError as problem:
            raise DriverFailed(f"{argv[0]} is not installed on the node", hint="apt-get install e2fsprogs") from problem
    with process:
        try:
            return _await(process, argv[0], disk)
        finally:
            process.kill()


def _await(process: subprocess.Popen[bytes], name: str, disk: _Disk) -> int:
    """Its exit code; of what it says only the node's trouble is kept. Raises DriverFailed once it takes too much."""
    assert process.stdout is not None
    said, disk.trouble, speaks = "", None, True
    while speaks or process.returncode is None:
        if speaks and select.select([process.stdout], [], [], _LOOK_SECONDS)[0]:
            piece = os.read(process.stdout.fileno(), _PIPE_BYTES)
            said, speaks = said[-100:] + piece.decode(errors="replace"), bool(piece)
            disk.trouble = disk.trouble or find_trouble(said)
        elif not speaks:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_SECONDS)
        disk.require_bounds(name)
    return process.returncode


def _give_up_rights(parent: int, limits: Mapping[int, int]) -> None:
    leave_network()
    drop_privileges(parent, limits)
    refuse_calls(NETWORK, PEERS)


def _punch(disk: _Disk, start: int, length: int) -> None:
    """Make these bytes a hole, which reads as zeroes."""
    if length > 0:
        where = ["--offset", str(start), "--length", str(length)]
        argv = ["fallocate", "--punch-hole", *where, f"/proc/self/fd/{disk.place}"]
        if subprocess.run(argv, pass_fds=(disk.place,), check=False, stderr=subprocess.DEVNULL).returncode:
            raise _failed("the node's own file system can't make holes in a file, so what is removed could be read")


def _failed(why: str) -> DriverFailed:
    return DriverFailed(f"its identity can't be removed: {why}", reason=CANT_CLEAN, hint=REMEDY)
