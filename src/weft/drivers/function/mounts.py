"""An instance's root and code, mounted where nobody else sees them: in mounts of the calling thread, which has left the node's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import msgspec

from weft.drivers.linux.syscalls import MS_NODEV, MS_NOSUID, MS_RDONLY, MS_REC, mount, mount_shifted

MS_REMOUNT, MS_BIND = 32, 4096
MOST_LAYERS = 120
NO_FILES: Mapping[str, str] = MappingProxyType({})
_NEEDED = ("proc", "sys", "dev", "tmp", "etc", "var/task")


class Mounted(msgspec.Struct, frozen=True):
    root: str
    code: str


def mount_parts(
    place: Path, layers: Sequence[str], code: str, mapping: int | None = None, files: Mapping[str, str] = NO_FILES
) -> Mounted:
    """``layers`` as one root, the uppermost first, with the folders that a sandbox mounts over and these ``files`` (by their path
    inside) in the place of its own; all below ``place``, an empty folder. ``mapping`` is a user namespace's descriptor,
    whose users the layers' owners are seen as. Raises OSError that names what couldn't be mounted."""
    mount("tmpfs", place, "tmpfs", MS_NODEV | MS_NOSUID, "mode=0711,size=1m")
    os.chdir(place)  # of this thread alone; short names, so that many layers fit into one page of options
    root, task = place / "root", place / "task"
    names = [str(number) for number in range(len(layers))]
    for name, layer in zip(names, layers, strict=True):
        os.mkdir(name)
        if mapping is None:
            _bind(layer, place / name)
        else:
            mount_shifted(layer, place / name, mapping)
    for name in _NEEDED:
        (place / "below" / name).mkdir(parents=True)
    for path, text in files.items():
        _write(place / "above", path, text)
    _lay_over([*(["above"] if files else []), *names, "below"], root)
    if code:
        os.mkdir("code")
        os.mkdir("empty")
        _bind(code, place / "code")
        _lay_over(["code", "empty"], task)
    os.chdir("/")
    return Mounted(str(root), str(task) if code else "")


def _lay_over(names: Sequence[str], target: Path) -> None:
    """By overlayfs also what is one folder: of a bind, whoever is inside finds the node's own path in /proc/self/mountinfo."""
    target.mkdir()
    mount("overlay", target, "overlay", MS_RDONLY | MS_NOSUID | MS_NODEV, f"lowerdir={':'.join(names)}")


def _write(top: Path, path: str, text: str) -> None:
    """Readable by whoever is inside, whatever this process's umask is."""
    file = top / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o644)
    for folder in file.parents:
        folder.chmod(0o755)
        if folder == top:
            break


def _bind(source: str, target: Path) -> None:
    mount(source, target, "", MS_BIND | MS_REC)
    mount("", target, "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
