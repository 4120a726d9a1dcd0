"""The server's store of traces: the spans of all its processes and nodes, in the files of a ``LogStore``, bounded by size and
age.

Spans of a trace lie in one of 16 sources, by the first digit of its id, so that a search reads a sixteenth of what there is. A
span may come twice, and one that isn't over comes again when it is: the newest counts.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.trace.span import Span
from weft.objects.errors import InvalidInput
from weft.telemetry.logs.gathering import GatheringStore
from weft.telemetry.logs.journal import Cursor
from weft.telemetry.logs.segment import Lines, read_segment
from weft.telemetry.logs.store import LogStore

MOST_BYTES = 256 << 20
MOST_AGE_SECONDS = 7 * 86400.0
MOST_SPANS = 10_000  # of one trace, that are read
MOST_SEARCHED = 300_000  # spans, for one list
GUESTS = "guests-"  # and a project: spans of its guests, which have a share of the store for themselves
MOST_OF_GUESTS = 2_000  # of one trace and project, that are read
_SOURCES = tuple(f"spans-{digit:x}" for digit in range(16))
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Span)


class Summary(msgspec.Struct, frozen=True):
    """One trace in a list. ``about``: what its first span is about; ``seconds``: from its first begin to its last end."""

    trace: str
    name: str
    about: str
    began_at: float  # unix seconds
    seconds: float
    spans: int
    over: bool
    error: str = ""


class TraceStore(GatheringStore):
    """Traces that the server's processes record, and that nodes send. ``on_new`` gets what is new."""

    def __init__(
        self,
        folder: Path,
        spools: Path,
        clock: Clock,
        most_bytes: int = MOST_BYTES,
        most_age: float = MOST_AGE_SECONDS,
        on_new: Callable[[list[Span]], None] | None = None,
    ) -> None:
        super().__init__(folder, spools, clock, most_bytes, most_age)
        self._on_new = on_new

    def put(self, spans: list[Span]) -> None:
        """Raises OSError."""
        with self.opened() as store:
            self._put(store, spans)

    def find(self, trace: str) -> list[Span]:
        """All spans of a trace that are still there, in the order of their begin: weft's own, and those of guests in the projects
        that these are about. Raises OSError."""
        begins = b'["%s"' % trace.encode()
        found: dict[str, Span] = {}
        for lines in self._read(_SOURCES[int(trace[0], 16)], 0):
            text = lines.text
            at = text.find(begins)
            while at >= 0 and len(found) < MOST_SPANS:
                end = text.index(b"\n", at)
                for one in _decode_lines([text[at:end]]):
                    _note(found, one)
                at = text.find(begins, end)
        projects = {one.project for one in found.values()}
        for one in self._find_guests(begins, projects if found else None):
            found.setdefault(one.id, one)
        return sorted(found.values(), key=lambda one: one.begin)

    def _find_guests(self, begins: bytes, projects: set[str | None] | None) -> list[Span]:
        """Guests' spans of a trace. Any guest that knows its id may send some: only those of ``projects`` belong to it, or, of a
        trace that only guests know (None), those of the project from which they came first. Raises OSError."""
        with self.opened() as store:
            sources = [name for name in store.list_uids() if name.startswith(GUESTS)]
        found: dict[str, tuple[int, dict[str, Span]]] = {}
        for source in sources:
            if projects is not None and source.removeprefix(GUESTS) not in projects:
                continue
            came, count, spans = 0, 0, dict[str, Span]()
            for lines in self._read(source, 0):
                at = lines.text.find(begins)
                while at >= 0 and count < MOST_OF_GUESTS:  # also of one that comes again and again
                    count += 1
                    end = lines.text.index(b"\n", at)
                    arrived = lines.times[lines.text.count(b"\n", 0, at)]
                    came = min(came or arrived, arrived)
                    for one in _decode_lines([lines.text[at:end]]):
                        spans.setdefault(one.id, one)
                    at = lines.text.find(begins, end)
            if spans:
                found[source] = came, spans
        if projects is None and found:
            first = min(found, key=lambda source: found[source][0])
            found = {first: found[first]}
        return [one for _, spans in found.values() for one in spans.values()]

    def search(self, since: float, sees: Callable[[Span], bool], about: str = "") -> list[Summary]:
        """The traces of which something began after ``since`` (unix seconds) and can be seen, newest first. ``about``: only
        those with a span about that. Raises OSError."""
        traces: dict[str, dict[str, Span]] = {}
        count = 0
        oldest = int(since * 1e9)
        for source in _SOURCES:
            for lines in self._read(source, int(since * 1e6)):
                for one in _decode_lines(lines.text.split(b"\n")):
                    count += 1
                    if one.begin >= oldest and sees(one):
                        _note(traces.setdefault(one.trace, {}), one)
                if count >= MOST_SEARCHED * (int(source[-1], 16) + 1) / 16:
                    break
        wanted = (spans.values() for spans in traces.values())
        summaries = [summarize(spans) for spans in wanted if not about or any(one.about == about for one in spans)]
        return sorted(summaries, key=lambda one: -one.began_at)

    def _list_spools(self) -> Iterable[tuple[str, Path]]:
        return [(f"spool-{folder.name}", folder) for folder in sorted(self._spools.glob("*/"))]

    def _take(self, store: LogStore, source: str, lines: list[bytes], read: Cursor) -> None:
        self._put(store, _decode_lines(lines))
        store.set_next(source, 0, read)

    def _put(self, store: LogStore, spans: list[Span]) -> None:
        by_source: dict[str, tuple[array[int], list[bytes]]] = {}
        for one in spans:
            is_guest_s = one.process.startswith("guest/")
            source = f"{GUESTS}{one.project}" if is_guest_s else _SOURCES[int(one.trace[0], 16)]
            times, texts = by_source.setdefault(source, (array("q"), []))
            times.append(int(self._clock.now() * 1e6) if is_guest_s else one.begin // 1000)
            texts.append(_encoder.encode(one) + b"\n")
        for source, (times, texts) in by_source.items():
            store.append(source, times, b"".join(texts))
        if spans and self._on_new is not None:
            self._on_new(spans)

    def _read(self, source: str, since: int) -> Iterator[Lines]:
        """Newest first; ``since`` in unix microseconds."""
        with self.opened() as store:
            _, segments, newest = store.find(source)
        yield from reversed(newest)
        for segment in reversed(segments):
            if segment.head.until < since:
                continue
            try:
                yield from list(read_segment(segment.path, source))
            except (InvalidInput, FileNotFoundError):  # it was just dropped, or is damaged
                continue


def summarize(spans: Iterable[Span]) -> Summary:
    """Summary of one trace's spans, at least one."""
    ordered = sorted(spans, key=lambda one: (one.begin, -one.end))
    known = {one.id for one in ordered}
    first = next((one for one in ordered if one.parent not in known), ordered[0])
    last = max(max(one.end, one.begin) for one in ordered)
    return Summary(
        first.trace,
        first.name,
        first.about,
        ordered[0].begin / 1e9,
        (last - ordered[0].begin) / 1e9,
        len(ordered),
        all(one.end for one in ordered),
        next((one.error for one in ordered if one.error), ""),
    )


def merge_summaries(parts: Iterable[Sequence[Summary]]) -> list[Summary]:
    """Summaries of traces of which several servers have a part each, newest first."""
    merged: dict[str, Summary] = {}
    for one in (one for part in parts for one in part):
        other = merged.get(one.trace)
        merged[one.trace] = one if other is None else _join(*sorted((one, other), key=lambda part: part.began_at))
    return sorted(merged.values(), key=lambda one: -one.began_at)


def _join(first: Summary, second: Summary) -> Summary:
    ends = max(one.began_at + one.seconds for one in (first, second))
    return msgspec.structs.replace(
        first,
        seconds=ends - first.began_at,
        spans=first.spans + second.spans,
        over=first.over and second.over,
        error=first.error or second.error,
    )


def _note(found: dict[str, Span], one: Span) -> None:
    """One that is over replaces one that isn't."""
    before = found.get(one.id)
    if before is None or not before.end:
        found[one.id] = one


def _decode_lines(lines: Iterable[bytes]) -> list[Span]:
    """A torn line counts as none."""
    spans = []
    for line in lines:
        if line:
            try:
                spans.append(_decoder.decode(line))
            except msgspec.MsgspecError:
                continue
    return [one for one in spans if len(one.trace) == 32 and one.trace[0] in "0123456789abcdef"]
