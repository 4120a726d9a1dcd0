"""A container's root: its layers under a folder of its own, put together by overlayfs in the calling thread's mounts.

Called in a thread that has left the node's mounts. With a user namespace, layers and what is written over them are seen with
shifted owners, so on disk all belongs to the users of the image, whichever range the container has.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from weft.contracts.driver.container import ContainerMount, ContainerPlan
from weft.drivers.linux.ext4 import FILE_SYSTEM
from weft.drivers.linux.syscalls import (
    CLONE_NEWNET,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    FilesAs,
    enter,
    mount,
    mount_shifted,
)
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.rootfs.loop_device import mount_disk
from weft.drivers.runtime.oci.translate import needs_sysfs, sysfs_source

MOST_LAYERS = 128
_WRITTEN, _DISK = "w", "disk"


class Root(msgspec.Struct, frozen=True):
    """``mapping`` is a descriptor of a user namespace that nobody is in; None: owners stay as they are."""

    plan: ContainerPlan
    paths: ContainerPaths
    first_user: int | None
    mapping: int | None


def make_folders(paths: ContainerPaths, *, disk: bool = False) -> None:
    """Make the folders that must exist before anything can be mounted; the container's users pass through, and can't list it."""
    for folder, mode in (
        (paths.run, 0o711),
        (paths.mounts, 0o711),
        (paths.root, 0o755),
        (paths.files, 0o755),
        (paths.exits, 0o700),
        (paths.state, 0o700),  # a program that its root made setuid is the node's root's, there on disk
        *(() if disk else _list_written(paths.upper)),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(mode)


def mount_root(root: Root) -> None:
    """Raises OSError that names what couldn't be mounted."""
    plan, paths = root.plan, root.paths
    os.chdir(paths.mounts)  # of this thread alone; short names, so that many layers fit into one page of options
    names = [str(number) for number in range(len(plan.layers))]
    for name, layer in zip(names, plan.layers, strict=True):
        _show(layer, Path(name), root.mapping)
    _show(str(mount_written(paths, paths.mounts / _DISK)), Path(_WRITTEN), root.mapping)
    # one that a crash left behind holds nothing that is needed; an empty layer below makes a single one do
    options = f"lowerdir={':'.join(names)},upperdir={_WRITTEN}/upper,workdir={_WRITTEN}/work"
    if root.first_user is None:
        mount("overlay", paths.root, "overlay", 0, options)
    else:
        with FilesAs(root.first_user):
            mount("overlay", paths.root, "overlay", 0, options)
    if os.statvfs(paths.root).f_flag & os.ST_RDONLY:
        raise OSError(0, "overlayfs is read-only there: it can't write to its work folder", str(paths.root))
    for number, volume in enumerate(plan.mounts):
        if volume.source:
            _show_volume(volume, number, root.mapping)
    if needs_sysfs(plan, root.first_user):
        _mount_sysfs(plan.netns, sysfs_source(paths))


def _list_written(upper: Path) -> tuple[tuple[Path, int], ...]:
    return (upper, 0o755), (upper.with_name("work"), 0o755)


def mount_written(paths: ContainerPaths, disk: Path) -> Path:
    """The folder on which overlayfs writes: on a disk of its own, mounted at ``disk``, or in the node's. Raises OSError."""
    if not paths.disk.exists():
        return paths.upper.parent
    disk.mkdir(parents=True, exist_ok=True)
    mount_disk(str(paths.disk), disk, FILE_SYSTEM)
    for folder, mode in _list_written(disk / paths.upper.name):
        folder.mkdir(exist_ok=True)
        folder.chmod(mode)
    return disk


def _show_volume(volume: ContainerMount, number: int, mapping: int | None) -> None:
    name, source = Path(f"v{number}"), volume.source
    if volume.file_system:
        disk = Path(f"d{number}") if mapping is not None else name
        disk.mkdir(exist_ok=True)
        mount_disk(volume.source, disk, volume.file_system)
        source = str(disk)
    if mapping is not None:
        _show(source, name, mapping)


def _show(source: str, name: Path, mapping: int | None) -> None:
    if mapping is None:
        name.unlink(missing_ok=True)
        name.symlink_to(source)
    elif os.path.isdir(source):
        name.mkdir(exist_ok=True)
        mount_shifted(source, name, mapping)
    else:
        name.touch()
        mount_shifted(source, name, mapping)


def _mount_sysfs(netns: str, target: Path) -> None:
    """A namespace's sysfs shows its links, and is mounted from inside. Ports below 1024 are for everyone in there, and so is
    ping: who isn't root in an image serves and looks for others, too."""
    target.mkdir(exist_ok=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        inside = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            enter(inside, CLONE_NEWNET)
        finally:
            os.close(inside)
        try:
            mount("sysfs", target, "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
            Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0")
            Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")
        finally:
            enter(home, CLONE_NEWNET)
    finally:
        os.close(home)
