"""Find the requested lines of a source, in the order in which they were printed. Reads segments and the newest lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path

import msgspec

from weft.objects.errors import InvalidInput
from weft.telemetry.logs.match import Matcher
from weft.telemetry.logs.segment import Lines, read_segment
from weft.telemetry.logs.store import LogStore


class StoredLine(msgspec.Struct, frozen=True):
    number: int
    at: int  # unix microseconds
    text: bytes  # without its newline


class Range(msgspec.Struct, frozen=True):
    """Range of one source: lines with numbers from ``first`` to before ``end``, printed from ``since`` to before ``until`` (unix
    microseconds; 0: any)."""

    uid: str
    first: int = 0
    end: int = 0
    since: int = 0
    until: int = 0


def read_lines(store: LogStore, asked: Range, matcher: Matcher | None) -> Iterator[list[StoredLine]]:
    """Block by block. Raises InvalidInput for a pattern that takes too long, OSError."""
    blocks = _list_blocks(store, asked)
    with ThreadPoolExecutor(1, "weft-logs") as ahead:  # the next block is read while one is searched
        loading = [ahead.submit(block.load) for block in blocks[:1]]
        for block, following in zip_longest(blocks, blocks[1:]):
            loaded = loading.pop().result()
            if following is not None:
                loading.append(ahead.submit(following.load))
            for lines in loaded:
                if found := _select(lines, block.range, matcher):
                    yield found


def read_last(store: LogStore, asked: Range, matcher: Matcher | None, most: int) -> list[StoredLine]:
    """The last ``most`` of them. Raises as ``read_lines``."""
    found: list[StoredLine] = []
    for block in reversed(_list_blocks(store, asked)):
        if len(found) >= most:
            break
        for lines in reversed(block.load()):
            if len(found) < most:
                found = _select(lines, block.range, matcher)[-(most - len(found)) :] + found
    return found


def read_on(store: LogStore, uid: str, first: int, most: int) -> list[StoredLine]:
    """The next lines of a source that it printed here, from number ``first`` on; ``most`` of them at most. Raises OSError."""
    found: list[StoredLine] = []
    for block in _list_blocks(store, Range(uid, first=first)):
        for lines in block.load():
            found += _select(lines, block.range, None)[: most - len(found)]
        if len(found) >= most:
            break
    return found


def collect_newest(store: LogStore, uid: str, most_bytes: int) -> list[Lines]:
    """The newest lines of a source, of ``most_bytes`` at most, in their order. Raises OSError."""
    found: list[Lines] = []
    size = 0
    for block in reversed(_list_blocks(store, Range(uid))):
        for whole in reversed(block.load()):
            lines = _clip(whole, block.range)
            size += 8 * len(lines.times) + len(lines.text)
            if size > most_bytes:
                return found
            if lines.times:
                found.insert(0, lines)
    return found


def _clip(lines: Lines, asked: Range) -> Lines:
    """Those of them whose numbers are asked for."""
    begin = max(0, asked.first - lines.first)
    stop = min(len(lines.times), asked.end - lines.first) if asked.end else len(lines.times)
    if begin == 0 and stop == len(lines.times):
        return lines
    kept = lines.text.split(b"\n")[begin:stop]
    return Lines(lines.uid, lines.first + begin, lines.times[begin:stop], b"".join(line + b"\n" for line in kept))


class _Block(msgspec.Struct, frozen=True):
    """Lines of a source, read when they are needed; ``range``: those of them that are asked for."""

    first: int
    range: Range
    source: Path | Lines

    def load(self) -> Sequence[Lines]:
        if isinstance(self.source, Lines):
            return (self.source,)
        try:
            return tuple(read_segment(self.source, self.range.uid))
        except FileNotFoundError:  # it has just become too old
            return ()
        except InvalidInput:  # damaged: the rest can be read
            return ()


def _list_blocks(store: LogStore, asked: Range) -> list[_Block]:
    """Oldest first, no line twice: what another node carried here stands for what is here as well."""
    carried, segments, newest = store.find(asked.uid)
    found: list[tuple[int, int, Path | Lines]] = []
    for segment in segments:
        parts = [part for part in segment.head.parts if part.uid == asked.uid]
        if any(part.until >= asked.since and not 0 < asked.until <= part.since for part in parts):
            found.append((parts[0].first, parts[-1].first + parts[-1].count, segment.path))
    found += [(lines.first, lines.first + len(lines.times), lines) for lines in newest]
    blocks = []
    low = high = 0
    if carried is not None:
        parts = [part for part in carried.head.parts if part.uid == asked.uid]
        low, high = parts[0].first, parts[-1].first + parts[-1].count
        blocks.append(_Block(low, asked, carried.path))
    for first, end, source in found:
        for begin, stop in ((first, min(end, low)), (max(first, high, asked.first), end)):
            if begin < stop and stop > asked.first:
                blocks.append(
                    _Block(begin, msgspec.structs.replace(asked, first=max(asked.first, begin), end=stop), source)
                )
    return sorted(blocks, key=lambda block: block.first)


def _select(lines: Lines, asked: Range, matcher: Matcher | None) -> list[StoredLine]:
    times, first, text = lines.times, lines.first, lines.text
    skipped = max(0, asked.first - first)
    stop = min(len(times), asked.end - first) if asked.end else len(times)
    if skipped >= stop:
        return []
    if matcher is None:
        pieces = text.split(b"\n")
        return [
            StoredLine(first + index, times[index], pieces[index])
            for index in range(skipped, stop)
            if _is_in(times[index], asked)
        ]
    found = []
    index = at = 0
    for begin in matcher.find(text):
        index += text.count(b"\n", at, begin)
        at = begin
        if skipped <= index < stop and _is_in(times[index], asked):
            found.append(StoredLine(first + index, times[index], text[begin : text.index(b"\n", begin)]))
    return found


def _is_in(at: int, asked: Range) -> bool:
    return at >= asked.since and not 0 < asked.until <= at
