"""The mounts of this process's mount namespace: the one parser of /proc/self/mountinfo."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

_ESCAPED = re.compile(rb"\\([0-7]{3})")


class Mount(msgspec.Struct, frozen=True):
    device: str  # major:minor of its superblock: the same one mounted twice has the same
    point: str
    kind: str  # the file system, like cgroup2
    options: tuple[str, ...]  # of the superblock; of a cgroup tree of version 1, its controllers


def parse_mounts(mountinfo: str) -> list[Mount]:
    """Pure. In the order of the kernel: what covers another mount comes after it."""
    found = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        own, (kind, _, options) = left.split(" "), right.split(" ", 2)  # a source may be empty
        found.append(Mount(own[2], _unescape(own[4]), kind, tuple(options.split(","))))
    return found


def read_mounts() -> list[Mount]:
    return parse_mounts(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))


def _unescape(text: str) -> str:
    """The kernel writes a blank, a tab, a line's end and a backslash as an octal number."""
    raw = text.encode(errors="surrogateescape")
    return _ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), raw).decode(errors="surrogateescape")
