"""Files of an image, read through its layers as overlayfs would show them; no link leads out of them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_LINKS = 40
_MOST_BYTES = 1 << 20


def read_file(layers: list[Path], path: str) -> bytes | None:
    """Read a plain file, at most a MiB; ``layers`` are roots, the uppermost first. None: there is no such file."""
    left = [part for part in path.split("/") if part not in ("", ".")]
    done: list[str] = []
    links = 0
    while left:
        part = left.pop(0)
        if part == "..":
            done = done[:-1]
            continue
        found = _find(layers, [*done, part])
        if found is None:
            return None
        place, mode = found
        if stat.S_ISLNK(mode):
            links += 1
            target = os.readlink(place)
            if links > _LINKS:
                return None
            done = [] if target.startswith("/") else done
            left = [step for step in target.split("/") if step not in ("", ".")] + left
        elif left:
            if not stat.S_ISDIR(mode):
                return None
            done.append(part)
        else:
            return _read(place) if stat.S_ISREG(mode) else None
    return None


def _find(layers: list[Path], parts: list[str]) -> tuple[Path, int] | None:
    """The uppermost of that name. All but the last of ``parts`` are directories in the merged view."""
    for root in layers:
        place, hidden = root, False
        for position, part in enumerate(parts):
            hidden = hidden or is_opaque(place)
            place = place / part
            try:
                facts = place.lstat()
            except (FileNotFoundError, NotADirectoryError):
                break
            if stat.S_ISCHR(facts.st_mode) and facts.st_rdev == 0:
                return None
            if position == len(parts) - 1:
                return place, facts.st_mode
            if not stat.S_ISDIR(facts.st_mode):
                return None  # it hides what lower layers have there
        if hidden:
            return None
    return None


def is_opaque(folder: Path | str) -> bool:
    try:
        return os.getxattr(folder, "trusted.overlay.opaque", follow_symlinks=False) == b"y"
    except OSError:
        return False


def _read(place: Path) -> bytes:
    with open(os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        return file.read(_MOST_BYTES)
