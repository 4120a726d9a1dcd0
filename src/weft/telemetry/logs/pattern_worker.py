"""Searches lines for a regular expression, in a process of its own: a pattern may take for ever, and then only this one is ended.

Reads a length and a pattern, then blocks of lines (a length and the bytes); answers each with a count and where the lines begin
that match. A count of ERROR has a message instead. It imports nothing of weft.
"""

import re
import resource
import struct
import sys
from array import array

ERROR = 0xFFFFFFFF
MOST_BYTES = 64 << 20  # a block is 4 MiB
MOST_CPU_SECONDS = 3600
# What means something else in a block than in one line: then every line is searched alone.
_LOOKS_BEYOND = re.compile(rb"\\[AZsSDWbB]|\(\?[=!<(s]|\(\?[aiLmsux-]*s|\[\^")


def find_lines(pattern: re.Pattern[bytes], text: bytes, *, alone: bool) -> "array[int]":
    """Start offsets of the lines of ``text`` that the pattern matches, each by itself. Pure."""
    found = array("I")
    search = pattern.search
    if alone:
        at = 0
        for line in text.split(b"\n")[:-1]:
            if search(line):
                found.append(at)
            at += len(line) + 1
        return found
    at, end = 0, len(text)
    while at < end and (match := search(text, at)) is not None:
        begin = text.rfind(b"\n", 0, match.start()) + 1
        stop = text.find(b"\n", match.start())
        if begin >= end:  # an empty match behind the last line
            break
        if match.end() <= stop or search(text[begin:stop]):
            found.append(begin)
        at = stop + 1
    return found


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU_SECONDS, MOST_CPU_SECONDS))
    source, sink = sys.stdin.buffer, sys.stdout.buffer

    def read() -> bytes:
        head = source.read(4)
        return source.read(*struct.unpack("<I", head)) if len(head) == 4 else b""

    given = read()
    try:
        pattern = re.compile(given, re.MULTILINE)
    except (re.error, OverflowError, RecursionError, MemoryError) as problem:
        text = str(problem).encode()[:200]
        sink.write(struct.pack("<II", ERROR, len(text)) + text)
        sink.flush()
        return
    sink.write(struct.pack("<I", 0))
    sink.flush()
    alone = _LOOKS_BEYOND.search(given) is not None
    while text := read():
        found = find_lines(pattern, text, alone=alone)
        sink.write(struct.pack("<I", len(found)) + found.tobytes())
        sink.flush()


if __name__ == "__main__":
    main()
