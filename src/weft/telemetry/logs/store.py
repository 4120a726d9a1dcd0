"""The lines of everything that runs on a node: one journal of the newest, and segments of those before.

Each line has a number in its source, which grows by one. A source's first number is the time (microseconds), so that one of which
nothing is known any more goes on above all that it had.
"""

from __future__ import annotations

import logging
import threading
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.objects.errors import InvalidInput
from weft.objects.identity import short_id
from weft.telemetry.logs.journal import Cursor, Journal, Record, begin_journal, read_journal
from weft.telemetry.logs.segment import Head, Lines, LinesPart, encode_segment, read_head, read_parts, write_file
from weft.telemetry.logs.share import KeptSegments, find_excess, plan_share

log = logging.getLogger("weft.agent")
SEGMENT_BYTES = 4 << 20  # of times and text
MOST_BYTES = 1 << 30
MOST_AGE_SECONDS = 14 * 86400.0
LEAST_BYTES = 4 * SEGMENT_BYTES  # with less, a busy node forgets what it has just read
SLACK = 32  # so large a part of all goes at once, so that few segments are written anew
_NO_SPACE = (28, 122)  # ENOSPC, EDQUOT


class Segment(msgspec.Struct, frozen=True):
    path: Path
    head: Head
    size: int


class LogStore:
    """Store in ``folder``, at most ``most_bytes`` of lines of the last ``most_age`` seconds: when that is too much, sources that
    have more than the others lose their oldest. Thread-safe."""

    def __init__(
        self, folder: Path, clock: Clock, most_bytes: int = MOST_BYTES, most_age: float = MOST_AGE_SECONDS
    ) -> None:
        self._clock = clock
        self._folder, self._carried_folder = folder, folder / "carried"
        self._most_bytes, self._most_age = most_bytes, most_age
        self._lock = threading.Lock()
        self._segments: list[Segment] = []  # oldest first
        self._carried: dict[str, Segment] = {}  # from other nodes, by uid
        self._number = 0  # of the journal: that of its segment
        self._journal: Journal | None = None
        self._new: list[Record] = []  # what the journal has, with lines
        self._new_bytes = 0
        self._next: dict[str, int] = {}
        self._cursors: dict[str, Cursor] = {}
        self._names: dict[str, str] = {}
        self._used: dict[str, int] = {}  # by uid: bytes in segments
        self._dropped: dict[str, int] = {}  # by uid: lines, since ``take_dropped``
        self._sealed = False  # the journal's lines are in a segment, and the next journal isn't begun yet
        self.dropped = 0  # lines, because the disk was full

    # --- Life ---------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Find what is there; what the agent was doing when it died is undone or finished. Raises OSError."""
        for folder in (self._folder, self._carried_folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in folder.glob("*.new"):
                left.unlink(missing_ok=True)
        self._segments = self._leave_out_doubled(list(self._find_segments(self._folder)))
        for found in self._find_segments(self._carried_folder):
            self._carried.update({part.uid: found for part in found.head.parts})
        self._used = {}
        for segment in self._segments:
            self._count(segment.head, 1)
        for segment in (*self._segments, *self._carried.values()):
            for part in segment.head.parts:
                self._next[part.uid] = max(self._next.get(part.uid, 0), part.first + part.count)
        journals = sorted(self._folder.glob("*.journal"))
        sealed = int(self._segments[-1].path.stem) if self._segments else 0
        for before in journals[:-1]:  # the one after it was begun once its segment was written
            before.unlink(missing_ok=True)
        self._number = int(journals[-1].stem) if journals else sealed + 1
        path = self._journal_path(self._number)
        for record in read_journal(path) if journals else ():
            self._take(record)
        self._journal = Journal(path)
        if self._number <= sealed:
            self._new, self._new_bytes, self._sealed = [], 0, True

    def close(self) -> None:
        with self._lock:
            if self._journal is not None:
                self._journal.close()
                self._journal = None

    def keep(self, uids: Iterable[str] | None = None) -> None:
        """Now and then: make sure that what was appended survives a power failure, and drop what is too old or too much. ``uids``:
        the workloads that are here; of others it is forgotten how far they were read. Raises OSError."""
        with self._lock:
            if self._journal is not None:
                self._journal.sync()
            oldest = int((self._clock.now() - self._most_age) * 1e6)
            while self._segments and self._segments[0].head.until < oldest:
                self._drop_oldest(too_old=True)
            self._drop_too_much()
            if uids is not None:
                here = set(uids)
                self._cursors = {uid: cursor for uid, cursor in self._cursors.items() if uid in here}
                self._drop_carried(here, oldest)

    # --- Writing ------------------------------------------------------------------------------------------------------

    def append(self, uid: str, times: array[int], text: bytes, cursor: Cursor | None = None, what: str = "") -> None:
        """Lines of a source, and how far it is read with them: both or, with an OSError, neither. ``times`` in unix microseconds,
        one for each newline in ``text``; ``what``: what the source is called. A full disk costs the oldest lines."""
        with self._lock:
            called = what if what != self._names.get(uid) else ""
            record = Record(uid, self._number_next(uid), times.tobytes(), text, cursor, called)
            self._append(record)
            if self._new_bytes >= SEGMENT_BYTES:
                self._with_space(self._seal)
                self._begin_next_journal()
                self._drop_too_much()

    def set_next(self, uid: str, number: int, cursor: Cursor) -> None:
        """A source goes on here that was read elsewhere before. Raises OSError."""
        with self._lock:
            self._append(Record(uid, max(number, self._next.get(uid, 0)), b"", b"", cursor))

    def put_carried(self, uid: str, data: bytes) -> None:
        """Lines from another node, as a segment; they replace those that came before. Raises InvalidInput, OSError."""
        path = self._carried_folder / f"{short_id(uid)}.segment"
        with self._lock:
            self._with_space(lambda: write_file(path, data))
            self._carried[uid] = Segment(path, read_head(path), len(data))

    # --- Reading ------------------------------------------------------------------------------------------------------

    def cursor(self, uid: str) -> Cursor | None:
        """How far a source was read; None for an unknown one."""
        return self._cursors.get(uid)

    def next_number(self, uid: str) -> int:
        """Number of the next line of a source; 0: it has none."""
        return self._next.get(uid, 0)

    def standing(self, uid: str) -> tuple[int, Cursor | None]:
        """The number of a source's next line, and how far the source was read when that was its number."""
        with self._lock:
            return self._next.get(uid, 0), self._cursors.get(uid)

    def find(self, uid: str) -> tuple[Segment | None, list[Segment], list[Lines]]:
        """The lines of a source from another node, the segments that have lines of it, oldest first, and its newest lines."""
        with self._lock:
            own = [one for one in self._segments if any(part.uid == uid for part in one.head.parts)]
            return self._carried.get(uid), own, [record.lines() for record in self._new if record.uid == uid]

    def list_uids(self) -> list[str]:
        """All sources that have, or had, lines."""
        with self._lock:
            return list(self._next)

    def sources(self) -> dict[str, str]:
        """Names of the sources that have one, by uid."""
        with self._lock:
            return dict(self._names)

    def take_dropped(self) -> dict[str, int]:
        """How many lines of which sources went since the last call because there were too many, or because the disk was full."""
        with self._lock:
            dropped, self._dropped = self._dropped, {}
            return dropped

    @property
    def used_bytes(self) -> int:
        here = sum(segment.size for segment in (*self._segments, *self._carried.values()))
        return here + (self._journal.size if self._journal is not None else 0)

    @property
    def segments(self) -> Sequence[Segment]:
        return tuple(self._segments)

    # ------------------------------------------------------------------------------------------------------------------

    def _number_next(self, uid: str) -> int:
        return self._next.get(uid) or int(self._clock.now() * 1e6)

    def _append(self, record: Record) -> None:
        if self._sealed:
            self._begin_next_journal()
        journal = self._journal
        if journal is None:
            raise OSError("the store of logs is closed")
        self._with_space(lambda: journal.append(record))
        self._take(record)

    def _take(self, record: Record) -> None:
        self._next[record.uid] = max(record.next, self._next.get(record.uid, 0))
        if record.cursor is not None:
            self._cursors[record.uid] = record.cursor
        if record.what:
            self._names[record.uid] = record.what
        if record.times:
            self._new.append(record)
            self._new_bytes += len(record.times) + len(record.text)

    def _seal(self) -> None:
        """Make a segment of the journal. Its lines are twice on the disk for a moment, never missing."""
        path = self._folder / f"{self._number:010d}.segment"
        head, data = encode_segment(record.lines() for record in self._new)
        write_file(path, data)
        self._segments.append(Segment(path, head, len(data)))
        self._count(head, 1)
        self._new, self._new_bytes, self._sealed = [], 0, True

    def _begin_next_journal(self) -> None:
        before, number = self._journal, self._number + 1
        there = self._used.keys() | self._carried.keys() | self._cursors.keys()
        self._names = {uid: what for uid, what in self._names.items() if uid in there}
        known = [
            Record(uid, self._next.get(uid, 0), b"", b"", self._cursors.get(uid), self._names.get(uid, ""))
            for uid in self._cursors.keys() | self._names.keys()
        ]
        self._with_space(lambda: begin_journal(self._journal_path(number), known))
        self._journal, self._number, self._sealed = Journal(self._journal_path(number)), number, False
        if before is not None:
            before.path.unlink(missing_ok=True)
            before.close()

    def _drop_too_much(self) -> None:
        used = self.used_bytes
        if not self._segments or used <= self._most_bytes:
            return
        excess = find_excess(self._used, used - self._most_bytes + self._most_bytes // SLACK)
        before = self._segments
        try:
            for group in plan_share([segment.head for segment in before], excess, SEGMENT_BYTES):
                if group.changed:
                    gone = {before[place].path for place in group.places}
                    written = self._write_anew([before[place] for place in group.places], group)
                    left = [one for one in self._segments if one.path not in gone]
                    self._segments = sorted([*left, *written], key=lambda one: one.path)
        except OSError:  # a full disk: then whole segments go
            while self._segments and self.used_bytes > self._most_bytes:
                self._drop_oldest()

    def _drop_carried(self, here: set[str], oldest: int) -> None:
        """Drop what is too old. What came here with workloads that aren't here any more stays as long as other lines, in a fourth
        of the space."""
        left = sorted((one.head.until, one.size, uid) for uid, one in self._carried.items() if uid not in here)
        size = sum(size for _, size, _ in left)
        for until, own, uid in left:
            if until < oldest or size > self._most_bytes // 4:
                size -= own
                gone = self._carried.pop(uid)
                gone.path.unlink(missing_ok=True)
                if until >= oldest:
                    self._note_dropped(gone.head.parts)

    def _write_anew(self, segments: Sequence[Segment], group: KeptSegments) -> list[Segment]:
        """Write what is kept of them, under the name of the newest, before the others go: a crash between the two is seen by
        ``_leave_out_doubled``. Raises OSError."""
        kept: list[Lines] = []
        for segment, parts in zip(segments, group.parts, strict=True):
            try:
                kept += read_parts(segment.path, parts) if parts else []
            except InvalidInput:  # damaged: the rest is kept
                continue
        written = []
        if kept:
            head, data = encode_segment(kept)
            write_file(segments[-1].path, data)
            self._count(head, 1)
            written.append(Segment(segments[-1].path, head, len(data)))
        for segment, parts in zip(segments, group.parts, strict=True):
            self._count(segment.head, -1)
            stays = set(parts)
            self._note_dropped(part for part in segment.head.parts if part not in stays)
            if not written or segment.path != written[0].path:
                segment.path.unlink(missing_ok=True)
        return written

    def _count(self, head: Head, sign: int) -> None:
        for part in head.parts:
            used = self._used.get(part.uid, 0) + sign * part.frame_bytes
            if used > 0:
                self._used[part.uid] = used
            else:
                self._used.pop(part.uid, None)

    def _note_dropped(self, parts: Iterable[LinesPart]) -> None:
        for part in parts:
            self._dropped[part.uid] = self._dropped.get(part.uid, 0) + part.count

    def _leave_out_doubled(self, segments: list[Segment]) -> list[Segment]:
        """Leave out those whose lines are in a later one, too: they were about to go. A source's numbers only grow."""
        lowest: dict[str, int] = {}
        kept = []
        for segment in reversed(segments):
            if any(
                part.first + part.count > lowest.get(part.uid, part.first + part.count) for part in segment.head.parts
            ):
                segment.path.unlink(missing_ok=True)
                continue
            kept.append(segment)
            for part in segment.head.parts:
                lowest[part.uid] = min(part.first, lowest.get(part.uid, part.first))
        return kept[::-1]

    def _with_space(self, write: Callable[[], None]) -> None:
        """Do it; on a full disk, drop the oldest lines until it can be done. Raises OSError if there are none left."""
        dropped = 0
        try:
            while True:
                try:
                    write()
                    return
                except OSError as problem:
                    if problem.errno not in _NO_SPACE or not self._segments:
                        raise
                    dropped += self._drop_oldest()
        finally:
            if dropped:
                self.dropped += dropped
                log.warning("logs: the disk is full: the oldest %d lines of this node were dropped", dropped)

    def _drop_oldest(self, *, too_old: bool = False) -> int:
        """Returns how many lines are gone. On a full disk, where nothing can be written anew, the oldest segment goes that is
        mostly of the source that has the most."""
        place = 0
        if not too_old and self._used:
            largest = max(self._used, key=lambda uid: self._used[uid])
            mostly = (
                place
                for place, segment in enumerate(self._segments)
                if 2 * sum(part.frame_bytes for part in segment.head.parts if part.uid == largest) > segment.size
            )
            place = next(mostly, 0)
        gone = self._segments.pop(place)
        gone.path.unlink(missing_ok=True)
        self._count(gone.head, -1)
        if not too_old:
            self._note_dropped(gone.head.parts)
        return gone.head.lines

    def _find_segments(self, folder: Path) -> Iterable[Segment]:
        for path in sorted(folder.glob("*.segment")):
            try:
                yield Segment(path, read_head(path), path.stat().st_size)
            except InvalidInput as problem:
                log.warning("logs: %s is damaged and was removed: %s", path.name, problem.message)
                path.unlink()

    def _journal_path(self, number: int) -> Path:
        return self._folder / f"{number:010d}.journal"
