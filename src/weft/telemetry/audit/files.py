"""The audit log's files: ``NUMBER.jsonl``, named by the first record in it; a line is a record. Reads, and mends a torn end.

The first record in a file has the hash of the last one in the file before, so the files are one chain.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from weft.contracts.durable_file import sync_folder, write_durably
from weft.trust.audit_chain import AuditVerdict, Break, ChainCheck, Link, read_link, read_record

SUFFIX = ".jsonl"


def name_file(sequence: int) -> str:
    """The name of the file that begins with record ``sequence``."""
    return f"{sequence:012d}{SUFFIX}"


def list_files(folder: Path) -> list[Path]:
    """The files, oldest first."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if path.stem.isdecimal())


def read_lines(path: Path) -> list[bytes]:
    """The complete lines of a file; none if retention has removed it meanwhile."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return data[: data.rfind(b"\n") + 1].splitlines()


def read_after(folder: Path, sequence: int) -> Iterator[bytes]:
    """The lines after record ``sequence``, oldest first."""
    files = list_files(folder)
    begin = max((n for n, path in enumerate(files) if int(path.stem) <= sequence + 1), default=0)
    for path in files[begin:]:
        lines = read_lines(path)
        yield from lines[bisect.bisect_right(lines, sequence, key=_number_of) :]


def read_newest(folder: Path) -> Iterator[bytes]:
    """All lines, newest first."""
    for path in reversed(list_files(folder)):
        yield from reversed(read_lines(path))


def find_before(folder: Path, at: str) -> int:
    """The number of a record that was written before ``at`` (as in records), with few others between; 0 if there may be none."""
    for path in reversed(list_files(folder)):
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError), path.open("rb") as file:
            if read_record(file.readline().rstrip(b"\n")).at < at:
                return int(path.stem)
    return 0


def find_last(folder: Path) -> Link | None:
    """The last record; what a crash left after it is put aside, into a file beside. Raises OSError."""
    for path in reversed(list_files(folder)):
        link, torn = _split(path.read_bytes())
        if torn:
            write_durably(path.with_name(f"{path.stem}.torn-{path.stat().st_size - len(torn)}"), torn)
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size - len(torn))
        if link is not None:
            return link
        path.unlink()
        sync_folder(folder)
    return None


def list_torn(folder: Path) -> set[Path]:
    """The files with what crashes left."""
    return set(folder.glob("*.torn-*"))


def _number_of(line: bytes) -> int:
    """0 for a line that is no record."""
    link = read_link(line)
    return 0 if link is None else link.sequence


def _split(data: bytes) -> tuple[Link | None, bytes]:
    """The last record in ``data``, and what is after it."""
    end = len(data)
    while end:
        begin = data.rfind(b"\n", 0, end - 1) + 1
        line = data[begin:end]
        link = read_link(line[:-1]) if line.endswith(b"\n") else None
        if link is not None:
            return link, data[end:]
        end = begin
    return None, data


def verify_files(folder: Path, head: Link | None) -> AuditVerdict:
    """Follow the whole chain. ``head``: the newest record that the log has written, which must be there; None: none yet."""
    check = ChainCheck()
    for path in list_files(folder):
        for line in read_lines(path):
            if not check.take(line):
                return check.verdict
            if head is not None and check.verdict.last == head.sequence and check.verdict.hash != head.hash:
                problem = f"record {head.sequence} is not the one that the server wrote"
                check.verdict.broken = Break(sequence=head.sequence, problem=problem)
                return check.verdict
    verdict = check.verdict
    if head is not None and verdict.last < head.sequence:
        number = verdict.last + 1
        verdict.broken = Break(
            sequence=number, problem=f"record {number} is missing: the server has written {head.sequence}"
        )
    return verdict
