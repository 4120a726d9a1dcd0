"""An instance's root and code, mounted where no other process sees them: in the mount namespace of the calling thread, which
has left the node's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from weft.contracts.driver.container import ContainerPlan
from weft.drivers.linux.syscalls import MS_NODEV, MS_NOSUID, MS_RDONLY, MS_REC, mount, mount_shifted

MS_REMOUNT, MS_BIND = 32, 4096
MOST_LAYERS = 120
ROOT = "rootfs"
_NEEDED = ("proc", "sys", "dev", "tmp", "etc", "var/task")


def mount_parts(place: Path, plan: ContainerPlan, mapping: int | None, files: Mapping[str, str]) -> ContainerPlan:
    """``plan.layers`` as one root, ``place/ROOT``, with the folders that a sandbox mounts over and these ``files`` (by their path
    inside) in the place of its own; all below ``place``, an empty folder. ``mapping`` is a user namespace's descriptor, whose users
    the layers' owners are seen as. The plan comes back with its mounts' sources as they lie here. Raises OSError that names what
    couldn't be mounted."""
    mount("tmpfs", place, "tmpfs", MS_NODEV | MS_NOSUID, "mode=0711,size=1m")
    os.chdir(place)  # of this thread alone; short names, so that many layers fit into one page of options
    names = [str(number) for number in range(len(plan.layers))]
    for name, layer in zip(names, plan.layers, strict=True):
        os.mkdir(name)
        if mapping is None:
            _bind(layer, place / name)
        else:
            mount_shifted(layer, place / name, mapping)
    for name in _NEEDED:
        (place / "below" / name).mkdir(parents=True)
    for path, text in files.items():
        _write(place / "above", path, text)
    _lay_over([*(["above"] if files else []), *names, "below"], place / ROOT)
    os.mkdir("empty")
    mounts = []
    for number, one in enumerate(plan.mounts):
        if one.source:
            os.mkdir(name := f"v{number}")
            _bind(one.source, place / name)
            _lay_over([name, "empty"], place / f"m{number}")
            one = msgspec.structs.replace(one, source=str(place / f"m{number}"))
        mounts.append(one)
    os.chdir("/")
    return msgspec.structs.replace(plan, mounts=mounts)


def _lay_over(names: Sequence[str], target: Path) -> None:
    """Lay folders over each other by overlayfs, even a single one: with a bind mount, programs inside would find the node's own
    path in /proc/self/mountinfo."""
    target.mkdir()
    mount("overlay", target, "overlay", MS_RDONLY | MS_NOSUID | MS_NODEV, f"lowerdir={':'.join(names)}")


def _write(top: Path, path: str, text: str) -> None:
    """Make it readable for everybody inside, whatever this process's umask is."""
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
